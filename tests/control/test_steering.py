"""Steering: the release stays in its step, its evidence goes on, and whoever waits for it is woken up."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from airlock.control import ReleaseControl
from airlock.core.decide import Evidence, decide
from airlock.core.errors import NotFound, NotPossible, NotYet
from airlock.core.release import Phase, Release
from airlock.core.segment import Condition, Pin
from airlock.settings import Settings
from tests.support.control import Clock, in_step, on_disk, opened, promoted, seen

STEERED: dict[str, Callable[[ReleaseControl, Release], Release]] = {
    "pause": lambda control, release: control.pause(release.id, actor="ann", reason="look"),
    "extend": lambda control, release: control.extend(release.id, timedelta(hours=1), actor="ann", reason="slow"),
    "promote_now": lambda control, release: control.promote_now(release.id, actor="ann", reason="hurry"),
}


def pin(name: str, version: str, carrier: str = "EV") -> Pin:
    return Pin(name=name, when=(Condition(attribute="carrier", values=(carrier,)),), version=version)


@pytest.mark.parametrize("event", STEERED)
def test_steering_writes_a_generation_that_wakes_up_and_changes_no_share(
    control: ReleaseControl, settings: Settings, clock: Clock, event: str
) -> None:
    promoted(control, "1")
    release = in_step(control, "2")
    before = on_disk(settings)
    steered = STEERED[event](control, release)
    after = on_disk(settings)
    assert after.generation == before.generation + 1 == steered.generation
    assert (after.step, after.weights, after.salt, after.release) == (
        before.step,
        before.weights,
        before.salt,
        before.release,
    )
    assert (steered.step, steered.entered_at) == (release.step, release.entered_at)
    waiting = decide(control.spec, release, Evidence(gateway=seen(after)), clock())
    assert waiting.action == "wake"
    entry = control.ledger.timeline("m")[-1]
    assert (entry.event, entry.actor, entry.release) == (event, "ann", release.id)


@pytest.mark.parametrize("event", [*STEERED, "resume", "abort"])
def test_steering_reaches_only_what_is_on_its_way(control: ReleaseControl, event: str) -> None:
    release = promoted(control, "1")
    act = STEERED.get(event) or (lambda control, release: getattr(control, event)(release.id, actor="a", reason="b"))
    with pytest.raises(NotPossible, match=f"promoted cannot {event}"):
        act(control, release)


def test_a_pause_holds_what_would_go_on_and_ends(control: ReleaseControl, settings: Settings) -> None:
    promoted(control, "1")
    release = in_step(control, "2")
    control.pause(release.id, actor="ann", reason="look")
    assert control.pause(release.id, actor="bob", reason="too").reason == "look"
    assert control.observe(release.id, seen(on_disk(settings))).action == "wait"
    control.resume(release.id, actor="ann", reason="fine")
    assert control.observe(release.id, seen(on_disk(settings))).action == "advance"


def test_the_deadline_moves_by_as_long_as_it_was_paused(
    control: ReleaseControl, settings: Settings, clock: Clock
) -> None:
    promoted(control, "1")
    release = in_step(control, "2")
    control.pause(release.id, actor="ann", reason="look")
    clock.now += timedelta(hours=3)
    resumed = control.resume(release.id, actor="ann", reason="fine")
    assert timedelta(hours=3) <= resumed.extended < timedelta(hours=3, seconds=1)
    assert control.observe(release.id, seen(on_disk(settings), good=3, observed_s=10_800)).action == "wait"


def test_a_clock_that_was_put_back_takes_nothing_from_the_deadline(control: ReleaseControl, clock: Clock) -> None:
    promoted(control, "1")
    release = in_step(control, "2")
    control.pause(release.id, actor="ann", reason="look")
    clock.now -= timedelta(hours=1)
    assert control.resume(release.id, actor="ann", reason="fine").extended == timedelta(0)


def test_extensions_add_up_and_are_positive(control: ReleaseControl) -> None:
    promoted(control, "1")
    release = in_step(control, "2")
    for _ in range(2):
        extended = control.extend(release.id, timedelta(minutes=30), actor="ann", reason="slow")
    assert extended.extended == timedelta(hours=1)
    with pytest.raises(ValueError, match="positive"):
        control.extend(release.id, timedelta(0), actor="ann", reason="slow")


def test_promote_now_ends_a_pause_and_lets_through(control: ReleaseControl, settings: Settings) -> None:
    promoted(control, "1")
    release = in_step(control, "2")
    control.pause(release.id, actor="ann", reason="look")
    control.promote_now(release.id, actor="ann", reason="good enough")
    for step in ("canary_5", "canary_100"):
        control.enter(release.id, step)
        assert control.observe(release.id, seen(on_disk(settings), good=0, observed_s=0)).action == "advance"
    assert control.promote(release.id).phase is Phase.PROMOTED


def test_an_abort_is_told_with_who_and_why(control: ReleaseControl) -> None:
    promoted(control, "1")
    release = in_step(control, "2")
    assert control.abort(release.id, actor="ann", reason="wrong data").phase is Phase.ABORTED
    entry = control.ledger.timeline("m")[-1]
    assert (entry.event, entry.actor, entry.reason) == ("abort", "ann", "wrong data")


def test_a_first_version_can_be_steered_before_there_is_any_route(control: ReleaseControl) -> None:
    release = opened(control, "1")
    with pytest.raises(NotPossible, match="approved cannot pause"):
        control.pause(release.id, actor="ann", reason="look")
    with pytest.raises(NotYet, match="no champion yet"):
        control.pin(pin("beta", "1"), actor="ann", reason="try")


def test_a_pin_is_carried_through_steps_and_promotions(control: ReleaseControl, settings: Settings) -> None:
    promoted(control, "1")
    control.pin(pin("old", "1"), actor="ann", reason="they asked for it")
    release = in_step(control, "2", "canary_5")
    control.pin(pin("beta", "2", "9E"), actor="ann", reason="try it")
    waiting = control.ledger.release(release.id)
    assert waiting.generation == on_disk(settings).generation, "the gateway's figures are still about its step"
    assert waiting.step == "canary_5"
    control.pause(release.id, actor="ann", reason="look")
    assert {each.name for each in on_disk(settings).pins} == {"old", "beta"}
    control.promote_now(release.id, actor="ann", reason="good")
    control.enter(release.id, "canary_100")
    control.observe(release.id, seen(on_disk(settings)))
    control.promote(release.id)
    promoted(control, "3")
    route = on_disk(settings)
    assert {each.name for each in route.pins} == {"old", "beta"}
    assert {"1", "2", "3"} <= set(route.versions), "pinned versions stay loaded"


def test_a_pin_goes_with_a_version_that_is_taken_back_and_the_journal_says_so(
    control: ReleaseControl, settings: Settings
) -> None:
    promoted(control, "1")
    release = in_step(control, "2", "canary_5")
    control.pin(pin("beta", "2"), actor="ann", reason="try it")
    control.pin(pin("old", "1"), actor="ann", reason="keep them")
    control.roll_back(release.id, reason="errors")
    assert [each.name for each in on_disk(settings).pins] == ["old"]
    assert "pin beta ends with version 2" in control.ledger.timeline("m")[-1].reason


def test_pins_are_replaced_by_name_taken_away_and_refused(control: ReleaseControl, settings: Settings) -> None:
    promoted(control, "1")
    promoted(control, "2")
    control.pin(pin("beta", "1"), actor="ann", reason="try it")
    before = on_disk(settings)
    assert control.pin(pin("beta", "1"), actor="ann", reason="again").generation == before.generation
    control.pin(pin("beta", "2"), actor="ann", reason="the other one")
    assert on_disk(settings).pins == (pin("beta", "2"),)
    with pytest.raises(NotFound, match=r"version 9 cannot be pinned.*those are 2, 1"):
        control.pin(pin("gamma", "9"), actor="ann", reason="typo")
    with pytest.raises(NotFound, match=r"no pin 'gamma'; its pins: beta"):
        control.unpin("gamma", actor="ann", reason="typo")
    control.unpin("beta", actor="ann", reason="enough")
    assert on_disk(settings).pins == ()
    assert [entry.event for entry in control.ledger.timeline("m")][-3:] == ["pin", "pin", "unpin"]
