"""The real policy over given traffic: what it decides, when, and whether that was right."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import pytest

from airlock.core import replay as module
from airlock.core.counters import Counters
from airlock.core.decide import late_deadline
from airlock.core.guards import breach, limits_of, slow_limits
from airlock.core.replay import replay
from airlock.core.replay_report import ReplayReport, repeated
from airlock.core.replay_traffic import Glance, Observation, Rhythm, Traffic
from airlock.core.stats import wilson
from airlock.core.tally import LateEvidence, Sums
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
SHIFT = {"kind": "prediction_shift", "max_mean": 0.05}
LOSS = {"kind": "paired_loss", "metric": "brier", "margin": 0.05, "min_requests": 100}
RHYTHM = Rhythm(labels_s=10.0)


def spec(*guards: Any, **changes: Any) -> Any:
    label = {"name": "bought", "maturity": "1m"}
    return toy_spec(guards=guards or (ERRORS,), rollout={**ROLLOUT, **changes}, label=label)


class Known(NamedTuple):
    """Labels: every ten seconds the sums so far, the last of them at the end."""

    sums: Sequence[Sums]
    answers: int = 10

    @property
    def until(self) -> float:
        return 10.0 * len(self.sums)

    def by(self, seconds: float) -> LateEvidence:
        frames = min(int(seconds // 10), len(self.sums))
        asked = self.answers * frames
        seen = {"paired_loss_brier": self.sums[frames - 1] if frames else Sums()}
        return LateEvidence(
            until=START + timedelta(seconds=seconds), answers=asked, due=asked, labelled=asked, observations=seen
        )


def traffic(errors: Sequence[int], late: Sequence[Sums] | None = None, **changes: Any) -> Traffic:
    """Ten requests a second; in each ten seconds the first so many fail. The hash puts every hundred evenly."""

    def observations() -> Iterator[Observation]:
        for hundred, failed in enumerate(errors):
            for number in range(100):
                seen = Observation(10.0 * hundred + (number + 0.5) / 10, place=float(number), **changes)
                yield seen._replace(failed=True, stood_in=True) if number < failed else seen

    return Traffic(START, observations(), Known(late, 100) if late is not None else None)


def steps(report: ReplayReport) -> list[tuple[int, str, str, str]]:
    return [(one.request, one.step, one.action, one.by) for one in report.decisions]


def test_a_good_version_goes_through_the_plan_as_its_steps_ask() -> None:
    report = replay(spec(), traffic([0] * 20))
    # 30 s; then, as ten of each hundred are served, the 50th of them; then 30 s again: each by a clock of its own.
    assert steps(report) == [
        (300, "shadow", "advance", "control"),
        (710, "canary_10", "advance", "control"),
        (1010, "canary_100", "advance", "control"),
    ]
    assert [(one.at - START).total_seconds() for one in report.decisions] == [30, 71, 101]
    assert (report.ending, report.requests, report.wrong) == ("promoted", 2000, None)
    assert all(verdict.passed for verdict in report.hindsight)


def _first_breach(policy: Any, requests: Sequence[Observation], role: str = "shadow") -> int:
    """After how many requests the gateway's own counters break a limit, counted by hand."""
    limits, counters = limits_of(policy), Counters()
    for number, seen in enumerate(requests, start=1):
        for tally in counters.tallies(role):  # type: ignore[arg-type]
            if seen.failed:
                tally.failed(seen.latency_ms, slow_limits(limits))
                tally.fallbacks += role == "shadow"
            else:
                tally.answered(seen.latency_ms, slow_limits(limits))
                if seen.differences:
                    tally.compared(seen.differences, seen.flips)
        if breach(limits, counters):
            return number
        counters.restart_if_due()
    raise AssertionError("no limit was broken")


