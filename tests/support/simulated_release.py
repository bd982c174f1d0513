"""A simulated release judged by the gateway's own objects, second by second: what a replay of it must agree with.

Requests are counted and judged by the gateway's ``Served`` under routes that follow each other, at simulated times; the
control plane looks every second, whether or not anything can have changed.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from airlock.core.replay_traffic import Observation, Traffic
from airlock.core.spec import ModelSpec
from gateway import evidence
from gateway.evidence import Role
from gateway.serving import Served
from runtime.versions import Version
from tests.support import tiny_models
from tests.support.driven_release import Control


class Judged(NamedTuple):
    """How it ended, and after how many requests each step was left."""

    ended: str
    left: tuple[tuple[int, str], ...]
    reason: str


def versions(folder: Path, model: str) -> dict[str, Version]:
    """Two loaded versions, which nobody asks."""
    found = {name: tiny_models.bundle(folder / name, model=model) for name in ("1", "2")}
    return {name: Version(name, bundle) for name, bundle in found.items()}


def judged(
    spec: ModelSpec, traffic: Traffic, loaded: dict[str, Version], set_clock: Callable[[object], None]
) -> Judged:
    """``set_clock`` puts other modules ``time`` and ``clock`` into the gateway's evidence."""
    start_us = round(traffic.start.timestamp() * 1e6)
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now, now_us=lambda: start_us + round(clock.now * 1e6))
    set_clock(clock)
    control = Control(spec, loaded["1"].bundle, loaded["2"].bundle, traffic.start)
    served = Served(control.route(), loaded)
    left: list[tuple[int, str]] = []
    reason, since, looks = "", 0.0, 0

    def requests() -> int:
        return served.evidence.counters.all.sums.requests

    def look(at: float) -> None:
        nonlocal reason, since, looks
        clock.now, standing = at, control.step.name
        decision = control.look(served.status(), traffic.start + timedelta(seconds=at))
        if decision.action != "wait":
            left.append((requests(), standing))
            reason = served.ejection.reason if served.ejection else decision.reason
            since, looks = at, 0
            served.follow(control.route(), loaded)

    for seen in traffic.observations:
        while not control.ended and since + looks + 1 <= seen.at:
            looks += 1
            look(since + looks)
        if control.ended:
            break
        clock.now = seen.at
        _take(served, seen, "served" if seen.place < control.step.weight else "shadow", clock.now_us())
        if served.ejection:
            look(seen.at)
            break
    else:
        looks += 1
        look(since + looks)
    return Judged(control.ended or "unfinished", tuple(left), reason)


def _take(served: Served, seen: Observation, role: Role, at_us: int) -> None:
    """Count as the gateway's requests do."""
    effect = served.effect
    tallies = served.tallies(effect, "2", role)
    served.answered(effect, "2", role, seen.key, seen.latency_ms, failed=seen.failed, at_us=at_us)
    if seen.failed:
        for tally in tallies:
            tally.failed(seen.latency_ms, effect.slow)
            tally.fallbacks += role == evidence.SHADOW
        served.must_go("2")
        if role == evidence.SERVED and not served.ejection:
            for tally in tallies:
                tally.fallbacks += 1
            served.must_go("2")
        return
    for tally in tallies:
        tally.answered(seen.latency_ms, effect.slow)
    if role == evidence.SERVED and served.must_go("2"):
        return
    for tally in tallies:
        tally.compared(seen.differences, seen.flips)
    served.compared(effect, "2", seen.key, seen.differences, seen.flips, at_us=at_us)
    served.must_go("2")
