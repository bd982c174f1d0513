"""Releases, routes and verdicts as the ledger's tests need them: model ``m``, opened at ``NOW``."""

from __future__ import annotations

from datetime import UTC, datetime

from airlock.core.release import Event, Phase, Release
from airlock.core.route import Bundle, Route
from airlock.core.verdict import Status, Verdict
from airlock.ledger import Ledger

BUNDLE = Bundle(path="/b", digest="sha256:" + "0" * 64)
NOW = datetime(2013, 4, 1, 12, tzinfo=UTC)
PASS = Verdict(name="errors", status=Status.PASS, reason="0 of 50", estimate=0.0, n=50, details={"a": [1]})


def release(name: str = "r1", at: datetime = NOW, model: str = "m") -> Release:
    return Release(id=name, model=model, version="1", champion=None, bundle=BUNDLE, phase=Phase.OPENED, entered_at=at)


def route(generation: int, *, release: str | None = None, step: str | None = None, model: str = "m") -> Route:
    return Route(
        model=model,
        generation=generation,
        release=release,
        step=step,
        champion="1",
        weights={"1": 100},
        versions={"1": BUNDLE},
        salt="s",
        reason="test",
        written_at=NOW,
    )


def in_canary(ledger: Ledger, name: str = "r1") -> Release:
    """A release that stands in ``canary_5`` since ``NOW``, its route in generation 1 of a new ledger."""
    opened = ledger.open(release(name), key=f"key of {name}", actor="ann")
    approved = ledger.transition(opened, Event.APPROVE, actor="bob", reason="yes", now=NOW)
    warm = ledger.transition(approved, Event.WARM_UP, actor="airlock", reason="warm", now=NOW, step="warm_up")
    return ledger.transition(
        warm,
        Event.STEP,
        actor="airlock",
        reason="5 %",
        now=NOW,
        step="canary_5",
        route=route(1, release=name, step="canary_5"),
    )
