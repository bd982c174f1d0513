"""The airport's own systems, in a process of their own: they publish features, flights and landings.

Feast and pandas live here, so that the client that asks the gateway measures the gateway and not
them. Nothing is published before the simulated clock has reached it.
"""

from __future__ import annotations

import hashlib
import importlib
import multiprocessing
import signal
from dataclasses import dataclass, field
from datetime import datetime
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from airlock.core.errors import Unavailable
from airlock.core.spec import ModelSpec
from airlock.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

_PLACES = 2**32
_PATIENCE = 300.0
"""Seconds. It imports Feast and pushes features in less than ten, on a machine with nothing else to do."""


@dataclass(frozen=True)
class Tick:
    """What happened in a stretch of simulated time.

    ``flights`` are entity rows for the gateway in the order of their departure, each with its
    second within the stretch.
    """

    flights: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    landed: int = 0


class Feed:
    """The feed's end that asks. One caller at a time."""

    def __init__(self, spec: ModelSpec, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self._near, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, spec, settings), name="feed", daemon=True)
        self._process.start()
        far.close()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def open(self, now: datetime) -> None:
        """Publish what is known at ``now``. Blocks until the process has imported what it needs."""
        self._ask(("open", now), _PATIENCE)

    def tick(self, since: datetime, until: datetime, share: float) -> Tick:
        """Publish the features as known at ``since`` and deliver the labels of the flights that landed by then.

        Answers a ``share`` in (0, 1] of the flights scheduled in [since, until), always the same ones.
        """
        tick = self._ask(("tick", since, until, share), _PATIENCE)
        assert isinstance(tick, Tick)  # noqa: S101 - narrows what the pipe carried
        return tick

    def close(self) -> None:
        self._near.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, question: tuple[Any, ...], timeout: float) -> Any:
        try:
            self._near.send(question)
            if not self._near.poll(timeout):
                raise Unavailable(f"the replay's feed did not answer within {timeout:.0f} s")
            answer = self._near.recv()
        except (EOFError, OSError) as error:
            raise Unavailable(f"the replay's feed ended: {error or 'no answer'}") from error
        if isinstance(answer, BaseException):
            raise Unavailable(f"the replay's feed failed: {answer}") from answer
        return answer


def _serve(pipe: Connection, spec: ModelSpec, settings: Settings) -> None:
    """Answer questions until the other end is gone."""
    # The demo is told of Ctrl-C; this process ends when its pipe does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    airport = _Airport(spec, settings)
    while True:
        try:
            question, *arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer: Any = getattr(airport, question)(*arguments)
        except Exception as error:  # noqa: BLE001 - told to the demo, which fails with it
            answer = RuntimeError(f"{type(error).__name__}: {error}")
        pipe.send(answer)


class _Airport:
    """Flights, their features and their landings, as the clock reaches them."""

    def __init__(self, spec: ModelSpec, settings: Settings) -> None:
        self._spec = spec
        self._settings = settings
        self._pushed: datetime | None = None
        self._flights: pd.DataFrame | None = None
        self._landings: pd.DataFrame | None = None

    def open(self, now: datetime) -> None:
        from airlock.steps import features
        from airlock.steps.recipes import load_recipe

        recipe = load_recipe(self._spec, self._settings)
        events = recipe.load(None)[self._spec.data.table]
        columns = [self._spec.data.key, self._spec.data.event_time, *self._request_columns()]
        self._flights = events[columns].sort_values(self._spec.data.event_time, kind="stable")
        label = self._spec.label
        assert label.time is not None  # noqa: S101 - the replay needs a label that arrives later
        self._landings = events[[self._spec.data.key, label.name, label.time]].sort_values(label.time, kind="stable")
        self._landings = self._landings[self._landings[label.time] > now]
        features.apply_online(self._spec, self._settings)
        self._publish(now)

    def tick(self, since: datetime, until: datetime, share: float) -> Tick:
        self._publish(since)
        return Tick(flights=self._departing(since, until, share), landed=self._land(since))

    def _request_columns(self) -> list[str]:
        features = self._spec.features
        assert features is not None  # noqa: S101 - the replay asks by entity
        return [*features.entities, *features.request]

    def _publish(self, now: datetime) -> None:
        from airlock.steps import features

        data = importlib.import_module(f"include.{self._spec.model}.data")
        for view, frame in data.online_frames(self._pushed, now).items():
            features.push(self._spec, self._settings, view, frame)
        self._pushed = now

    def _departing(self, since: datetime, until: datetime, share: float) -> list[tuple[float, dict[str, Any]]]:
        assert self._flights is not None  # noqa: S101 - opened before
        key, time = self._spec.data.key, self._spec.data.event_time
        left, right = self._flights[time].searchsorted([since, until])
        chosen = self._flights.iloc[left:right]
        chosen = chosen[[_place(name) < share for name in chosen[key]]]
        rows: list[dict[Any, Any]] = chosen.astype(object).where(chosen.notna(), None).to_dict("records")
        return [((row[time] - since).total_seconds(), {**row, time: row[time].isoformat()}) for row in rows]

    def _land(self, now: datetime) -> int:
        from airlock.steps import labels

        assert self._landings is not None  # noqa: S101 - opened before
        arrived = int(self._landings[self._spec.label.time].searchsorted(now, side="right"))
        if arrived:
            labels.deliver(self._spec, self._settings, self._landings.iloc[:arrived])
            self._landings = self._landings.iloc[arrived:]
        return arrived


def _place(name: str) -> float:
    """A flight's place in [0, 1), the same in every run: a larger share keeps the smaller one's flights."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest()) / _PLACES