@pytest.mark.parametrize("seed", range(6))
def test_a_bad_version_is_ejected_at_the_very_request(seed: int) -> None:
    """Not at the end of some frame: whatever the rhythm of the control plane, and by whichever limit."""
    random = np.random.default_rng(seed)
    policy = spec(ERRORS, SHIFT, {"kind": "latency", "max_p99_ms": 50}, {"kind": "disagreement", "max": 0.1})
    bad = [{"rate": 0.15}, {"shift": 0.2}, {"slow": 0.08}][seed % 3]
    requests = [
        Observation(
            number / 10,
            place=99.0,
            failed=bool(random.random() < bad.get("rate", 0.0)),
            latency_ms=80.0 if random.random() < bad.get("slow", 0.0) else 5.0,
            differences=(float(random.normal(bad.get("shift", 0.0), 0.1)),),
            flips=int(random.random() < 0.05),
        )
        for number in range(290)
    ]
    requests = [seen._replace(differences=()) if seen.failed else seen for seen in requests]
    expected = _first_breach(policy, requests)
    for rhythm in (Rhythm(), Rhythm(poll_s=0.05), Rhythm(poll_s=7.0)):
        report = replay(policy, Traffic(START, requests), rhythm=rhythm)
        assert (report.ending, report.taken_back_after) == ("rolled_back", expected)
        assert report.decisions[-1].by == "gateway"
        assert report.decisions[-1].reason.startswith("the gateway ejected it: ")
        assert any(verdict.status is Status.FAIL for verdict in report.decisions[-1].verdicts)


def test_a_version_that_goes_bad_late_is_found_although_its_past_was_good() -> None:
    report = replay(spec(), traffic([0] * 8 + [12] * 10))
    assert report.ending == "rolled_back"
    assert 800 < (report.taken_back_after or 0) <= 1100


def test_failures_count_in_the_role_in_which_they_were() -> None:
    """All that is served fails, all else is well: in all it is a tenth, and every served one is seen."""
    seen = [
        Observation(number / 10, place=float(number % 100), failed=number >= 310 and number % 100 < 10)
        for number in range(1000)
    ]
    report = replay(spec({**ERRORS, "max": 0.2}), Traffic(START, seen))
    assert (report.ending, report.decisions[-1].step) == ("rolled_back", "canary_10")
    assert report.requests > (report.taken_back_after or 0) > 400


def test_what_all_of_the_traffic_says_is_held_against_the_decision() -> None:
    early = replay(spec(), traffic([30, 30, 30] + [0] * 97))
    assert (early.ending, early.over) == ("rolled_back", ())
    assert "every limit's estimate keeps its bound" in (early.wrong or "")
    late = replay(spec(), traffic([0] * 12 + [30] * 20))
    assert (late.ending, late.over) == ("promoted", ("error_rate",))
    assert "error_rate surely broke its bound" in (late.wrong or "")


@pytest.mark.parametrize(("on_deadline", "ending"), [("rollback", "rolled_back"), ("hold", "held")])
def test_evidence_that_does_not_come_ends_at_the_deadline(on_deadline: str, ending: str) -> None:
    report = replay(spec({**ERRORS, "min_requests": 100_000}, on_deadline=on_deadline), traffic([0] * 100))
    assert (report.ending, report.decisions[-1].request) == (ending, 6000)
    assert "no decision within 600 s" in report.reason


def test_a_step_s_deadline_does_not_count_the_steps_before_it() -> None:
    """Two steps of 400 s each come to more than the deadline of one."""
    slow = {
        "shadow": {"bake": "400s", "min_requests": 200},
        "steps": [{"weight": 100, "bake": "400s", "min_requests": 9}],
    }
    report = replay(spec(**slow), traffic([0] * 100))
    assert [(one.at - START).total_seconds() for one in report.decisions] == [400, 800]
    assert report.ending == "promoted"


