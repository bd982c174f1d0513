"""Waiting until the ledger says something else than what the operator saw."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, NotRequired, TypedDict

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airlock.core.errors import AirlockError
from airlock.core.release import LIVE
from airlock.hooks.ledger import LedgerHook
from airlock.ledger import Ledger


def facts(ledger: Ledger, release_id: str, names: Iterable[str]) -> dict[str, Any]:
    """What may wake up a task of a release, as JSON.

    ``release`` is the row itself, ``champion`` the version that holds production, ``in_the_way`` another release
    that has traffic.
    """
    release = ledger.release(release_id)

    def champion() -> str | None:
        holder = ledger.champion(release.model)
        return holder.version if holder else None

    def in_the_way() -> str | None:
        others = ledger.releases(release.model, phases=LIVE)
        return next((other.id for other in others if other.id != release.id), None)

    known: dict[str, Callable[[], Any]] = {
        "release": lambda: release.model_dump(mode="json"),
        "champion": champion,
        "in_the_way": in_the_way,
    }
    return {name: known[name]() for name in names}


class LedgerWatch:
    """Compares what the ledger says of a release with what was seen of it before."""

    def __init__(self, ledger_conn_id: str, release_id: str, seen: Mapping[str, Any]) -> None:
        self._conn_id = ledger_conn_id
        self._release_id = release_id
        self._seen = seen
        self._ledger: Ledger | None = None

    async def moved(self) -> bool:
        """Whether something that was seen has changed. A ledger that cannot be read has not moved."""
        try:
            if self._ledger is None:
                # Airflow hands connections only to the thread that asgiref knows.
                self._ledger = await sync_to_async(LedgerHook(self._conn_id).get_conn)()
            now = await asyncio.to_thread(facts, self._ledger, self._release_id, self._seen)
        except AirlockError:
            return False
        return now != dict(self._seen)


class Watched(TypedDict):
    """What every ``LedgerTrigger`` is given."""

    ledger_conn_id: str
    release: str
    seen: Mapping[str, Any]
    interval: NotRequired[float]


class LedgerTrigger(BaseTrigger):
    """Fire once when the ledger has moved on.

    :param ledger_conn_id: connection of the ledger
    :param release: id of the release
    :param seen: those of the ``facts`` that are waited for, as the operator saw them
    :param interval: seconds between two looks
    """

    def __init__(self, *, ledger_conn_id: str, release: str, seen: Mapping[str, Any], interval: float = 2.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger_conn_id = ledger_conn_id
        self.release = release
        self.seen = seen
        self.interval = interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "ledger_conn_id": self.ledger_conn_id,
                "release": self.release,
                "seen": self.seen,
                "interval": self.interval,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        watch = LedgerWatch(self.ledger_conn_id, self.release, self.seen)
        while True:
            # Waiting comes first: a task that is woken up before the scheduler has seen it pause counts as killed.
            await asyncio.sleep(self.interval)
            if (said := await self.look(watch)) is not None:
                yield TriggerEvent({"release": self.release, **said})  # type: ignore[no-untyped-call]
                return

    async def look(self, watch: LedgerWatch) -> dict[str, Any] | None:
        """What it fires with now, or ``None``."""
        return {"reason": "the ledger has moved on"} if await watch.moved() else None
