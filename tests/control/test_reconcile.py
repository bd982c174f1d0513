"""Reconciling: what lies outside the ledger says what it says again, and what nobody carries ends."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from airlock.control import ReleaseControl
from airlock.control.projection import project_route, read_route
from airlock.control.reconcile import GRACE, Repair, reconcile
from airlock.core.errors import Unavailable
from airlock.core.release import Phase, Release
from airlock.core.route import Route
from airlock.core.tally import GatewayStatus
from airlock.settings import Settings
from tests.support.control import (
    ERRORS,
    FINITE,
    LABELS,
    Clock,
    FakeAliases,
    bento,
    ejection,
    held,
    in_step,
    on_disk,
    opened,
    promoted,
    seen,
)


@pytest.fixture
def repair(control: ReleaseControl, settings: Settings, clock: Clock) -> Callable[..., list[Repair]]:
    """Reconcile with a gateway that follows the route's file and runs that go on, unless the test says otherwise."""

    def run(
        *,
        status: Callable[[], GatewayStatus | None] = lambda: seen(on_disk(settings)),
        run_state: Callable[[Release], str | None] = lambda _: "running",
        dry_run: bool = False,
    ) -> list[Repair]:
        return reconcile(control, status=status, run_state=run_state, now=clock(), dry_run=dry_run)

    return run


def kinds(repairs: list[Repair]) -> list[tuple[str, bool]]:
    return [(each.kind, each.done) for each in repairs]


def test_where_everything_agrees_nothing_is_done(control: ReleaseControl, repair: Callable[..., list[Repair]]) -> None:
    promoted(control, "1")
    opened(control, "2", run="m__release/r1")
    before = control.ledger.timeline("m")
    assert repair() == []
    assert control.ledger.timeline("m") == before


def torn(settings: Settings) -> None:
    (settings.routes / "m.json").write_text("{")


def gone(settings: Settings) -> None:
    (settings.routes / "m.json").unlink()


def older(settings: Settings) -> None:
    route = on_disk(settings)
    gone(settings)
    project_route(settings.routes, route.model_copy(update={"generation": 1}))


@pytest.mark.parametrize("damage", [torn, gone, older])
def test_the_route_file_is_written_again(
    control: ReleaseControl,
    settings: Settings,
    repair: Callable[..., list[Repair]],
    damage: Callable[[Settings], None],
) -> None:
    promoted(control, "1")
    in_step(control, "2")
    right = on_disk(settings)
    damage(settings)
    told = repair(status=lambda: seen(right), dry_run=True)
    assert kinds(told) == [("route", False)]
    assert repair(status=lambda: seen(right)) == [told[0].model_copy(update={"done": True})]
    assert on_disk(settings) == right
    assert repair() == []


@pytest.mark.parametrize("generation", [7, 1000])
def test_a_route_that_the_ledger_does_not_know_gives_way_to_a_later_one(
    control: ReleaseControl, settings: Settings, repair: Callable[..., list[Repair]], generation: int
) -> None:
    promoted(control, "1")
    release = in_step(control, "2")
    right = on_disk(settings)
    stranger = right.model_copy(update={"generation": max(generation, right.generation), "weights": {"2": 100.0}})
    gone(settings)
    project_route(settings.routes, stranger)
    assert kinds(repair()) == [("route", True)]
    assert on_disk(settings).generation == stranger.generation + 1
    assert on_disk(settings).weights == right.weights
    assert control.ledger.release(release.id).generation == on_disk(settings).generation
    assert repair() == []


