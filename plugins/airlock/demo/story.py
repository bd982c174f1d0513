"""The story: five acts, each made of real DAG runs, and each checked against what was observed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from airlock.airflow_api import AirflowApi, Run
from airlock.core.errors import AirlockError, Unavailable
from airlock.core.release import Phase
from airlock.core.spec import ModelSpec
from airlock.core.tally import Ejection
from airlock.core.verdict import Status, Verdict
from airlock.demo.feed import Feed
from airlock.demo.follow import Follower
from airlock.demo.progress import Progress
from airlock.demo.summary import Act, Rollback
from airlock.demo.waiting import Patience, StoryBroken
from airlock.demo.world import World
from airlock.gateway_client import GatewayClient
from airlock.ledger import Ledger
from airlock.settings import Settings

T = TypeVar("T")

MODEL = "flight_delay"
ACTS = ("train", "first_release", "canary_promoted", "bad_candidate_rolled_back", "drift_retrained")
APRIL = datetime(2013, 4, 1, tzinfo=UTC)
SECOND_TRAINING = datetime(2013, 4, 7, tzinfo=UTC)
# From here on the replay is kept for the last act: a week that is not stormy as a whole would show no drift.
SUMMER = datetime(2013, 6, 17, tzinfo=UTC)
STORMS_BEGIN = datetime(2013, 6, 24, tzinfo=UTC)
STORMS = datetime(2013, 6, 29, tzinfo=UTC)

# Good offline and bad in production. The first learns weather in other units than the online store carries;
# the second has never seen two of the carriers and raises where it meets one.
_SKEWED = {"options": {"weather_units": "metric"}, "trials": 3, "skip_shadow": True}
_RAISING = {
    "options": {"exclude_carriers": ["EV", "9E"]},
    "params": {"unknown_category": "error"},
    "trials": 3,
    "skip_shadow": True,
}


@dataclass
class Observed:
    """What the acts saw that the summary tells."""

    serving_after: float | None = None
    rollback: Rollback | None = None
    report: str | None = None


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
        patience: Patience | None = None,
    ) -> None:
        self._spec = spec
        self._settings = settings
        self._feed = feed
        self._world = world
        self._progress = progress
        self._ledger = Ledger(settings.ledger_url)
        self._runs = Follower(
            spec,
            settings,
            api=api,
            approver=approver,
            ledger=self._ledger,
            progress=progress,
            undisturbed=self._undisturbed,
            patience=patience,
        )
        self._replaying = False
        self._unopened: AirlockError | None = None
        self.observed = Observed()
        self.acts: list[Act] = []
        self.learned = SECOND_TRAINING
        """Up to when the candidates of acts 3 and 4 learn. Not up to the replay's now: how far that has come depends
        on the machine, and how good a candidate is on how far it has learned. Who plays the acts again moves it on."""

    def play(self) -> None:
        """Play every act; one that fails ends the story, and the later ones are told as not reached."""
        for name in ACTS:
            if all(act.ok for act in self.acts):
                self.acts.append(self.play_act(name))
            else:
                self.acts.append(Act(name=name, ok=False, seconds=0.0, detail="not reached"))

    def play_act(self, name: str) -> Act:
        """Play one act. The third and the fourth may be played again and again, once the ones before were."""
        scenes: dict[str, tuple[str, Callable[[], str]]] = {
            "train": ("the first training, on data up to the end of March", self._train),
            "first_release": ("no champion yet: approval, Bento, serving; April begins", self._first_release),
            "canary_promoted": ("more data, a better candidate: shadow, 5, 25, 50, 100 %", self._canary),
            "bad_candidate_rolled_back": ("two that are good offline and bad in production", self._bad_candidates),
            "drift_retrained": ("the summer storms: drift starts a training by itself", self._drift),
        }
        title, scene = scenes[name]
        self._progress.act(ACTS.index(name) + 1, name, title)
        began, ok = time.monotonic(), True
        try:
            detail = scene()
        except Exception as error:  # noqa: BLE001 - whatever ended it, the summary tells it
            ok = False
            said = str(error) if isinstance(error, AirlockError) else f"{type(error).__name__}: {error}"
            seen = self._runs.diagnosis()
            for line in (said, *seen):
                self._progress.say(line, style="red")
            detail = "\n".join((said, *seen))
        else:
            self._progress.say(detail, style="green")
        return Act(name=name, ok=ok, seconds=round(time.monotonic() - began, 1), detail=detail)

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
        version = self._runs.released(self._runs.started("release"), Phase.PROMOTED).version
        self._runs.until(lambda: self._champion() == version, f"the gateway to serve version {version}", self._routed)
        with GatewayClient(self._settings.gateway_url) as gateway:
            self._runs.until(gateway.ready, "the gateway to be ready", self._routed)
        self.observed.serving_after = self._progress.seconds
        self._world.start()
        self._replaying = True
        self._runs.until(lambda: self._world.traffic().requests >= 200, "the first 200 answers", self._replayed)
        return f"version {version} serves, {self.observed.serving_after:.0f} s after the start; {self._counted()}"

    def _canary(self) -> str:
        if self._world.now < self.learned:
            self._progress.say(
                f"flights are asked about until there are new labels to learn from, {self.learned:%d %B}"
            )
        self._reached(self.learned)
        self._world.brake(SUMMER)
        before = self._world.traffic()
        self._trained({"until": self.learned.isoformat()})
        release = self._runs.released(self._runs.started("release"), Phase.PROMOTED)
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
        self._trained({"until": self.learned.isoformat(), **_SKEWED})
        trainings: list[Run] = []

        def train_second() -> None:
            # The champion stays whatever becomes of the first, so the second can be judged against it already.
            trainings.append(self._runs.start("train", {"until": self.learned.isoformat(), **_RAISING}))

        first, told = self._rolled_back(self._runs.started("release"), approved=train_second)
        self.observed.rollback = Rollback(
            requests_to_detect=first.requests,
            seconds_to_detect=round(first.seconds, 3),
            failed_requests=self._world.traffic().failed - failed,
        )
        self._runs.completed(trainings[0])
        _, told_second = self._rolled_back(self._runs.started("release"))
        lost = self._world.traffic().failed - failed
        self._require(lost == 0, f"{lost} requests were lost: {self._world.traffic().first_failure}")
        return f"{told}; {told_second}; no request was lost"

    def _drift(self) -> str:
        self._progress.say(f"the replay skips from {self._world.now:%d %B} to {STORMS_BEGIN:%d %B}")
        self._world.skip(STORMS_BEGIN)
        self._world.brake(None)
        self._reached(STORMS)
        monitored = self._runs.completed(self._runs.start("monitor", {"until": STORMS.isoformat()}))
        report = self._runs.returned(monitored, "drift_report")
        self.observed.report = report["report"]
        verdict = Verdict.model_validate(report["verdict"])
        self._require(
            verdict.status is Status.FAIL,
            f"expected drift up to {STORMS:%d %B}, the verdict is {verdict.status}: {drift(verdict)}; {verdict.reason}",
        )
        started = self._runs.started("train")
        self._runs.completed(started)
        version, verdicts = self._registered(started)
        waiting = self._runs.question(self._runs.started("release"))
        return (
            f"{drift(verdict)}; {verdict.reason}; that started {started.dag_run_id}; version {version}, "
            f"{_gates(verdicts)}, waits for an answer: {waiting.subject}"
        )

    def _open(self) -> None:
        """Publish the first features while the first training goes on."""
        try:
            self._feed.open(APRIL)
        except AirlockError as error:
            self._unopened = error

    def _trained(self, conf: dict[str, Any]) -> Run:
        return self._runs.completed(self._runs.start("train", conf))

    def _registered(self, run: Run) -> tuple[str, list[Verdict]]:
        version = self._runs.returned(run, "register_version")["version"]
        evaluated = self._runs.returned(run, "evaluate_gates")
        return version, [Verdict.model_validate(verdict) for verdict in evaluated["verdicts"]]

    def _rolled_back(self, run: Run, approved: Callable[[], None] = lambda: None) -> tuple[Ejection, str]:
        release = self._runs.released(run, Phase.ROLLED_BACK, approved)
        path = self._settings.ejections / f"{MODEL}.json"
        self._require(path.exists(), f"version {release.version} was rolled back, but not by the gateway itself")
        ejection = Ejection.model_validate_json(path.read_bytes())
        ejected = ejection.version == release.version
        self._require(ejected, f"the gateway ejected version {ejection.version}, not {release.version}")
        alone = f"version {release.champion} to answer alone"
        self._runs.until(lambda: self._champion() == release.champion, alone, self._routed)
        return ejection, (
            f"version {release.version} ejected after {ejection.requests} requests and {ejection.seconds:.1f} s: "
            f"{ejection.reason}"
        )

    def _champion(self) -> str | None:
        """Who answers everything, by the gateway's own word; ``None`` while traffic is split."""
        status = self._runs.status()
        return status.champion if status is not None and status.share == 0 else None

    def _counted(self) -> str:
        traffic = self._world.traffic()
        why = f" ({traffic.first_failure})" if traffic.first_failure else ""
        return f"{traffic.requests:,} requests, {traffic.failed} lost{why}, {traffic.landed:,} labels"

    def _reached(self, when: datetime) -> None:
        """Wait until the replay has come so far."""
        self._runs.until(lambda: self._world.now >= when, f"the replay to reach {when:%d %B}", self._replayed)

    def _undisturbed(self) -> None:
        """What has stopped the replay ends the story; it is nothing to wait for."""
        if not self._replaying:
            return
        try:
            self._world.traffic()
        except Unavailable as error:
            raise StoryBroken(f"the replay ended: {error}") from error

    # What moves while something is waited for.

    def _replayed(self) -> object:
        traffic = self._world.traffic()
        return traffic.requests, traffic.now

    def _routed(self) -> object:
        status = self._runs.status()
        return status and (status.generation, status.share, status.loaded)

    @staticmethod
    def _require(condition: bool, otherwise: str) -> None:
        if not condition:
            raise StoryBroken(otherwise)


def drift(verdict: Verdict) -> str:
    """By how much the trigger was passed, or missed."""
    if verdict.estimate is None or verdict.threshold is None:
        return "drift was not measured"
    columns = verdict.details.get("columns", {})
    watched = [column for name, column in columns.items() if name != "prediction"]
    drifted = sum(bool(column.get("drifted")) for column in watched)
    share = f"{drifted} of {len(watched)} columns drifted = " if watched else "drifted: "
    return f"{share}{verdict.estimate:.0%}, the trigger is {verdict.threshold:.0%}"


def _gates(verdicts: list[Verdict]) -> str:
    """How many of the gates that count passed, and the first metric that is an estimate rather than a count."""
    counted = [verdict for verdict in verdicts if not verdict.dry_run]
    passed = sum(verdict.status is Status.PASS for verdict in counted)
    measured = next((v for v in counted if v.metric and v.estimate is not None and v.low != v.high), None)
    told = f"{passed} of {len(counted)} gates passed"
    if measured is None:
        return told
    return f"{told}, {measured.metric} {measured.estimate:.3f} ({measured.low:.3f} to {measured.high:.3f})"
