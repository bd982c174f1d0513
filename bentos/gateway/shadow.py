"""Scores the other versions on what was just answered, after the answer and off its way.

One thread and a bounded queue: when shadow scoring cannot keep up, or hangs, requests are left out
and counted; the answers do not wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gateway.prediction_writer import Origin
from gateway.serving import Effect, Served
from gateway.versions import Version, VersionFailed

QUEUE = 2_000
_DELIVER_SECONDS = 0.02
_PATIENCE_SECONDS = 5.0


class Task(NamedTuple):
    """One version to be scored on one request that ``answered_by`` has answered with ``answers``."""

    served: Served
    effect: Effect
    version: Version
    origin: Origin
    answered_by: Version
    answers: Sequence[float]


class Scored(NamedTuple):
    """What came of a task: answers, or why there are none."""

    task: Task
    answers: list[float] | None
    error: str | None
    latency_ms: float


class ShadowWorker:
    """``deliver`` gets what was scored, on the event loop."""

    def __init__(self, deliver: Callable[[list[Scored]], None]) -> None:
        self._deliver = deliver
        self._tasks: queue.Queue[Task | None] = queue.Queue(QUEUE)
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="airlock-shadow", daemon=True)
        self._thread.start()
        self.dropped: dict[str, int] = {}

    def submit(self, task: Task) -> None:
        try:
            self._tasks.put_nowait(task)
        except queue.Full:
            model = task.effect.route.model
            self.dropped[model] = self.dropped.get(model, 0) + 1

    def depth(self) -> int:
        return self._tasks.qsize()

    async def close(self) -> None:
        """Score what is queued, as far as a few seconds go."""
        await asyncio.to_thread(self._finish)
        await asyncio.sleep(0)  # what was handed over last is delivered before this returns

    def _finish(self) -> None:
        with contextlib.suppress(queue.Full):
            self._tasks.put(None, timeout=_PATIENCE_SECONDS)
            self._thread.join(_PATIENCE_SECONDS)

    def _work(self) -> None:
        scored: list[Scored] = []
        since = time.perf_counter()
        while True:
            try:
                task = self._tasks.get_nowait() if scored else self._tasks.get()
            except queue.Empty:
                self._hand_over(scored)
                continue
            if task is None:
                self._hand_over(scored)
                return
            if not scored:
                since = time.perf_counter()
            scored.append(_score(task))
            if time.perf_counter() - since > _DELIVER_SECONDS:
                self._hand_over(scored)

    def _hand_over(self, scored: list[Scored]) -> None:
        if scored:
            self._loop.call_soon_threadsafe(self._deliver, scored.copy())
            scored.clear()


def _score(task: Task) -> Scored:
    started = time.perf_counter()
    answers, error = None, None
    try:
        answers = task.version.answer(task.effect.feeds[task.version.name], task.origin.rows)
    except VersionFailed as failure:
        error = str(failure)
    return Scored(task, answers, error, (time.perf_counter() - started) * 1000)
