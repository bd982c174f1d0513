"""Airflow as a release feels it, on a clock of its own: heartbeats, a pool, retries with their delays, deferral.

The DAG, its trigger rules, its retries, the operators and what its triggers look at are the real ones. Simulated are
the scheduler, the workers and the triggerer, each of which may be away, and the seconds that each of them takes.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from airflow.sdk import DAG, TriggerRule
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, TaskDeferred
from airflow.sdk.execution_time.context import OutletEventAccessors, TriggeringAssetEventsAccessor
from airflow.triggers.base import BaseTrigger

from airlock.core.decide import Evidence
from airlock.core.errors import AirlockError
from airlock.core.polls import Polls
from airlock.core.release import Release
from airlock.core.route import Limit
from airlock.core.spec import ModelSpec
from airlock.triggers import release as step_triggers
from airlock.triggers.ledger import LedgerTrigger, LedgerWatch
from airlock.triggers.release import ReleaseStepTrigger

HEARTBEAT = timedelta(seconds=0.5)
START_UP = timedelta(seconds=1.2)
"""How long a worker needs before a task's own code runs."""
DONE = frozenset({"success", "failed", "skipped", "upstream_failed"})
_FAILED = frozenset({"failed", "upstream_failed"})
_TIMED_OUT = {"error": "Trigger timeout"}


class ModelClock:
    """Goes on when it is told to. It begins now: operators and triggers ask the real one too."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(microseconds=1)
        return self.now


@dataclass
class TaskRun:
    """A task instance: where it stands, and with what it goes on."""

    task: Any
    state: str = "none"
    tries: int = 0
    at: datetime | None = None
    """When it may be tried again, when its wait is over, or when its worker is ready."""
    trigger: BaseTrigger | None = None
    method: str | None = None
    event: dict[str, Any] | None = None

    def clear(self) -> None:
        self.state, self.at, self.trigger, self.method, self.event = "none", None, None, None, None


@dataclass
class DagRun:
    run_id: str
    release: Release
    tasks: dict[str, TaskRun]
    paused: bool = False

    @property
    def ended(self) -> bool:
        return all(run.state in DONE for run in self.tasks.values())

    @property
    def state(self) -> str:
        if not self.ended:
            return "running"
        leaves = [run for run in self.tasks.values() if not run.task.is_teardown]
        return "failed" if any(run.state in _FAILED for run in leaves) else "success"


@dataclass
class SimulatedAirflow:
    """Runs of one release DAG. ``prepare`` gives a task its hooks, ``executed`` is told of each run of a task's
    code and whether it came to its end."""

    dag: DAG
    clock: ModelClock
    prepare: Callable[[Any, DagRun], None]
    starting: Callable[[DagRun, TaskRun], None]
    executed: Callable[[DagRun, TaskRun, bool], None]
    look: Callable[[], None]
    scheduler: bool = True
    triggerer: bool = True
    slots: int = 2
    runs: list[DagRun] = field(default_factory=list)
    next_is_killed: bool = False

    def start(self, release: Release, run_id: str) -> None:
        """A run whose packing is done: its release is open."""
        tasks = {task.task_id: TaskRun(task) for task in self.dag.tasks}
        tasks["package"].state = "success"
        self.runs.append(DagRun(run_id, release, tasks))

    def advance(self, seconds: float) -> None:
        """Let time go by, one heartbeat after the other."""
        end = self.clock.now + timedelta(seconds=seconds)
        while self.clock.now < end:
            self.clock.now += HEARTBEAT
            if self.triggerer:
                self._trigger()
            if self.scheduler:
                self._schedule()
            self._work()
            self.look()

    def clear(self, run: DagRun, task_id: str) -> None:
        """As the button does it: the task and everything after it begin anew."""
        for each in [task_id, *(task.task_id for task in self.dag.get_task(task_id).get_flat_relatives())]:
            if run.tasks[each].state != "running":
                run.tasks[each].clear()

    def _all(self) -> list[tuple[DagRun, TaskRun]]:
        return [(run, task) for run in self.runs for task in run.tasks.values()]

    def _trigger(self) -> None:
        for _, task in self._all():
            if task.state == "deferred" and task.trigger is not None and (event := fires(task.trigger)) is not None:
                task.state, task.trigger, task.event, task.at = "scheduled", None, event, None

    def _schedule(self) -> None:
        now = self.clock.now
        for run, task in self._all():
            if task.state == "deferred" and task.at is not None and now >= task.at:
                task.state, task.trigger, task.event, task.at = "scheduled", None, _TIMED_OUT, None
            if task.state == "up_for_retry" and task.at is not None and now >= task.at:
                task.state, task.at = "scheduled", None
            if task.state == "none" and (then := _follows(run, task.task)) is not None:
                task.state = then
            if task.state == "scheduled" and not run.paused:
                task.state = "queued"

    def _work(self) -> None:
        for run, task in self._all():
            if task.state == "running" and task.at is not None and self.clock.now >= task.at:
                self._execute(run, task)
        free = self.slots - sum(task.state == "running" for _, task in self._all())
        for run, task in self._all():
            if task.state == "queued" and free > 0:
                task.state, task.at, free = "running", self.clock.now + START_UP, free - 1
                self.starting(run, task)

    def _execute(self, run: DagRun, task: TaskRun) -> None:
        if task.method is None:
            task.tries += 1
        if self.next_is_killed:
            self.next_is_killed = False
            self._again(task)
            self.executed(run, task, False)
            return
        self.executed(run, task, self._act(run, task))

    def _act(self, run: DagRun, task: TaskRun) -> bool:
        """Whether the task's code got as far as it wanted to."""
        operator, context = copy.copy(task.task), context_of(self, run)
        skipped: set[str] = set()
        operator.__dict__["skip"] = lambda _, tasks: skipped.update(each.task_id for each in tasks)
        self.prepare(operator, run)
        method, event, task.event, task.at = task.method, task.event, None, None
        try:
            if method is None:
                operator.execute(context)
            elif event is _TIMED_OUT:
                operator.resume_execution("__fail__", _TIMED_OUT, context)
            else:
                getattr(operator, method)(context, event)
        except TaskDeferred as waits:
            task.state, task.trigger, task.method = "deferred", waits.trigger, waits.method_name
            timeout = waits.timeout
            task.at = None if timeout is None else self.clock.now + timeout  # type: ignore[operator]
        except AirflowSkipException:
            task.state = "skipped"
        except AirflowFailException:
            task.state = "failed"
        except AirlockError as error:
            self._again(task)
            task.task.log.info("up for retry: %s", error)
            return False
        else:
            task.state = "success"
            for each in skipped:
                run.tasks[each].state = "skipped"
        return True

    def _again(self, task: TaskRun) -> None:
        made = task.task
        if task.tries > made.retries:
            task.state = "failed"
            return
        delay = made.retry_delay * (made.retry_exponential_backoff or 1.0) ** max(task.tries - 1, 0)
        delay = min(delay, made.max_retry_delay) if made.max_retry_delay else delay
        task.clear()
        task.state, task.at = "up_for_retry", self.clock.now + delay


