"""Whether ``airlock policy replay`` says of a release what the gateway and the control plane made of it.

Recorded: a gateway in this process answers requests, and what it wrote is replayed through the command line.
Simulated: the gateway's own counters and the control plane, asked every second, judge simulated requests, and so does
the replay.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from typer.testing import CliRunner

from airlock.cli.app import app
from airlock.core.limits import limits_of
from airlock.core.release import Phase, Release
from airlock.core.replay import replay
from airlock.core.replay_traffic import Traffic
from airlock.core.route import Bundle
from airlock.core.spec import ModelSpec
from airlock.ledger import Ledger
from airlock.steps.simulation import Simulation, simulated
from gateway import evidence
from tests.support import driven_release
from tests.support.driven_release import RELEASE, TRUTHS, Truth
from tests.support.simulated_release import judged, versions

EJECTED = "the gateway ejected it: "

SIMULATIONS: dict[str, dict[str, Any]] = {
    "healthy": {},
    "bad": {"error_rate": 0.12},
    "a little bad": {"error_rate": 0.06},
    "on the bound": {"error_rate": 0.04},
    "slow": {"latency": 1.6},
    "shifting": {"shift": 0.09},
    "flipping": {"flips": 0.2},
    "raising": {"error_rate": 1.0},
}


class Outcome(NamedTuple):
    """How a release ended, why, and after how many requests each step was left."""

    ended: str
    left: tuple[tuple[int, str], ...]
    reason: str


class Agreement(NamedTuple):
    """One release, as it was and as the replay has it."""

    how: str
    truth: str
    seed: int
    happened: Outcome
    replayed: Outcome
    disputed: int = 0
    """Steps that the log left although the policy would not have."""

    @property
    def requests(self) -> bool:
        return self.happened.left == self.replayed.left

    @property
    def whole(self) -> bool:
        """To the request, the step and the words."""
        return self.happened == self.replayed


def of_recorded(truth: Truth, seed: int, home: Path) -> Agreement:
    """Drive a release in an empty ``home``, and replay its log there."""
    scenario = driven_release.scenario(truth, seed)
    driven = driven_release.drive(home, scenario)
    ledger = Ledger(f"sqlite:///{home / 'ledger.db'}")
    ledger.open(_release(scenario.spec), key="k", actor="test", spec=scenario.spec)
    environment: dict[str, str | None] = {"AIRLOCK_HOME": str(home), "AIRLOCK_PROJECT": str(home)}
    environment |= dict.fromkeys(("AIRLOCK_LEDGER_URL", "AIRLOCK_MLFLOW_URL", "AIRLOCK_GATEWAY_URL"))
    called = CliRunner().invoke(
        app, ["policy", "replay", scenario.spec.model, "--release", RELEASE, "--json"], env=environment
    )
    assert called.exit_code == 0, called.output
    found = json.loads(called.stdout)
    assert not found["unknown"], found["unknown"]
    by = [one["by"] for one in found["decisions"]]
    # When steps went on is the log's: what the gateway did in them, and how it ended, is the replay's own finding.
    ejected = [(one["request"], one["step"]) for one in found["decisions"] if one["by"] == "gateway"]
    replayed = Outcome(found["ending"], tuple(ejected), found["reason"] if ejected else "")
    happened = Outcome(driven.ended, (), "")
    if driven.ejection and driven.ejected_in:
        left = ((driven.ejection.requests, driven.ejected_in),)
        happened = Outcome(driven.ended, left, f"{EJECTED}{driven.ejection.reason}")
    return Agreement("recorded", truth, seed, happened, replayed, by.count("log"))


def _release(spec: ModelSpec) -> Release:
    return Release(
        id=RELEASE,
        model=spec.model,
        version="2",
        champion="1",
        bundle=Bundle(path="2", digest="sha256:" + "2" * 64),
        phase=Phase.OPENED,
        entered_at=datetime.now(UTC),
    )


def of_simulated(truth: str, seed: int, folder: Path, set_clock: Callable[[object], None]) -> Agreement:
    """Judge a simulation twice. ``folder`` has, or gets, the two versions."""
    chance = random.Random(seed)  # noqa: S311 - a simulation
    spec = driven_release.scenario("healthy", seed).spec
    rollout = spec.rollout.model_dump(mode="json")
    rollout["shadow"]["bake"] = chance.choice(["0s", "7s"])
    for step in rollout["steps"]:
        step["bake"] = chance.choice(["3s", "10s"])
    rollout["deadline"] = chance.choice(["20s", "10m"])
    rollout["on_deadline"] = chance.choice(["rollback", "hold"])
    spec = ModelSpec.model_validate({**spec.model_dump(mode="json"), "rollout": rollout})
    rate = 200 if any(limit.by == "minute" for limit in limits_of(spec)) else 3000
    simulation = Simulation.model_validate({"requests": 2000, "rate": rate, **SIMULATIONS[truth]})
    loaded = versions(folder, spec.model)
    live = judged(spec, _by_customers(spec, simulation, seed), loaded, set_clock)
    report = replay(spec, _by_customers(spec, simulation, seed))
    left = tuple((one.request, one.step) for one in report.decisions)
    reason = report.decisions[-1].reason.removeprefix(EJECTED) if report.decisions else ""
    return Agreement("simulated", truth, seed, Outcome(*live), Outcome(report.ending, left, reason))


def _by_customers(spec: ModelSpec, simulation: Simulation, seed: int) -> Traffic:
    """The simulated traffic, as customers who ask now and then; of one in ten nobody knows who it is."""
    traffic = simulated(spec, simulation, seed=seed)
    chance = random.Random(seed)  # noqa: S311 - a simulation
    keys = [f"customer {chance.randrange(1500)}" if chance.random() < 0.9 else None for _ in range(simulation.requests)]
    observations = [seen._replace(key=key) for seen, key in zip(traffic.observations, keys, strict=True)]
    return traffic._replace(observations=observations, salt=RELEASE)


@contextmanager
def own_clock() -> Iterator[Callable[[object], None]]:
    """A setter of the time that the gateway's evidence sees; at the end it sees the real one again."""
    real = evidence.time, evidence.clock  # type: ignore[attr-defined]

    def set_clock(clock: object) -> None:
        evidence.time = evidence.clock = clock  # type: ignore[attr-defined]

    try:
        yield set_clock
    finally:
        evidence.time, evidence.clock = real  # type: ignore[attr-defined]


def table(found: Iterable[Agreement]) -> str:
    """By kind, truth and guards: how many there were, how they ended, and how many of them agree."""
    rows: dict[tuple[str, str, str], list[Agreement]] = {}
    for one in found:
        guards = "some by key or minute" if one.seed % 2 else "by request"
        rows.setdefault((one.how, one.truth, guards), []).append(one)
    head = ("release", "candidate", "guards", "releases", "rolled back", "after requests", "same end, step and request")
    head += ("same words too", "steps left that the policy would not leave")
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for (how, truth, guards), releases in sorted(rows.items()):
        back = [one.happened for one in releases if one.happened.ended == "rolled_back" and one.happened.left]
        requests = sorted(one.left[-1][0] for one in back)
        reach = f"{requests[0]:,} to {requests[-1]:,}" if requests else "-"
        same = sum(one.requests and one.happened.ended == one.replayed.ended for one in releases)
        cells = (how, truth, guards, len(releases), len(back), reach, same, sum(one.whole for one in releases))
        cells += (sum(one.disputed for one in releases),)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def truths(how: str) -> tuple[str, ...]:
    """Those that releases of this kind have."""
    return TRUTHS if how == "recorded" else tuple(SIMULATIONS)