def test_a_route_that_another_writes_meanwhile_is_not_undone(
    control: ReleaseControl,
    settings: Settings,
    repair: Callable[..., list[Repair]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    promoted(control, "1")
    release = in_step(control, "2")

    def rolled_back_first(folder: Path, model: str) -> Route | None:
        monkeypatch.undo()
        control.roll_back(release.id, reason="errors")
        return read_route(folder, model)

    monkeypatch.setattr("airlock.control.reconcile.read_route", rolled_back_first)
    repair()
    assert on_disk(settings).weights == {"1": 100.0}
    assert control.ledger.route("m") == on_disk(settings)


def test_a_release_that_is_promoted_while_its_run_is_looked_up_stays(
    make_control: Callable[..., ReleaseControl], settings: Settings, clock: Clock
) -> None:
    control = make_control(guards=(ERRORS, LABELS), rollout={"provisional": True})
    promoted(control, "1")
    release = in_step(control, "2", "canary_100", run="m__release/r1")

    def ended(looked_at: Release) -> str:
        held(control, looked_at)
        control.promote(looked_at.id)
        return "success"

    reconcile(control, status=lambda: seen(on_disk(settings)), run_state=ended, now=clock())
    assert control.ledger.release(release.id).phase is Phase.PROVISIONAL
    assert on_disk(settings).weights == {"2": 100.0}


def test_a_gateway_that_is_ahead_of_the_ledger_is_overtaken(
    control: ReleaseControl, settings: Settings, repair: Callable[..., list[Repair]]
) -> None:
    promoted(control, "1")
    assert kinds(repair(status=lambda: seen(on_disk(settings), generation=41))) == [("route", True)]
    assert on_disk(settings).generation == 42


def test_a_gateway_that_took_another_document_of_the_generation_is_overtaken(
    control: ReleaseControl, settings: Settings, repair: Callable[..., list[Repair]]
) -> None:
    promoted(control, "1")
    before = on_disk(settings)
    assert kinds(repair(status=lambda: seen(before, checksum="sha256:other"))) == [("route", True)]
    assert on_disk(settings).generation == before.generation + 1


def test_a_gateway_that_does_not_follow_is_told(
    control: ReleaseControl, settings: Settings, repair: Callable[..., list[Repair]], clock: Clock
) -> None:
    promoted(control, "1")
    before = on_disk(settings)
    in_step(control, "2", "warm_up")
    behind = lambda: seen(before, error="bundle /b/2 is corrupt")  # noqa: E731
    assert repair(status=behind) == [], "it may be at it"
    clock.now += GRACE
    told = repair(status=behind)[0]
    assert (told.kind, told.done) == ("gateway", False)
    assert "bundle /b/2 is corrupt" in told.what
    assert kinds(repair(status=lambda: None))[0] == ("gateway", False)


@pytest.mark.parametrize("by", ["status", "file"])
def test_an_ejection_that_nobody_acts_on_is_rolled_back(
    control: ReleaseControl, settings: Settings, repair: Callable[..., list[Repair]], by: str
) -> None:
    promoted(control, "1")
    release = in_step(control, "2")
    status: Callable[[], GatewayStatus | None] = lambda: seen(on_disk(settings), ejection=ejection(release))  # noqa: E731
    if by == "file":
        settings.ejections.mkdir()
        (settings.ejections / "m.json").write_text(ejection(release).model_dump_json())
        status = lambda: seen(on_disk(settings))  # noqa: E731
    assert kinds(repair(status=status, dry_run=True)) == [("ejection", False)]
    assert control.ledger.release(release.id).phase is Phase.CANARY
    (told,) = repair(status=status)
    assert (told.kind, told.done, told.version) == ("ejection", True, "2")
    ended = control.ledger.release(release.id)
    assert (ended.phase, ended.reason) == (Phase.ROLLED_BACK, "the gateway ejected version 2: 9 of 50 requests failed")
    assert repair() == [], "an ejection of a release that has ended is history"


def test_a_champion_that_was_ejected_is_taken_back_where_there_is_a_way(
    control: ReleaseControl, settings: Settings, repair: Callable[..., list[Repair]]
) -> None:
    settings.ejections.mkdir()
    written = settings.ejections / "m.json"
    written.write_text(ejection(promoted(control, "1")).model_dump_json())
    told = len(control.ledger.timeline("m"))
    (stays,) = repair()
    assert (stays.kind, stays.done, len(control.ledger.timeline("m"))) == ("ejection", False, told)
    assert "no earlier version" in stays.what
    release = promoted(control, "2")
    written.write_text(ejection(release).model_dump_json())
    (left,) = repair()
    assert (left.kind, left.done, left.release, left.version) == ("ejection", True, release.id, "2")
    assert control.ledger.release(release.id).phase is Phase.ROLLED_BACK
    assert on_disk(settings).weights == {"1": 100.0}
    assert repair() == []


@pytest.mark.parametrize("state", ["success", "failed", None])
@pytest.mark.parametrize("step", [None, "warm_up", "canary_5"])
def test_a_release_whose_run_has_ended_is_rolled_back(
    control: ReleaseControl,
    settings: Settings,
    repair: Callable[..., list[Repair]],
    state: str | None,
    step: str | None,
) -> None:
    promoted(control, "1")
    release = control.open("2", bento("2"), actor="airflow", key="k", run="m__release/r1", verdicts=[FINITE])
    if step is not None:
        control.approve(release.id, actor="ann", reason="yes")
        for each in ("warm_up", "canary_5"):
            control.enter(release.id, each)
            if each == step:
                break
    assert repair(run_state=lambda _: "queued") == []
    asked: list[str | None] = []

    def run_state(of: Release) -> str | None:
        asked.append(of.run)
        return state

    (told,) = repair(run_state=run_state)
    assert (told.kind, told.done, told.release) == ("orphan", True, release.id)
    assert asked == ["m__release/r1"]
    ended = control.ledger.release(release.id)
    assert ended.phase is Phase.ROLLED_BACK
    assert "nobody carries it on" in ended.reason
    assert on_disk(settings).weights == {"1": 100.0}


def test_nobody_is_orphaned_while_airflow_does_not_answer(
    control: ReleaseControl, repair: Callable[..., list[Repair]]
) -> None:
    promoted(control, "1")
    release = opened(control, "2", run="m__release/r1")

    def down(_: Release) -> str | None:
        raise Unavailable("Airflow does not answer")

    assert kinds(repair(run_state=down)) == [("orphan", False)]
    assert control.ledger.release(release.id).phase is Phase.APPROVED


def test_a_release_that_no_run_carries_is_left_alone(
    control: ReleaseControl, repair: Callable[..., list[Repair]]
) -> None:
    promoted(control, "1")
    in_step(control, "2")
    assert repair(run_state=lambda _: None) == []


def test_aliases_follow_the_ledger(
    control: ReleaseControl, aliases: FakeAliases, repair: Callable[..., list[Repair]]
) -> None:
    promoted(control, "1")
    aliases.names = {"champion": "7", "candidate": "1"}
    assert kinds(repair()) == [("aliases", True), ("aliases", True)]
    assert aliases.names == {"champion": "1"}
    assert repair() == []


def test_aliases_of_a_registry_that_was_down_are_written_when_it_is_up(
    control: ReleaseControl, aliases: FakeAliases, repair: Callable[..., list[Repair]]
) -> None:
    promoted(control, "1")
    aliases.down = True
    promoted(control, "2")
    assert kinds(repair()) == [("aliases", False)]
    aliases.down = False
    assert kinds(repair()) == [("aliases", True)]
    assert aliases.names == {"champion": "2"}


def test_a_registry_that_cannot_be_compared_keeps_nothing_from_being_repaired(
    control: ReleaseControl, settings: Settings, aliases: FakeAliases, repair: Callable[..., list[Repair]]
) -> None:
    promoted(control, "1")
    aliases.down = True
    torn(settings)
    assert kinds(repair(status=lambda: None)) == [("route", True), ("gateway", False), ("aliases", False)]


def test_a_candidate_that_opened_no_release_is_told(
    control: ReleaseControl, aliases: FakeAliases, repair: Callable[..., list[Repair]]
) -> None:
    promoted(control, "1")
    aliases.names["candidate"] = "2"
    (told,) = repair()
    assert (told.kind, told.done, told.version) == ("candidate_asset", False, "2")
    opened(control, "2")
    assert repair() == []
    aliases.names["candidate"] = "3"
    assert repair() == [], "another one is on its way; its turn comes"


def test_an_event_of_a_new_champion_is_lost_after_a_while(
    control: ReleaseControl, repair: Callable[..., list[Repair]], clock: Clock
) -> None:
    release = promoted(control, "1")
    assert repair() == []
    clock.now += GRACE
    (told,) = repair()
    assert (told.kind, told.done, told.release, told.version) == ("champion_asset", False, release.id, "1")
    for effect in control.pending("champion_asset"):
        control.done(effect)
    assert repair() == []


def test_a_turn_that_was_never_given_back_is_told_and_taken(
    control: ReleaseControl, repair: Callable[..., list[Repair]], clock: Clock
) -> None:
    promoted(control, "1")
    control.ledger.lease("m", "killed", ttl=timedelta(seconds=1), now=clock())
    clock.now += timedelta(seconds=2)
    (told,) = repair()
    assert (told.kind, told.done) == ("lease", True)
    assert "killed" in told.what
    assert repair() == []


def test_what_cannot_be_repaired_now_is_told_and_left(
    control: ReleaseControl, settings: Settings, repair: Callable[..., list[Repair]], clock: Clock
) -> None:
    promoted(control, "1")
    torn(settings)
    control.ledger.lease("m", "busy", ttl=timedelta(seconds=5), now=clock())
    (told,) = repair(status=lambda: None)[:1]
    assert (told.kind, told.done) == ("route", False)
    assert "busy is at work" in told.what


def test_a_model_without_a_release_has_nothing_to_repair(repair: Callable[..., list[Repair]]) -> None:
    assert repair(status=lambda: None) == []
