"""Asking a version: its answer, or why there is none, counted, paired with the other version's, and logged.

Everything here runs on the event loop. A run of a model that is expected to take longer than two milliseconds goes to a
thread; the rest costs less than the way there. After each of the candidate's requests its limits are looked at.
"""

from __future__ import annotations

import asyncio
import logging
import operator
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from airlock.core.spec import Task as Kind
from airlock.core.tally import Ejection, Role, within
from gateway import clock
from gateway.evidence import SERVED, SHADOW
from gateway.metrics import Metrics
from gateway.paths import write_durably
from gateway.prediction_writer import Entry, Origin, PredictionWriter
from gateway.serving import Effect, Served
from gateway.shadow import Scored, Task
from gateway.stand_ins import Means
from runtime.versions import TimedOut, Version, VersionFailed

logger = logging.getLogger("airlock.gateway")

_THREADS = 4
_PATIENCE_SECONDS = 5.0


class Asked(NamedTuple):
    """A request that was accepted, and the route that it goes by to its end."""

    served: Served
    effect: Effect
    origin: Origin


class Asker:
    """Asks the versions of all models. ``ejections`` is the folder where who was ejected is written down."""

    def __init__(self, log: PredictionWriter, metrics: Metrics, ejections: Path) -> None:
        self._log = log
        self._metrics = metrics
        self._ejections = ejections
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="airlock-run")
        self._busy = 0
        self._unwritten: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Called when nothing is asked any more: see the ejections written."""
        if self._unwritten:
            await asyncio.wait(self._unwritten, timeout=_PATIENCE_SECONDS)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def ask(self, asked: Asked, version: Version, fallback: Means | None) -> list[float]:
        """One version's answers, counted and logged. The champion has all the time it takes.

        Raises:
            VersionFailed: it raised, or took longer than the route allows.
        """
        effect = asked.effect
        timeout_ms = None if version is effect.champion else effect.route.timeout_ms
        started = time.perf_counter()
        try:
            if version.is_cheap(len(asked.origin.rows)):
                answers = version.answer(effect.feeds[version.name], asked.origin.rows, timeout_ms)
            else:
                answers = await self._in_thread(asked, version, timeout_ms)
            latency = (time.perf_counter() - started) * 1000
            if timeout_ms is not None and latency > timeout_ms:
                raise TimedOut(f"took {latency:.0f} ms of the {timeout_ms:g} ms that the route allows")
        except VersionFailed as failure:
            self._failed(asked, version, SERVED, (time.perf_counter() - started) * 1000, failure)
            raise
        self._answered(asked, version, SERVED, answers, latency, fallback, clock.now_us())
        self.look(asked.served, version)
        return answers

    def _answered(
        self,
        asked: Asked,
        version: Version,
        role: Role,
        answers: list[float],
        latency: float,
        fallback: Means | None,
        at_us: int,
    ) -> None:
        effect, key = asked.effect, asked.origin.routing_key
        for tally in asked.served.tallies(effect, version.name, role):
            tally.answered(latency, effect.slow)
        asked.served.answered(effect, version.name, role, key, latency, failed=False, at_us=at_us)
        if version is effect.champion:
            effect.stand_ins.remember(asked.origin.rows, answers)
        self.record(asked, version, role, answers, None, latency, fallback=fallback, at_us=at_us)

    async def _in_thread(self, asked: Asked, version: Version, timeout_ms: float | None) -> list[float]:
        loop = asyncio.get_running_loop()
        feeds, rows = asked.effect.feeds[version.name], asked.origin.rows
        if timeout_ms is None:
            return await loop.run_in_executor(None, version.answer, feeds, rows)
        if self._busy >= _THREADS:
            # Runs that are out of time still hold every thread: another one would only wait behind them.
            raise TimedOut(f"not asked: {_THREADS} earlier runs have not ended yet")
        self._busy += 1
        future = loop.run_in_executor(self._threads, version.answer, feeds, rows, timeout_ms)
        future.add_done_callback(self._ended)
        try:
            return await asyncio.wait_for(asyncio.shield(future), timeout_ms / 1000)
        except TimeoutError:
            raise TimedOut(f"took longer than the {timeout_ms:g} ms that the route allows") from None

    def _ended(self, future: asyncio.Future[list[float]]) -> None:
        self._busy -= 1
        if not future.cancelled():
            future.exception()  # seen: what fails after its time was counted when its time was over

    def _failed(self, asked: Asked, version: Version, role: Role, latency: float, failure: VersionFailed) -> None:
        late, effect, at_us = isinstance(failure, TimedOut), asked.effect, clock.now_us()
        for tally in asked.served.tallies(effect, version.name, role):
            tally.failed(latency, effect.slow, timeout=late)
            # In shadow nobody had to stand in; but somebody would have had to.
            tally.fallbacks += role == SHADOW
        asked.served.answered(effect, version.name, role, asked.origin.routing_key, latency, failed=True, at_us=at_us)
        if role == SERVED:
            outcome = "timeout" if late else "error"
            self._metrics.requests[effect.route.model, version.name, effect.variant(version), outcome] += 1
        self.record(asked, version, role, None, str(failure), latency, timed_out=late, at_us=at_us)
        self.look(asked.served, version)

    def record(
        self,
        asked: Asked,
        version: Version | None,
        role: Role,
        answers: Sequence[float] | None,
        error: str | None,
        latency: float | None,
        *,
        fallback: Means | None = None,
        timed_out: bool = False,
        at_us: int | None = None,
    ) -> None:
        """Log it. ``at_us``: when it was counted by ``clock``, if before now."""
        effect = asked.effect
        manifest = (version or effect.champion).manifest
        decided: Sequence[float] | None = answers
        probabilities: Sequence[float] | None = None
        if answers is not None and manifest.task is Kind.CLASSIFICATION:
            bound = manifest.label.threshold
            decided, probabilities = [float(p >= bound) for p in answers], answers
        name, variant = (version.name, effect.variant(version)) if version else (None, None)
        step = asked.served.step_of(effect)
        facts = (asked.origin, name, variant, role, fallback, error, decided, probabilities, latency, step, timed_out)
        self._log.add(effect.route.model, Entry(*facts), at_us)

    def look(self, served: Served, version: Version) -> None:
        ejection = served.must_go(version.name)
        if ejection is not None:
            self._metrics.ejections[ejection.model] += 1
            task = asyncio.create_task(self._remember(ejection))
            self._unwritten.add(task)
            task.add_done_callback(self._unwritten.discard)

    async def _remember(self, ejection: Ejection) -> None:
        target = self._ejections / f"{ejection.model}.json"
        while True:
            try:
                await asyncio.to_thread(write_durably, target, ejection.model_dump_json(indent=2))
            except OSError as error:
                logger.error("%s: the ejection is in effect but cannot be written: %s", ejection.model, error)  # noqa: TRY400
                await asyncio.sleep(1)
            else:
                return

    def compare(self, scored: list[Scored]) -> None:
        """Count what the shadow worker brings, unless its release is over."""
        for task, answers, error, latency in scored:
            if task.effect.release != task.served.effect.release:
                continue
            asked = Asked(task.served, task.effect, task.origin)
            limit = task.effect.route.timeout_ms
            if error is not None:
                self._failed(asked, task.version, SHADOW, latency, error)
            elif latency > limit:
                message = f"took {latency:.0f} ms of the {limit:g} ms that the route allows"
                self._failed(asked, task.version, SHADOW, latency, TimedOut(message))
            else:
                at_us = clock.now_us()
                self._answered(asked, task.version, SHADOW, answers, latency, None, at_us)
                self._pair(task, answers, at_us)

    def _pair(self, task: Task, answers: list[float], at_us: int) -> None:
        """Pair the champion's answers with the other version's, in the tally of the role that the other one had."""
        champion, other, role = task.effect.champion, task.version, SHADOW
        ours: Sequence[float] = answers
        theirs = task.answers
        if other is champion:
            other, role = task.answered_by, SERVED
            ours, theirs = theirs, ours
        differences = within(list(map(operator.sub, ours, theirs)), task.effect.apart)
        flips = 0
        if champion.manifest.task is Kind.CLASSIFICATION:
            mine, its = other.manifest.label.threshold, champion.manifest.label.threshold
            flips = sum((a >= mine) is not (b >= its) for a, b in zip(ours, theirs, strict=True))
        for tally in task.served.tallies(task.effect, other.name, role):
            tally.compared(differences, flips)
        task.served.compared(task.effect, other.name, task.origin.routing_key, differences, flips, at_us=at_us)
        self.look(task.served, other)
