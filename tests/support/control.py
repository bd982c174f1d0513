"""What tests of release control share: a clock, aliases, a gateway's figures, and the way of a release."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from airlock.control import ReleaseControl
from airlock.core.errors import Unavailable
from airlock.core.gates import lacking
from airlock.core.guards import limits_of
from airlock.core.refs import BentoRef
from airlock.core.release import Release, plan
from airlock.core.route import Route, parse_route
from airlock.core.spec import ModelSpec
from airlock.core.tally import Ejection, GatewayStatus, LateEvidence, Sums, Tally
from airlock.core.verdict import Status, Verdict
from airlock.settings import Settings

LABELS = {"kind": "label_metric", "metric": "brier", "max": 0.25, "min_requests": 50}
ERRORS = {"kind": "error_rate", "max": 0.05, "min_requests": 20}
FINITE = Verdict(name="finite", status=Status.PASS, reason="0 of 500 answers are NaN or infinite")
CANARY = ("warm_up", "shadow", "canary_5", "canary_100")


@dataclass
class Clock:
    """Goes on a little with each look."""

    patience: ClassVar[timedelta] = timedelta(0)
    """How long tests wait for another's lease: not at all."""
    now: datetime = datetime(2013, 4, 1, tzinfo=UTC)
    tick: timedelta = timedelta(milliseconds=1)

    def __call__(self) -> datetime:
        self.now += self.tick
        return self.now


@dataclass
class FakeAliases:
    names: dict[str, str] = field(default_factory=dict)
    down: bool = False

    def set_alias(self, model: str, alias: str, version: str) -> None:
        self._answer()
        self.names[alias] = version

    def clear_alias(self, model: str, alias: str, version: str) -> None:
        self._answer()
        if self.names.get(alias) == version:
            del self.names[alias]

    def alias(self, model: str, alias: str) -> str | None:
        self._answer()
        return self.names.get(alias)

    def _answer(self) -> None:
        if self.down:
            raise Unavailable("MLflow does not answer")


def spec_of(*, guards: Sequence[dict[str, Any]] = (ERRORS,), rollout: Any = None, **changes: Any) -> ModelSpec:
    """A small spec: shadow, 5 %, 100 %."""
    steps = [{"weight": weight, "bake": "5s", "min_requests": 30} for weight in (5, 100)]
    return ModelSpec.model_validate(
        {
            "model": "m",
            "task": "classification",
            "data": {"key": "id", "event_time": "t"},
            "label": {"name": "y"},
            "inputs": {"x": "float"},
            "gates": [{"kind": "finite"}],
            "guards": list(guards),
            "rollout": {
                "shadow": {"bake": "5s", "min_requests": 30},
                "steps": steps,
                "deadline": "60s",
                **(rollout or {}),
            },
            **changes,
        }
    )


def passing(spec: ModelSpec) -> tuple[Verdict, ...]:
    """A pass of every gate of a spec."""
    return tuple(Verdict(name=name, status=Status.PASS, reason="passed") for name in lacking(spec.gates, ()))


def bento(version: str) -> BentoRef:
    return BentoRef(
        path=f"/b/{version}", digest="sha256:" + version * 64, model="m", version=version, tag=f"m:v{version}"
    )


def opened(control: ReleaseControl, version: str, **more: Any) -> Release:
    """Opened, with every gate passed, and approved."""
    more = {"verdicts": (FINITE,), **more}
    release = control.open(version, bento(version), actor="ann", key=f"release-{version}", **more)
    return control.approve(release.id, actor="bob", reason="looks good")


def in_step(control: ReleaseControl, version: str, step: str = "canary_5", **more: Any) -> Release:
    """A release that has gone up to a step."""
    release = opened(control, version, **more)
    for each in plan(control.spec):
        release = control.enter(release.id, each.name)
        if each.name == step:
            return release
    raise AssertionError(f"no step {step}")


def promoted(control: ReleaseControl, version: str) -> Release:
    release = opened(control, version)
    if control.ledger.champion("m") is not None:
        for each in plan(control.spec):
            control.enter(release.id, each.name)
        held(control, release)
    return control.promote(release.id)


def held(control: ReleaseControl, release: Release, status: Status = Status.PASS) -> None:
    """Keep verdicts of the step that the release stands in: of every limit, those on labels open."""
    standing = control.ledger.release(release.id)
    verdicts = [
        Verdict(
            name=limit.name, status=Status.INCONCLUSIVE if limit.late else status, reason=f"{limit.name} is {status}"
        )
        for limit in limits_of(control.spec)
    ]
    control.ledger.record(standing, verdicts, step=str(standing.step), now=standing.entered_at)


def on_disk(settings: Settings) -> Route:
    return parse_route((settings.routes / "m.json").read_bytes())


def tally(good: int = 200, failed: int = 0) -> Tally:
    found = Tally()
    for _ in range(good):
        found.answered(1.0)
    for _ in range(failed):
        found.failed(1.0)
    return found


def seen(route: Route, *, good: int = 200, failed: int = 0, observed_s: float = 6.0, **changes: Any) -> GatewayStatus:
    """What a gateway that follows a route says, when each version was asked so often in the route's step."""
    found = tally(good, failed)
    roles = {"shadow": found} if route.shadow else {"served": found}
    counted = {route.candidate: roles} if route.candidate else {}
    values: dict[str, Any] = {
        "model": route.model,
        "generation": route.generation,
        "checksum": route.sealed().checksum,
        "release": route.release,
        "rollout_step": route.step,
        "champion": route.champion,
        "candidate": route.candidate,
        "share": route.share,
        "loaded": tuple(route.versions),
        "since": route.written_at,
        "observed_s": observed_s,
        "step": counted,
        "total": counted,
    }
    return GatewayStatus.model_validate({**values, **changes})


def ejection(release: Release) -> Ejection:
    return Ejection(
        model="m",
        version=release.version,
        release=release.id,
        generation=release.generation,
        at=release.entered_at,
        reason="9 of 50 requests failed",
        requests=50,
        seconds=2.5,
    )


def labels(value: float, n: int = 300) -> LateEvidence:
    sums = Sums()
    for _ in range(n):
        sums.add(value)
    return LateEvidence(
        until=datetime(2013, 4, 2, tzinfo=UTC), answers=n, due=n, labelled=n, observations={"label_brier": sums}
    )
