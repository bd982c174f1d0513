"""Steps of a rollout against a real ledger, with a gateway that says what the test wants: wait, go on, or back."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, DownstreamTasksSkipped, TaskDeferred

from airlock import assets, steps
from airlock.control import ReleaseControl
from airlock.core.polls import Polls
from airlock.core.release import Phase, Release
from airlock.core.tally import LateEvidence, Sums
from airlock.ledger import Ledger
from airlock.operators.release import PromoteOperator
from airlock.operators.step import ReleaseStepOperator, WatchTrafficOperator
from airlock.triggers.ledger import LedgerTrigger
from airlock.triggers.release import ReleaseStepTrigger
from tests.operators.conftest import SPEC
from tests.support.operator_world import HELD, Gateway, opened, shares, waiting

Make = Callable[..., dict[str, Any]]
Respec = Callable[[str], None]

pytestmark = pytest.mark.usefixtures("versions")


@pytest.fixture
def release(champion: Release, control: ReleaseControl) -> Release:
    return opened(control, "2")


def step_of(release: Release, name: str, **kwargs: Any) -> ReleaseStepOperator:
    dag = DAG("toy__release", schedule=None)
    given = {"dag": dag, "model": "toy", "release": release.id}
    step = ReleaseStepOperator(task_id=name, step=name, **given, **kwargs)
    if name == "warm_up":
        shadow = ReleaseStepOperator(task_id="shadow", step="shadow", **given)
        canary = ReleaseStepOperator(task_id="canary_5", step="canary_5", **given)
        watch = WatchTrafficOperator(task_id="watch", step="canary_5", **given)
        step >> shadow >> canary >> watch >> PromoteOperator(task_id="promote", **given)
    return step


def deferred(step: ReleaseStepOperator, context: dict[str, Any]) -> TaskDeferred:
    """The wait that the step goes into."""
    with pytest.raises(TaskDeferred) as waits:
        step.execute(context)  # type: ignore[arg-type]
    _, kwargs = waits.value.trigger.serialize()
    assert json.loads(json.dumps(kwargs)) == kwargs
    return waits.value


class TestWaiting:
    def test_is_done_with_a_trigger_and_without_a_worker(
        self, release: Release, gateway: Gateway, control: ReleaseControl, make_context: Make, home: Path
    ) -> None:
        control.enter(release.id, "warm_up")
        waits = deferred(step_of(release, "canary_5"), make_context())
        assert shares(home) == {"1": 95, "2": 5}
        assert isinstance(waits.trigger, ReleaseStepTrigger)
        assert waits.method_name == "resume"
        assert waits.timeout == timedelta(hours=2, minutes=1)
        assert Release.model_validate(waits.trigger.release) == control.ledger.release(release.id)

    def test_goes_on_when_it_timed_out_without_a_triggerer(
        self, release: Release, gateway: Gateway, control: ReleaseControl, make_context: Make
    ) -> None:
        control.enter(release.id, "warm_up")
        control.enter(release.id, "canary_5")
        step, timed_out = step_of(release, "canary_5"), {"error": "Trigger timeout"}
        with pytest.raises(TaskDeferred):
            step.resume_execution("__fail__", timed_out, make_context())  # type: ignore[arg-type]
        gateway.requests = 500
        advanced = step.resume_execution("__fail__", timed_out, make_context())  # type: ignore[arg-type]
        assert advanced["action"] == "advance"

    def test_a_gateway_that_is_down_is_waited_for(self, release: Release, gateway: Gateway, make_context: Make) -> None:
        gateway.down = True
        deferred(step_of(release, "warm_up"), make_context())

    def test_a_poll_in_vain_after_hours_of_downtime_ends_nothing(
        self, release: Release, gateway: Gateway, control: ReleaseControl, make_context: Make, home: Path
    ) -> None:
        """Everything was down for five hours, the wait has timed out, and the gateway is still starting."""
        control.enter(release.id, "warm_up")
        control.enter(release.id, "canary_5")
        step, timed_out = step_of(release, "canary_5"), {"error": "Trigger timeout"}
        gateway.observed_s = 20.0
        deferred(step, make_context())
        self.entered_before(control, home, release, timedelta(hours=5))
        gateway.down = True
        with pytest.raises(TaskDeferred) as waits:
            step.resume_execution("__fail__", timed_out, make_context())  # type: ignore[arg-type]
        assert Polls.model_validate(waits.value.trigger.polls) == Polls()
        deferred(step_of(release, "canary_5"), make_context())  # and as a task that is tried again
        gateway.down, gateway.requests = False, 500
        assert step.execute(make_context())["action"] == "advance"  # type: ignore[arg-type, index]

    def test_a_gateway_that_never_answers_ends_the_step_at_its_deadline(
        self, release: Release, gateway: Gateway, control: ReleaseControl, make_context: Make, home: Path
    ) -> None:
        control.enter(release.id, "warm_up")
        control.enter(release.id, "canary_5")
        gateway.down = True
        self.entered_before(control, home, release, timedelta(hours=5))
        event = {"reason": "no decision", "polls": {"observed_s": 100.0, "unanswered_s": 7100.0}}
        with pytest.raises(AirflowFailException, match="no decision within 7200 s in canary_5: the gateway does not"):
            step_of(release, "canary_5").resume(make_context(), event)  # type: ignore[arg-type]
        assert control.ledger.release(release.id).phase is Phase.ROLLED_BACK

    def test_without_a_triggerer_a_silent_gateway_ends_the_step_with_the_second_wait(
        self, release: Release, gateway: Gateway, control: ReleaseControl, make_context: Make, home: Path
    ) -> None:
        control.enter(release.id, "warm_up")
        control.enter(release.id, "canary_5")
        gateway.down = True
        step, timed_out = step_of(release, "canary_5"), {"error": "Trigger timeout"}
        self.entered_before(control, home, release, timedelta(hours=5))
        with pytest.raises(TaskDeferred):
            step.resume_execution("__fail__", timed_out, make_context())  # type: ignore[arg-type]
        step.control.clock = lambda: datetime.now(UTC) + timedelta(hours=2, minutes=1)
        with pytest.raises(AirflowFailException, match="no decision within 7200 s in canary_5"):
            step.resume_execution("__fail__", timed_out, make_context())  # type: ignore[arg-type]

    def test_the_wait_for_the_way_counts_towards_no_step(
        self, release: Release, gateway: Gateway, control: ReleaseControl, make_context: Make
    ) -> None:
        """The wait for another release timed out, the step was entered, and hours later the gateway still starts."""
        later, timed_out = opened(control, "3"), {"error": "Trigger timeout"}
        control.enter(release.id, "warm_up")
        step = step_of(later, "warm_up")
        deferred(step, make_context())
        control.abort(release.id, actor="ada", reason="not today")
        gateway.down = True
        with pytest.raises(TaskDeferred):
            step.resume_execution("__fail__", timed_out, make_context())  # type: ignore[arg-type]
        step.control.clock = lambda: datetime.now(UTC) + timedelta(hours=5)
        with pytest.raises(TaskDeferred) as waits:
            step.resume_execution("__fail__", timed_out, make_context())  # type: ignore[arg-type]
        assert Polls.model_validate(waits.value.trigger.polls) == Polls()
        assert control.ledger.release(later.id).phase is Phase.WARM

    def test_polls_of_the_step_before_count_towards_no_other(
        self, release: Release, gateway: Gateway, control: ReleaseControl, make_context: Make
    ) -> None:
        """It was paused in the step before, where its trigger polled a gateway that was down."""
        control.enter(release.id, "warm_up")
        event = {"reason": "the ledger has moved on", "polls": {"observed_s": 100.0, "unanswered_s": 7100.0}}
        gateway.down = True
        with pytest.raises(TaskDeferred) as waits:
            step_of(release, "shadow").resume(make_context(), event)  # type: ignore[arg-type]
        assert waits.value.trigger.polls["observed_s"] == 0.0

    @staticmethod
    def entered_before(control: ReleaseControl, home: Path, release: Release, by: timedelta) -> None:
        """Put the time at which the step was entered back."""
        at = control.ledger.release(release.id).entered_at - by
        with sqlite3.connect(home / "ledger.db") as database:
            database.execute("UPDATE releases SET entered_at = ? WHERE id = ?", (f"{at:%F %T.%f}", release.id))

    def test_a_trigger_that_fires_for_nothing_changes_nothing(
        self, release: Release, gateway: Gateway, control: ReleaseControl, make_context: Make, ledger: Ledger
    ) -> None:
        control.enter(release.id, "warm_up")
        control.enter(release.id, "canary_5")
        before = ledger.timeline("toy")
        for _ in "ab":
            with pytest.raises(TaskDeferred):
                step_of(release, "canary_5").resume(make_context(), {"action": "advance"})  # type: ignore[arg-type]
        assert ledger.timeline("toy") == before

    def test_another_release_on_its_way_is_let_go_first(
        self, release: Release, gateway: Gateway, control: ReleaseControl, make_context: Make
    ) -> None:
        later = opened(control, "3")
        control.enter(release.id, "warm_up")
        waits = deferred(step_of(later, "warm_up"), make_context())
        assert isinstance(waits.trigger, LedgerTrigger)
        assert waits.trigger.seen["in_the_way"] == release.id
        assert control.ledger.release(later.id).phase is Phase.APPROVED
        control.abort(release.id, actor="ada", reason="not today")
        step_of(later, "warm_up").resume(make_context(), {"reason": "the ledger has moved on"})  # type: ignore[arg-type]
        assert control.ledger.release(later.id).phase is Phase.WARM


class TestEvidence:
    def test_lets_it_through(
        self, release: Release, gateway: Gateway, control: ReleaseControl, make_context: Make, ledger: Ledger
    ) -> None:
        control.enter(release.id, "warm_up")
        gateway.requests = 500
        decision = step_of(release, "shadow").execute(make_context())  # type: ignore[arg-type]
        assert decision is not None
        assert decision["action"] == "advance"
        assert [step for step, _ in ledger.verdicts(release.id)] == ["gates", "gates", "shadow"]

    def test_rolls_back_and_fails_with_the_reason(
        self, release: Release, gateway: Gateway, control: ReleaseControl, make_context: Make, home: Path
    ) -> None:
        control.enter(release.id, "warm_up")
        gateway.ejected = "12 of 60 requests failed"
        with pytest.raises(AirflowFailException, match="12 of 60 requests failed"):
            step_of(release, "canary_5").execute(make_context())  # type: ignore[arg-type]
        assert shares(home) == {"1": 100}
        assert control.ledger.release(release.id).phase is Phase.ROLLED_BACK

    def test_holds_at_the_deadline_where_the_spec_says_so(
        self,
        release: Release,
        gateway: Gateway,
        control: ReleaseControl,
        make_context: Make,
        home: Path,
        respec: Respec,
    ) -> None:
        respec("rollout: {on_deadline: hold, deadline: 1h}")
        control.enter(release.id, "warm_up")
        control.enter(release.id, "shadow")
        control.enter(release.id, "canary_5")
        gateway.observed_s = 3601
        waits = deferred(step_of(release, "canary_5"), make_context())
        held = control.ledger.release(release.id)
        assert held.paused
        assert "no decision within 3600 s" in held.reason
        assert isinstance(waits.trigger, ReleaseStepTrigger)
        assert waits.trigger.release["paused"], "the trigger waits for what comes after the pause"
        assert shares(home) == {"1": 95, "2": 5}


class TestLabels:
    GUARDS = "guards: [{kind: error_rate, max: 0.2, min_requests: 5}, {kind: label_metric, metric: mae, max: 0.5}]"

    @pytest.fixture
    def looked(self, monkeypatch: pytest.MonkeyPatch, respec: Respec) -> list[Any]:
        """The looks at the labels, which are all wrong."""
        respec(self.GUARDS)
        looked: list[Any] = []

        def late(
            spec: Any, _settings: Any, _ledger: Any, release: Release, champion: str, *, until: Any
        ) -> LateEvidence:
            looked.append((release.version, champion))
            wrong = Sums(n=2000, total=8000.0, squares=32400.0)
            return LateEvidence(until=until, answers=2000, due=2000, labelled=2000, observations={"label_mae": wrong})

        monkeypatch.setattr(steps, "evidence", SimpleNamespace(late_evidence=late), raising=False)
        return looked

    def test_count_in_a_step(
        self, looked: list[Any], release: Release, gateway: Gateway, control: ReleaseControl, make_context: Make
    ) -> None:
        control.enter(release.id, "warm_up")
        gateway.requests = 500
        with pytest.raises(AirflowFailException, match="version 2 is rolled back by airlock: on 2000 labelled answers"):
            step_of(release, "canary_5").execute(make_context())  # type: ignore[arg-type]
        assert looked == [("2", "1")]

    def test_are_looked_at_again_during_a_long_wait(
        self,
        release: Release,
        gateway: Gateway,
        control: ReleaseControl,
        make_context: Make,
        respec: Respec,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        respec(self.GUARDS)
        none = lambda *_, until, **__: LateEvidence(until=until)  # noqa: E731
        monkeypatch.setattr(steps, "evidence", SimpleNamespace(late_evidence=none), raising=False)
        control.enter(release.id, "warm_up")
        assert deferred(step_of(release, "canary_5"), make_context()).timeout == timedelta(minutes=15)


class TestClearedAndTriedAgain:
    def test_the_step_does_not_move_traffic(
        self, release: Release, gateway: Gateway, control: ReleaseControl, make_context: Make, ledger: Ledger
    ) -> None:
        control.enter(release.id, "warm_up")
        gateway.requests = 500
        for _ in "ab":
            step_of(release, "canary_5").execute(make_context())  # type: ignore[arg-type]
        assert [route.generation for route in ledger.routes("toy")] == [1, 2, 3]

    @pytest.mark.parametrize("name", ["warm_up", "shadow"])
    def test_a_step_that_was_passed_is_done(
        self, name: str, release: Release, gateway: Gateway, control: ReleaseControl, make_context: Make, home: Path
    ) -> None:
        control.enter(release.id, "warm_up")
        control.enter(release.id, "canary_5")
        assert step_of(release, name).execute(make_context()) is None  # type: ignore[arg-type]
        assert shares(home) == {"1": 95, "2": 5}

    def test_a_step_of_the_champion_is_done(
        self, champion: Release, gateway: Gateway, make_context: Make, ledger: Ledger
    ) -> None:
        before = ledger.timeline("toy")
        assert step_of(champion, "canary_5").execute(make_context()) is None  # type: ignore[arg-type]
        assert ledger.timeline("toy") == before


class TestASpecThatChanged:
    """The DAG is made from the file as it is now, the release goes by the spec that it was opened with."""

    def write(self, home: Path, weights: tuple[int, ...]) -> None:
        steps = ", ".join(f"{{weight: {weight}, bake: 0s, min_requests: 5}}" for weight in weights)
        said = {**yaml.safe_load(SPEC), "rollout": yaml.safe_load(f"{{steps: [{steps}]}}")}
        (home.parent / "project" / "dags" / "models" / "toy.yaml").write_text(yaml.safe_dump(said))

    @pytest.mark.parametrize("name", ["canary_25", "shadow_of_doubt"])
    def test_a_step_that_the_release_does_not_have_says_so(
        self, name: str, release: Release, gateway: Gateway, control: ReleaseControl, make_context: Make, home: Path
    ) -> None:
        control.enter(release.id, "warm_up")
        digest = str(release.spec)
        self.write(home, (5, 25, 100))
        with pytest.raises(AirflowFailException) as refused:
            step_of(release, name).execute(make_context())  # type: ignore[arg-type]
        if name == "canary_25":
            expected = (
                f"release {release.id} was opened with another spec (digest {digest[:19]}): it has the steps warm_up, "
                "shadow, canary_5, canary_100; this task is for step canary_25, which the file of toy has by now. "
                "Release version 2 again"
            )
        else:
            expected = "toy has no rollout step 'shadow_of_doubt'"
        assert expected in str(refused.value)

    def test_a_step_that_no_task_is_for_any_more_names_the_cause(
        self, release: Release, gateway: Gateway, control: ReleaseControl, make_context: Make, home: Path
    ) -> None:
        control.enter(release.id, "warm_up")
        control.enter(release.id, "shadow")
        self.write(home, (100,))
        with pytest.raises(
            AirflowFailException, match=r"canary_5 comes before canary_100.*rollout in the file changed"
        ):
            step_of(release, "canary_100").execute(make_context())  # type: ignore[arg-type]


class TestSteering:
    def test_what_was_aborted_fails_with_the_reason(
        self, release: Release, gateway: Gateway, control: ReleaseControl, make_context: Make
    ) -> None:
        control.enter(release.id, "warm_up")
        control.abort(release.id, actor="ada", reason="not today")
        with pytest.raises(AirflowFailException, match="version 2 is aborted by ada: not today"):
            step_of(release, "warm_up").resume(make_context(), {"action": "wake"})  # type: ignore[arg-type]

    def test_a_pause_keeps_it_in_the_earlier_step(
        self, release: Release, gateway: Gateway, control: ReleaseControl, make_context: Make, home: Path
    ) -> None:
        control.enter(release.id, "warm_up")
        control.enter(release.id, "canary_5")
        gateway.requests = 500
        control.pause(release.id, actor="ada", reason="look at it")
        deferred(step_of(release, "canary_100"), make_context())
        assert shares(home) == {"1": 95, "2": 5}
        control.resume(release.id, actor="ada", reason="fine")
        step_of(release, "canary_100").resume(make_context(), {"action": "wake"})  # type: ignore[arg-type]
        assert shares(home) == {"1": 0, "2": 100}

    def test_promote_now_goes_through_without_evidence(
        self, release: Release, gateway: Gateway, control: ReleaseControl, make_context: Make
    ) -> None:
        control.enter(release.id, "warm_up")
        control.enter(release.id, "canary_5")
        deferred(step_of(release, "canary_5"), make_context())
        control.promote_now(release.id, actor="ada", reason="in a hurry")
        decision = step_of(release, "canary_5").resume(make_context(), {"action": "wake"})  # type: ignore[arg-type]
        assert decision is not None
        assert decision["action"] == "advance"


class TestSkipping:
    def test_the_first_version_skips_every_step(
        self, control: ReleaseControl, gateway: Gateway, make_context: Make
    ) -> None:
        with pytest.raises(DownstreamTasksSkipped) as skipped:
            step_of(opened(control, "1"), "warm_up").execute(make_context())  # type: ignore[arg-type]
        assert list(skipped.value.tasks) == ["canary_5", "shadow", "watch"]

    def test_there_is_no_shadow_of_nobody(
        self, control: ReleaseControl, gateway: Gateway, make_context: Make, respec: Respec
    ) -> None:
        respec("rollout: {plan: shadow_only}")
        with pytest.raises(AirflowFailException, match="no champion whose requests could be shadowed"):
            step_of(opened(control, "1"), "warm_up").execute(make_context())  # type: ignore[arg-type]

    @pytest.mark.parametrize("where", ["parameter", "event"])
    def test_the_shadow_can_be_skipped(
        self, where: str, release: Release, gateway: Gateway, make_context: Make
    ) -> None:
        events = {assets.candidate("toy"): {"version": "2", "skip_shadow": where == "event"}}
        step = step_of(release, "warm_up", skip_shadow=where == "parameter")
        with pytest.raises(DownstreamTasksSkipped) as skipped:
            step.execute(make_context(events=events))  # type: ignore[arg-type]
        assert list(skipped.value.tasks) == ["shadow"]

    def test_nothing_is_skipped_unless_asked(self, release: Release, gateway: Gateway, make_context: Make) -> None:
        decision = step_of(release, "warm_up").execute(make_context())  # type: ignore[arg-type]
        assert decision is not None
        assert decision["action"] == "advance"


class TestWatching:
    """The last step's traffic, while people are asked before the promotion."""

    @pytest.fixture
    def asked(self, champion: Release, control: ReleaseControl, respec: Respec, gateway: Gateway) -> Release:
        respec("approvals: {required: 1, before: promotion}")
        release = control.approve(waiting(control, "2").id, actor="spec", reason="people are asked later")
        for step in ("warm_up", "shadow", "canary_5", "canary_100"):
            control.enter(release.id, step)
        gateway.requests = 500
        standing = control.ledger.release(release.id)
        control.ledger.record(standing, [HELD], step="canary_100", now=standing.entered_at)
        return standing

    def watch(self, release: Release) -> WatchTrafficOperator:
        dag = DAG("toy__release", schedule=None)
        return WatchTrafficOperator(task_id="watch", dag=dag, model="toy", release=release.id, step="canary_100")

    def test_waits_for_the_answers_with_the_guards_on(self, asked: Release, make_context: Make) -> None:
        trigger = deferred(self.watch(asked), make_context()).trigger
        assert isinstance(trigger, ReleaseStepTrigger)
        assert trigger.guards_only

    def test_a_breach_ends_the_release(
        self, asked: Release, gateway: Gateway, make_context: Make, home: Path, ledger: Ledger
    ) -> None:
        gateway.errors = 400
        with pytest.raises(AirflowFailException, match="is rolled back by airlock: the candidate failed 800 of 1000"):
            self.watch(asked).resume(make_context(), {"action": "roll_back"})  # type: ignore[arg-type]
        assert shares(home) == {"1": 100}
        assert ledger.release(asked.id).phase is Phase.ROLLED_BACK

    def test_a_deadline_is_no_breach(self, asked: Release, gateway: Gateway, make_context: Make) -> None:
        gateway.requests, gateway.observed_s = 1, 1e6
        deferred(self.watch(asked), make_context())

    def test_is_over_when_enough_have_approved(
        self, asked: Release, control: ReleaseControl, make_context: Make
    ) -> None:
        control.vote(asked.id, actor="ada", yes=True, reason="fine", evidence=control.evidence(asked.id))
        assert self.watch(asked).execute(make_context()) is None  # type: ignore[arg-type]

    def test_fails_with_a_rejection(self, asked: Release, control: ReleaseControl, make_context: Make) -> None:
        control.vote(asked.id, actor="ada", yes=False, reason="too risky", evidence=control.evidence(asked.id))
        with pytest.raises(AirflowFailException, match="is rejected by ada: too risky"):
            self.watch(asked).execute(make_context())  # type: ignore[arg-type]
