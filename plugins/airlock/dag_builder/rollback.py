"""``<model>__rollback``: one step back to an earlier good version."""

from __future__ import annotations

from airflow.sdk import DAG, Param

from airlock import assets
from airlock.core.spec import ModelSpec
from airlock.dag_builder.common import model_dag, run_param
from airlock.operators.rollback import RollbackOperator


def rollback_dag(spec: ModelSpec) -> DAG:
    dag = model_dag(
        spec,
        "rollback",
        description="Give production back to an earlier good version, in one step.",
        schedule=None,
        params={
            "to": Param(
                None,
                type=["null", "string"],
                pattern=r"^[1-9][0-9]*$",
                title="To version",
                description="A version that was promoted before. Empty: the one before the champion.",
            ),
            "reason": Param(
                "rolled back by hand",
                type="string",
                minLength=3,
                title="Reason",
                description="Why, in words; it is kept in the ledger.",
            ),
        },
    )
    with dag:
        RollbackOperator(
            task_id="roll_back",
            model=spec.model,
            to=run_param(dag, "to"),
            reason=run_param(dag, "reason"),
            outlets=[assets.champion(spec.model)],
        )
    return dag
