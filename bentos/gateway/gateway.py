"""From a request to its answer: check, choose, ask, fall back, count, log.

Everything here runs on the event loop. A run of a model that is expected to take longer than two
milliseconds goes to a thread; the rest costs less than the way there.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import orjson
from prometheus_client.core import Metric

from airlock.core.spec import Task as Kind
from airlock.core.tally import Ejection
from gateway.http import Disconnected, Receive, Scope, Send, body, parse, require_json, respond
from gateway.metrics import Metrics, counter, gauge
from gateway.online import OnlineFeatures
from gateway.paths import Paths, write_durably
from gateway.prediction_writer import Entry, Origin, PredictionWriter
from gateway.questions import MAX_KEY, Question, read_entities, read_rows, routing_key
from gateway.refusals import Refused
from gateway.routes import RouteTable
from gateway.serving import SERVED, SHADOW, Effect, Role, Served
from gateway.shadow import Scored, ShadowWorker, Task
from gateway.versions import Version, VersionFailed, predictions

logger = logging.getLogger("airlock.gateway")

_THREADS = 4
_PATIENCE_SECONDS = 5.0


class TimedOut(VersionFailed):
    """A version took longer than the route allows."""


class Asked(NamedTuple):
    """A request that was accepted, and the route that it goes by to its end."""

    served: Served
    effect: Effect
    origin: Origin


class Gateway:
    """All models of one gateway process."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.metrics = Metrics(self._gauges)
        self.log = PredictionWriter(paths.predictions)
        self.online = OnlineFeatures(paths)
        self.routes = RouteTable(paths, self._on_route)
        self._shadow: ShadowWorker
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="airlock-run")
        self._busy = 0
        self._watch: asyncio.Task[None]
        self._unwritten: set[asyncio.Task[None]] = set()
        # Ids that no other process hands out, without asking the system for randomness each time.
        prefix = secrets.token_hex(6)
        self._ids = (f"{prefix}-{number:x}" for number in itertools.count(1))

    async def start(self) -> None:
        self._shadow = ShadowWorker(self._compare)
        self.log.start()
        self.online.prepare()
        await self.routes.start()
        _favour_the_loop()
        self._watch = asyncio.create_task(self.routes.watch())

    async def stop(self) -> None:
        """Called when no request is open any more: finish shadow scoring, write the log out."""
        self._watch.cancel()
        self.routes.close()
        self.online.close()
        await self._shadow.close()
        if self._unwritten:
            await asyncio.wait(self._unwritten, timeout=_PATIENCE_SECONDS)
        await asyncio.to_thread(self.log.close)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def ready(self) -> tuple[bool, str]:
        """Whether it can answer for at least one model, and what is missing if not."""
        if not self.routes.settled:
            return False, "still loading versions"
        if not self.routes.models:
            return False, next(iter(self.routes.errors.values()), "no model has a route yet")
        for served in self.routes.models.values():
            for service in served.effect.services:
                if why := self.online.missing(service):
                    return False, why
        return True, "ready"

    def served(self, model: str) -> Served:
        """The model of that name.

        Raises:
            Refused: 404 naming those there are, or 503 when its first route could not be taken.
        """
        served = self.routes.models.get(model)
        if served is not None:
            return served
        if reason := self.routes.errors.get(model):
            raise Refused(503, "no_route", f"{model} has no route in effect: {reason}")
        known = ", ".join(sorted(self.routes.models)) or "none yet"
        raise Refused(404, "unknown_model", f"there is no model {model!r}; models: {known}", expected=known, got=model)

    async def predict(self, model: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            content = await self._predict(self.served(model), scope, receive)
        except Refused as refused:
            self.metrics.refusals[model if model in self.routes.models else "", refused.code] += 1
            await respond(send, refused.status, refused.body)
        except Disconnected:
            return
        else:
            await respond(send, 200, content)

    async def _predict(self, served: Served, scope: Scope, receive: Receive) -> bytes:
        content_type, length, request_id = b"", None, None
        for name, value in scope["headers"]:
            if name == b"content-type":
                content_type = value
            elif name == b"content-length":
                length = value
            elif name == b"x-request-id":
                request_id = value.decode("latin-1")[:MAX_KEY]
        require_json(content_type)
        effect = served.effect
        document = parse(await body(receive, length, effect.champion.manifest.serving.max_body_bytes))
        started = time.perf_counter()
        key = routing_key(document)
        if "rows" in document:
            question = read_rows(document, effect)
        else:
            question = await read_entities(document, effect, self.online)
        origin = _origin(question, effect, request_id or next(self._ids))
        asked = Asked(served, effect, origin)
        version, answers, fallback = await self._answer(asked, effect.choose(key or origin.request_id))
        variant = effect.variant(version)
        content = orjson.dumps(
            {
                "model": effect.route.model,
                "version": version.name,
                "variant": variant,
                "request_id": origin.request_id,
                "fallback": fallback,
                "predictions": predictions(version.manifest, answers),
            }
        )
        spent = (time.perf_counter() - started) * 1000
        self.metrics.answered(effect.route.model, version.name, variant, "fallback" if fallback else "answered", spent)
        if not fallback:
            self._score_others(asked, version, answers)
        return content

    def _on_route(self, served: Served) -> None:
        for service in served.effect.services:
            self.online.require(service)

    async def _answer(self, asked: Asked, chosen: Version) -> tuple[Version, list[float], bool]:
        """Who answered, what, and whether it had to stand in for the version that was chosen.

        Raises:
            Refused: 503, when the champion does not answer either.
        """
        champion = asked.effect.champion
        if chosen is not champion:
            try:
                return chosen, await self._ask(asked, chosen, asked.effect.route.timeout_ms), False
            except VersionFailed:
                pass
        fallback = chosen is not champion
        try:
            return champion, await self._ask(asked, champion, None, fallback=fallback), fallback
        except VersionFailed as failure:
            model = asked.effect.route.model
            message = f"version {champion.name} of {model} did not answer: {failure}"
            raise Refused(503, "no_answer", message) from failure

    async def _ask(
        self, asked: Asked, version: Version, timeout_ms: float | None, *, fallback: bool = False
    ) -> list[float]:
        """One version's answers, counted and logged.

        Raises:
            VersionFailed: it raised, or took longer than ``timeout_ms``.
        """
        started = time.perf_counter()
        try:
            if version.is_cheap(len(asked.origin.rows)):
                answers = version.answer(asked.effect.feeds[version.name], asked.origin.rows)
            else:
                answers = await self._in_thread(asked, version, timeout_ms)
            latency = (time.perf_counter() - started) * 1000
            if timeout_ms is not None and latency > timeout_ms:
                raise TimedOut(f"took {latency:.0f} ms of the {timeout_ms:g} ms that the route allows")
        except VersionFailed as failure:
            self._failed(asked, version, SERVED, (time.perf_counter() - started) * 1000, failure)
            raise
        for tally in asked.served.tallies(version.name, SERVED):
            tally.answered(latency)
        self._record(asked, version, SERVED, answers, None, latency, fallback=fallback)
        self._look(asked.served, version, SERVED)
        return answers

    async def _in_thread(self, asked: Asked, version: Version, timeout_ms: float | None) -> list[float]:
        loop = asyncio.get_running_loop()
        feeds, rows = asked.effect.feeds[version.name], asked.origin.rows
        if timeout_ms is None:
            return await loop.run_in_executor(None, version.answer, feeds, rows)
        if self._busy >= _THREADS:
            # Runs that are out of time still hold every thread: another one would only wait behind them.
            raise TimedOut(f"not asked: {_THREADS} earlier runs have not ended yet")
        self._busy += 1
        future = loop.run_in_executor(self._threads, version.answer, feeds, rows)
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
        late = isinstance(failure, TimedOut)
        for tally in asked.served.tallies(version.name, role):
            tally.failed(latency, timeout=late)
        if role == SERVED:
            effect = asked.effect
            outcome = "timeout" if late else "error"
            self.metrics.requests[effect.route.model, version.name, effect.variant(version), outcome] += 1
        self._record(asked, version, role, None, str(failure), latency)
        self._look(asked.served, version, role)

    def _record(
        self,
        asked: Asked,
        version: Version,
        role: Role,
        answers: Sequence[float] | None,
        error: str | None,
        latency: float,
        *,
        fallback: bool = False,
    ) -> None:
        decided: Sequence[float] | None = answers
        probabilities: Sequence[float] | None = None
        if answers is not None and version.manifest.task is Kind.CLASSIFICATION:
            bound = version.manifest.label.threshold
            decided, probabilities = [float(p >= bound) for p in answers], answers
        effect = asked.effect
        self.log.add(
            effect.route.model,
            Entry(
                *(asked.origin, version.name, effect.variant(version), role, fallback, error),
                *(decided, probabilities, latency),
            ),
        )

    def _look(self, served: Served, version: Version, role: Role) -> None:
        ejection = served.must_go(version.name, role)
        if ejection is not None:
            self.metrics.ejections[ejection.model] += 1
            task = asyncio.create_task(self._remember(ejection))
            self._unwritten.add(task)
            task.add_done_callback(self._unwritten.discard)

    async def _remember(self, ejection: Ejection) -> None:
        target = self.paths.ejections / f"{ejection.model}.json"
        while True:
            try:
                await asyncio.to_thread(write_durably, target, ejection.model_dump_json(indent=2))
            except OSError as error:
                logger.error("%s: the ejection is in effect but cannot be written: %s", ejection.model, error)  # noqa: TRY400
                await asyncio.sleep(1)
            else:
                return

    def _score_others(self, asked: Asked, answered_by: Version, answers: list[float]) -> None:
        effect = asked.effect
        others = effect.shadows if answered_by is effect.champion else (effect.champion,)
        for version in others:
            self._shadow.submit(Task(asked.served, effect, version, asked.origin, answered_by, answers))

    def _compare(self, scored: list[Scored]) -> None:
        """Count what the shadow worker brings, unless its release is over."""
        for task, answers, error, latency in scored:
            if task.effect.route.release != task.served.effect.route.release:
                continue
            asked = Asked(task.served, task.effect, task.origin)
            limit = task.effect.route.timeout_ms
            if answers is None:
                self._failed(asked, task.version, SHADOW, latency, VersionFailed(error))
            elif latency > limit:
                message = f"took {latency:.0f} ms of the {limit:g} ms that the route allows"
                self._failed(asked, task.version, SHADOW, latency, TimedOut(message))
            else:
                for tally in task.served.tallies(task.version.name, SHADOW):
                    tally.answered(latency)
                self._record(asked, task.version, SHADOW, answers, None, latency)
                self._pair(task, answers)

    def _pair(self, task: Task, answers: list[float]) -> None:
        """Pair the champion's answers with the other version's, in the tally of the role that the other one had."""
        role: Role
        candidate: Sequence[float]
        champion: Sequence[float]
        if task.version is task.effect.champion:
            version, role, candidate, champion = task.answered_by, SERVED, task.answers, answers
        else:
            version, role, candidate, champion = task.version, SHADOW, answers, task.answers
        for tally in task.served.tallies(version.name, role):
            for ours, theirs in zip(candidate, champion, strict=True):
                tally.compared(ours, theirs)
        self._look(task.served, version, role)

    def _gauges(self) -> Iterator[Metric]:
        models = self.routes.models
        generations = {name: served.effect.route.generation for name, served in models.items()}
        yield gauge("airlock_route_generation", "Generation of the route in effect", generations)
        shares = {name: served.effect.share for name, served in models.items()}
        yield gauge("airlock_candidate_share", "Percent of the requests that the candidate answers", shares)
        refused = {name: served.error is not None for name, served in models.items()}
        yield gauge("airlock_route_refused", "1 while the newest route document is not taken", refused)
        yield counter("airlock_shadow_dropped", "Requests that were not scored in shadow", self._shadow.dropped)
        yield gauge("airlock_shadow_queue", "Requests that wait to be scored in shadow", {"": self._shadow.depth()})
        yield gauge("airlock_log_queue", "Answers that wait for the prediction log", {"": self.log.queued})
        yield counter("airlock_log_rows", "Rows written to the prediction log", {"": self.log.written})
        yield counter("airlock_log_lost", "Answers that the prediction log lost", {"": self.log.dropped})


def _favour_the_loop() -> None:
    """Have the event loop wait less for the rest of the process.

    What was loaded is left out of garbage collection, which becomes seldom: requests make no cycles, but
    what waits for the log looks like a leak to the collector, and at its defaults it walks every module of
    the process over and over.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    # And have the threads that log, score in shadow or import give way sooner than after 5 ms.
    sys.setswitchinterval(0.0005)


def _origin(question: Question, effect: Effect, request_id: str) -> Origin:
    route = effect.route
    return Origin(
        *(time.time_ns() // 1000, request_id, route.generation, route.release),
        *(question.keys, question.event_times_us, effect.columns, question.rows),
    )
