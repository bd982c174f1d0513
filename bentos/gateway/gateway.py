"""From a request to its answer: check, choose, ask, fall back, say.

Who answers: the version that a pin or the shares choose; failing that the champion, an earlier answer of the champion,
a rule, the default (``stand_ins``); failing all of them nobody, and that is a 503.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import secrets
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import orjson
from prometheus_client.core import Metric

from airlock.core.tally import GatewayStatus
from gateway.asking import Asked, Asker
from gateway.evidence import SERVED, Keeper
from gateway.http import Disconnected, Receive, Scope, Send, body, parse, require_json, respond
from gateway.metrics import Metrics, counter, gauge
from gateway.online import OnlineFeatures
from gateway.paths import Paths
from gateway.prediction_writer import Origin, PredictionWriter
from gateway.questions import MAX_KEY, Question, read_entities, read_rows, routing_key
from gateway.routes import RouteTable
from gateway.serving import Effect, Served
from gateway.shadow import ShadowWorker, Task
from gateway.stand_ins import Means
from runtime.refusals import Refused
from runtime.versions import Version, VersionFailed, predictions


class Given(NamedTuple):
    """An answer: whose it is (no version's where a rule or the default gave it), one a row, and what stood in."""

    version: Version | None
    answers: list[float]
    fallback: Means | None = None


class Gateway:
    """All models of one gateway process."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.metrics = Metrics(self._gauges)
        self.log = PredictionWriter(paths.predictions)
        self.online = OnlineFeatures(paths)
        self.routes = RouteTable(paths, self._on_route)
        self._shadow: ShadowWorker
        self._asker = Asker(self.log, self.metrics, paths.ejections)
        self._keeper = Keeper(paths.evidence, self.routes.models)
        self._watch: asyncio.Task[None]
        self._keep: asyncio.Task[None]
        # Ids that no other process hands out, without asking the system for randomness each time.
        prefix = secrets.token_hex(6)
        self._ids = (f"{prefix}-{number:x}" for number in itertools.count(1))

    async def start(self) -> None:
        self._shadow = ShadowWorker(self._asker.compare)
        self.log.start()
        self.online.prepare()
        await self.routes.start()
        _favour_the_loop()
        self._watch = asyncio.create_task(self.routes.watch())
        self._keep = asyncio.create_task(self._keeper.run())

    async def stop(self) -> None:
        """Called when no request is open any more: finish shadow scoring, write evidence and log out."""
        self._watch.cancel()
        self._keep.cancel()
        self.routes.close()
        self.online.close()
        await self._shadow.close()
        await self._keeper.close()
        await self._asker.close()
        await asyncio.to_thread(self.log.close)

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

    def status(self, model: str) -> GatewayStatus:
        """What is served of a model, what was counted, and what is not known any more.

        Raises:
            Refused: as :meth:`served`.
        """
        status = self.served(model).status()
        if (loss := self.log.lost.get(model)) is None:
            return status
        said = f"the prediction log has lost {loss.rows} rows since the gateway started: {loss.reason}"
        return status.model_copy(update={"lost": f"{status.lost}; {said}" if status.lost else said})

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
        request_id = request_id or next(self._ids)
        pinned = effect.pinned(question.segment(effect)) if effect.pins else None
        chosen, pin = pinned or (effect.choose(key or request_id), None)
        asked = Asked(served, effect, _origin(question, effect, request_id, key, pin))
        given = await self._answer(asked, question, chosen)
        version, answers, fallback = given
        name, variant = (version.name, effect.variant(version)) if version else (None, None)
        content = orjson.dumps(
            {
                "model": effect.route.model,
                "version": name,
                "variant": variant,
                "request_id": request_id,
                "fallback": fallback,
                "predictions": predictions((version or effect.champion).manifest, answers),
            }
        )
        spent = (time.perf_counter() - started) * 1000
        outcome = f"fallback_{fallback}" if fallback else "answered"
        self.metrics.answered(effect.route.model, name or "", variant or "", outcome, spent)
        if version and not fallback:
            self._score_others(asked, version, answers)
        return content

    def _on_route(self, served: Served) -> None:
        for service in served.effect.services:
            self.online.require(service)

    async def _answer(self, asked: Asked, question: Question, chosen: Version) -> Given:
        """The chosen version's answer, or that of the first thing that can stand in for it.

        Raises:
            Refused: 503, when nothing can.
        """
        effect, champion = asked.effect, asked.effect.champion
        given: Given | None = None
        why = question.lost
        if why is None:
            try:
                return Given(chosen, await self._asker.ask(asked, chosen, None))
            except VersionFailed as failure:
                why = _no_answer(effect, chosen, failure)
            if chosen is not champion:
                try:
                    given = Given(champion, await self._asker.ask(asked, champion, "champion"), "champion")
                except VersionFailed as failure:
                    why = _no_answer(effect, champion, failure)
        given = given or self._stand_in(asked, question)
        if given is None:
            raise why
        if question.lost is None:
            for tally in asked.served.tallies(effect, chosen.name, SERVED):
                tally.fallbacks += 1
            asked.served.evidence.settle()
            self._asker.look(asked.served, chosen)
        return given

    def _stand_in(self, asked: Asked, question: Question) -> Given | None:
        """What is left when no version answers."""
        effect = asked.effect
        known = [] if question.lost else question.rows
        found = effect.stand_ins.answer(known, question.facts(effect))
        if found is None:
            return None
        version = effect.champion if found.means == "cache" else None
        self._asker.record(asked, version, SERVED, found.answers, None, None, fallback=found.means)
        return Given(version, found.answers, found.means)

    def _score_others(self, asked: Asked, answered_by: Version, answers: list[float]) -> None:
        for version in asked.effect.others(answered_by):
            self._shadow.submit(Task(asked.served, asked.effect, version, asked.origin, answered_by, answers))

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
        lost = {name: loss.rows for name, loss in self.log.lost.items()} or {"": 0}
        yield counter("airlock_log_lost", "Rows that the prediction log lost", lost)


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


def _no_answer(effect: Effect, version: Version, failure: VersionFailed) -> Refused:
    message = f"version {version.name} of {effect.route.model} did not answer: {failure}"
    return Refused(503, "no_answer", message)


def _origin(question: Question, effect: Effect, request_id: str, key: str | None, pin: str | None) -> Origin:
    route = effect.route
    return Origin(
        *(time.time_ns() // 1000, request_id, route.generation, route.release, pin, key),
        *(question.keys, question.event_times_us, effect.columns, question.rows),
    )
