"""Live traffic: the flights of 2013 ask the gateway at their scheduled departure, over real HTTP.

The simulated clock runs ``speed`` hours a second at most, and slower towards a moment that the story keeps for later;
a machine that is too slow makes it late, never wrong.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

import httpx

from airlock.demo.feed import Tick

_TICK = timedelta(hours=1)
_CLIENTS = 4
_TIMEOUT = 30.0
_HORIZON = 600.0
"""Seconds that the rest of the way to a brake's moment would take at the speed of now."""
_SLOWEST = 1 / 3600
_FLIGHTS_AN_HOUR = 40  # on average over the year, day and night: 336,776 / 8,760


class Source(Protocol):
    """Where the flights come from."""

    def tick(self, since: datetime, until: datetime, share: float) -> Tick: ...


@dataclass(frozen=True)
class Traffic:
    """What the client saw so far. ``latencies`` are seconds, in the order of the answers."""

    now: datetime
    requests: int
    failed: int
    landed: int
    first_failure: str | None
    latencies: tuple[float, ...] = ()


class World:
    """The replay. Of the flights as many ask as make ``max_rate`` requests a second, always the same ones.

    ``key`` names the field of a flight that chooses the version.
    """

    def __init__(
        self,
        source: Source,
        url: str,
        start: datetime,
        *,
        key: str,
        speed: float,
        max_rate: float = 60.0,
    ) -> None:
        self.speed = speed
        self._source = source
        self._url = url
        self._key = key
        self._now = start
        self._skip: datetime | None = None
        self._brake: datetime | None = None
        self._changed = threading.Event()
        self._max_rate = max_rate
        self._asks: queue.Queue[dict[str, Any] | None] = queue.Queue(maxsize=_CLIENTS)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._latencies: list[float] = []
        self._failed = 0
        self._first_failure: str | None = None
        self._landed = 0
        self._broken: Exception | None = None
        self._threads = [
            threading.Thread(target=self._clock, name="clock", daemon=True),
            *(threading.Thread(target=self._client, name=f"client-{i}", daemon=True) for i in range(_CLIENTS)),
        ]

    @property
    def now(self) -> datetime:
        return self._now

    def skip(self, to: datetime) -> None:
        """Go on at ``to``, if that is later: nothing is asked in between, features and labels are caught up with."""
        self._skip = to
        self._changed.set()

    def brake(self, before: datetime | None) -> None:
        """Keep the clock from ``before``, the slower the nearer it comes, until told otherwise with ``None``.

        However long the story takes until then, what comes afterwards is the same in every run.
        """
        self._brake = before
        self._changed.set()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the replay; every request that was sent is answered first."""
        self._stop.set()
        self._changed.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout=_TIMEOUT + 5)

    def traffic(self, *, latencies: bool = False) -> Traffic:
        """What was seen so far.

        Raises:
            Exception: what stopped the replay, if something did.
        """
        if self._broken is not None:
            raise self._broken
        with self._lock:
            return Traffic(
                now=self._now,
                requests=len(self._latencies),
                failed=self._failed,
                landed=self._landed,
                first_failure=self._first_failure,
                latencies=tuple(self._latencies) if latencies else (),
            )

    def _clock(self) -> None:
        try:
            while not self._stop.is_set():
                self._hour()
        except Exception as error:  # noqa: BLE001 - raised again by traffic(), in the story's thread
            self._broken = error
        finally:
            for _ in range(_CLIENTS):
                self._put(None)

    def _speed(self) -> float:
        """Simulated hours a second in the hour that begins."""
        if self._brake is None:
            return self.speed
        return max(_SLOWEST, min(self.speed, (self._brake - self._now) / timedelta(hours=1) / _HORIZON))

    def _hour(self) -> None:
        self._changed.clear()
        skip, self._skip = self._skip, None
        if skip is not None:
            self._now = max(self._now, skip)
        speed = self._speed()
        share = min(1.0, self._max_rate / (speed * _FLIGHTS_AN_HOUR))
        began = time.monotonic()
        tick = self._source.tick(self._now, self._now + _TICK, share)
        with self._lock:
            self._landed += tick.landed
        for second, flight in tick.flights:
            due = began + second / (3600 * speed)
            if self._changed.wait(max(0.0, due - time.monotonic())):
                break
            self._put(flight)
        self._now += _TICK
        self._changed.wait(max(0.0, began + _TICK.total_seconds() / (3600 * speed) - time.monotonic()))

    def _put(self, flight: dict[str, Any] | None) -> None:
        while True:
            try:
                self._asks.put(flight, timeout=0.5)
            except queue.Full:
                if self._stop.is_set() and flight is not None:
                    return
            else:
                return

    def _client(self) -> None:
        with httpx.Client(timeout=_TIMEOUT) as client:
            while (flight := self._asks.get()) is not None:
                began = time.perf_counter()
                failure = self._ask(client, flight)
                took = time.perf_counter() - began
                with self._lock:
                    self._latencies.append(took)
                    if failure is not None:
                        self._failed += 1
                        self._first_failure = self._first_failure or failure

    def _ask(self, client: httpx.Client, flight: dict[str, Any]) -> str | None:
        """Ask about one flight; answers what went wrong, if something did."""
        try:
            response = client.post(self._url, json={"entities": [flight], "key": flight[self._key]})
        except Exception as error:  # noqa: BLE001 - whatever it was, the request is lost and has to be counted
            return f"{type(error).__name__}: {error}"
        return None if response.status_code == httpx.codes.OK else f"{response.status_code}: {response.text[:500]}"
