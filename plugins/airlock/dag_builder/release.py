"""``<model>__release``: from a registered candidate to the champion, on evidence from live traffic."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Label, Param, TriggerRule
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert

from airlock import assets
from airlock.core.release import plan
from airlock.core.spec import ModelSpec, written
from airlock.dag_builder.common import model_dag, run_param
from airlock.deadlines import RunCreated
from airlock.operators.approval import ApproveReleaseOperator
from airlock.operators.record import WriteRecordOperator
from airlock.operators.release import (
    CompleteReleaseOperator,
    PackageBentoOperator,
    PromoteOperator,
    ReleaseOperator,
    RestoreTrafficOperator,
)
from airlock.operators.step import ReleaseStepOperator, WatchTrafficOperator
from airlock.triggers.overdue import release_overdue

_RELEASE = "{{ ti.xcom_pull(task_ids='package')['id'] }}"
"""By template, not by reference: a reference would draw an edge to every later task."""

_RETRIES = 12
_RETRY_AT_MOST = timedelta(seconds=15)
"""A ledger that is away for three minutes costs no release, and one that is back waits for no task for long: a release
that has failed meanwhile is taken back by the first that runs. A task that wakes up before a busy scheduler has seen it
pause is taken for killed: that costs a try, and no more."""

_SLACK = timedelta(minutes=30)
"""For packing, starting tasks and loading versions, beside what the steps and the questions may take."""


def release_dag(spec: ModelSpec) -> DAG:
    """The release's tasks, as the rollout's plan and the approvals have them.

    Several runs may be active: the ledger lets one release have traffic, and a later candidate ends those that have
    none yet, so that a question nobody answers holds up nobody.
    """
    model, approvals = spec.model, spec.approvals
    promotes = spec.rollout.plan != "shadow_only"
    dag = model_dag(
        spec,
        "release",
        description=_description(spec),
        schedule=[assets.candidate(model)],
        max_active_runs=4,
        params=_params(),
        deadline=_overdue(spec),
    )
    with dag:
        packaged = PackageBentoOperator(task_id="package", model=model, version=run_param(dag, "version"))
        last: Sequence[ReleaseOperator] | PackageBentoOperator = packaged
        if approvals.required and approvals.before == "traffic":
            last = _questions(spec, packaged)
        steps = _steps(spec, dag, first=_rule_after(last))
        last >> steps[0]
        last = [steps[-1]]
        if approvals.required and approvals.before == "promotion" and promotes:
            watch = WatchTrafficOperator(
                task_id="watch", **_common(spec), step=steps[-1].step, trigger_rule=TriggerRule.NONE_FAILED
            )
            steps[-1] >> watch
            last = [*_questions(spec, steps[-1]), watch]
        end: ReleaseOperator
        if promotes:
            end = PromoteOperator(
                task_id="promote",
                **_common(spec),
                trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS,
                outlets=[assets.champion(model)],
            )
            steps[0] >> Label("no champion yet") >> end
        else:
            end = CompleteReleaseOperator(task_id="complete", **_common(spec))
        last >> end
        restore = RestoreTrafficOperator(task_id="restore_traffic", **_common(spec))
        # Both are teardowns: they run whatever happened, and their success does not make the run a success.
        record = WriteRecordOperator(task_id="write_record", **_common(spec))
        end >> restore.as_teardown(setups=packaged) >> record.as_teardown(setups=packaged)
    return dag


def _common(spec: ModelSpec) -> dict[str, Any]:
    return {"model": spec.model, "release": _RELEASE, "retries": _RETRIES, "max_retry_delay": _RETRY_AT_MOST}


def _rule_after(before: object) -> TriggerRule:
    """What is skipped, the shadow or a question that nobody had to ask again, skips nothing after it.

    Right after the setup Airflow takes nothing but ``ALL_SUCCESS``.
    """
    return TriggerRule.ALL_SUCCESS if isinstance(before, PackageBentoOperator) else TriggerRule.NONE_FAILED


def _steps(spec: ModelSpec, dag: DAG, *, first: TriggerRule) -> list[ReleaseStepOperator]:
    steps: list[ReleaseStepOperator] = []
    for step in plan(spec):
        task = ReleaseStepOperator(
            task_id=step.name,
            **_common(spec),
            step=step.name,
            skip_shadow=run_param(dag, "skip_shadow") if not steps else False,
            trigger_rule=TriggerRule.NONE_FAILED if steps else first,
        )
        if steps:
            steps[-1] >> task
        steps.append(task)
    return steps


def _questions(spec: ModelSpec, before: ReleaseOperator | PackageBentoOperator) -> list[ReleaseOperator]:
    """One task for each person that has to approve, and one more each for when the evidence changes meanwhile."""
    approvals = spec.approvals
    names = ["approve"] if approvals.required == 1 else [f"approve_{n}" for n in range(1, approvals.required + 1)]

    def ask(name: str, rule: TriggerRule) -> ApproveReleaseOperator:
        return ApproveReleaseOperator(
            task_id=name,
            **_common(spec),
            approvers=approvals.approvers,
            response_timeout=approvals.expires,
            trigger_rule=rule,
        )

    first: list[ReleaseOperator] = [ask(name, _rule_after(before)) for name in names]
    again: list[ReleaseOperator] = [ask(f"{name}_again", TriggerRule.ALL_SUCCESS) for name in names]
    before >> first
    for task in first:
        task >> again
    return [*first, *again]


def _overdue(spec: ModelSpec) -> DeadlineAlert:
    """Told when a run takes longer than its questions and steps may, pauses and extensions left aside."""
    asked = spec.approvals.expires if spec.approvals.required else timedelta(0)
    longest = sum((step.deadline for step in plan(spec)), asked + _SLACK)
    return DeadlineAlert(
        reference=RunCreated(),
        interval=longest,
        callback=AsyncCallback(release_overdue, kwargs={"model": spec.model, "after": written(longest)}),
    )


def _description(spec: ModelSpec) -> str:
    way = {
        "canary": "shadow, canary, promotion",
        "blue_green": "shadow, everything at once, promotion",
        "shadow_only": "shadow, without promotion",
        "experiment": "shadow, A/B test, promotion",
    }[spec.rollout.plan]
    count = spec.approvals.required
    asked = f"{count} approval{'s' * (count > 1)} before {spec.approvals.before}, " if count else ""
    return f"Bento, {asked}warm-up, {way}; safe traffic whatever happens."


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
            description="Go from the warm-up to the next step at once.",
        ),
    }
