"""A gateway and a registry that say what a test of an operator wants, and releases to try it on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

from airlock.control import ReleaseControl
from airlock.core.errors import NotFound, Unavailable
from airlock.core.refs import BentoRef, Ref, VersionRef
from airlock.core.release import Release
from airlock.core.route import Route, parse_route
from airlock.core.tally import Ejection, GatewayStatus, Tally
from airlock.core.verdict import Status, Verdict
from airlock.ledger import Ledger

DIGEST = "sha256:" + "a" * 64
GATE = Verdict(
    name="threshold_rmse",
    status=Status.PASS,
    reason="rmse is 2.5 | at most 3",
    estimate=2.5,
    low=2.25,
    high=2.75,
    threshold=3.0,
)
FINITE = Verdict(name="finite", status=Status.PASS, reason="0 of 500 answers are NaN or infinite")
HELD = Verdict(name="error_rate", status=Status.PASS, reason="0 of 800 requests failed")


class Gateway:
    """A gateway that observes the newest route and has counted ``requests`` of everybody."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.requests = 0
        self.errors = 0
        self.observed_s = 1.0
        self.ejected = ""
        self.down = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def status(self, model: str) -> GatewayStatus:
        if self.down:
            raise Unavailable("the gateway does not answer")
        route = self.ledger.route(model)
        if route is None:
            raise NotFound("no such model")
        tally = Tally(requests=self.requests, errors=self.errors, latency=[self.requests] + [0] * 71)
        both = {"served": tally, "shadow": tally}
        counted = dict.fromkeys(route.versions, both)
        return GatewayStatus(
            model=model,
            generation=route.generation,
            checksum=route.checksum,
            release=route.release,
            champion=route.champion,
            candidate=route.candidate,
            share=route.share,
            loaded=tuple(route.versions),
            rollout_step=route.step,
            observed_s=self.observed_s,
            since=route.written_at,
            ejection=self.ejection(route),
            step=counted,
            total=counted,
        )

    def ejection(self, route: Route) -> Ejection | None:
        if not self.ejected:
            return None
        return Ejection(
            model=route.model,
            version=str(route.candidate),
            release=route.release,
            generation=route.generation,
            at=route.written_at,
            reason=self.ejected,
            requests=60,
            seconds=1.5,
        )


class Versions:
    """A registry of versions 1 to 9 that remembers its aliases."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.aliases: dict[str, str] = {}
        self.judged_against: str | None = "1"
        self.author: str | None = "mary"
        self.bundle = DIGEST
        self.down = False

    def version(self, model: str, version: str) -> VersionRef:
        if not version.isdigit():
            raise NotFound(f"{model} has no version {version}; the newest is 9")
        bundle = Ref(path="/b", digest=self.bundle)
        said = {"judged_against": self.judged_against, "author": self.author}
        return VersionRef(model=model, version=version, run_id="r1", bundle=bundle, **said)

    def run_of(self, model: str, version: str) -> str:
        if self.down:
            raise Unavailable("MLflow does not answer")
        return "r1"

    def tags(self, model: str, version: str) -> dict[str, str]:
        return {"airlock.semantic_version": "1.2.0", "airlock.until": "2013-04-01T00:00:00+00:00"}

    def alias(self, model: str, alias: str) -> str | None:
        return self.aliases.get(alias)

    def artifact(self, run_id: str, path: str, folder: Path) -> Path:
        """The judgements of two bundles."""
        assert (run_id, path) == ("r1", "gates")
        (folder / "gates").mkdir()
        for name, digest, verdicts in (("a", "sha256:other", ()), ("b", DIGEST, (GATE, FINITE))):
            judged = {"bundle": digest, "verdicts": [verdict.model_dump(mode="json") for verdict in verdicts]}
            (folder / "gates" / f"{name}.json").write_text(json.dumps(judged))
        return folder / "gates"

    def latest(self, model: str) -> VersionRef:
        return self.version(model, "9")

    def set_alias(self, model: str, alias: str, version: str) -> None:
        self.aliases[alias] = version

    def clear_alias(self, model: str, alias: str, version: str) -> None:
        if self.aliases.get(alias) == version:
            del self.aliases[alias]


def bento(version: str) -> BentoRef:
    return BentoRef(path=f"/bento/{version}", digest=DIGEST, model="toy", version=version, tag=f"toy:v{version}-aa")


def promoted(control: ReleaseControl, version: str) -> Release:
    release = opened(control, version)
    if release.champion is None:
        return control.promote(release.id)
    for step in ("warm_up", "shadow", "canary_5", "canary_100"):
        control.enter(release.id, step)
    standing = control.ledger.release(release.id)
    control.ledger.record(standing, [HELD], step="canary_100", now=standing.entered_at)
    return control.promote(release.id)


def opened(control: ReleaseControl, version: str) -> Release:
    return control.approve(waiting(control, version).id, actor="ada", reason="fine")


def waiting(control: ReleaseControl, version: str, **known: Any) -> Release:
    """A release that nobody has answered for yet."""
    return control.open(version, bento(version), actor="test", key=f"test-{version}", verdicts=(GATE, FINITE), **known)


def shares(home: Path) -> dict[str, float]:
    return parse_route((home / "routes" / "toy.json").read_bytes()).weights
