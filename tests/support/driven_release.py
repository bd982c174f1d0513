"""A release that a real gateway and the real policy take through its steps, and what they made of it.

The gateway runs in this process, behind its own ASGI application; only the candidate's conduct is made up. What the
control plane does is done here by hand: look at the gateway's status, decide, write the next route.
"""

from __future__ import annotations

import asyncio
import functools
import random
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest.mock import patch

import orjson

from airlock.core.decide import Decision, Evidence, decide
from airlock.core.guards import limits_of
from airlock.core.release import Phase, PlannedStep, Release, plan
from airlock.core.route import Bundle, Route
from airlock.core.spec import ModelSpec
from airlock.core.tally import Ejection, GatewayStatus
from gateway import clock
from gateway.app import App
from gateway.serving import Served
from runtime.versions import Version, VersionFailed
from tests.support import tiny_models
from tests.support.gateway_in_process import PREDICT, Running, running

RELEASE, MODEL = "r1", "late"
SLOW_MS = 8.0
_AT_ONCE = 4
"""Requests at a time: as many as the gateway has threads for its runs."""
_UNITS = ({}, {"by": "key", "min_requests": 10}, {"by": "minute", "min_requests": 2})
_SPEED = 1200
"""How much faster the gateway's clock goes: a release takes seconds, and minutes by that clock."""
_LIKELY = 1.0
"""So far from the threshold, in log odds, that only a candidate that is made to decides otherwise."""

Truth = Literal["healthy", "bad", "bad late", "bad where served", "slow", "shifting", "flipping", "raising"]
TRUTHS: tuple[Truth, ...] = (
    "healthy",
    "bad",
    "bad late",
    "bad where served",
    "slow",
    "shifting",
    "flipping",
    "raising",
)


class Scenario(NamedTuple):
    """A release to be driven."""

    truth: Truth
    spec: ModelSpec
    seed: int
    requests: int = 1200
    threads: bool = False
    """Whether the candidate is run in threads, so that answers overtake each other."""


class Driven(NamedTuple):
    """What came of it: the steps that were entered, the ejection with its step if there was one, and how it ended."""

    steps: tuple[str, ...]
    ejection: Ejection | None
    ejected_in: str | None
    ended: str


def scenario(truth: Truth, seed: int, **changes: Any) -> Scenario:
    """One with guards and a plan that differ from seed to seed; of odd ones some guards are by key or by minute."""
    chance = random.Random(seed)  # noqa: S311 - a simulation
    guards: list[dict[str, Any]] = [
        {"kind": "error_rate", "max": chance.choice([0.02, 0.05, 0.1]), "min_requests": 20},
        {"kind": "fallback_rate", "max": 0.1, "min_requests": 20},
        {"kind": "latency", "max_p95_ms": SLOW_MS, "min_requests": 20},
        {"kind": "prediction_shift", "max_mean": 0.05, "max_absolute": 0.1, "min_requests": 20},
        {"kind": "disagreement", "max": 0.1, "min_requests": 20},
    ]
    kept = [guards[0], *chance.sample(guards[1:], chance.randint(2, 4))]
    if seed % 2:
        units = random.Random(f"units/{seed}")  # noqa: S311 - a simulation
        kept = [guard | units.choice(_UNITS) for guard in kept]
    weights = chance.choice([(100,), (10, 100), (25, 50, 100), (5, 25, 50, 100)])
    shadow = {"bake": "0s", "min_requests": chance.choice([20, 60, 150])}
    spec = {
        "model": MODEL,
        "task": "classification",
        "data": {"key": "id", "event_time": "at"},
        "label": {"name": "label"},
        "inputs": {name: declared.type for name, declared in tiny_models.INPUTS.items()},
        "gates": [{"kind": "finite"}],
        "guards": kept,
        "rollout": {
            "shadow": shadow,
            "steps": [
                {"weight": weight, "bake": "0s", "min_requests": chance.choice([5, 15, 40])} for weight in weights
            ],
            "deadline": "48h",
        },
    }
    found = ModelSpec.model_validate(spec)
    return Scenario(truth, found, seed, **{"threads": seed % 3 == 0, **changes})


def _conduct(truth: Truth, seed: int) -> Callable[[int, bool], tuple[str, float]]:
    """What the candidate does with a request, served or in shadow: the kind of it, and what it adds to its answer."""

    def does(number: int, served: bool) -> tuple[str, float]:
        chance = random.Random(f"{seed}/{number}")  # noqa: S311 - a simulation
        noise = chance.gauss(0.0, 0.02)
        rate = {
            "bad": 0.25,
            "bad late": 0.4 if number > 100 + 37 * seed % 200 else 0.0,
            "bad where served": 0.5 if served else 0.0,
            "raising": 1.0,
        }.get(truth, 0.002)
        if chance.random() < rate:
            return "raise", 0.0
        if truth == "slow" and chance.random() < 0.3:
            return "slow", noise
        if truth == "flipping" and chance.random() < 0.3:
            return "answer", -0.45
        return "answer", noise + (0.15 if truth == "shifting" else 0.0)

    return does


