"""The story: five acts, each made of real DAG runs, and each checked against what was observed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from airlock.airflow_api import AirflowApi, Approval, Run, why_failed
from airlock.core.errors import AirlockError, NotFound, Unavailable
from airlock.core.release import Phase, Release
from airlock.core.spec import ModelSpec
from airlock.core.tally import Ejection
from airlock.core.verdict import Status, Verdict
from airlock.demo.feed import Feed
from airlock.demo.progress import Progress
from airlock.demo.summary import Act, Rollback
from airlock.demo.world import World
from airlock.gateway_client import GatewayClient
from airlock.ledger import Ledger
from airlock.settings import Settings

MODEL = "flight_delay"
ACTS = ("train", "first_release", "canary_promoted", "bad_candidate_rolled_back", "drift_retrained")
APRIL = datetime(2013, 4, 1, tzinfo=UTC)
SECOND_TRAINING = datetime(2013, 4, 7, tzinfo=UTC)
SUMMER = datetime(2013, 6, 24, tzinfo=UTC)
STORMS = datetime(2013, 6, 28, tzinfo=UTC)

# Good offline and bad in production. The first learns weather in other units than the online store carries;
# the second has never seen two of the carriers and raises where it meets one.
_SKEWED = {"options": {"weather_units": "metric"}, "trials": 3, "skip_shadow": True}
_RAISING = {
    "options": {"exclude_carriers": ["EV", "9E"]},
    "params": {"unknown_category": "error"},
    "trials": 3,
    "skip_shadow": True,
}

_POLL = 0.5
_RUN_TIMEOUT = 240.0
_READING = 2.0
_TASK_ENDED = frozenset({"success", "failed", "skipped", "upstream_failed"})


class StoryBroken(AirlockError):
    """Something that the story needs did not happen."""


@dataclass
class Observed:
    """What the acts saw that the summary tells."""

    serving_after: float | None = None
    rollback: Rollback | None = None
    report: str | None = None
    ejections: list[Ejection] = field(default_factory=list)


class Story:
    """The acts in order. ``api`` is Airflow as its administrator, ``approver`` as the person who says yes."""

    def __init__(
        self,
        spec: ModelSpec,
        settings: Settings,
        *,
        api: AirflowApi,
        approver: AirflowApi,
        feed: Feed,
        world: World,
        progress: Progress,
    ) -> None:
        self._spec = spec
        self._settings = settings
        self._api = api
        self._approver = approver
        self._feed = feed
        self._world = world
        self._progress = progress
        self._ledger = Ledger(settings.ledger_url)
        self._known_runs: set[str] = set()
        self._replaying = False
        self._unopened: AirlockError | None = None
        self.observed = Observed()
        self.acts: list[Act] = []

    def play(self) -> None:
        """Play every act; one that fails ends the story, and the later ones are told as not reached."""
        scenes: tuple[tuple[str, Callable[[], str]], ...] = (
            ("the first training, on data up to the end of March", self._train),
            ("no champion yet: approval, Bento, serving; April begins", self._first_release),
            ("more data, a better candidate: shadow, 5, 25, 50, 100 %", self._canary),
            ("two that are good offline and bad in production", self._bad_candidates),
            ("the summer storms: drift starts a training by itself", self._drift),
        )
        broken = False
        for number, (name, (title, scene)) in enumerate(zip(ACTS, scenes, strict=True), start=1):
            if broken:
                self.acts.append(Act(name=name, ok=False, seconds=0.0, detail="not reached"))
                continue
            self._progress.act(number, name, title)
            began = time.monotonic()
            try:
                detail = scene()
            except Exception as error:  # noqa: BLE001 - whatever ended it, the summary tells it
                broken = True
                detail = str(error) if isinstance(error, AirlockError) else f"{type(error).__name__}: {error}"
                self._progress.say(detail, style="red")
            else:
                self._progress.say(detail, style="green")
            self.acts.append(Act(name=name, ok=not broken, seconds=round(time.monotonic() - began, 1), detail=detail))

    def _train(self) -> str:
        opening = threading.Thread(target=self._open, name="open", daemon=True)
        opening.start()
        run = self._trained({"until": APRIL.isoformat()})
        opening.join()
        if self._unopened is not None:
            raise self._unopened
        version, verdicts = self._registered(run)
        return f"version {version} registered; {_gates(verdicts)}"

    def _first_release(self) -> str:
        version = self._released(self._started_run("release"), Phase.PROMOTED).version
        self._until(lambda: self._champion() == version, 30, f"the gateway to serve version {version}")
        with GatewayClient(self._settings.gateway_url) as gateway:
            self._until(gateway.ready, 30, "the gateway to be ready")
        self.observed.serving_after = self._progress.seconds
        self._world.slow_from(SUMMER)
        self._world.start()
        self._replaying = True
        self._until(lambda: self._world.traffic().requests >= 200, 90, "the first 200 answers")
        return f"version {version} serves, {self.observed.serving_after:.0f} s after the start; {self._counted()}"

    def _canary(self) -> str:
        if self._world.now < SECOND_TRAINING:
            self._progress.say(
                f"flights are asked about until there are new labels to learn from, {SECOND_TRAINING:%d %B}"
            )
        self._until(lambda: self._world.now >= SECOND_TRAINING, 180, f"the replay to reach {SECOND_TRAINING:%d %B}")
        before = self._world.traffic()
        self._trained({"until": self._world.now.isoformat()})
        release = self._released(self._started_run("release"), Phase.PROMOTED)
        answered = self._world.traffic().requests - before.requests
        shares = [route.share for route in self._ledger.routes(MODEL) if route.release == release.id and route.share]
        seen = ", ".join(f"{share:g}" for share in shares)
        self._require(len(shares) >= len(self._spec.rollout.steps), f"only the shares {seen} were seen")
        return (
            f"version {release.version} took {seen} % and replaced version {release.champion}; "
            f"{answered:,} requests meanwhile, {self._world.traffic().failed - before.failed} lost"
        )

    def _bad_candidates(self) -> str:
        failed = self._world.traffic().failed
        self._trained({"until": self._world.now.isoformat(), **_SKEWED})
        trainings: list[Run] = []

        def train_second() -> None:
            # The champion stays whatever becomes of the first, so the second can be judged against it already.
            trainings.append(self._api.trigger(f"{MODEL}__train", {"until": self._world.now.isoformat(), **_RAISING}))

        told = [self._rolled_back(self._started_run("release"), approved=train_second)]
        ejection = self.observed.ejections[0]
        self.observed.rollback = Rollback(
            requests_to_detect=ejection.requests,
            seconds_to_detect=round(ejection.seconds, 3),
            failed_requests=self._world.traffic().failed - failed,
        )
        self._completed(trainings[0])
        told.append(self._rolled_back(self._started_run("release")))
        lost = self._world.traffic().failed - failed
        self._require(lost == 0, f"{lost} requests were lost: {self._world.traffic().first_failure}")
        return "; ".join(told) + "; no request was lost"

    def _drift(self) -> str:
        left = self._world.now
        if left < SUMMER:
            self._progress.say(f"the replay skips from {left:%d %B} to {SUMMER:%d %B}")
            self._world.skip(SUMMER)
        self._world.slow_from(None)
        self._until(lambda: self._world.now >= STORMS, 240, f"the replay to reach {STORMS:%d %B}")
        now = self._world.now
        monitored = self._completed(self._api.trigger(f"{MODEL}__monitor", {"until": now.isoformat()}))
        report = self._api.xcom(monitored.dag_id, monitored.dag_run_id, "drift_report")
        self.observed.report = report["report"]
        verdict = Verdict.model_validate(report["verdict"])
        self._require(verdict.status is Status.FAIL, f"no drift was found up to {now:%d %B}: {verdict.reason}")
        started = self._started_run("train")
        self._completed(started)
        version, verdicts = self._registered(started)
        waiting = self._question(self._started_run("release"))
        return (
            f"{verdict.reason}; that started {started.dag_run_id}; version {version}, {_gates(verdicts)}, "
            f"waits for an answer: {waiting.subject}"
        )

    def _open(self) -> None:
        """Publish the first features while the first training goes on."""
        try:
            self._feed.open(APRIL)
        except AirlockError as error:
            self._unopened = error

    def _trained(self, conf: dict[str, Any]) -> Run:
        return self._completed(self._api.trigger(f"{MODEL}__train", conf))

    def _registered(self, run: Run) -> tuple[str, list[Verdict]]:
        version = self._api.xcom(run.dag_id, run.dag_run_id, "register_version")["version"]
        evaluated = self._api.xcom(run.dag_id, run.dag_run_id, "evaluate_gates")
        return version, [Verdict.model_validate(verdict) for verdict in evaluated["verdicts"]]

    def _completed(self, run: Run, *, may_fail: bool = False, while_waiting: Callable[[], None] | None = None) -> Run:
        """Follow a run to its end. ``while_waiting`` is called at every look."""
        self._known_runs.add(run.dag_run_id)
        seen: dict[str, str] = {}
        deadline = time.monotonic() + _RUN_TIMEOUT
        while True:
            run = self._api.run(run.dag_id, run.dag_run_id)
            self._tell(run, seen)
            if run.finished:
                break
            if time.monotonic() > deadline:
                raise StoryBroken(f"{run.dag_id} {run.dag_run_id} did not end within {_RUN_TIMEOUT:.0f} s")
            if while_waiting is not None:
                while_waiting()
            self._rest()
        if run.state != "success" and not may_fail:
            raise StoryBroken(why_failed(self._api, run))
        return run

    def _tell(self, run: Run, seen: dict[str, str]) -> None:
        for task in self._api.tasks(run.dag_id, run.dag_run_id):
            if task.state and seen.get(task.task_id) != task.state:
                seen[task.task_id] = task.state
                self._progress.task(run.dag_id, task.task_id, task.state, task.duration)

    def _started_run(self, kind: str) -> Run:
        """The run that an asset started, the oldest that was not followed yet. People may start runs of their own."""
        dag_id = f"{MODEL}__{kind}"
        found: list[Run] = []

        def appeared() -> bool:
            by_asset = [run for run in self._api.runs(dag_id) if run.run_type == "asset_triggered"]
            found[:] = [run for run in by_asset if run.dag_run_id not in self._known_runs]
            return bool(found)

        self._until(appeared, 60, f"an asset to start {dag_id}")
        self._known_runs.add(found[-1].dag_run_id)
        return found[-1]

    def _question(self, run: Run) -> Approval:
        """The run's approval, as soon as it waits for an answer."""
        found: list[Approval] = []
        seen: dict[str, str] = {}

        def asked() -> bool:
            self._tell(run, seen)
            found[:] = self._approver.approvals(run.dag_id, run.dag_run_id)
            return bool(found) or self._api.run(run.dag_id, run.dag_run_id).finished

        self._until(asked, 120, f"the approval of {run.dag_id} {run.dag_run_id}")
        if not found:
            raise StoryBroken(why_failed(self._api, self._api.run(run.dag_id, run.dag_run_id)))
        return found[0]

    def _approve(self, run: Run, approved: Callable[[], None]) -> None:
        """Answer the run's question if it has been asked. ``approved`` is called after the first answer."""
        waiting = self._approver.approvals(run.dag_id, run.dag_run_id)
        if not waiting:
            return
        # Airflow asks again if it is answered within milliseconds, before it knows that the asking process has ended.
        time.sleep(_READING)
        question = waiting[0]
        self._approver.answer(question, question.options[0], {"comment": "read the gates, go on"})
        self._progress.say(f"{question.subject} {question.options[0]}, says approver", style="magenta")
        approved()

    def _released(self, run: Run, phase: Phase, approved: Callable[[], None] = lambda: None) -> Release:
        """Follow a release to its end, which must be ``phase``, and answer its question on the way."""
        first = [approved]
        run = self._completed(
            run,
            may_fail=True,
            while_waiting=lambda: self._approve(run, lambda: first.pop()() if first else None),
        )
        release = Release.model_validate(self._api.xcom(run.dag_id, run.dag_run_id, "package"))
        release = self._ledger.release(release.id)
        if release.phase is not phase:
            raise StoryBroken(f"release of version {release.version} is {release.phase}: {release.reason}")
        return release

    def _rolled_back(self, run: Run, approved: Callable[[], None] = lambda: None) -> str:
        release = self._released(run, Phase.ROLLED_BACK, approved)
        path = self._settings.ejections / f"{MODEL}.json"
        self._require(path.exists(), f"version {release.version} was rolled back, but not by the gateway itself")
        ejection = Ejection.model_validate_json(path.read_bytes())
        ejected = ejection.version == release.version
        self._require(ejected, f"the gateway ejected version {ejection.version}, not {release.version}")
        self.observed.ejections.append(ejection)
        self._until(lambda: self._champion() == release.champion, 30, f"version {release.champion} to answer alone")
        return (
            f"version {release.version} ejected after {ejection.requests} requests and {ejection.seconds:.1f} s: "
            f"{ejection.reason}"
        )

    def _champion(self) -> str | None:
        """Who answers everything, by the gateway's own word; ``None`` while traffic is split."""
        with GatewayClient(self._settings.gateway_url) as gateway:
            try:
                status = gateway.status(MODEL)
            except (NotFound, Unavailable):
                return None
        return status.champion if status.share == 0 else None

    def _counted(self) -> str:
        traffic = self._world.traffic()
        why = f" ({traffic.first_failure})" if traffic.first_failure else ""
        return f"{traffic.requests:,} requests, {traffic.failed} lost{why}, {traffic.landed:,} labels"

    def _until(self, reached: Callable[[], bool], timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while not reached():
            if time.monotonic() > deadline:
                raise StoryBroken(f"waited {timeout:.0f} s for {what}")
            self._rest()

    def _rest(self) -> None:
        if self._replaying:
            self._world.traffic()
        time.sleep(_POLL)

    @staticmethod
    def _require(condition: bool, otherwise: str) -> None:
        if not condition:
            raise StoryBroken(otherwise)


def _gates(verdicts: list[Verdict]) -> str:
    """How many of the gates that count passed, and the first metric that is an estimate rather than a count."""
    counted = [verdict for verdict in verdicts if not verdict.dry_run]
    passed = sum(verdict.status is Status.PASS for verdict in counted)
    measured = next((v for v in counted if v.metric and v.estimate is not None and v.low != v.high), None)
    told = f"{passed} of {len(counted)} gates passed"
    if measured is None:
        return told
    return f"{told}, {measured.metric} {measured.estimate:.3f} ({measured.low:.3f} to {measured.high:.3f})"
