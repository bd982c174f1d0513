"""A recorded log is replayed as it was counted; simulated traffic keeps the truth that it was given."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from airlock.core.errors import NotFound
from airlock.core.guards import limits_of, slow_limits
from airlock.core.replay import replay
from airlock.core.replay_report import repeated
from airlock.core.replay_traffic import Observation, Traffic
from airlock.core.route import place
from airlock.core.tally import Tally
from airlock.settings import Settings
from airlock.steps import evidence, labels, outcomes
from airlock.steps.replay import recorded
from airlock.steps.replay_labels import Due, Labels
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


def total(traffic: Traffic) -> Tally:
    """Everything in one tally."""
    tally, slow = Tally(), slow_limits(limits_of(SPEC))
    for seen in traffic.observations:
        if seen.asked and seen.failed:
            tally.failed(seen.latency_ms, slow)
            tally.fallbacks += seen.role == "shadow"
        elif seen.asked:
            tally.answered(seen.latency_ms, slow)
        tally.fallbacks += seen.stood_in
        if seen.differences:
            tally.compared(seen.differences, seen.flips)
    return tally


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    """A log with failures of both versions, a request of two rows, a pin, keys that are asked again, answers that the
    champion was not asked for, and labels and outcomes that come later."""
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
                asked = number - 22 if number % 22 == 3 and number > 100 else number
                facts: dict[str, Any] = {"row": row, "key": f"k{asked}.{row}", "pin": pin}
                theirs = float(np.clip(mine + random.normal(0, 0.05), 0, 1))
                rows.append(entry(number, "2", role, mine, latency_ms=30.0 if number % 9 == 0 else 5.0, **facts))
                if number % 88 != 0:
                    rows.append(entry(number, "1", other, None if number % 44 == 0 else theirs, **facts))
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


def test_observations_add_up_to_the_evidence_of_the_release(here: Settings) -> None:
    """Two ways to the same sums, written apart."""
    found = recorded(SPEC, here, candidate="2", champion="1", release="rel").traffic
    assert found.late is not None
    until = found.start + timedelta(seconds=found.late.until) + timedelta(days=1)
    gathered = evidence.gather(SPEC, here, Memory(), RELEASE, "1", until=until)
    counted = total(found)
    for name in ("requests", "errors", "fallbacks", "latency", "slow"):
        assert getattr(counted, name) == getattr(gathered.tally, name), name
    for name in ("difference", "absolute", "flips"):
        assert getattr(counted, name).model_dump() == pytest.approx(getattr(gathered.tally, name).model_dump()), name
    late = found.late.by(found.late.until)
    assert (late.answers, late.due, late.labelled) == (
        gathered.late.answers,
        gathered.late.due,
        gathered.late.labelled,
    )
    assert late.of_pairs == gathered.late.of_pairs
    assert late.partners == gathered.late.partners
    due, labelled = late.of_pairs["paired_loss_brier"]
    assert labelled < due < late.partners[0] <= late.due < late.answers
    for name, sums in gathered.late.observations.items():
        assert late.observations[name].model_dump() == pytest.approx(sums.model_dump()), name
    assert gathered.late.observations["label_roc_auc"].n >= 1
    assert gathered.late.observations["business_visits"].n >= 50


def test_labels_come_as_they_came(here: Settings) -> None:
    late = recorded(SPEC, here, candidate="2", champion="1").traffic.late
    assert late is not None
    assert late.by(200.0).observations["label_accuracy"].n == 0  # nothing was known in the first 200 s
    assert late.by(500.0).observations["label_accuracy"].n == pytest.approx(0.9 * 200, abs=10)
    assert late.until >= 599 + SPEC.maturity.total_seconds()


def test_roles_are_those_of_the_log_or_the_router_s(here: Settings) -> None:
    found = recorded(SPEC, here, candidate="2", champion="1")
    assert (found.requests, found.served_share) == (600, 0.25)
    assert "answered 25.0% and" in found.caveat
    assert "roles are those of the log" in found.caveat
    asked = [seen for seen in found.traffic.observations if seen.asked]
    assert [seen.role for seen in asked] == [("served", "shadow")[number % 4 > 0] for number in range(600)]
    report = replay(SPEC, found.traffic)
    assert report.requests == 600
    assert report.hindsight
    planned = recorded(SPEC, here, candidate="2", champion="1", release="rel", roles="plan")
    assert "router's hash" in planned.caveat
    asked = [seen for seen in planned.traffic.observations if seen.asked]
    assert [seen.place for seen in asked] == [place("rel", f"q{number}") for number in range(600)]
    assert {seen.role for seen in asked} == {None, "shadow", "served"}  # a pin chose some
    assert all(seen.stood_in for seen in asked if seen.failed)


def test_what_an_older_log_does_not_say_is_told(here: Settings) -> None:
    """The order of what was asked at the same time, for one."""
    (fact,) = recorded(SPEC, here, candidate="2", champion="1").traffic.unknown
    assert fact.startswith("600 requests were logged by a gateway that did not write in which order it counted")


def _numbered(rows: list[dict[str, Any]], numbers: list[int], step: str | None = "shadow") -> list[dict[str, Any]]:
    """Rows as a gateway counted them, entry by entry."""
    return [
        {**row, "sequence": number, "counted_at": row["at"] + timedelta(milliseconds=number), "step": step}
        for row, number in zip(rows, numbers, strict=True)
    ]


def test_the_order_of_counting_is_the_log_s(tmp_path: Path) -> None:
    """Shadow scoring is counted when it was done: after answers to requests that came later."""
    settings = toy_settings(tmp_path)
    rows = [
        entry(1, "1", "served", 0.5),
        entry(2, "1", "served", 0.5),
        entry(3, "2", "served", 0.7),
        entry(4, "2", "served", None),
        entry(2, "2", "shadow", 0.6),
        entry(4, "1", "served", 0.5, fallback="champion"),
        entry(3, "1", "shadow", 0.5),
        entry(1, "2", "shadow", None),
    ]
    at = rows[3]["at"]
    rows = [
        {**row, "sequence": number, "counted_at": at + timedelta(seconds=number)} for number, row in enumerate(rows)
    ]
    write_part(settings, 1, [{**row, "step": "canary_10"} for row in rows])
    found = recorded(SPEC, settings, candidate="2", champion="1", follow=True).traffic
    assert found.followed
    assert found.unknown == ()
    seen = [(one.role, one.asked, one.failed, one.stood_in, one.differences) for one in found.observations]
    assert seen == [
        ("served", True, False, False, ()),
        ("served", True, True, False, ()),
        ("shadow", True, False, False, (pytest.approx(0.1),)),
        ("served", False, False, True, ()),
        ("served", False, False, False, (pytest.approx(0.2),)),
        ("shadow", True, True, False, ()),
    ]
    assert [one.at for one in found.observations] == [0, 1, 2, 3, 4, 5]


def test_that_several_releases_are_replayed_as_one_is_told(tmp_path: Path) -> None:
    settings = toy_settings(tmp_path)
    rows = [entry(n, version, "shadow", 0.6, release=f"r{n % 2}") for n in range(4) for version in ("1", "2")]
    write_part(settings, 1, _numbered(rows, list(range(1, 9))))
    told = recorded(SPEC, settings, candidate="2", champion="1").traffic.unknown
    assert [fact[:24] for fact in told] == ["the log holds 2 releases"]
    assert recorded(SPEC, settings, candidate="2", champion="1", release="r1").requests == 2


def test_what_was_counted_in_no_step_is_left_out(tmp_path: Path) -> None:
    """Its release was over when it had been scored."""
    settings = toy_settings(tmp_path)
    rows = [entry(number, "2", "shadow", 0.6) for number in range(4)]
    write_part(settings, 1, _numbered(rows[:3], [1, 2, 3]) + _numbered(rows[3:], [4], None))
    assert recorded(SPEC, settings, candidate="2", champion="1").requests == 3


def test_missing_entries_restarts_and_other_steps_are_told(tmp_path: Path) -> None:
    settings = toy_settings(tmp_path)
    rows = [entry(number, "2", "shadow", 0.6) for number in range(6)]
    write_part(settings, 1, _numbered(rows, [1, 2, 5, 6, 1, 2], "canary_7"))
    found = recorded(SPEC, settings, candidate="2", champion="1", follow=True).traffic
    told = " ".join(found.unknown)
    assert "2 entries of the log are missing" in told
    assert "begin anew 1 times" in told
    assert "6 answers that the candidate gave in shadow have no answer of the champion" in told
    assert "the log's steps (canary_7) are not the policy's" in told
    assert not found.followed


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
    traffic = simulated(SPEC, simulation, seed=1)
    assert traffic.late is not None
    counted, late = total(traffic), traffic.late.by(traffic.late.until)
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
    assert traffic.start == START


def test_which_bounds_a_simulation_breaks() -> None:
    assert truth(SPEC, Simulation()).bad == ()
    assert truth(SPEC, Simulation(error_rate=0.02)).bad == ()  # at the bound is not broken
    assert truth(SPEC, Simulation(error_rate=0.021)).bad == ("error_rate",)
    assert truth(SPEC, Simulation(shift=-0.06)).bad == ("prediction_shift",)
    assert truth(SPEC, Simulation(latency=1.01)).bad == ("latency_p99",)
    assert "paired_loss_brier" in truth(SPEC, Simulation(loss=0.011)).bad
    assert truth(SPEC, Simulation(noise=0)).means["prediction_disagreement"] == 0


def test_a_seed_gives_the_same_traffic() -> None:
    def made(seed: int) -> list[Observation]:
        return list(simulated(SPEC, Simulation(error_rate=0.1, requests=500), seed=seed).observations)

    assert made(1) == made(1)
    assert made(1) != made(2)


def test_the_router_s_hash_says_who_answers() -> None:
    asked = list(simulated(SPEC, Simulation(requests=500), seed=3).observations)
    assert [seen.place for seen in asked] == [place("simulation-3", str(number)) for number in range(500)]
    assert [seen.at for seen in asked[:2]] == [0.1, 0.2]


@pytest.mark.parametrize("simulation", [Simulation(requests=5000), Simulation(error_rate=0.12, requests=5000)])
def test_policies_tell_good_from_bad(simulation: Simulation) -> None:
    reports = [replay(SPEC, simulated(SPEC, simulation, seed=seed)) for seed in range(8)]
    found = repeated(reports, truth(SPEC, simulation).bad)
    assert found.false_rollbacks + found.missed == 0


def test_no_label_is_due_for_an_answer_without_a_key() -> None:
    asked, keyed, come = np.arange(3.0), np.array([True, False, True]), np.array([5.0, np.inf, np.inf])
    late = Labels(START, asked, Due(asked[keyed], come[keyed], 10.0), 10.0, {}).by(20.0)
    assert (late.answers, late.due, late.labelled) == (3, 2, 1)
