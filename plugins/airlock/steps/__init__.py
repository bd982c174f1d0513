"""The steps of a release: plain functions that do the real work and return references. No Airflow."""
