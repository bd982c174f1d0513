"""Units are read from the log as they were assigned, and joined to what came of them."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from airlock.core.errors import DataInvalid, NotFound
from airlock.core.experiment_plan import Baseline
from airlock.core.verdict import Status
from airlock.settings import Settings
from airlock.steps import experiment, labels
from airlock.steps.experiment_evidence import Gathered, baselines, gather, units_per_day
from tests.support.experiment_world import (
    BEGAN,
    LATER,
    MODEL,
    NOW,
    RELEASE,
    deliver,
    experiment_spec,
    log_rows,
    route,
    values_of,
    write_rows,
)
from tests.support.gateway_process import REPOSITORY
from tests.support.toy_model import toy_settings, toy_spec

sys.path.append(str(REPOSITORY / "bentos"))
from gateway.prediction_writer import Entry, Origin, PredictionWriter

UNTIL = LATER + timedelta(days=1)
SPEC = experiment_spec()


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    return toy_settings(tmp_path)


def gathered(here: Settings, **changes: Any) -> Gathered:
    spec = experiment_spec(**changes)
    assert spec.experiment is not None
    found = gather(here, MODEL, spec.experiment, candidate="2", generations=[7, 8], until=UNTIL)
    assert found is not None
    return found


def counts(here: Settings) -> tuple[int, int, int]:
    evidence = gathered(here).evidence
    return evidence.champion, evidence.candidate, evidence.crossed


def reported(here: Settings, **changes: Any) -> experiment.Report:
    return experiment.report(experiment_spec(**changes), here, RELEASE, [route()], until=UNTIL)


def test_every_unit_counts_once_in_the_group_it_was_assigned_to(here: Settings) -> None:
    rows = log_rows(10)
    write_rows(here, rows)
    write_rows(here, rows.assign(request_id=rows["request_id"] + "again", key=rows["key"] + "again", generation=8))
    assert counts(here) == (5, 5, 0)


@pytest.mark.parametrize(
    "columns",
    [
        {"role": "shadow"},
        {"generation": 6},
        {"pin": pd.Series(["staff"] * 10, dtype="string")},
        {"at": pd.Series([UNTIL] * 10).dt.as_unit("us")},
    ],
)
def test_what_chance_did_not_assign_does_not_count(here: Settings, columns: dict[str, Any]) -> None:
    write_rows(here, log_rows(10))
    others = log_rows(10).assign(routing_key=[f"other{n}" for n in range(10)])
    write_rows(here, others.assign(**columns))
    assert counts(here) == (5, 5, 0)


def test_a_unit_stays_the_candidates_when_something_stood_in_for_it(here: Settings) -> None:
    asked = log_rows(10, candidate=[True] * 10, error=pd.Series(["boom"] * 10, dtype="string"), prediction=None)
    for stand_in, version in (("champion", "1"), ("default", None)):
        answered = asked.assign(
            version=pd.Series([version] * 10, dtype="string"), variant=None, fallback=stand_in, error=None
        )
        write_rows(here, asked)
        write_rows(here, answered)
    assert counts(here) == (0, 10, 0)


def test_units_are_read_from_what_the_gateway_writes(here: Settings) -> None:
    writer = PredictionWriter(here.predictions)
    writer.start()
    at = int(BEGAN.timestamp() * 1e6)
    for number, version in enumerate(("1", "2", "2")):
        key = None if number == 2 else f"u{number}"
        origin = Origin(at, f"q{number}", 7, "r1", None, key, [f"k{number}"], [None], (("age", "float"),), [[1.0]])
        entry = Entry(origin, version, "champion", "served", None, None, [1.0], [0.7], 1.0)
        failed = entry._replace(error="boom", predictions=None, probabilities=None)
        for one in (failed, entry._replace(version="1", fallback="champion")) if number else (entry,):
            writer.add(MODEL, one)
    writer.close()
    deliver(here, "spent", {"k0": 1.0, "k1": 2.0, "k2": 3.0})
    evidence = gathered(here).evidence
    assert (evidence.champion, evidence.candidate, evidence.crossed) == (1, 2, 0)
    assert sorted(evidence.outcomes["spent"].candidate) == [2.0, 3.0]


def test_a_request_that_no_version_was_asked_for_belongs_to_nobody(here: Settings) -> None:
    write_rows(here, log_rows(10))
    nobody = log_rows(10, version=pd.Series([None] * 10, dtype="string"), variant=None, fallback="rule")
    write_rows(here, nobody.assign(routing_key=[f"other{n}" for n in range(10)]))
    assert counts(here) == (5, 5, 0)


def test_units_that_both_versions_answered_are_left_out_and_counted(here: Settings) -> None:
    rows = log_rows(10)
    write_rows(here, rows)
    write_rows(here, log_rows(1, candidate=[True]).assign(request_id="elsewhere"))
    assert counts(here) == (4, 5, 1)


def test_a_request_without_a_routing_key_is_a_unit_of_its_own(here: Settings) -> None:
    write_rows(here, log_rows(10, routing_key=pd.Series([None] * 10, dtype="string")))
    assert counts(here) == (5, 5, 0)


def test_outcomes_are_averaged_over_a_units_answers(here: Settings) -> None:
    rows = log_rows(4, routing_key=["a", "b", "a", "b"])
    write_rows(here, rows)
    deliver(here, "spent", {"k0": 1.0, "k1": 5.0, "k2": 2.0, "unheard of": 9.0})
    seen = gathered(here).evidence.outcomes["spent"]
    assert seen.champion.tolist() == [1.5]
    assert seen.candidate.tolist() == [5.0]


def test_an_outcome_from_before_the_answer_is_none_of_it(here: Settings) -> None:
    write_rows(here, log_rows(4))
    deliver(here, "spent", {"k0": 1.0, "k1": 5.0}, BEGAN - timedelta(minutes=1))
    deliver(here, "spent", {"k2": 3.0})
    seen = gathered(here).evidence.outcomes["spent"]
    assert (seen.champion.tolist(), seen.candidate.tolist()) == ([3.0], [])


def test_an_outcome_of_rows_without_a_key_is_the_units(here: Settings) -> None:
    write_rows(here, log_rows(4, key=pd.Series([None] * 4, dtype="string")))
    deliver(here, "spent", {"u0": 1.0, "u1": 2.0})
    seen = gathered(here).evidence.outcomes["spent"]
    assert (seen.champion.tolist(), seen.candidate.tolist()) == ([1.0], [2.0])


def test_the_label_can_be_the_outcome(here: Settings) -> None:
    write_rows(here, log_rows(4))
    frame = pd.DataFrame({"visit": ["k0", "k1", "k2"], "bought": [1.0, 0.0, 1.0]})
    frame["known_at"] = pd.Series([LATER] * 3, dtype="datetime64[us, UTC]")
    labels.deliver(toy_spec(), here, frame)
    seen = gathered(here, primary={"name": "label"}).evidence.outcomes["label"]
    assert (seen.champion.tolist(), seen.candidate.tolist()) == ([1.0, 1.0], [0.0])


def test_a_covariate_belongs_to_the_unit_and_was_known_before(here: Settings) -> None:
    write_rows(here, log_rows(4))
    deliver(here, "spent", {"k0": 1.0, "k1": 2.0, "k2": 3.0})
    deliver(here, "habit", {"u0": 7.0, "u1": 8.0, "k2": 9.0}, BEGAN - timedelta(days=1))
    deliver(here, "habit", {"u0": 70.0, "u2": 90.0}, BEGAN + timedelta(minutes=1))
    seen = gathered(here, covariate="habit").evidence.outcomes["spent"]
    assert seen.champion_before is not None
    assert seen.candidate_before is not None
    np.testing.assert_equal(seen.champion_before, [7.0, np.nan])
    assert seen.candidate_before.tolist() == [8.0]


def test_a_log_that_does_not_say_who_was_asked_for_is_refused(here: Settings) -> None:
    write_rows(here, log_rows(4).drop(columns="routing_key"))
    with pytest.raises(DataInvalid, match="no routing_key"):
        gathered(here)


def test_nothing_yet_is_no_reason_to_promote(here: Settings) -> None:
    found = reported(here)
    assert found.conclusion.action == "go_on"
    assert found.conclusion.status is Status.INCONCLUSIVE
    write_rows(here, log_rows(10))
    assert reported(here).conclusion.status is Status.INCONCLUSIVE


def test_a_better_candidate_is_reported_with_its_evidence_and_a_picture(here: Settings) -> None:
    rows = log_rows(2_000)
    write_rows(here, rows)
    came = values_of(rows[:1_500], gain=0.8)
    deliver(here, "spent", came)
    found = reported(here)
    assert found.conclusion.action == "promote", found.conclusion.reason
    assert (found.champion, found.candidate, found.crossed) == (1_000, 1_000, 0)
    assert (found.known["spent"].champion, found.known["spent"].of_candidate) == (750, 0.75)
    primary = next(v for v in found.conclusion.verdicts if v.name == "primary spent")
    assert primary.estimate == pytest.approx(0.8, abs=0.15)
    assert primary.n == 1_500
    assert found.picture is not None
    assert Path(found.picture).read_bytes().startswith(b"\x89PNG")
    assert Path(found.picture) == here.reports / MODEL / "experiment-r1.png"


def test_the_path_ends_where_the_report_stands(here: Settings) -> None:
    rows = log_rows(1_000)
    write_rows(here, rows)
    values = values_of(rows, gain=0.3)
    for place, (key, value) in enumerate(values.items()):
        values[key] = value + place / 1_000
    for day in range(4):
        part = {key: value for place, (key, value) in enumerate(values.items()) if place // 250 == day}
        deliver(here, "spent", part, LATER - timedelta(days=4 - day))
    seen = gathered(here)
    assert SPEC.experiment is not None
    points = experiment.path(SPEC.experiment, seen, "spent", 10_000)
    assert [when for when, _ in points] == sorted(when for when, _ in points)
    assert len(points) == 4
    widths = [bounds.high - bounds.low for _, bounds in points]
    assert widths[-1] < widths[0]
    primary = next(v for v in reported(here).conclusion.verdicts if v.name == "primary spent")
    assert (points[-1][1].low, points[-1][1].high) == pytest.approx((primary.low, primary.high))


def test_lost_units_of_one_group_make_it_invalid(here: Settings) -> None:
    rows = log_rows(4_000)
    rows = rows[(rows["version"] == "1") | (rows.index % 10 != 1)]
    write_rows(here, rows)
    deliver(here, "spent", values_of(rows, gain=5.0))
    found = reported(here)
    assert found.conclusion.action == "invalid"
    assert "do not trust" in found.conclusion.reason


def test_a_weight_that_is_no_longer_the_specs_is_refused(here: Settings) -> None:
    with pytest.raises(DataInvalid, match="50 %"):
        reported(here, weight=20)


def test_the_newest_release_that_was_tested_is_found() -> None:
    earlier = RELEASE.model_copy(update={"id": "r0"})
    shadowed = RELEASE.model_copy(update={"id": "r2"})
    routes = [route(3, release="r0"), route(7), route(9, step="shadow", release="r2")]
    assert experiment.newest([shadowed, RELEASE, earlier], routes, MODEL).id == "r1"
    assert [r.generation for r in experiment.routes_of(routes, RELEASE)] == [7]
    with pytest.raises(NotFound, match="no experiment that has begun"):
        experiment.newest([shadowed], routes, MODEL)
    with pytest.raises(NotFound, match="declare"):
        experiment.experiment_of(toy_spec())


def before_it(here: Settings, *, units: int = 1_440) -> pd.DataFrame:
    """A day of the champion's traffic that ended an hour before the experiment, with its outcomes."""
    rows = log_rows(
        units, candidate=[False] * units, began=BEGAN - timedelta(hours=25), generation=5, release=None
    ).assign(key=[f"old{n}" for n in range(units)], routing_key=[f"v{n}" for n in range(units)])
    write_rows(here, rows)
    deliver(here, "spent", values_of(rows), BEGAN - timedelta(minutes=10))
    return rows


