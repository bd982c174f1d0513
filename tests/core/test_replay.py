"""The real policy over given traffic: what it decides, when, and whether that was right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from airlock.core import replay as module
from airlock.core.replay import Frame, Glance, replay
from airlock.core.replay_report import ReplayReport, repeated
from airlock.core.stats import wilson
from airlock.core.tally import LateEvidence, Sums, Tally
from airlock.core.uncertainty import TooFew
from airlock.core.verdict import Status
from tests.support.toy_model import toy_spec

START = datetime(2026, 2, 1, tzinfo=UTC)
ROLLOUT = {
    "shadow": {"bake": "30s", "min_requests": 200},
    "steps": [{"weight": 10, "bake": "30s", "min_requests": 50}, {"weight": 100, "bake": "30s", "min_requests": 100}],
    "deadline": "10m",
}
ERRORS = {"kind": "error_rate", "max": 0.02}
LOSS = {"kind": "paired_loss", "metric": "brier", "margin": 0.05, "min_requests": 100}


def spec(*guards: Any, **changes: Any) -> Any:
    label = {"name": "bought", "maturity": "1m"}
    return toy_spec(guards=guards or (ERRORS,), rollout={**ROLLOUT, **changes}, label=label)


def frames(errors: Sequence[int], late: Sequence[Sums] | None = None, every: int = 100) -> Iterator[Frame]:
    """A frame every ten seconds with so many errors each."""
    for number, failed in enumerate(errors, start=1):
        tally = Tally(requests=every, errors=failed, latency=[every, *[0] * 71])
        at, evidence = START + timedelta(seconds=10 * number), None
        if late is not None:
            asked = every * number
            seen = {"paired_loss_brier": late[number - 1]}
            evidence = LateEvidence(until=at, answers=asked, due=asked, labelled=asked, observations=seen)
        yield Frame(at, tally, None, evidence)


def steps(report: ReplayReport) -> list[tuple[int, str, str, str]]:
    return [(one.request, one.step, one.action, one.by) for one in report.decisions]


def test_a_good_version_goes_through_the_plan_as_its_steps_ask() -> None:
    report = replay(spec(), frames([0] * 20))
    # 30 s after the first look; 10 % of 500 requests are 50; then 30 s again.
    assert steps(report) == [
        (400, "shadow", "advance", "control"),
        (900, "canary_10", "advance", "control"),
        (1200, "canary_100", "advance", "control"),
    ]
    assert (report.ending, report.requests, report.looks, report.wrong) == ("promoted", 2000, 20, None)
    assert all(verdict.passed for verdict in report.hindsight)


def test_a_bad_version_is_ejected_at_the_look_that_makes_it_sure() -> None:
    report = replay(spec(), frames([10] * 20))
    assert report.ending == "rolled_back"
    assert report.taken_back_after == report.decisions[-1].request <= 300
    assert (report.decisions[-1].by, report.wrong) == ("gateway", None)
    assert report.decisions[-1].reason.startswith("the gateway ejected it: the candidate failed")
    assert any(verdict.status is Status.FAIL for verdict in report.decisions[-1].verdicts)


def test_a_version_that_goes_bad_late_is_found_by_its_step() -> None:
    report = replay(spec(), frames([0] * 10 + [12] * 10))
    assert report.ending == "rolled_back"
    assert 1000 < (report.taken_back_after or 0) <= 1300


def test_what_all_of_the_traffic_says_is_held_against_the_decision() -> None:
    early = replay(spec(), frames([30, 30, 30] + [0] * 97))
    assert (early.ending, early.over) == ("rolled_back", ())
    assert "every limit's estimate keeps its bound" in (early.wrong or "")
    late = replay(spec(), frames([0] * 12 + [30] * 20))
    assert (late.ending, late.over) == ("promoted", ("error_rate",))
    assert "error_rate surely broke its bound" in (late.wrong or "")


@pytest.mark.parametrize(("on_deadline", "ending"), [("rollback", "rolled_back"), ("hold", "held")])
def test_evidence_that_does_not_come_ends_at_the_deadline(on_deadline: str, ending: str) -> None:
    report = replay(spec({**ERRORS, "min_requests": 100_000}, on_deadline=on_deadline), frames([0] * 100))
    assert (report.ending, report.decisions[-1].request) == (ending, 6100)
    assert "no decision within 600 s" in report.reason


def test_no_traffic_and_too_little_of_it_decide_nothing() -> None:
    assert (replay(spec(), []).ending, replay(spec(), []).hindsight) == ("unfinished", ())
    report = replay(spec(), frames([0] * 3))
    assert (report.ending, report.reason) == ("unfinished", "the traffic ended in shadow")


def _losses(means: Sequence[float]) -> list[Sums]:
    return [
        Sums(n=100 * n, total=100 * n * mean, squares=100 * n * (mean**2 + 0.01)) for n, mean in enumerate(means, 1)
    ]


def test_labels_confirm_a_provisional_version() -> None:
    report = replay(spec(ERRORS, LOSS), frames([0] * 30, _losses([0.0] * 30)))
    assert (report.ending, steps(report)[-1][1:]) == ("confirmed", ("provisional", "advance", "control"))


def test_labels_take_a_provisional_version_back() -> None:
    waiting = [Sums() for _ in range(14)]
    report = replay(spec(ERRORS, LOSS), frames([0] * 60, waiting + _losses([0.2] * 46)))
    assert (report.ending, report.decisions[-1].step, report.decisions[-1].by) == (
        "rolled_back",
        "provisional",
        "control",
    )
    assert "Brier" in report.reason


def test_labels_take_a_version_back_in_a_step() -> None:
    report = replay(spec(ERRORS, LOSS), frames([0] * 60, _losses([0.3] * 60)))
    assert (report.ending, report.decisions[-1].by) == ("rolled_back", "control")
    assert report.decisions[-1].step in ("shadow", "canary_10")


def test_labels_that_never_come_leave_it_provisional() -> None:
    report = replay(spec(ERRORS, LOSS), frames([0] * 60, [Sums()] * 60))
    assert (report.ending, report.decisions[-1].step) == ("promoted", "canary_100")
    assert "provisionally" in report.reason


@pytest.mark.parametrize("plan", ["blue_green", "shadow_only"])
def test_other_plans(plan: str) -> None:
    report = replay(spec(plan=plan), frames([0] * 30))
    last = {"blue_green": ("green", "promoted"), "shadow_only": ("shadow", "completed")}[plan]
    assert (report.decisions[-1].step, report.ending) == last


@pytest.mark.parametrize("seed", range(12))
def test_looks_that_are_skipped_could_only_have_waited(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look asked in full gives the same report."""
    random = np.random.default_rng(seed)
    errors = random.binomial(100, random.choice([0.0, 0.02, 0.04]), 40).tolist()
    losses = _losses((0.05 + random.normal(0, 0.05) + np.zeros(40)).tolist())
    policy = spec(ERRORS, LOSS)
    quick = replay(policy, frames(errors, losses))
    asked: list[int] = []
    monkeypatch.setattr(module, "_late_is_over", lambda *_: asked.append(1) or True)
    monkeypatch.setattr(module, "_may_settle", lambda *_: True)
    assert replay(policy, frames(errors, losses)) == quick
    assert asked


def test_it_can_be_watched() -> None:
    seen: list[Glance] = []
    replay(spec(), frames([0] * 14), seen.append)
    assert [glance.request for glance in seen] == list(range(100, 1500, 100))
    assert [seen[0].step, seen[5].step, seen[-1].step] == ["shadow", "canary_10", "promoted"]


def test_how_often_it_was_wrong() -> None:
    good, bad = replay(spec(), frames([0] * 20)), replay(spec(), frames([10] * 20))
    found = repeated([good] * 9 + [bad], ())
    interval = wilson(1, 10, 0.975)
    assert (found.false_rollbacks, found.missed, found.endings) == (1, 0, {"promoted": 9, "rolled_back": 1})
    assert (found.rate, found.low, found.high) == (0.1, interval.low, interval.high)
    missed = repeated([good] * 2 + [bad] * 8, ("error_rate",))
    assert (missed.false_rollbacks, missed.missed, missed.rate) == (0, 2, 0.2)
    assert missed.to_detection == {"median": bad.taken_back_after, "p90": bad.taken_back_after}
    with pytest.raises(TooFew):
        repeated([], ())
