"""Releases of a model whose spec file cannot be used: Airflow schedules none of their tasks, the sweep judges them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from airlock import steps
from airlock.control import ReleaseControl
from airlock.control.reconcile import Repair, reconcile
from airlock.core.release import Phase, Release
from airlock.core.tally import GatewayStatus, LateEvidence
from airlock.ledger import Ledger
from airlock.settings import Settings
from tests.support.control import ERRORS, LABELS, Clock, FakeAliases, held, in_step, labels, on_disk, promoted, seen

MakeControl = Callable[..., ReleaseControl]
Sweep = Callable[..., list[Repair]]
WAITS = "It waits for the file to come back: Airflow loads none of its DAGs before"


@pytest.fixture
def sweep(settings: Settings, aliases: FakeAliases, clock: Clock) -> Sweep:
    """What the sweep finds that nobody attends to; the model has no file, and every run says that it is running."""

    def run(status: GatewayStatus | None, *, dry_run: bool = False) -> list[Repair]:
        ledger = Ledger(settings.ledger_url)
        control = ReleaseControl("m", settings, ledger, aliases=aliases, clock=clock, patience=Clock.patience)
        found = reconcile(control, status=lambda: status, run_state=lambda _: "running", now=clock(), dry_run=dry_run)
        return [repair for repair in found if repair.kind == "unattended"]

    return run


@pytest.fixture
def came(monkeypatch: pytest.MonkeyPatch) -> Callable[[LateEvidence | Exception], None]:
    """Say what labels have come."""

    def say(late: LateEvidence | Exception) -> None:
        def read(*_: Any, until: datetime) -> LateEvidence:
            if isinstance(late, Exception):
                raise late
            return late

        monkeypatch.setattr(steps, "evidence", SimpleNamespace(late_evidence=read), raising=False)

    return say


def now(control: ReleaseControl, release: Release) -> Release:
    return control.ledger.release(release.id)


def test_one_past_its_deadline_is_rolled_back(control: ReleaseControl, settings: Settings, sweep: Sweep) -> None:
    promoted(control, "1")
    release = in_step(control, "2", run="m__release/r1")
    (told,) = sweep(seen(on_disk(settings), good=3, observed_s=61))
    assert (told.done, told.release, told.version) == (True, release.id, "2")
    assert now(control, release).phase is Phase.ROLLED_BACK
    assert "no decision within 60 s in canary_5: 3 of at least 30 requests" in now(control, release).reason
    assert on_disk(settings).weights == {"1": 100.0}


def test_one_that_fails_is_rolled_back(control: ReleaseControl, settings: Settings, sweep: Sweep) -> None:
    promoted(control, "1")
    release = in_step(control, "2", run="m__release/r1")
    assert sweep(seen(on_disk(settings), failed=100)) == [], "the breach is told as one"
    assert now(control, release).phase is Phase.ROLLED_BACK
    assert on_disk(settings).weights == {"1": 100.0}


def test_one_that_is_to_be_held_is_paused_at_its_deadline(
    make_control: MakeControl, settings: Settings, sweep: Sweep
) -> None:
    control = make_control(rollout={"on_deadline": "hold"})
    promoted(control, "1")
    release = in_step(control, "2", run="m__release/r1")
    late = seen(on_disk(settings), good=3, observed_s=61)
    assert [repair.done for repair in sweep(late)] == [True]
    assert (now(control, release).phase, now(control, release).paused) == (Phase.CANARY, True)
    (told,) = sweep(late)
    assert not told.done
    assert "wait: paused in canary_5" in told.what


def test_labels_that_are_bad_take_one_back(
    make_control: MakeControl, settings: Settings, sweep: Sweep, came: Callable[..., None]
) -> None:
    promoted(make_control(), "1")
    control = make_control(guards=(ERRORS, LABELS))
    release = in_step(control, "2", run="m__release/r1")
    came(OSError("no labels today"))
    assert [repair.done for repair in sweep(seen(on_disk(settings)))] == [False], "missing evidence is no breach"
    came(labels(0.9))
    assert [repair.done for repair in sweep(seen(on_disk(settings)))] == [True]
    assert now(control, release).phase is Phase.ROLLED_BACK


def test_one_that_held_waits_and_is_let_on_by_its_own_task_alone(
    control: ReleaseControl, settings: Settings, sweep: Sweep
) -> None:
    promoted(control, "1")
    release = in_step(control, "2", run="m__release/r1")
    before = control.ledger.timeline("m"), control.ledger.verdicts(release.id)
    (told,) = sweep(seen(on_disk(settings)))
    assert not told.done
    assert "judged here: advance: canary_5 held" in told.what
    assert told.what.endswith(WAITS)
    assert (control.ledger.timeline("m"), control.ledger.verdicts(release.id)) == before


def test_one_that_was_let_through_has_no_deadline_any_more(
    control: ReleaseControl, settings: Settings, sweep: Sweep
) -> None:
    """Its task is done with the step: what it waits for is the next one, or people."""
    promoted(control, "1")
    release = in_step(control, "2", run="m__release/r1")
    held(control, release)
    assert [repair.done for repair in sweep(seen(on_disk(settings), good=3, observed_s=61))] == [False]
    assert now(control, release).phase is Phase.CANARY


def test_a_gateway_that_stays_silent_ends_at_the_deadline(control: ReleaseControl, sweep: Sweep, clock: Clock) -> None:
    promoted(control, "1")
    release = in_step(control, "2", run="m__release/r1")
    assert [repair.done for repair in sweep(None)] == [False]
    clock.now += timedelta(minutes=5)
    assert [repair.done for repair in sweep(None)] == [True]
    assert now(control, release).phase is Phase.ROLLED_BACK


def test_a_dry_run_only_tells(control: ReleaseControl, settings: Settings, sweep: Sweep) -> None:
    promoted(control, "1")
    release = in_step(control, "2", run="m__release/r1")
    (told,) = sweep(seen(on_disk(settings), good=3, observed_s=61), dry_run=True)
    assert not told.done
    assert now(control, release).phase is Phase.CANARY


@pytest.mark.parametrize(
    ("value", "after", "phase"),
    [
        (0.9, timedelta(0), Phase.ROLLED_BACK),
        (0.1, timedelta(0), Phase.PROVISIONAL),
        (None, timedelta(days=30), Phase.ROLLED_BACK),
    ],
    ids=["bad labels", "good labels", "no labels within the deadline"],
)
def test_a_provisional_champion_is_judged_too(
    make_control: MakeControl,
    settings: Settings,
    sweep: Sweep,
    came: Callable[..., None],
    clock: Clock,
    value: float | None,
    after: timedelta,
    phase: Phase,
) -> None:
    control = make_control(guards=(ERRORS, LABELS))
    promoted(control, "1")
    release = in_step(control, "2", "canary_100", run="m__release/r2")
    held(control, release)
    assert control.promote(release.id).phase is Phase.PROVISIONAL
    came(labels(value or 0.1, n=300 if value else 2))
    clock.now += after
    found = {repair.release: repair for repair in sweep(seen(on_disk(settings)))}
    assert list(found) == [release.id], "the first is nobody's champion any more"
    assert found[release.id].done is (phase is Phase.ROLLED_BACK)
    assert now(control, release).phase is phase
    assert on_disk(settings).weights == ({"1": 100.0} if phase is Phase.ROLLED_BACK else {"2": 100.0})
    if phase is Phase.PROVISIONAL:
        assert found[release.id].what.endswith(WAITS)
