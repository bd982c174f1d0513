"""Triggers that wait for the ledger, for people, and for a deadline of Airflow's: they read, and fire once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowRuntimeError

from airlock.core.errors import Unavailable
from airlock.core.release import Event, Phase, Release
from airlock.hooks.ledger import LedgerHook
from airlock.ledger import Ledger
from airlock.triggers.approval import ApprovalTrigger
from airlock.triggers.ledger import LedgerTrigger, LedgerWatch, facts
from airlock.triggers.overdue import release_overdue
from airlock.triggers.release import ReleaseStepTrigger
from tests.support.control import spec_of
from tests.support.releases import NOW, in_canary, release
from tests.support.waiting import PATIENCE_S, wait_until_async

TI = "01a1fdcd-ac06-7d3c-aeaa-c9835429a2f0"
ALL = ("release", "champion", "in_the_way")


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    monkeypatch.setattr(LedgerHook, "get_conn", lambda _: ledger)
    return ledger


@pytest.fixture
def detail(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What Airflow keeps of the question."""
    detail = SimpleNamespace(response_received=False, chosen_options=[], error=None)

    def get(ti_id: Any) -> SimpleNamespace:
        assert str(ti_id) == TI
        if detail.error:
            raise detail.error
        return detail

    monkeypatch.setattr("airlock.triggers.approval.get_hitl_detail_content_detail", get)
    return detail


def fired(trigger: LedgerTrigger | ReleaseStepTrigger, meanwhile: Callable[[], object] | None = None) -> dict[str, Any]:
    """What the trigger fires with, and that it did not before ``meanwhile``, however often it had looked."""

    async def collect() -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            first = asyncio.ensure_future(anext(trigger.run()))
            if meanwhile is not None:
                await looked_and_waits_on(first)
                meanwhile()
            return dict((await first).payload)

    return asyncio.run(collect())


async def looked_and_waits_on(first: asyncio.Future[Any]) -> None:
    """Wait until the trigger has looked three times, and see that it has not fired."""
    looks, moved = 0, LedgerWatch.moved

    async def counting(watch: LedgerWatch) -> bool:
        nonlocal looks
        looks += 1
        return await moved(watch)

    async def enough() -> bool:
        return looks > 3 or first.done()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LedgerWatch, "moved", counting)
        await wait_until_async(enough, "the trigger to look again and again", seen=lambda: looks)
    assert not first.done()


def waits(ledger: Ledger, name: str, *watched: str) -> LedgerTrigger:
    return LedgerTrigger(ledger_conn_id="l", release=name, seen=facts(ledger, name, watched or ALL), interval=0.01)


def asks(ledger: Ledger, name: str, expires_in: timedelta = timedelta(hours=1)) -> ApprovalTrigger:
    return ApprovalTrigger(
        ledger_conn_id="l",
        release=name,
        seen=facts(ledger, name, ("release", "champion")),
        ti_id=TI,
        expires_at=(datetime.now(UTC) + expires_in).isoformat(),
        interval=0.01,
    )


def test_a_trigger_refuses_what_it_does_not_know() -> None:
    with pytest.raises(TypeError, match="sean"):
        LedgerTrigger(ledger_conn_id="l", release="r1", seen={}, sean={})  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="sean"):
        ApprovalTrigger(ledger_conn_id="l", release="r1", seen={}, sean={}, ti_id=TI, expires_at="")  # type: ignore[call-arg]


def opened(ledger: Ledger, name: str) -> Release:
    return ledger.open(release(name), key=name, actor="ann")


def moved(ledger: Ledger, name: str, event: Event) -> Callable[[], Release]:
    return lambda: ledger.transition(ledger.release(name), event, actor="bob", reason="because", now=NOW)


def test_fires_when_the_release_is_steered(ledger: Ledger) -> None:
    opened(ledger, "r1")
    said = fired(waits(ledger, "r1"), moved(ledger, "r1", Event.ABORT))
    assert said == {"release": "r1", "reason": "the ledger has moved on"}


