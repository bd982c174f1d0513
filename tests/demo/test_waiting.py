"""The story waits as long as something moves, and says what it saw when nothing does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airlock.airflow_api import Run, TaskRun
from airlock.core.errors import Unavailable
from airlock.core.release import Event, Phase
from airlock.core.spec import ModelSpec
from airlock.core.tally import Ejection, GatewayStatus, Tally
from airlock.core.verdict import Status, Verdict
from airlock.demo.diagnosis import diagnosis
from airlock.demo.follow import Follower
from airlock.demo.progress import Progress
from airlock.demo.story import drift
from airlock.demo.waiting import Patience, StoryBroken
from airlock.ledger import Ledger
from airlock.settings import Settings
from tests.support.control import spec_of
from tests.support.releases import NOW, release

RUN = Run(dag_id="m__release", dag_run_id="asset__1", state="running", run_type="asset_triggered")


class Clock:
    """Time that only passes while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def patience(clock: Clock) -> Patience:
    return Patience(stall=300, poll=1, clock=clock, sleep=clock.sleep)


def test_it_waits_for_ever_as_long_as_something_moves(patience: Patience, clock: Clock) -> None:
    assert patience.until(lambda: clock.now > 100_000 and "there", "the end", lambda: clock.now // 299) == "there"


def test_a_standstill_is_what_ends_it(patience: Patience, clock: Clock) -> None:
    with pytest.raises(StoryBroken, match=r"^expected the end, but nothing moved for 300 s$"):
        patience.until(lambda: None, "the end", lambda: min(clock.now, 1000))
    assert 1300 <= clock.now < 1310


def test_what_does_not_answer_stands_still_and_is_named(patience: Patience, clock: Clock) -> None:
    def down() -> None:
        raise Unavailable("Airflow does not answer")

    with pytest.raises(StoryBroken, match="nothing moved for 300 s; Airflow does not answer"):
        patience.until(down, "the end", lambda: clock.now)


def test_what_does_not_answer_for_a_while_is_asked_again(patience: Patience, clock: Clock) -> None:
    def back() -> bool:
        if clock.now < 200:
            raise Unavailable("Airflow does not answer")
        return True

    assert patience.until(back, "the end")


class Airflow:
    """A run that stands where it stands, with one task that is tried again and again."""

    def __init__(self, state: str = "running") -> None:
        self.state = state
        self.tries = 1
        self.question: list[Any] = []

    def run(self, _dag: str, _run: str) -> Run:
        return RUN.model_copy(update={"state": self.state})

    def tasks(self, _dag: str, _run: str) -> list[TaskRun]:
        return [
            TaskRun(task_id="canary_5", state="success", try_number=1),
            TaskRun(task_id="canary_25", state="up_for_retry", try_number=self.tries),
            TaskRun(task_id="promote", state=None, try_number=0),
        ]

    def approvals(self, _dag: str, _run: str) -> list[Any]:
        return self.question

    def runs(self, _dag: str) -> list[Run]:
        return []


def status(**changes: Any) -> GatewayStatus:
    known: dict[str, Any] = {
        "model": "m",
        "generation": 7,
        "checksum": "sha256:0",
        "release": "r1",
        "rollout_step": "canary_5",
        "champion": "2",
        "candidate": "3",
        "share": 5.0,
        "loaded": ("2", "3"),
        "since": NOW,
    }
    return GatewayStatus(**{**known, **changes})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    url = "http://127.0.0.1:9"
    return Settings(tmp_path, tmp_path / "demo", url, url, url, f"sqlite:///{tmp_path / 'ledger.db'}")


@pytest.fixture
def ledger(settings: Settings) -> Ledger:
    ledger = Ledger(settings.ledger_url)
    opened = release("r1").model_copy(update={"model": "m", "version": "3", "run": "m__release/asset__1"})
    standing = ledger.open(opened, key="r1", actor="ann")
    ledger.transition(standing, Event.APPROVE, actor="approver", reason="read the gates", now=NOW)
    return ledger


@pytest.fixture
def spec() -> ModelSpec:
    return spec_of(model="m", rollout={"deadline": "3m"})


@pytest.fixture
def make(
    settings: Settings, ledger: Ledger, spec: ModelSpec, patience: Patience, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Follower]:
    def make(airflow: Airflow, told: Callable[[], GatewayStatus | None] = lambda: None) -> Follower:
        progress = Progress(SimpleNamespace(print=lambda *_: None, is_terminal=False))  # type: ignore[arg-type]
        api: Any = airflow
        made = Follower(spec, settings, api=api, approver=api, ledger=ledger, progress=progress, patience=patience)
        monkeypatch.setattr(made, "status", told)
        return made

    return make


def test_a_run_that_stands_still_is_named_with_what_was_seen(make: Callable[..., Follower], clock: Clock) -> None:
    runs = make(Airflow())
    with pytest.raises(StoryBroken, match="expected m__release asset__1 to end, but nothing moved for 300 s"):
        runs.completed(RUN)
    seen = runs.diagnosis()
    assert seen[0] == (
        "run: m__release asset__1 is running; tasks: canary_5 success, canary_25 up_for_retry, promote not reached"
    )
    assert seen[1].startswith("release: version 3 is approved for ")
    assert seen[1].endswith("s: read the gates")
    assert "by ann" in seen[2]
    assert "approve by approver (read the gates)" in seen[2]
    assert seen[3].startswith("gateway: cannot be asked: ")
    assert "airlock --home" in seen[4]
    assert "history m; airlock" in seen[4]
    assert " status; logs of the parts: " in seen[4]


def test_a_task_that_is_tried_again_is_movement(make: Callable[..., Follower], clock: Clock) -> None:
    airflow = Airflow()

    def told() -> None:
        airflow.tries = 1 + int(clock.now // 250)
        airflow.state = "success" if clock.now > 2_000 else "running"

    assert make(airflow, told).completed(RUN).state == "success"
    assert clock.now > 2_000


def counted(clock: Clock, **changes: Any) -> GatewayStatus:
    tally = Tally(requests=int(clock.now))
    return status(step={"3": {"served": tally}}, **changes)


def test_requests_of_a_step_are_movement_until_its_deadline(make: Callable[..., Follower], clock: Clock) -> None:
    with pytest.raises(StoryBroken):
        make(Airflow(), lambda: counted(clock, observed_s=clock.now / 10)).completed(RUN)
    assert 1_800 + 300 <= clock.now < 2_200, "three minutes of observed time, and then a standstill"


def test_requests_of_an_ejected_candidate_are_none(make: Callable[..., Follower], clock: Clock) -> None:
    ejection = Ejection(
        model="m", release="r1", version="3", generation=7, at=NOW, reason="8 of 9 failed", requests=9, seconds=0.5
    )
    with pytest.raises(StoryBroken):
        make(Airflow(), lambda: counted(clock, ejection=ejection)).completed(RUN)
    assert clock.now < 400


def test_what_a_release_ended_as_is_held_against_what_was_expected(
    make: Callable[..., Follower], ledger: Ledger
) -> None:
    ledger.transition(ledger.release("r1"), Event.ROLL_BACK, actor="guard", reason="8 of 9 failed", now=NOW)
    with pytest.raises(
        StoryBroken,
        match="expected the release of version 3 to end as promoted, it is rolled_back: 8 of 9 failed; "
        "its run ended as failed",
    ):
        make(Airflow("failed")).released(RUN, Phase.PROMOTED)


def test_a_run_that_ends_without_asking_says_so(make: Callable[..., Follower]) -> None:
    with pytest.raises(StoryBroken, match="asset__1 to ask for approval; m__release asset__1 ended as success"):
        make(Airflow("success")).question(RUN)


def test_an_asset_that_starts_nothing_is_named(make: Callable[..., Follower]) -> None:
    with pytest.raises(StoryBroken, match="expected an asset to start m__release, but nothing moved for 300 s"):
        make(Airflow()).started("release")


def test_the_gateway_s_word_is_in_the_diagnosis(
    settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ejection = Ejection(
        model="m", release="r1", version="3", generation=7, at=NOW, reason="8 of 9 failed", requests=9, seconds=0.5
    )
    monkeypatch.setattr(
        "airlock.demo.diagnosis.GatewayClient.status",
        lambda *_: status(ejection=ejection, step={"3": {"served": Tally(requests=9)}}, observed_s=4.2),
    )
    airflow: Any = Airflow()
    told = diagnosis(settings, "m", airflow, ledger, None)
    assert told[0] == "run: none was followed"
    assert told[3] == (
        "gateway: route 7, champion 2, candidate 3 at 5 % with 9 requests in canary_5, watched for 4 s; "
        "it ejected version 3: 8 of 9 failed"
    )


def test_drift_says_by_how_much_its_trigger_was_passed() -> None:
    columns = {f"c{number}": {"drifted": number < 6, "score": 0.3} for number in range(10)}
    verdict = Verdict(
        name="drift",
        status=Status.FAIL,
        reason="",
        estimate=0.6,
        threshold=0.3,
        details={"columns": {**columns, "prediction": {"drifted": True}}},
    )
    assert drift(verdict) == "6 of 10 columns drifted = 60%, the trigger is 30%"
    assert drift(Verdict(name="drift", status=Status.INCONCLUSIVE, reason="")) == "drift was not measured"
