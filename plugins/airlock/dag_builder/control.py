"""``<model>__control``: steer the release that is on its way, from the UI's form or the REST API."""

from __future__ import annotations

from airflow.sdk import DAG, Param

from airlock.core.spec import ModelSpec
from airlock.dag_builder.common import model_dag, run_param
from airlock.operators.steering import ACTIONS, SteerReleaseOperator


def control_dag(spec: ModelSpec) -> DAG:
    dag = model_dag(
        spec,
        "control",
        description="Pause, resume, extend, promote or abort the release that is on its way.",
        schedule=None,
        params={
            # Neither has a default: whoever misspells a name must not get an action that was not asked for.
            "action": Param(
                type="string",
                enum=list(ACTIONS),
                title="Action",
                description="pause: the shares stay, guards go on. resume. extend: the deadline moves. promote: "
                "through the remaining steps without waiting, past no breach. abort: off traffic.",
            ),
            "reason": Param(
                type="string",
                minLength=3,
                title="Reason",
                description="Why, in words; it is kept in the ledger.",
            ),
            "extend_by": Param(
                None,
                type=["null", "string"],
                pattern=r"^(\d+(?:\.\d+)?)([smhd])$",
                title="Extend by",
                description="Of extend: a duration such as 90s, 15m, 6h or 14d.",
            ),
        },
    )
    with dag:
        SteerReleaseOperator(
            task_id="steer",
            model=spec.model,
            action=run_param(dag, "action"),
            reason=run_param(dag, "reason"),
            extend_by=run_param(dag, "extend_by"),
        )
    return dag
