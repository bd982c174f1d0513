"""Frames from a recorded log say what the log says; simulated ones keep the truth that they were given."""

from __future__ import annotations

import itertools
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from airlock.core.errors import NotFound
from airlock.core.guards import limits_of
from airlock.core.replay import Frame, replay
from airlock.core.replay_report import repeated
from airlock.core.tally import Tally
from airlock.settings import Settings
from airlock.steps import evidence, labels, outcomes
from airlock.steps.replay import recorded
from airlock.steps.simulation import START, Simulation, simulated, truth
from tests.steps.test_evidence import GUARDS, LABEL
from tests.support.release_log import RELEASE, Memory, entry, write_part
from tests.support.release_log import START as ASKED
from tests.support.toy_model import toy_settings, toy_spec

ROLLOUT = {
    "shadow": {"bake": "20s", "min_requests": 100},
    "steps": [{"weight": 10, "bake": "20s", "min_requests": 20}, {"weight": 100, "bake": "20s", "min_requests": 100}],
}
SPEC = toy_spec(guards=GUARDS, label=LABEL, rollout=ROLLOUT)


def total(frames: list[Frame]) -> Tally:
    return sum((frame.candidate for frame in frames), Tally())


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    """A log with failures, a request of two rows, a pin, and labels and outcomes that come later."""
    settings = toy_settings(tmp_path)
    random = np.random.default_rng(3)
    rows: list[dict[str, Any]] = []
    for number in range(600):
        mine, role = float(random.uniform(0.05, 0.95)), ("served", "shadow")[number % 4 > 0]
        other = "shadow" if role == "served" else "served"
        if number % 50 == 7 and role == "shadow":
            rows += [entry(number, "2", role, None), entry(number, "1", other, 0.5)]
        elif number % 48 == 4:
            rows += [entry(number, "2", role, None), entry(number, "1", "served", 0.5, fallback="champion")]
        else:
            pin = "vip" if number % 30 == 8 else None
            for row in range(2 if number % 60 == 5 else 1):
                facts: dict[str, Any] = {"row": row, "key": f"k{number}.{row}", "pin": pin}
                rows += [
                    entry(number, "2", role, mine, latency_ms=30.0 if number % 9 == 0 else 5.0, **facts),
                    entry(number, "1", other, float(np.clip(mine + random.normal(0, 0.05), 0, 1)), **facts),
                ]
    write_part(settings, 1, rows)
    keys = sorted({row["key"] for row in rows if row["key"] and "." in row["key"]})
    chosen = [key for key in keys if int(key[1:].split(".")[0]) % 10]
    times = pd.to_datetime([ASKED + timedelta(seconds=float(key[1:]) + 300) for key in chosen], utc=True)
    truths = (random.random(len(chosen)) < 0.4).astype(float)
    labels.deliver(SPEC, settings, pd.DataFrame({"visit": chosen, "bought": truths, "known_at": times}))
    for name, value in (("revenue", 50.0), ("visits", 3.0)):
        values = value + random.uniform(-1, 1, len(chosen))
        frame = pd.DataFrame({"key": chosen, "name": name, "value": values, "time": times})
        outcomes.deliver(SPEC, settings, frame)
    return settings


def test_frames_add_up_to_the_evidence_of_the_release(here: Settings) -> None:
    """Two ways to the same sums, written apart."""
    found = recorded(SPEC, here, candidate="2", champion="1", release="rel", every=37)
    until = found.frames[-1].at + timedelta(days=1)
    gathered = evidence.gather(SPEC, here, Memory(), RELEASE, "1", until=until)
    counted = total(found.frames)
    for name in ("requests", "errors", "fallbacks", "latency", "slow"):
        assert getattr(counted, name) == getattr(gathered.tally, name), name
    for name in ("difference", "absolute", "flips"):
        assert getattr(counted, name).model_dump() == pytest.approx(getattr(gathered.tally, name).model_dump()), name
    late = found.frames[-1].late
    assert late is not None
    assert (late.answers, late.due, late.labelled) == (
        gathered.late.answers,
        gathered.late.due,
        gathered.late.labelled,
    )
    for name, sums in gathered.late.observations.items():
        assert late.observations[name].model_dump() == pytest.approx(sums.model_dump()), name
    assert gathered.late.observations["label_roc_auc"].n >= 1
    assert gathered.late.observations["business_visits"].n >= 50


