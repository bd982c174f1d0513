"""Build the DAGs of every spec in a folder. Runs at parse time: no heavy import, no input but the files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException

from airlock.core.errors import SpecError
from airlock.core.spec import ModelSpec
from airlock.dag_builder.monitor import monitor_dag
from airlock.dag_builder.refused import RefusedSpec
from airlock.dag_builder.release import release_dag
from airlock.dag_builder.rollback import rollback_dag
from airlock.dag_builder.score import score_dag
from airlock.dag_builder.train import train_dag
from airlock.specs import load_spec, spec_files


def dags_of(spec: ModelSpec) -> tuple[DAG, ...]:
    """One model's five DAGs: train, release, monitor, rollback and score."""
    return train_dag(spec), release_dag(spec), monitor_dag(spec), rollback_dag(spec), score_dag(spec)


def build_dags(folder: Path) -> Mapping[str, DAG]:
    """The DAGs of every spec in ``folder``, by DAG id, in the order of the file names.

    A spec that cannot be used becomes an import error under its own file's name and takes no
    other model's DAGs down.
    """
    dags: dict[str, DAG] = {}
    for path in spec_files(folder):
        try:
            built = dags_of(load_spec(path))
            for dag in built:
                dag.validate()  # type: ignore[no-untyped-call]
        except SpecError as error:
            built = (RefusedSpec(path, error),)
        except AirflowException as error:
            # What only Airflow can tell, such as a cron expression that it does not take.
            built = (RefusedSpec(path, SpecError(f"{path}: Airflow refuses its DAGs: {error}")),)
        dags |= {dag.dag_id: dag for dag in built}
    return dags
