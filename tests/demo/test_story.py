"""The acts in order, with everything that they start and watch standing in."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from airlock import settings as environment
from airlock import specs
from airlock.airflow_api import Run
from airlock.core.release import Phase
from airlock.core.tally import Ejection
from airlock.core.verdict import Status, Verdict
from airlock.demo.progress import Progress
from airlock.demo.story import ACTS, APRIL, MODEL, SECOND_TRAINING, STORMS, STORMS_BEGIN, SUMMER, Story
from airlock.demo.waiting import StoryBroken
from airlock.demo.world import Traffic
from tests.support.releases import NOW, release


class World:
    """A replay whose clock goes on a day whenever somebody looks at it, and keeps to its brake."""

    def __init__(self) -> None:
        self._now = APRIL
        self.brakes: list[datetime | None] = []
        self.skips: list[datetime] = []
        self.started = False

    @property
    def now(self) -> datetime:
        brake = self.brakes[-1] if self.brakes else None
        later = self._now + timedelta(days=1)
        self._now = later if brake is None or later < brake else self._now
        return self._now

    def traffic(self) -> Traffic:
        return Traffic(now=self._now, requests=500, failed=0, landed=9, first_failure=None)

    def start(self) -> None:
        self.started = True

    def brake(self, before: datetime | None) -> None:
        self.brakes.append(before)

    def skip(self, to: datetime) -> None:
        self.skips.append(to)
        self._now = to


class Runs:
    """Every run ends well, every release as it is expected to; the drift is what the test says."""

    def __init__(self, ejections: Path, drifted: float) -> None:
        self.trained: list[dict[str, Any]] = []
        self.versions = 0
        self._ejections = ejections
        self._drifted = drifted
        self._champion = "1"

    def start(self, kind: str, conf: dict[str, Any]) -> Run:
        if kind == "train":
            self.trained.append(conf)
        return Run(dag_id=f"{MODEL}__{kind}", dag_run_id=f"demo__{len(self.trained)}", state="success")

    def started(self, kind: str) -> Run:
        return Run(dag_id=f"{MODEL}__{kind}", dag_run_id="asset__1", state="running")

    def completed(self, run: Run) -> Run:
        return run

    def returned(self, run: Run, task: str) -> Any:
        verdict = Verdict(
            name="drift",
            status=Status.FAIL if self._drifted > 0.3 else Status.PASS,
            reason="what drifted",
            estimate=self._drifted,
            threshold=0.3,
            details={"columns": {f"c{n}": {"drifted": n < 10 * self._drifted} for n in range(10)}},
        )
        return {
            "register_version": {"version": str(self.versions + 1)},
            "evaluate_gates": {"verdicts": []},
            "drift_report": {"report": "http://report", "verdict": verdict.model_dump(mode="json")},
        }[task]

    def released(self, run: Run, phase: Phase, approved: Callable[[], None] = lambda: None) -> Any:
        self.versions += 1
        approved()
        version = str(self.versions)
        made = release(f"r{version}", model=MODEL).model_copy(
            update={"version": version, "champion": self._champion, "phase": phase}
        )
        if phase is Phase.PROMOTED:
            self._champion = version
        else:
            ejection = Ejection(
                model=MODEL,
                version=version,
                release=made.id,
                generation=9,
                at=NOW,
                reason="9 of 9 failed",
                requests=100 + self.versions,
                seconds=0.5,
            )
            (self._ejections / f"{MODEL}.json").write_text(ejection.model_dump_json())
        return made

    def question(self, run: Run) -> Any:
        return SimpleNamespace(subject="may it?")

    def until(self, reached: Callable[[], Any], what: str, moves: Callable[[], object] = lambda: None) -> Any:
        for _ in range(200):
            if found := reached():
                return found
            moves()
        raise StoryBroken(f"expected {what}, but nothing moved")

    def diagnosis(self) -> list[str]:
        return ["run: stands", "look closer: airlock history"]

    def status(self) -> Any:
        return SimpleNamespace(champion=self._champion, share=0, generation=1, loaded=("1",))


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Story, Runs, World]]:
    def make(drifted: float = 0.5) -> tuple[Story, Runs, World]:
        monkeypatch.setenv("AIRLOCK_HOME", str(tmp_path))
        monkeypatch.setenv("AIRLOCK_PROJECT", str(Path(__file__).parents[2]))
        settings = environment.load()
        settings.ejections.mkdir(parents=True)
        world: Any = World()
        feed: Any = SimpleNamespace(open=lambda now: None)
        nobody: Any = None
        progress = Progress(Console(file=io.StringIO()))
        spec = specs.find(settings, MODEL)
        story = Story(spec, settings, api=nobody, approver=nobody, feed=feed, world=world, progress=progress)
        runs: Any = Runs(settings.ejections, drifted)
        monkeypatch.setattr(story, "_runs", runs)
        routes = [SimpleNamespace(release="r2", share=share) for share in (5, 25, 50, 100)]
        monkeypatch.setattr(story, "_ledger", SimpleNamespace(routes=lambda _: routes))
        monkeypatch.setattr("airlock.demo.story.GatewayClient.ready", lambda _: True)
        return story, runs, world

    return make


def test_five_acts_are_played_in_order(make: Callable[..., tuple[Story, Runs, World]]) -> None:
    story, runs, world = make()
    story.play()
    assert [(act.name, act.ok) for act in story.acts] == [(name, True) for name in ACTS], story.acts
    assert world.brakes == [SUMMER, None]
    assert world.skips == [STORMS_BEGIN]
    assert world.now >= STORMS
    assert runs.trained[0] == {"until": APRIL.isoformat()}
    assert [sorted(conf) for conf in runs.trained[1:]] == [
        ["until"],
        ["options", "skip_shadow", "trials", "until"],
        ["options", "params", "skip_shadow", "trials", "until"],
    ]
    assert all(datetime.fromisoformat(conf["until"]) < SUMMER for conf in runs.trained)
    assert story.observed.rollback is not None
    assert story.observed.rollback.requests_to_detect == 103, "the first bad candidate is the third version"
    assert "version 3 ejected after 103 requests" in story.acts[3].detail
    assert "version 4 ejected after 104 requests" in story.acts[3].detail
    assert "5 of 10 columns drifted = 50%, the trigger is 30%" in story.acts[4].detail


def test_an_act_that_fails_says_what_was_expected_and_seen_and_ends_the_story(
    make: Callable[..., tuple[Story, Runs, World]],
) -> None:
    story, runs, _ = make(drifted=0.2)
    story.play()
    assert [act.ok for act in story.acts] == [True, True, True, True, False]
    said, *seen = story.acts[4].detail.splitlines()
    assert said.startswith(
        "expected drift up to 29 June, the verdict is pass: 2 of 10 columns drifted = 20%, the trigger"
    )
    assert seen == runs.diagnosis()


def test_what_comes_after_a_failed_act_is_not_reached(
    make: Callable[..., tuple[Story, Runs, World]], monkeypatch: pytest.MonkeyPatch
) -> None:
    story, runs, world = make()

    def fails(*_: object, **__: object) -> None:
        raise StoryBroken("expected flight_delay__release to end, but nothing moved for 300 s")

    monkeypatch.setattr(runs, "released", fails)
    story.play()
    assert [act.detail for act in story.acts[2:]] == ["not reached"] * 3
    assert not world.started


def test_the_third_and_the_fourth_act_may_be_played_again(make: Callable[..., tuple[Story, Runs, World]]) -> None:
    story, runs, _ = make()
    names = [*ACTS[:4], ACTS[3]]
    assert all(story.play_act(name).ok for name in names)
    assert runs.versions == 6
    assert story.observed.rollback is not None
    assert story.observed.rollback.requests_to_detect == 105


def test_what_candidates_learn_does_not_depend_on_how_far_the_replay_has_come(
    make: Callable[..., tuple[Story, Runs, World]],
) -> None:
    story, runs, world = make()
    for name in ACTS[:3]:
        assert story.play_act(name).ok
    world.skip(SECOND_TRAINING + timedelta(days=28))
    assert story.play_act(ACTS[3]).ok
    assert [conf["until"] for conf in runs.trained] == [APRIL.isoformat(), *[SECOND_TRAINING.isoformat()] * 3]
