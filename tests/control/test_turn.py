"""Turns: one controller at a time, fenced off when it slept, and whatever was killed is finished by the next."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from airlock.control import ReleaseControl, controller, turn
from airlock.control.controller import LEASE, Controller
from airlock.control.projection import project_route, show_aliases
from airlock.core.errors import Conflict, Fenced, Unavailable
from airlock.core.release import Event, Phase
from airlock.ledger import Ledger
from airlock.settings import Settings
from tests.support.control import Clock, FakeAliases, bento, held, in_step, on_disk, opened, promoted, spec_of

MakeControl = Callable[..., ReleaseControl]


class Killed(BaseException):
    """What a controller feels of SIGKILL."""


def kill_at(monkeypatch: pytest.MonkeyPatch, name: str, *, call: int = 1) -> None:
    """End whoever makes one of the turn's side effects, at which call, without giving anything back."""
    left = call

    def killed(*_args: Any, **_kwargs: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Killed

    monkeypatch.setattr({"project_route": turn, "show_aliases": controller}[name], name, killed)
    monkeypatch.setattr(Controller, "_give_back", lambda *_: None)


def test_a_ledger_that_is_too_slow_for_every_lease_is_not_asked_for_ever(
    make_control: MakeControl, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    control, granted = make_control(), Ledger.lease

    def slow(*args: Any, **keywords: Any) -> Any:
        clock.now += LEASE
        return granted(*args, **keywords)

    monkeypatch.setattr(Ledger, "lease", slow)
    with pytest.raises(Unavailable, match="takes longer than 5 s to grant a lease"), control.turn():
        pass


def test_a_controller_that_was_killed_before_the_route_is_finished_by_the_next(
    make_control: MakeControl, settings: Settings, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = make_control()
    promoted(control, "1")
    release = in_step(control, "2", "shadow")
    with monkeypatch.context() as patch:
        kill_at(patch, "project_route", call=2)  # the first one only looks for what was left undone
        with pytest.raises(Killed):
            control.enter(release.id, "canary_5")
    assert on_disk(settings).step == "shadow"
    assert control.ledger.release(release.id).step == "canary_5", "the ledger comes first"
    assert [effect.kind for effect in control.ledger.pending_effects("m")][-1] == "route"
    other = make_control()
    with pytest.raises(Conflict, match="is at work on m"):
        other.enter(release.id, "canary_5")
    clock.now += LEASE
    other.enter(release.id, "canary_5")
    assert (on_disk(settings).step, on_disk(settings).share) == ("canary_5", 5)
    assert not other.pending("route")
    assert [entry.event for entry in control.ledger.timeline("m")].count("step") == 1


def test_a_controller_that_was_killed_before_the_aliases_is_finished_by_the_next(
    make_control: MakeControl, aliases: FakeAliases, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = make_control()
    promoted(control, "1")
    release = in_step(control, "2", "canary_100")
    held(control, release)
    with monkeypatch.context() as patch:
        kill_at(patch, "show_aliases")
        with pytest.raises(Killed):
            control.promote(release.id)
    assert aliases.names["champion"] == "1"
    clock.now += LEASE
    opened(make_control(), "3")
    assert aliases.names["champion"] == "2"


def test_promoting_twice_at_once_has_one_winner(make_control: MakeControl, settings: Settings) -> None:
    control = make_control()
    promoted(control, "1")
    release = in_step(control, "2", "canary_100")
    held(control, release)
    ended: list[object] = []
    clock = control.clock

    def promote() -> None:
        mine = ReleaseControl(spec_of(), settings, Ledger(settings.ledger_url), clock=clock)
        ended.append(mine.promote(release.id).phase)

    threads = [threading.Thread(target=promote) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [Phase.PROMOTED] * 3
    events = [entry.event for entry in control.ledger.timeline("m") if entry.release == release.id]
    assert events.count("promote") == 1
    assert [route.champion for route in control.ledger.routes("m")].count("2") == 1


def test_a_controller_that_slept_through_its_turn_writes_nothing(
    make_control: MakeControl, settings: Settings, clock: Clock
) -> None:
    sleeper, other = make_control(), make_control()
    promoted(sleeper, "1")
    release = in_step(sleeper, "2")

    def oversleep() -> None:
        with sleeper.turn() as turn:
            clock.now += LEASE
            other.pause(release.id, actor="ann", reason="look")
            turn.move(sleeper.ledger.release(release.id), Event.ABORT, actor="late", reason="late")

    with pytest.raises(Fenced, match="nothing was written"):
        oversleep()
    assert sleeper.ledger.release(release.id).paused
    assert on_disk(settings).share == 5


def test_a_turn_ends_by_itself_even_if_nobody_else_took_it(make_control: MakeControl, clock: Clock) -> None:
    control = make_control()
    promoted(control, "1")
    release = in_step(control, "2")

    def oversleep() -> None:
        with control.turn() as turn:
            clock.now += LEASE
            turn.move(release, Event.ABORT, actor="late", reason="late")

    with pytest.raises(Fenced, match="ran out"):
        oversleep()


def test_a_lease_from_before_the_clock_was_put_back_is_taken_over(make_control: MakeControl, clock: Clock) -> None:
    control, other = make_control(), make_control()
    promoted(control, "1")
    release = in_step(control, "2")
    control.ledger.lease("m", "killed", ttl=LEASE, now=clock())
    with pytest.raises(Conflict, match="killed is at work"):
        other.pause(release.id, actor="ann", reason="look")
    clock.now -= timedelta(hours=1)
    assert other.pause(release.id, actor="ann", reason="look").paused


def test_a_live_lease_is_waited_for(make_control: MakeControl, settings: Settings) -> None:
    control = make_control()
    promoted(control, "1")
    release = in_step(control, "2")
    lease = control.ledger.lease("m", "busy", ttl=timedelta(hours=1), now=control.clock())
    patient = ReleaseControl(spec_of(), settings, control.ledger, clock=control.clock, patience=timedelta(seconds=30))
    later = threading.Timer(0.2, control.ledger.release_lease, [lease])
    later.start()
    assert patient.pause(release.id, actor="ann", reason="look").paused
    later.join()


def test_a_route_that_cannot_be_written_is_told_and_written_later(
    control: ReleaseControl, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted(control, "1")
    release = in_step(control, "2", "shadow")
    folder = settings.routes
    aside = folder.with_name("aside")
    folder.rename(aside)
    folder.write_text("not a folder")
    with pytest.raises(Unavailable, match=r"is decided, but .* cannot be written"):
        control.enter(release.id, "canary_5")
    folder.unlink()
    aside.rename(folder)
    control.enter(release.id, "canary_5")
    assert on_disk(settings).share == 5


@pytest.mark.parametrize("damage", ["{ torn", ""])
def test_a_torn_route_file_is_written_again_by_the_retry(
    control: ReleaseControl, settings: Settings, damage: str
) -> None:
    promoted(control, "1")
    release = in_step(control, "2")
    (settings.routes / "m.json").write_text(damage)
    control.enter(release.id, "canary_5")
    assert on_disk(settings) == control.ledger.route("m")


def test_an_older_document_never_replaces_a_newer_one(control: ReleaseControl, settings: Settings) -> None:
    promoted(control, "1")
    first = on_disk(settings)
    promoted(control, "2")
    newest = on_disk(settings)
    assert project_route(settings.routes, first) is False
    assert on_disk(settings) == newest


def test_a_promotion_while_the_aliases_are_written_is_not_overwritten(
    control: ReleaseControl, aliases: FakeAliases, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted(control, "1")
    late = FakeAliases()
    write = late.set_alias

    def promoted_meanwhile(model: str, alias: str, version: str) -> None:
        monkeypatch.setattr(late, "set_alias", write)
        promoted(control, "2")
        write(model, alias, version)

    monkeypatch.setattr(late, "set_alias", promoted_meanwhile)
    show_aliases(control.ledger, "m", late)
    assert late.names["champion"] == "2"


def test_a_candidate_that_is_released_again_keeps_its_alias(control: ReleaseControl, aliases: FakeAliases) -> None:
    promoted(control, "1")
    aliases.names["candidate"] = "2"
    release = in_step(control, "2")
    aliases.down = True
    control.abort(release.id, actor="ann", reason="again")
    opened_again = control.open("2", bento("2"), actor="ann", key="again")
    aliases.down = False
    control.catch_up()
    assert aliases.names["candidate"] == "2"
    control.abort(opened_again.id, actor="ann", reason="no")
    assert "candidate" not in aliases.names
