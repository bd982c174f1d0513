"""Following DAG runs and the releases that they carry: start, wait, answer, and tell every task that changed."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from airlock.airflow_api import AirflowApi, Approval, Run, TaskRun, why_failed
from airlock.core.errors import NotFound, NotPossible, Unavailable
from airlock.core.release import Phase, Release
from airlock.core.spec import ModelSpec
from airlock.core.tally import GatewayStatus
from airlock.demo.diagnosis import diagnosis, release_of
from airlock.demo.progress import Progress
from airlock.demo.waiting import Patience, StoryBroken
from airlock.gateway_client import GatewayClient
from airlock.ledger import Ledger
from airlock.settings import Settings

T = TypeVar("T")

_READING = 2.0


class Follower:
    """One model's runs. ``approver`` is Airflow as the person who says yes.

    ``undisturbed`` is called at every look and raises when there is nothing to wait for any more.
    """

    def __init__(
        self,
        spec: ModelSpec,
        settings: Settings,
        *,
        api: AirflowApi,
        approver: AirflowApi,
        ledger: Ledger,
        progress: Progress,
        undisturbed: Callable[[], None] = lambda: None,
        patience: Patience | None = None,
    ) -> None:
        self._spec = spec
        self._settings = settings
        self._api = api
        self._approver = approver
        self._ledger = ledger
        self._progress = progress
        self._undisturbed = undisturbed
        self._patience = patience or Patience()
        self._known: set[str] = set()
        self._last: Run | None = None

    def until(self, reached: Callable[[], T | None], what: str, moves: Callable[[], object] = lambda: None) -> T:
        """What ``reached`` returns, as soon as that is true; see :meth:`Patience.until`."""

        def looked() -> T | None:
            self._undisturbed()
            return reached()

        return self._patience.until(looked, what, moves)

    def diagnosis(self) -> list[str]:
        """What there is to see of the run that was followed last."""
        return diagnosis(self._settings, self._spec.model, self._api, self._ledger, self._last)

    # Runs.

    def start(self, kind: str, conf: dict[str, Any]) -> Run:
        """Start a run. It has a name before it is asked for, so asking twice starts one."""
        dag_id, run_id = f"{self._spec.model}__{kind}", f"demo__{uuid.uuid4().hex[:12]}"
        self._known.add(run_id)
        return self.until(lambda: self._api.trigger(dag_id, conf, run_id), f"Airflow to start {dag_id}")

    def started(self, kind: str) -> Run:
        """The run that an asset started, the oldest that was not followed yet. People may start runs of their own."""
        dag_id = f"{self._spec.model}__{kind}"

        def appeared() -> list[Run]:
            by_asset = [run for run in self._api.runs(dag_id) if run.run_type == "asset_triggered"]
            return [run for run in by_asset if run.dag_run_id not in self._known]

        run = self.until(appeared, f"an asset to start {dag_id}")[-1]
        self._known.add(run.dag_run_id)
        return run

    def completed(self, run: Run, *, may_fail: bool = False, while_waiting: Callable[[], None] | None = None) -> Run:
        """Follow a run to its end. ``while_waiting`` is called at every look."""
        self._known.add(run.dag_run_id)
        self._last = run
        seen: dict[str, str] = {}

        def ended() -> Run | None:
            found = self._api.run(run.dag_id, run.dag_run_id)
            self._tell(run, seen)
            if not found.finished and while_waiting is not None:
                while_waiting()
            return found if found.finished else None

        run = self.until(ended, f"{run.dag_id} {run.dag_run_id} to end", lambda: self._on_its_way(run))
        if run.state != "success" and not may_fail:
            raise StoryBroken(why_failed(self._api, run))
        return run

    def returned(self, run: Run, task_id: str) -> Any:
        """What a task returned."""
        found = self.until(
            lambda: [self._api.xcom(run.dag_id, run.dag_run_id, task_id)], f"what {task_id} of {run.dag_id} returned"
        )
        return found[0]

    def question(self, run: Run) -> Approval:
        """The run's approval, as soon as it waits for an answer."""
        seen: dict[str, str] = {}
        self._last = run

        what = f"{run.dag_id} {run.dag_run_id} to ask for approval"

        def asked() -> list[Approval]:
            self._tell(run, seen)
            waiting = self._approver.approvals(run.dag_id, run.dag_run_id)
            found = self._api.run(run.dag_id, run.dag_run_id)
            if not waiting and found.finished:
                raise StoryBroken(f"expected {what}; {why_failed(self._api, found)}")
            return waiting

        return self.until(asked, what, lambda: self._on_its_way(run))[0]

    # Releases.

    def released(self, run: Run, phase: Phase, approved: Callable[[], None] = lambda: None) -> Release:
        """Follow a release to its end, which must be ``phase``, and answer its question on the way.

        ``approved`` is called after the first answer.
        """
        first = [approved]
        run = self.completed(
            run,
            may_fail=True,
            while_waiting=lambda: self._approve(run, lambda: first.pop()() if first else None),
        )
        release = release_of(self._ledger, run)
        if release is None:
            raise StoryBroken(f"expected a release of {run.dag_run_id}, there is none; {why_failed(self._api, run)}")
        if release.phase is not phase:
            raise StoryBroken(
                f"expected the release of version {release.version} to end as {phase}, it is {release.phase}: "
                f"{release.reason or 'no reason was given'}; its run ended as {run.state}"
            )
        return release

    def _approve(self, run: Run, approved: Callable[[], None]) -> None:
        """Answer the run's question if it has been asked."""
        waiting = self._approver.approvals(run.dag_id, run.dag_run_id)
        if not waiting:
            return
        # Airflow asks again if it is answered within milliseconds, before it knows that the asking process has ended;
        # then this is called again.
        time.sleep(_READING)
        question = waiting[0]
        try:
            self._approver.answer(question, question.options[0], {"comment": "read the gates, go on"})
        except NotPossible:
            return  # somebody else was quicker
        self._progress.say(f"{question.subject} {question.options[0]}, says approver", style="magenta")
        approved()

    # What moves.

    def _tell(self, run: Run, seen: dict[str, str]) -> None:
        for task in self._tasks(run):
            if task.state and seen.get(task.task_id) != task.state:
                seen[task.task_id] = task.state
                self._progress.task(run.dag_id, task.task_id, task.state, task.duration)

    def _tasks(self, run: Run) -> list[TaskRun]:
        return self._api.tasks(run.dag_id, run.dag_run_id)

    def _on_its_way(self, run: Run) -> object:
        tasks = tuple((task.task_id, task.map_index, task.state, task.try_number) for task in self._tasks(run))
        release = release_of(self._ledger, run)
        if release is None:
            return tasks
        return tasks, release.phase, release.step, release.generation, release.paused, self._collected(release)

    def _collected(self, release: Release) -> int:
        """The candidate's requests in its step, as long as they may still decide it.

        Requests alone do not keep the story waiting: those of a step that is past its deadline, or of a candidate that
        the gateway has ejected, are no movement.
        """
        status = self.status()
        if status is None or status.release != release.id or status.ejection is not None:
            return 0
        if status.observed_s > (self._spec.rollout.deadline + release.extended).total_seconds():
            return 0
        return sum(tally.requests for tally in status.step.get(release.version, {}).values())

    def status(self) -> GatewayStatus | None:
        """What the gateway says of the model, if it answers."""
        with GatewayClient(self._settings.gateway_url) as gateway:
            try:
                return gateway.status(self._spec.model)
            except (NotFound, Unavailable):
                return None