def _misbehave(version: Version, scenario: Scenario) -> None:
    """Have a loaded version do as the truth says. The request's number is its first input."""
    does, honest = _conduct(scenario.truth, scenario.seed), version.answer

    def answer(feeds: Any, rows: Sequence[Any], timeout_ms: float | None = None) -> list[float]:
        served = threading.current_thread().name != "airlock-shadow"
        kind, added = does(int(rows[0][0]), served)
        if kind == "raise":
            raise VersionFailed("made to fail")
        if kind == "slow":
            until = time.perf_counter() + 1.3 * SLOW_MS / 1000
            while time.perf_counter() < until:
                pass  # a model that works, not one that waits
        answers = honest(feeds, rows, timeout_ms)
        if scenario.threads:
            version.ms_per_row = 1e9
        return [min(1.0, max(0.0, one + added)) for one in answers]

    version.answer = answer  # type: ignore[method-assign]


class Control:
    """The control plane of one release, by hand."""

    def __init__(self, spec: ModelSpec, champion: Bundle, candidate: Bundle, now: datetime) -> None:
        self.spec, self.champion, self.candidate = spec, champion, candidate
        self.steps = plan(spec)[1:]
        self.place, self.generation = 0, 1
        self.entered_at = now
        self.ended: str | None = None

    @property
    def step(self) -> PlannedStep:
        return self.steps[self.place]

    @property
    def release(self) -> Release:
        return Release(
            id=RELEASE,
            model=self.spec.model,
            version="2",
            champion="1",
            bundle=self.candidate,
            phase=Phase.SHADOW if self.step.role == "shadow" else Phase.CANARY,
            step=self.step.name,
            generation=self.generation,
            entered_at=self.entered_at,
        )

    def route(self) -> Route:
        return tiny_models.route(
            self.champion,
            model=self.spec.model,
            generation=self.generation,
            candidate=self.candidate,
            share=self.step.weight,
            shadow=self.step.role == "shadow",
            release=RELEASE,
            step=self.step.name,
            limits=limits_of(self.spec),
        )

    def look(self, status: GatewayStatus, now: datetime) -> Decision:
        """Decide; afterwards :meth:`route` is what should be in effect."""
        decision = decide(self.spec, self.release, Evidence(gateway=status), now)
        if decision.action == "roll_back":
            self.ended = "rolled_back"
        elif decision.action == "hold":
            self.ended = "held"
        elif decision.action == "advance" and self.place + 1 == len(self.steps):
            self.ended = "promoted"
        elif decision.action == "advance":
            self.place, self.generation, self.entered_at = self.place + 1, self.generation + 1, now
        return decision


def drive(home: Path, scenario: Scenario) -> Driven:
    """Take a release through its steps until it ends or its requests have been asked. The log is in ``home`` then."""
    bundles = home / "bundles"
    champion = tiny_models.bundle(bundles / "1", model=MODEL, bias=_LIKELY)
    candidate = tiny_models.bundle(bundles / "2", model=MODEL, bias=_LIKELY)
    control = Control(scenario.spec, champion, candidate, datetime.now(UTC))
    tiny_models.publish(home, control.route())
    entered: list[str] = []

    async def run() -> Driven:
        async with running(home, home) as gateway:
            served = gateway.gateway.routes.models[MODEL]
            _misbehave(served.effect.versions["2"], scenario)
            await _ask_all(gateway, served, scenario, control, entered)
        # The gateway is stopped: what was still to be scored and compared has been.
        return _driven(served, control, entered)

    began = clock.now_us()
    faster = functools.partial(_faster, began, clock.now_us)
    with patch("gateway.clock.now_us", faster):
        return asyncio.run(run())


def _faster(began: int, now_us: Callable[[], int]) -> int:
    return began + _SPEED * (now_us() - began)


async def _ask_all(gateway: Running, served: Served, scenario: Scenario, control: Control, entered: list[str]) -> None:
    app = App(gateway.gateway)
    entered.append(control.step.name)
    for start in range(0, scenario.requests, _AT_ONCE):
        numbers = range(start, min(start + _AT_ONCE, scenario.requests))
        await asyncio.gather(*(_ask(app, number) for number in numbers))
        if start % (_AT_ONCE * 6):
            continue
        control.look(served.status(), datetime.now(UTC))
        if control.ended:
            return
        if control.step.name != entered[-1]:
            entered.append(control.step.name)
            tiny_models.publish(gateway.home, control.route())
            if len(entered) % 2:
                # Every other time requests go on meanwhile, so that some are under way when the route changes.
                await gateway.until(lambda status: status.generation == control.generation)


async def _ask(app: App, number: int) -> None:
    row = {**tiny_models.GOOD_ROW, "distance": float(number)}
    content = orjson.dumps({"rows": [row], "key": f"k{number // 2}"})
    answered: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answered.append(message["status"])

    scope = {"type": "http", "method": "POST", "path": PREDICT, "headers": [(b"content-type", b"application/json")]}
    await app(scope, receive, send)
    assert answered == [200]


def _driven(served: Served, control: Control, entered: Sequence[str]) -> Driven:
    ejection = served.ejection
    ejected_in = entered[ejection.generation - 1] if ejection else None
    if ejection is None:
        control.ended = None
        control.look(served.status(), datetime.now(UTC))
    return Driven(tuple(entered), ejection, ejected_in, "rolled_back" if ejection else control.ended or "unfinished")