def test_a_plan_reads_variance_and_traffic_from_what_was_seen(here: Settings) -> None:
    before_it(here)
    found = experiment.plan(SPEC, here, now=BEGAN)
    assert found.units_per_day == pytest.approx(1_440, rel=0.01)
    assert found.outcomes[0].mean == pytest.approx(10.0, abs=0.1)
    assert found.outcomes[0].sd == pytest.approx(1.0, abs=0.1)
    assert found.days == pytest.approx(found.units / 1_440, rel=0.01)
    given = experiment.plan(SPEC, here, now=BEGAN, primary=Baseline(5.0, 2.0), per_day=100.0)
    assert (given.outcomes[0].mean, given.units_per_day) == (5.0, 100.0)
    reduced = experiment.plan(SPEC, here, now=BEGAN, primary=Baseline(5.0, 2.0), correlation=0.5)
    assert reduced.units == pytest.approx(given.units * 0.75, abs=2)


def test_traffic_is_all_units_and_variance_the_champions(here: Settings) -> None:
    rows = log_rows(1_440)
    write_rows(here, rows)
    deliver(here, "spent", values_of(rows, gain=1_000))
    found = experiment.plan(SPEC, here, now=UNTIL)
    assert found.units_per_day == pytest.approx(1_440, rel=0.01)
    assert found.outcomes[0].sd == pytest.approx(1.0, abs=0.1)


