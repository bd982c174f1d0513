"""Build the DAGs of every spec in a folder. Runs at parse time: no heavy import, no input but the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from airflow.sdk import DAG, get_parsing_context
from airflow.sdk.exceptions import AirflowException

from airlock.core.errors import SpecError
from airlock.core.spec import ModelSpec
from airlock.dag_builder.control import control_dag
from airlock.dag_builder.monitor import monitor_dag
from airlock.dag_builder.reconcile import reconcile_dag
from airlock.dag_builder.refused import RefusedSpec
from airlock.dag_builder.release import release_dag
from airlock.dag_builder.rollback import rollback_dag
from airlock.dag_builder.score import score_dag
from airlock.dag_builder.train import train_dag
from airlock.specs import load_spec, spec_files


def dags_of(spec: ModelSpec) -> tuple[DAG, ...]:
    """One model's six DAGs: train, release, control, rollback, monitor and score."""
    builders = (train_dag, release_dag, control_dag, rollback_dag, monitor_dag, score_dag)
    return tuple(build(spec) for build in builders)


def build_dags(folder: Path) -> Mapping[str, DAG]:
    """The DAGs of every spec in ``folder``, by DAG id, in the order of the file names, and one that repairs them all.

    A spec that cannot be used becomes an import error under its own file's name and takes no
    other model's DAGs down. Airflow takes errors of files that are no Python off its list again with each look at the
    folder, so it is shown for some seconds of every half minute; ``airlock spec lint`` always tells.

    To run a task Airflow parses the loader and says for which DAG: only that model's are built then, or starting a task
    would take the longer the more models there are.
    """
    # Also without a file: a release that is open goes by the spec that it was opened with.
    repairs = reconcile_dag()
    dags: dict[str, DAG] = {}
    for path in _asked_for(spec_files(folder), repairs.dag_id):
        try:
            spec = load_spec(path)
            built = dags_of(spec)
            for dag in built:
                dag.validate()  # type: ignore[no-untyped-call]
        except SpecError as error:
            built = (RefusedSpec(path, error),)
        except AirflowException as error:
            # What only Airflow can tell, such as a cron expression that it does not take.
            built = (RefusedSpec(path, SpecError(f"{path}: Airflow refuses its DAGs: {error}")),)
        dags |= {dag.dag_id: dag for dag in built}
    dags[repairs.dag_id] = repairs
    return dags


def _asked_for(paths: Sequence[Path], repairs: str) -> Sequence[Path]:
    """The specs that may hold the DAG that Airflow asks for; all, if it asks for none or for one of no file's name."""
    asked = get_parsing_context().dag_id
    if asked == repairs:
        return ()
    return [path for path in paths if asked and asked.startswith(f"{path.stem}__")] or paths
