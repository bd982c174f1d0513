"""Scores the other versions on what was just answered, after the answer and off its way.

One thread and a bounded queue: when shadow scoring cannot keep up, or hangs, requests are left out
and counted; the answers do not wait.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gateway.prediction_writer import Origin
from gateway.serving import Effect, Served
from runtime.versions import Version, VersionFailed

QUEUE = 2_000
_DELIVER_SECONDS = 0.02
_PAUSE_SECONDS = 0.005
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
    """What came of a task: answers, or why there are none (``error`` is set)."""

    task: Task
    answers: list[float]
    error: VersionFailed | None
    latency_ms: float


class ShadowWorker:
    """``deliver`` gets what was scored, on the event loop."""

    def __init__(self, deliver: Callable[[list[Scored]], None]) -> None:
        self._deliver = deliver
        self._tasks: deque[Task] = deque()
        self._loop = asyncio.get_running_loop()
        self._work_came = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="airlock-shadow", daemon=True)
        self._thread.start()
        self.dropped: dict[str, int] = {}

    def submit(self, task: Task) -> None:
        if len(self._tasks) >= QUEUE:
            model = task.effect.route.model
            self.dropped[model] = self.dropped.get(model, 0) + 1
            return
        self._tasks.append(task)
        if not self._work_came.is_set():
            self._work_came.set()

    def depth(self) -> int:
        return len(self._tasks)

    async def close(self) -> None:
        """Score what is queued, as far as a few seconds go."""
        self._stopping = True
        self._work_came.set()
        await asyncio.to_thread(self._thread.join, _PATIENCE_SECONDS)
        await asyncio.sleep(0)  # what was handed over last is delivered before this returns

    def _work(self) -> None:
        while True:
            self._work_came.wait()
            self._work_came.clear()
            self._drain()
            if self._stopping and not self._tasks:
                return
            # To be woken for each request would cost the event loop more than the request's own checks.
            time.sleep(_PAUSE_SECONDS)

    def _drain(self) -> None:
        scored: list[Scored] = []
        since = time.perf_counter()
        while self._tasks:
            scored.append(_score(self._tasks.popleft()))
            if time.perf_counter() - since > _DELIVER_SECONDS:
                self._hand_over(scored)
                scored, since = [], time.perf_counter()
        self._hand_over(scored)

    def _hand_over(self, scored: list[Scored]) -> None:
        if scored:
            self._loop.call_soon_threadsafe(self._deliver, scored)


def _score(task: Task) -> Scored:
    started = time.perf_counter()
    answers: list[float] = []
    error: VersionFailed | None = None
    effect = task.effect
    try:
        answers = task.version.answer(effect.feeds[task.version.name], task.origin.rows, effect.route.timeout_ms)
    except VersionFailed as failure:
        error = failure
    return Scored(task, answers, error, (time.perf_counter() - started) * 1000)
