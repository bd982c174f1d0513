"""From a folder of model specs to Airflow DAGs, five for each model."""

from airlock.dag_builder.build import build_dags, dags_of

__all__ = ["build_dags", "dags_of"]
