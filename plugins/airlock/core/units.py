"""Units of evidence larger than a request: one observation a customer, or a minute, for the limits that ask for it.

The tests of core/sequential.py are about the mean of each observation *given those before it*. Requests often are not
like that: a client that fails asks again, an outage fails a minute's worth at once, one hour is like the hour before.
A limit ``by: key`` observes the first request of each routing key in a release, one ``by: minute`` the mean over the
requests of each minute that has any.

Which keys were seen is kept in a bitmap of :data:`SLOTS` slots, whatever their number: a key that falls into a slot
that another one took counts as seen. Which keys these are is chance and has nothing to do with how they are answered,
so that what is observed stays a fair sample; of new keys e^(-n / SLOTS) are observed after n others: half after
180,000. A request without a key is a unit of its own: it is guarded as ``by: request`` would, not left out.

Standard library and pydantic only: the gateway calls it with each request. A minute is one of the
caller's clock, which must not go back; each request has its time in the log, so that a replay cuts the same minutes.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

from pydantic import BaseModel, ConfigDict, field_validator

from airlock.core.counters import Counters
from airlock.core.route import Limit
from airlock.core.tally import SCOPES, Role, Scope, Sums
from airlock.core.windows import COUNTS

SLOTS = 1 << 18
"""Slots of a bitmap, which takes an eighth as many bytes."""

_OF_ROLE: Mapping[Role, tuple[Scope, ...]] = {"served": SCOPES, "shadow": ("all",)}


class UnitsState(BaseModel):
    """What must be kept so that counting goes on after a restart as if nothing had been.

    ``sums`` are those of the units that are whole, ``minute`` those of the requests of the minute that is not over, by
    scope and limit, and ``open_minute`` which one that is; ``keys`` are the bitmaps as base64, by scope and kind of
    observation. They belong together: sums without their bitmaps would count keys twice.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sums: dict[Scope, dict[str, Sums]] = {}
    minute: dict[Scope, dict[str, Sums]] = {}
    open_minute: int | None = None
    keys: dict[str, str] = {}

    @field_validator("keys")
    @classmethod
    def _whole(cls, keys: dict[str, str]) -> dict[str, str]:
        for name, bits in keys.items():
            if len(base64.b64decode(bits, validate=True)) != SLOTS // 8:
                raise ValueError(f"the keys that were seen ({name}) do not fill {SLOTS} slots")
        return keys


class Units:
    """Counts a candidate's observations for those limits of a release that are ``by`` key or minute.

    ``counters`` get the sums, and have those of ``state``, which is what :meth:`state` gave before: a minute that it
    left open goes on. ``salt`` is the release's, so that keys that share a slot in one do not in the next.
    """

    def __init__(
        self, limits: Iterable[Limit], counters: Counters, state: UnitsState | None = None, *, salt: str = ""
    ) -> None:
        state = state or UnitsState()
        own = [limit for limit in limits if limit.by != "request"]
        self._answered = tuple(limit for limit in own if limit.signal in COUNTS)
        self._compared = tuple(limit for limit in own if limit.signal not in COUNTS)
        self._answered_by_key, self._compared_by_key = (
            any(limit.by == "key" for limit in part) for part in (self._answered, self._compared)
        )
        self._salt = salt.encode()[:64]
        self._counters = counters
        self._keys = {name: bytearray(base64.b64decode(bits)) for name, bits in state.keys.items()}
        self._minute = state.open_minute
        self._open = {
            scope: {name: s.model_copy() for name, s in state.minute.get(scope, {}).items()} for scope in SCOPES
        }
        if self._minute is None:
            self.end_minute()

    @property
    def any(self) -> bool:
        """Whether there is anything to count."""
        return bool(self._answered or self._compared)

    def answered(self, role: Role, key: str | None, latency_ms: float, *, failed: bool, at: float) -> None:
        """Count a request. ``key`` is its routing key, ``at`` when it was counted, in seconds since 1970.

        A fallback is counted where the version failed, so that something had to answer in its place.
        """
        if not self.any:
            return
        self.until(at)
        if not self._answered:
            return
        slot = self._slot(key) if self._answered_by_key else None
        for scope in _OF_ROLE[role]:
            first = self._answered_by_key and self._first(f"{scope} answered", slot)
            for limit in self._answered:
                hit = latency_ms > (limit.over_ms or 0.0) if limit.signal == "slow" else failed
                self._add(limit, scope, float(hit), first=first)

    def compared(self, key: str | None, differences: Sequence[float], flips: int, *, at: float) -> None:
        """Count a request that both versions answered, as ``Tally.compared`` does."""
        if not self.any:
            return
        self.until(at)
        if not self._compared:
            return
        first = self._compared_by_key and self._first("all compared", self._slot(key))
        rows = len(differences)
        for limit in self._compared:
            if limit.signal == "flips":
                value = flips / rows
            else:
                value = sum(map(abs, differences) if limit.signal == "absolute" else differences) / rows
            self._add(limit, "all", value, first=first)

    def until(self, at: float) -> None:
        """Say what time it is: a minute that is over becomes an observation."""
        minute = int(at // 60)
        if minute != self._minute:
            self.end_minute()
            self._minute = minute

    def state(self) -> UnitsState:
        return UnitsState.model_construct(
            sums=self._counters.units,
            minute={scope: dict(sums) for scope, sums in self._open.items()},
            open_minute=self._minute,
            keys={name: base64.b64encode(bits).decode() for name, bits in self._keys.items()},
        )

    def _add(self, limit: Limit, scope: Scope, value: float, *, first: bool) -> None:
        if limit.by == "minute":
            self._open[scope].setdefault(limit.name, Sums()).add(value)
        elif first:
            self._whole(scope, limit.name).add(value)

    def end_minute(self) -> None:
        """Make an observation of the minute that is open: a new step ends it."""
        for scope, requests in self._open.items():
            for name, sums in requests.items():
                if sums.mean is not None:
                    self._whole(scope, name).add(sums.mean)
            requests.clear()

    def _whole(self, scope: Scope, name: str) -> Sums:
        """The sums of the limit's units that are whole."""
        return self._counters.stream(scope).sums.units.setdefault(name, Sums())

    def _slot(self, key: str | None) -> int | None:
        if key is None:
            return None
        return (
            int.from_bytes(blake2b(key.encode(), digest_size=4, key=self._salt, person=b"airlock unit").digest())
            % SLOTS
        )

    def _first(self, seen: str, slot: int | None) -> bool:
        """Whether nothing has taken the slot before; it is taken then."""
        if slot is None:
            return True
        bits = self._keys.get(seen)
        if bits is None:
            bits = self._keys[seen] = bytearray(SLOTS // 8)
        place, bit = slot >> 3, 1 << (slot & 7)
        if bits[place] & bit:
            return False
        bits[place] |= bit
        return True