def test_fires_when_the_way_is_free(ledger: Ledger) -> None:
    in_canary(ledger, "r1")
    opened(ledger, "r2")
    trigger = waits(ledger, "r2", "in_the_way")
    assert trigger.seen == {"in_the_way": "r1"}
    fired(trigger, moved(ledger, "r1", Event.ABORT))


def test_what_is_not_waited_for_does_not_wake_it_up(ledger: Ledger) -> None:
    in_canary(ledger, "r1")
    opened(ledger, "r2")
    trigger = waits(ledger, "r2", "in_the_way")
    moved(ledger, "r2", Event.ABORT)()

    async def waits_on() -> None:
        first = asyncio.ensure_future(anext(trigger.run()))
        await looked_and_waits_on(first)
        first.cancel()

    asyncio.run(waits_on())


def test_a_ledger_that_cannot_be_read_has_not_moved(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(ledger, "r1")
    trigger, read = waits(ledger, "r1"), Ledger.release

    def down(*_: Any) -> Any:
        raise Unavailable("locked")

    monkeypatch.setattr(Ledger, "release", down)

    def up_again() -> None:
        monkeypatch.setattr(Ledger, "release", read)
        moved(ledger, "r1", Event.ABORT)()

    fired(trigger, up_again)


def test_a_step_wakes_up_by_the_ledger_with_the_gateway_down(ledger: Ledger) -> None:
    standing = in_canary(ledger, "r1")
    trigger = ReleaseStepTrigger(
        spec=spec_of(rollout={"deadline": "365d"}).model_dump(mode="json"),
        release=standing.model_copy(update={"entered_at": datetime.now(UTC)}).model_dump(mode="json"),
        gateway_url="http://127.0.0.1:9",
        ledger_conn_id="l",
        interval=0.01,
    )
    said = fired(trigger)
    assert said["action"] == "wake"


class TestQuestion:
    def test_hands_over_an_answer_that_airflow_did_not_notice(self, ledger: Ledger, detail: SimpleNamespace) -> None:
        opened(ledger, "r1")

        def answer() -> None:
            user = SimpleNamespace(id="7", name="grace")
            detail.chosen_options, detail.params_input = ["Approve"], {"comment": "quick"}
            detail.responded_at, detail.responded_by_user = NOW, user
            detail.response_received = True

        assert fired(asks(ledger, "r1"), answer) == {
            "release": "r1",
            "reason": "somebody has answered",
            "chosen_options": ["Approve"],
            "params_input": {"comment": "quick"},
            "responded_at": NOW.isoformat(),
            "responded_by_user": {"id": "7", "name": "grace"},
        }

    def test_ends_with_the_release(self, ledger: Ledger, detail: SimpleNamespace) -> None:
        opened(ledger, "r1")
        said = fired(asks(ledger, "r1"), moved(ledger, "r1", Event.REJECT))
        assert said["reason"] == "the ledger has moved on"

    def test_ends_with_its_time(self, ledger: Ledger, detail: SimpleNamespace) -> None:
        opened(ledger, "r1")
        assert fired(asks(ledger, "r1", timedelta(0)))["reason"] == "the question has expired"

    def test_one_that_was_never_asked_is_told(self, ledger: Ledger, detail: SimpleNamespace) -> None:
        opened(ledger, "r1")
        detail.error = AirflowRuntimeError(SimpleNamespace(error=SimpleNamespace(value="API_SERVER_ERROR"), detail={}))  # type: ignore[arg-type]
        assert fired(asks(ledger, "r1"))["asked"] is False


def test_a_release_that_takes_too_long_is_noted(ledger: Ledger) -> None:
    mine = ledger.open(release("r1").model_copy(update={"run": "m__release/manual__1"}), key="a", actor="ann")
    ledger.open(release("r2").model_copy(update={"run": "m__release/manual__2"}), key="b", actor="ann")
    context = {"dag_run": {"dag_id": "m__release", "dag_run_id": "manual__1"}}
    asyncio.run(release_overdue(context, model="m", after="2h"))
    last = ledger.timeline("m")[-1]
    assert (last.release, last.event, last.reason) == ("r1", "overdue", "the run has taken longer than 2h")
    assert ledger.release(mine.id).phase is Phase.OPENED