def test_labels_come_as_they_came(here: Settings) -> None:
    found = recorded(SPEC, here, candidate="2", champion="1", every=100)
    first, second = found.frames[1].late, found.frames[4].late
    assert first is not None
    assert second is not None
    assert first.observations["label_accuracy"].n == 0  # nothing was known in the first 200 s
    assert second.observations["label_accuracy"].n == pytest.approx(0.9 * 200, abs=10)
    times = [frame.at for frame in found.frames]
    assert times == sorted(times)
    assert times[-1] - times[5] >= SPEC.maturity


def test_the_shares_of_the_log_are_not_the_plans(here: Settings) -> None:
    found = recorded(SPEC, here, candidate="2", champion="1")
    assert (found.requests, found.served_share) == (600, 0.25)
    assert "answered 25.0% of the 600 requests" in found.caveat
    report = replay(SPEC, found.frames)
    assert report.requests == 600
    assert report.hindsight


def test_a_window_and_another_release(here: Settings) -> None:
    since = ASKED + timedelta(seconds=100)
    part = recorded(SPEC, here, candidate="2", champion="1", since=since, until=since + timedelta(seconds=50))
    assert part.requests == 50
    with pytest.raises(NotFound, match="versions in it: none"):
        recorded(SPEC, here, candidate="2", champion="1", release="another")
    with pytest.raises(NotFound, match="versions in it: 1, 2"):
        recorded(SPEC, here, candidate="9", champion="1")


def test_a_simulation_has_the_truth_that_it_says() -> None:
    simulation = Simulation(
        error_rate=0.03,
        shift=0.04,
        noise=0.1,
        flips=0.05,
        latency=1.2,
        loss=0.02,
        delay=30,
        requests=200_000,
        rate=6000,
    )
    means = truth(SPEC, simulation).means
    frames = list(simulated(SPEC, simulation, seed=1, every=1000))
    counted, late = total(frames), frames[-1].late
    assert late is not None
    n = counted.requests
    seen = {
        "error_rate": counted.errors / n,
        "fallback_rate": counted.fallbacks / n,
        "prediction_shift": counted.difference.mean,
        "prediction_disagreement": counted.absolute.mean,
        "disagreement": counted.flips.mean,
        **{name: slow / n for name, slow in counted.slow.items()},
        **{name: sums.mean for name, sums in late.observations.items()},
    }
    assert set(seen) == set(means)
    for limit in limits_of(SPEC):
        assert seen[limit.name] == pytest.approx(means[limit.name], rel=0.05, abs=0.003), limit.name
    assert late.due == late.answers == 200_000
    assert frames[0].at == START + timedelta(seconds=10)


def test_which_bounds_a_simulation_breaks() -> None:
    assert truth(SPEC, Simulation()).bad == ()
    assert truth(SPEC, Simulation(error_rate=0.02)).bad == ()  # at the bound is not broken
    assert truth(SPEC, Simulation(error_rate=0.021)).bad == ("error_rate",)
    assert truth(SPEC, Simulation(shift=-0.06)).bad == ("prediction_shift",)
    assert truth(SPEC, Simulation(latency=1.01)).bad == ("latency_p99",)
    assert "paired_loss_brier" in truth(SPEC, Simulation(loss=0.011)).bad
    assert truth(SPEC, Simulation(noise=0)).means["prediction_disagreement"] == 0


def test_a_seed_gives_the_same_traffic() -> None:
    def made(seed: int) -> list[Frame]:
        return list(simulated(SPEC, Simulation(error_rate=0.1, requests=500), seed=seed, every=100))

    assert made(1) == made(1)
    assert made(1) != made(2)


def test_frames_of_uneven_traffic_hold_all_of_it() -> None:
    frames = list(simulated(SPEC, Simulation(requests=250), seed=1, every=100))
    assert [frame.candidate.requests for frame in itertools.takewhile(lambda f: f.candidate.requests, frames)] == [
        100,
        100,
        50,
    ]


@pytest.mark.parametrize("simulation", [Simulation(requests=5000), Simulation(error_rate=0.12, requests=5000)])
def test_policies_tell_good_from_bad(simulation: Simulation) -> None:
    reports = [replay(SPEC, simulated(SPEC, simulation, seed=seed, every=100)) for seed in range(8)]
    found = repeated(reports, truth(SPEC, simulation).bad)
    assert found.false_rollbacks + found.missed == 0
