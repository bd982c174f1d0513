"""From a folder of model specs to Airflow DAGs, six for each model and one that repairs them all."""

from airlock.dag_builder.build import build_dags, dags_of

__all__ = ["build_dags", "dags_of"]