def test_no_traffic_and_too_little_of_it_decide_nothing() -> None:
    nothing = replay(spec(), Traffic(START, []))
    assert (nothing.ending, nothing.hindsight) == ("unfinished", ())
    report = replay(spec(), traffic([0] * 2))
    assert (report.ending, report.reason) == ("unfinished", "the traffic ended in shadow")


def test_a_pause_in_the_traffic_is_observed_time() -> None:
    """Nothing comes between the tenth second and the fiftieth: the bake goes on, evidence does not."""
    seen = [Observation(at, place=99.0) for at in (*np.arange(0.52, 10, 0.05), *np.arange(50.52, 60, 0.05))]
    report = replay(spec(), Traffic(START, seen))
    assert (report.decisions[0].request, report.decisions[0].at) == (200, START + timedelta(seconds=51))


def _losses(means: Sequence[float]) -> list[Sums]:
    return [
        Sums(n=100 * n, total=100 * n * mean, squares=100 * n * (mean**2 + 0.01)) for n, mean in enumerate(means, 1)
    ]


def test_labels_confirm_a_provisional_version() -> None:
    report = replay(spec(ERRORS, LOSS), traffic([0] * 30, _losses([0.0] * 30)), rhythm=RHYTHM)
    assert (report.ending, steps(report)[-1][1:]) == ("confirmed", ("provisional", "advance", "control"))


def test_labels_take_a_provisional_version_back() -> None:
    waiting = [Sums() for _ in range(14)]
    report = replay(spec(ERRORS, LOSS), traffic([0] * 60, waiting + _losses([0.2] * 46)), rhythm=RHYTHM)
    assert (report.ending, report.decisions[-1].step, report.decisions[-1].by) == (
        "rolled_back",
        "provisional",
        "control",
    )
    assert "Brier" in report.reason


def test_labels_take_a_version_back_in_a_step() -> None:
    report = replay(spec(ERRORS, LOSS), traffic([0] * 60, _losses([0.3] * 60)), rhythm=RHYTHM)
    assert (report.ending, report.decisions[-1].by) == ("rolled_back", "control")
    assert report.decisions[-1].step in ("shadow", "canary_10")


def test_labels_that_never_come_leave_it_provisional_until_its_own_deadline() -> None:
    """Which counts from the promotion, not from the last step's beginning."""
    policy = spec(ERRORS, LOSS)
    short = replay(policy, traffic([0] * 60, [Sums()] * 60), rhythm=RHYTHM)
    assert (short.ending, short.decisions[-1].step) == ("promoted", "canary_100")
    assert "provisionally" in short.reason
    long = replay(policy, traffic([0] * 60, [Sums()] * 200), rhythm=RHYTHM)
    promoted, ended = long.decisions[-2:]
    assert (promoted.step, long.ending, ended.step) == ("canary_100", "rolled_back", "provisional")
    assert timedelta(0) <= ended.at - promoted.at - late_deadline(policy) <= timedelta(seconds=RHYTHM.labels_s)


def test_a_rollout_that_may_not_be_provisional_waits_for_its_labels() -> None:
    """They hold the first step that answers, and no version is provisional afterwards."""
    waiting, policy = [Sums() for _ in range(20)], spec(ERRORS, LOSS, provisional=False)
    report = replay(policy, traffic([0] * 60, waiting + _losses([0.0] * 40)), rhythm=RHYTHM)
    assert [one.step for one in report.decisions] == ["shadow", "canary_10", "canary_100"]
    assert report.ending == "promoted"
    assert report.decisions[1].at >= START + timedelta(seconds=200)
    never = replay(policy, traffic([0] * 100, [Sums()] * 100), rhythm=RHYTHM)
    assert (never.ending, never.decisions[-1].step) == ("rolled_back", "canary_10")
    assert "no decision within 600 s" in never.reason


