"""``<model>__release``: from a registered candidate to the champion, on evidence from live traffic."""

from __future__ import annotations

from airflow.sdk import DAG, Label, Param, TriggerRule

from airlock import assets
from airlock.core.release import plan
from airlock.core.spec import ModelSpec
from airlock.dag_builder.common import model_dag, run_param
from airlock.operators.approval import ApproveReleaseOperator
from airlock.operators.base import ModelOperator
from airlock.operators.release import (
    PackageBentoOperator,
    PromoteOperator,
    ReleaseStepOperator,
    RestoreTrafficOperator,
)


def release_dag(spec: ModelSpec) -> DAG:
    model = spec.model
    dag = model_dag(
        spec,
        "release",
        description="Bento, approval, warm-up, shadow, canary, promotion; safe traffic whatever happens.",
        schedule=[assets.candidate(model)],
        max_active_runs=1,
        params=_params(),
    )
    with dag:
        packaged = PackageBentoOperator(task_id="package", model=model, version=run_param(dag, "version"))
        # By template, not by reference: a reference would draw an edge to every later task.
        release = "{{ ti.xcom_pull(task_ids='package')['id'] }}"
        last: ModelOperator | ApproveReleaseOperator = packaged
        if spec.approval.required:
            last = ApproveReleaseOperator(
                task_id="approve",
                model=model,
                release=release,
                approvers=spec.approval.approvers,
                response_timeout=spec.approval.expires,
            )
            packaged >> last
        promote = PromoteOperator(
            task_id="promote",
            model=model,
            release=release,
            trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS,
            outlets=[assets.champion(model)],
        )
        for step in plan(spec):
            first = step.role == "warm_up"
            task = ReleaseStepOperator(
                task_id=step.name,
                model=model,
                release=release,
                step=step.name,
                skip_shadow=run_param(dag, "skip_shadow") if first else False,
                # A skipped shadow does not skip the canary.
                trigger_rule=TriggerRule.ALL_SUCCESS if first else TriggerRule.NONE_FAILED,
            )
            last >> task
            if first:
                task >> Label("no champion yet") >> promote
            last = task
        last >> promote
        restore = RestoreTrafficOperator(task_id="restore_traffic", model=model, release=release)
        promote >> restore.as_teardown(setups=packaged)
    return dag


def _params() -> dict[str, Param]:
    return {
        "version": Param(
            None,
            type=["null", "string"],
            pattern=r"^[1-9][0-9]*$",
            title="Version",
            description="Number of a registered version. Empty: the triggering event's, or the newest.",
        ),
        "skip_shadow": Param(
            False,
            type="boolean",
            title="Skip the shadow",
            description="Go from the warm-up to the canary at once.",
        ),
    }