def test_a_covariate_is_planned_with_as_far_as_it_was_known_before(here: Settings) -> None:
    rows = before_it(here)
    habit = {key: value * 2 for key, value in values_of(rows, key="routing_key").items()}
    spec = experiment_spec(covariate="habit")
    deliver(here, "habit", habit, BEGAN - timedelta(minutes=1))
    assert experiment.plan(spec, here, now=BEGAN).outcomes[0].explained == 0
    noise = np.random.default_rng(1).normal(size=len(habit))
    earlier = {key: value + 2 * extra for (key, value), extra in zip(habit.items(), noise, strict=True)}
    deliver(here, "habit", earlier, BEGAN - timedelta(days=9))
    assert experiment.plan(spec, here, now=BEGAN).outcomes[0].explained == pytest.approx(0.5, abs=0.1)


def test_a_plan_of_nothing_says_what_to_give(here: Settings) -> None:
    with pytest.raises(DataInvalid, match="give its mean"):
        experiment.plan(SPEC, here, now=NOW)
    assert SPEC.experiment is not None
    assert baselines(here, MODEL, SPEC.experiment, until=NOW) == {}
    assert units_per_day(here, MODEL, SPEC.experiment, until=NOW) is None


def test_what_an_experiment_shows_does_not_change_its_plan(here: Settings) -> None:
    before_it(here)
    known = experiment.plan(SPEC, here, now=BEGAN).outcomes[0].units
    assert known is not None
    write_rows(here, log_rows(400))
    planned = reported(here).planned_units
    assert planned == known
    deliver(here, "spent", {key: value * 50 for key, value in values_of(log_rows(400)).items()})
    assert reported(here).planned_units == planned