def _follows(run: DagRun, task: Any) -> str | None:
    """What becomes of a task that has not run, by its trigger rule; ``None`` while that is open."""
    upstream = [run.tasks[each].state for each in task.upstream_task_ids]
    failed, done = sum(state in _FAILED for state in upstream), sum(state in DONE for state in upstream)
    rule = task.trigger_rule
    if task.is_teardown:
        return "scheduled" if done == len(upstream) else None
    if failed:
        return "upstream_failed"
    if rule is TriggerRule.ALL_SUCCESS and "skipped" in upstream:
        return "skipped"
    if done < len(upstream):
        return None
    if rule is TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS and "success" not in upstream:
        return "skipped"
    return "scheduled"


def fires(trigger: BaseTrigger) -> dict[str, Any] | None:
    """What a trigger would fire with now; it is asked as its own loop asks."""

    async def once() -> dict[str, Any] | None:
        if isinstance(trigger, ReleaseStepTrigger):
            spec, release = ModelSpec.model_validate(trigger.spec), Release.model_validate(trigger.release)
            watch = LedgerWatch(trigger.ledger_conn_id, release.id, {"release": release.model_dump(mode="json")})
            if await watch.moved():
                return {"action": "wake", "reason": "the ledger has moved on", "polls": trigger.polls}
            status = await step_triggers.gateway_status(None, spec.model)  # type: ignore[arg-type]
            polls = Polls.model_validate(trigger.polls or {}).polled(release, status, HEARTBEAT.total_seconds())
            trigger.polls = polls.model_dump(mode="json")
            limits = None if trigger.limits is None else tuple(Limit.model_validate(each) for each in trigger.limits)
            said = trigger._judged(spec, release, Evidence(gateway=status, polls=polls, limits=limits))
            return None if said is None else {"polls": trigger.polls, **said}
        assert isinstance(trigger, LedgerTrigger)
        trigger.__dict__["_client"] = None
        return await trigger.look(LedgerWatch(trigger.ledger_conn_id, trigger.release, trigger.seen))

    return asyncio.run(once())


def context_of(airflow: SimulatedAirflow, run: DagRun) -> Any:
    """What Airflow hands to a task."""

    def state_of(_: str, run_id: str) -> str:
        return next(each.state for each in airflow.runs if each.run_id == run_id)

    return {
        "run_id": run.run_id,
        "dag_run": SimpleNamespace(dag_id=airflow.dag.dag_id, run_id=run.run_id, triggering_user_name="ann", conf=None),
        "triggering_asset_events": TriggeringAssetEventsAccessor.build([]),
        "outlet_events": OutletEventAccessors(),
        "ti": SimpleNamespace(
            id="01a1fdcd-ac06-7d3c-aeaa-c9835429a2f0",
            try_number=1,
            map_index=-1,
            xcom_push=lambda **_: None,
            xcom_pull=lambda **_: "",
            get_dr_count=lambda _, run_ids: sum(each.run_id in run_ids for each in airflow.runs),
            get_dagrun_state=state_of,
        ),
    }
