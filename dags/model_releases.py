"""Six Airflow DAGs for each model spec in dags/models (train, release, control, rollback, monitor, score); repairs."""

from pathlib import Path

from airlock.dag_builder import build_dags

globals().update(build_dags(Path(__file__).parent / "models"))