def test_labels_are_read_at_the_operator_s_rhythm() -> None:
    """Every quarter of an hour, or when the gateway's figures would let the step end, and then every 30 s."""
    policy = spec(ERRORS, LOSS, provisional=False, deadline="1h")
    asked: list[float] = []

    class Watched(Known):
        def by(self, seconds: float) -> LateEvidence:
            asked.append(seconds)
            return super().by(seconds)

    first, *_ = itertools.tee(traffic([0] * 200).observations, 1)
    replay(policy, Traffic(START, first, Watched([Sums()] * 200)))
    assert asked[0] == 1.0  # as the step begins
    assert asked[1] == 30.0  # the shadow's figures suffice, and its labels may be open
    # From then on only labels are missing, which the trigger that looks every second does not know.
    assert asked[2:5] == [31.0, 931.0, 1831.0]


@pytest.mark.parametrize("plan", ["blue_green", "shadow_only"])
def test_other_plans(plan: str) -> None:
    report = replay(spec(plan=plan), traffic([0] * 30))
    last = {"blue_green": ("green", "promoted"), "shadow_only": ("shadow", "completed")}[plan]
    assert (report.decisions[-1].step, report.ending) == last


@pytest.mark.parametrize("seed", range(12))
def test_looks_that_are_skipped_could_only_have_waited(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A control plane that looks at every interval decides the same at the same time."""
    random = np.random.default_rng(seed)
    errors = random.binomial(100, random.choice([0.0, 0.01, 0.03]), 40).tolist()
    losses = _losses((0.05 + random.normal(0, 0.05) + np.zeros(60)).tolist())
    policy = spec(ERRORS, LOSS, provisional=bool(seed % 2))
    quick = replay(policy, traffic(errors, losses), rhythm=RHYTHM)

    def every_interval(run: Any, after: float) -> None:
        run.fresh, run.earliest = True, run.now + after
        run.next_look = run._on_grid(run.earliest)

    monkeypatch.setattr(module._Run, "_plan_look", every_interval)
    monkeypatch.setattr(module._Run, "_may_leave", lambda _run: True)
    assert replay(policy, traffic(errors, losses), rhythm=RHYTHM) == quick


def test_steps_that_the_log_tells_are_followed() -> None:
    """Where it went on although the policy would not have, the report says so."""
    told = ["shadow"] * 350 + ["canary_10"] * 300 + ["canary_100"] * 400
    seen = [Observation((n + 0.5) / 10, role="served" if n >= 350 and n % 10 == 0 else "shadow", step=step)
            for n, step in enumerate(told)]  # fmt: skip
    report = replay(spec(), Traffic(START, seen, followed=True))
    assert steps(report) == [
        (351 - 1, "shadow", "advance", "control"),
        (650, "canary_10", "advance", "log"),
    ]
    assert "the policy would wait: 30 of at least 50 requests" in report.decisions[1].reason
    assert report.ending == "unfinished"


def test_it_can_be_watched() -> None:
    seen: list[Glance] = []
    replay(spec(), traffic([0] * 14), watch=seen.append)
    assert [glance.request for glance in seen] == [*range(100, 1500, 100), 1400]
    assert [seen[0].step, seen[5].step, seen[-1].step] == ["shadow", "canary_10", "promoted"]


def test_how_often_it_was_wrong() -> None:
    good, bad = replay(spec(), traffic([0] * 20)), replay(spec(), traffic([10] * 20))
    found = repeated([good] * 9 + [bad], ())
    interval = wilson(1, 10, 0.975)
    assert (found.false_rollbacks, found.missed, found.endings) == (1, 0, {"promoted": 9, "rolled_back": 1})
    assert (found.rate, found.low, found.high) == (0.1, interval.low, interval.high)
    missed = repeated([good] * 2 + [bad] * 8, ("error_rate",))
    assert (missed.false_rollbacks, missed.missed, missed.rate) == (0, 2, 0.2)
    assert missed.to_detection == {"median": bad.taken_back_after, "p90": bad.taken_back_after}
    with pytest.raises(TooFew):
        repeated([], ())
