"""Evidence kept from look to look is what all of the log, labels and outcomes say together."""

from __future__ import annotations

import base64
import json
import math
import os
import random
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings, strategies

from airlock.core.counters import Counters
from airlock.core.errors import Conflict, DataInvalid
from airlock.core.guards import judge, limits_of
from airlock.core.route import Bundle, Route
from airlock.core.stats import roc_auc
from airlock.core.tally import LateEvidence, Sums, Tally, bucket
from airlock.core.verdict import Status
from airlock.ledger import Ledger
from airlock.settings import Settings
from airlock.steps import evidence, evidence_state, labels, outcomes
from tests.support.release_log import RELEASE, START, Memory, entry, write_part
from tests.support.toy_model import toy_settings, toy_spec

GUARDS = (
    {"kind": "error_rate", "max": 0.02},
    {"kind": "latency", "max_p99_ms": 50, "max_p50_ms": 20},
    {"kind": "fallback_rate", "max": 0.1},
    {"kind": "prediction_shift", "max_mean": 0.05, "max_absolute": 0.1},
    {"kind": "disagreement", "max": 0.1},
    {"kind": "paired_loss", "metric": "brier", "margin": 0.01},
    {"kind": "label_metric", "metric": "accuracy", "min": 0.7},
    {"kind": "label_metric", "metric": "log_loss", "max": 0.8},
    {"kind": "label_metric", "metric": "roc_auc", "margin": 0.02},
    {"kind": "business_metric", "name": "revenue", "range": (0, 100), "min": 10},
    {"kind": "business_metric", "name": "visits", "range": (0, 10), "max_drop": 1},
)
LABEL = {"name": "bought", "time": "known_at", "maturity": "1h"}
SPEC = toy_spec(guards=GUARDS, label=LABEL)
LATER = START + timedelta(hours=3)


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    return toy_settings(tmp_path)


def look(here: Settings, store: Any, *, until: datetime = LATER, spec: Any = SPEC, champion: str | None = "1") -> Any:
    return evidence.gather(spec, here, store, RELEASE, champion, until=until)


def label(here: Settings, keys: Sequence[str], values: Sequence[float], known: Sequence[datetime]) -> None:
    frame = pd.DataFrame({"visit": keys, "bought": values, "known_at": pd.to_datetime(list(known), utc=True)})
    labels.deliver(SPEC, here, frame)


def outcome(here: Settings, name: str, keys: Sequence[str], values: Sequence[float], known: Sequence[datetime]) -> None:
    times = pd.to_datetime(list(known), utc=True)
    outcomes.deliver(SPEC, here, pd.DataFrame({"key": keys, "name": name, "value": values, "time": times}))


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


class Recomputed:
    """The same, from all rows at once, one by one."""

    def __init__(self, rows: list[dict[str, Any]], known: dict[str, float], revenue: dict[str, float]) -> None:
        # Who reads a log counts what is slow, also where nothing in it is the candidate's.
        self.tally = Tally(slow={"latency_p50": 0, "latency_p99": 0})
        self.answers = self.due = self.labelled = 0
        self.late: dict[str, list[float]] = {name: [] for name in ("brier", "accuracy", "log_loss", "revenue")}
        asked: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            asked.setdefault(row["request_id"], []).append(row)
        for question in asked.values():
            self._request(question, known)
        for row in rows:
            fits = row["role"] == "served" and row["version"] == "2" and row["error"] is None and row["pin"] is None
            if fits and row["key"] in revenue:
                self.late["revenue"].append(-revenue[row["key"]])

    def _request(self, rows: list[dict[str, Any]], known: dict[str, float]) -> None:
        stood_in = any(row["fallback"] for row in rows)
        ours = [row for row in rows if row["version"] == "2"]
        theirs = {row["row"]: row for row in rows if row["version"] == "1" and row["error"] is None and not stood_in}
        if ours:
            first, failed = ours[0], ours[0]["error"] is not None
            (self.tally.failed if failed else self.tally.answered)(
                first["latency_ms"], {"latency_p50": 20, "latency_p99": 50}
            )
            self.tally.fallbacks += failed and (first["role"] == "shadow" or stood_in)
        if ours and theirs and ours[0]["error"] is None:
            pairs = [(row["probability"], theirs[row["row"]]["probability"]) for row in ours]
            self.tally.compared([a - b for a, b in pairs], sum((a >= 0.5) != (b >= 0.5) for a, b in pairs))
        for row in ours:
            if row["error"] is not None:
                continue
            self.answers += 1
            mature = (row["event_time"] or row["at"]) <= LATER - timedelta(hours=1)
            self.due += mature and row["key"] is not None
            if row["key"] not in known:
                continue
            y, p = known[row["key"]], row["probability"]
            self.labelled += mature
            self.late["accuracy"].append(float((p >= 0.5) != (y == 1)))
            self.late["log_loss"].append(-math.log(p if y else 1 - p))
            if row["row"] in theirs:
                self.late["brier"].append((p - y) ** 2 - (theirs[row["row"]]["probability"] - y) ** 2)


def agrees(found: evidence.Gathered, expected: Recomputed) -> None:
    counted, wanted = found.tally, expected.tally
    for name in ("requests", "errors", "fallbacks", "latency", "slow"):
        assert getattr(counted, name) == getattr(wanted, name), name
    for name in ("difference", "absolute", "flips"):
        assert getattr(counted, name).model_dump() == pytest.approx(getattr(wanted, name).model_dump(), abs=1e-9), name
    late = found.late
    assert (late.answers, late.due, late.labelled) == (expected.answers, expected.due, expected.labelled)
    named = {"paired_loss_brier": "brier", "label_accuracy": "accuracy", "label_log_loss": "log_loss"}
    for limit, name in {**named, "business_revenue": "revenue"}.items():
        values = np.array(expected.late[name])
        sums = late.observations[limit]
        assert (sums.n, sums.total, sums.squares) == (
            values.size,
            pytest.approx(values.sum(), abs=1e-4),
            pytest.approx((values**2).sum(), abs=1e-4),
        ), limit


def _entry(
    draw: random.Random, number: int, facts: list[dict[str, Any]], version: str, role: str, *, fails: bool, **more: Any
) -> list[dict[str, Any]]:
    latency = draw.choice([1.0, 19.0, 30.0, 80.0])
    return [
        entry(
            number, version, role, None if fails else draw.uniform(0.01, 0.99), latency_ms=latency, **{**fact, **more}
        )
        for fact in facts
    ]


def _traffic(draw: random.Random, requests: int) -> list[list[dict[str, Any]]]:
    """What the gateway writes of each request: entries that each come whole."""
    entries = []
    for number in range(requests):
        rows = draw.choice([1, 1, 1, 3])
        served_by, pin = draw.choice(["1", "2"]), draw.choice([None, None, None, "vip"])
        event = {"event_time": after(number - 7200)} if draw.random() < 0.3 else {}
        facts = [
            {**event, "pin": pin, "row": row, "key": None if draw.random() < 0.1 else f"k{number}.{row}"}
            for row in range(rows)
        ]

        failed = draw.random() < 0.2
        entries.append(_entry(draw, number, facts, served_by, "served", fails=failed))
        if failed and served_by == "2":
            entries.append(_entry(draw, number, facts, "1", "served", fails=False, fallback="champion"))
        elif failed:
            entries.append(_entry(draw, number, facts, "1", "served", fails=False, fallback="cache"))
        elif draw.random() < 0.9:
            entries.append(
                _entry(draw, number, facts, "12".replace(served_by, ""), "shadow", fails=draw.random() < 0.1)
            )
    return entries


# A seed has no simpler neighbour: what fails is reported as it is.
@settings(max_examples=25, phases=[Phase.generate])
@given(strategies.integers(0, 10**6).map(random.Random), strategies.integers(1, 25))
def test_looks_in_any_order_of_arrival_agree_with_a_recomputation(draw: random.Random, requests: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        here, store = toy_settings(Path(folder)), Memory()
        entries = _traffic(draw, requests)
        parts: dict[int, list[dict[str, Any]]] = {}
        for rows in entries:
            parts.setdefault(draw.randrange(6), []).extend(rows)
        keys = sorted({row["key"] for rows in entries for row in rows if row["key"]})
        known = {key: float(draw.random() < 0.4) for key in keys if draw.random() < 0.7}
        revenue = {key: draw.uniform(0, 100) for key in keys if draw.random() < 0.7}
        actions: list[Any] = [(write_part, (here, number, rows)) for number, rows in parts.items()]
        for chosen, deliver in ((known, label), (revenue, lambda *a: outcome(a[0], "revenue", *a[1:]))):
            for third in range(3):
                some = [key for number, key in enumerate(chosen) if number % 3 == third]
                if some:
                    times = [after(draw.uniform(0, 5000)) for _ in some]
                    actions.append((deliver, (here, some, [chosen[key] for key in some], times)))
        draw.shuffle(actions)
        for act, arguments in actions:
            act(*arguments)
            if draw.random() < 0.5:
                look(here, store, until=after(draw.uniform(0, 3500)))
        found = look(here, store)
        agrees(found, Recomputed([row for rows in entries for row in rows], known, revenue))
        assert look(here, store) == found
        assert look(here, Memory()).tally.requests == found.tally.requests


def asked(
    here: Settings, sequence: int, numbers: Sequence[int], scores: Sequence[tuple[float, float]], **facts: Any
) -> None:
    """One file: the candidate answered, and the champion in shadow."""
    rows = []
    for number, (ours, theirs) in zip(numbers, scores, strict=True):
        rows += [entry(number, "2", "served", ours, **facts), entry(number, "1", "shadow", theirs, **facts)]
    write_part(here, sequence, rows)


def test_nothing_at_all_is_no_evidence(here: Settings) -> None:
    found = look(here, Memory())
    assert found == evidence.Gathered(Tally(), found.late)
    assert (found.late.answers, found.late.due, found.late.share) == (0, 0, None)
    assert {
        verdict.status for verdict in judge(limits_of(SPEC), Counters({"served": found.tally}), late=found.late)
    } == {Status.INCONCLUSIVE}


def test_it_is_kept_in_the_ledger_and_read_once(here: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Ledger(here.ledger_url)
    asked(here, 1, range(5), [(0.6, 0.4)] * 5, key="someone@example.org")
    first = look(here, store)
    assert first.tally.difference.n == 5
    kept = store.load_state("toy", "evidence/rel")
    monkeypatch.setattr(evidence.log_rows, "opened", None)  # nothing is new: nothing is opened
    assert look(here, store) == first
    assert store.load_state("toy", "evidence/rel") == kept
    assert kept is not None
    tables = json.loads(kept[0])["tables"].values()
    assert tables
    assert not any(b"someone" in base64.b64decode(table) for table in tables)  # a key may be personal: hashes are kept


def test_the_two_views_are_those_of_one_look(here: Settings) -> None:
    store = Memory()
    asked(here, 1, range(5), [(0.6, 0.4)] * 5)
    arguments = (SPEC, here, store, RELEASE, "1")
    found = look(here, store)
    assert evidence.late_evidence(*arguments, until=LATER) == found.late
    assert evidence.release_tally(*arguments, until=LATER) == found.tally


@pytest.mark.parametrize("all_of_them", [True, False])
def test_a_log_of_a_gateway_that_knew_no_pins_is_read(here: Settings, all_of_them: bool) -> None:
    for sequence in (1, 2):
        asked(here, sequence, [sequence], [(0.6, 0.4)])
    for path in sorted(here.predictions.rglob("part-*.parquet"))[: None if all_of_them else 1]:
        pd.read_parquet(path).drop(columns="pin").to_parquet(path, index=False)
    outcome(here, "revenue", ["k1", "k2"], [1, 2], [after(9), after(9)])
    found = look(here, Memory())
    assert found.tally.difference.n == 2
    assert found.late.observations["business_revenue"].n == 2


def test_a_time_without_zone_is_refused(here: Settings) -> None:
    with pytest.raises(DataInvalid, match="time zone"):
        look(here, Memory(), until=datetime(2026, 2, 1))  # noqa: DTZ001


def test_halves_meet_across_looks_and_are_given_up_after_an_hour(here: Settings) -> None:
    store = Memory()
    write_part(here, 1, [entry(1, "2", "served", 0.8), entry(2, "2", "served", 0.7)])
    label(here, ["k1", "k2"], [1, 1], [after(10), after(10)])
    early = look(here, store, until=after(20))
    assert (early.tally.difference.n, early.late.observations["label_accuracy"].n) == (0, 0)
    write_part(here, 2, [entry(1, "1", "shadow", 0.6)])
    met = look(here, store, until=after(30))
    assert met.tally.difference.total == pytest.approx(0.2)
    assert met.late.observations["paired_loss_brier"].total == pytest.approx(0.2**2 - 0.4**2)
    assert met.late.observations["label_accuracy"].n == 1
    alone = look(here, store, until=after(3700))  # no file has come since
    assert (alone.late.observations["label_accuracy"].n, alone.late.observations["paired_loss_brier"].n) == (2, 1)


def test_an_id_that_a_client_used_twice_is_two_requests(here: Settings) -> None:
    asked(here, 1, [1, 2], [(0.6, 0.5), (0.9, 0.5)], request_id="again", key=None)
    assert look(here, Memory()).tally.difference.total == pytest.approx(0.5)


def test_rows_of_one_request_are_one_observation(here: Settings) -> None:
    rows = [
        entry(1, version, role, score, row=row)
        for version, role, scores in (("2", "served", (0.9, 0.6)), ("1", "shadow", (0.1, 0.6)))
        for row, score in enumerate(scores)
    ]
    write_part(here, 1, rows)
    tally = look(here, Memory()).tally
    assert (tally.requests, tally.difference.n, tally.flips.n) == (1, 1, 1)
    assert (tally.difference.total, tally.flips.total) == (pytest.approx(0.4), 0.5)


def test_a_label_is_used_once_and_stays_as_it_was_first_used(here: Settings) -> None:
    store = Memory()
    asked(here, 1, [1, 2], [(0.9, 0.5), (0.2, 0.5)], key="same")
    label(here, ["same"], [1], [after(5)])
    first = look(here, store).late
    assert first.observations["label_accuracy"] == Sums(n=1, smallest=0, largest=0)  # the first answer
    assert (first.answers, first.due, first.labelled) == (2, 1, 1)
    label(here, ["same"], [0], [after(6)])
    assert look(here, store).late == first
    assert look(here, Memory()).late.observations["label_accuracy"].total == 0


def test_labels_wait_until_they_are_known(here: Settings) -> None:
    store = Memory()
    asked(here, 1, [1], [(0.9, 0.5)])
    label(here, ["k1"], [1], [after(100)])
    assert look(here, store, until=after(100)).late.observations["label_accuracy"].n == 0
    assert look(here, store, until=after(101)).late.observations["label_accuracy"].n == 1


def test_an_answer_is_due_when_its_event_is_mature(here: Settings) -> None:
    store = Memory()
    asked(here, 1, [1], [(0.9, 0.5)], event_time=after(-1800))
    for seconds, due in ((1790, 0), (1810, 1), (1700, 0)):  # going back takes nothing back of what was seen
        assert look(here, store, until=after(seconds)).late.due == due


def test_no_label_is_due_for_an_answer_without_a_key(here: Settings) -> None:
    asked(here, 1, [1, 2], [(0.6, 0.5), (0.9, 0.5)], key=None)
    asked(here, 2, [3], [(0.6, 0.5)])
    late = look(here, Memory()).late
    assert (late.answers, late.due) == (3, 1)


@pytest.mark.parametrize("file_of", [0, 3])
def test_a_file_with_an_older_name_is_not_missed(here: Settings, monkeypatch: pytest.MonkeyPatch, file_of: int) -> None:
    """Whether its name would be among those that are kept, or only its number."""
    monkeypatch.setattr(evidence_state, "MOST_NAMES", 4)
    store = Memory()
    for number in set(range(10)) - {file_of + 3}:
        asked(here, number, [number], [(0.6, 0.5)])
        look(here, store)
    asked(here, file_of + 3, [file_of + 3], [(0.6, 0.5)])
    found = look(here, store)
    assert found.tally.requests == found.tally.difference.n == 10
    assert look(here, store).tally == found.tally


def test_a_file_that_comes_in_the_instant_of_a_look_is_not_missed(here: Settings) -> None:
    store = Memory()
    asked(here, 1, [1], [(0.6, 0.5)])
    folder = here.predictions / "toy" / "day=2026-02-01"
    now = time.time_ns()
    os.utime(folder, ns=(now, now))
    look(here, store)
    asked(here, 2, [2], [(0.6, 0.5)])
    os.utime(folder, ns=(now, now))  # as on a file system whose clock ticks coarsely
    assert look(here, store).tally.requests == 2


def test_deleted_files_take_nothing_back(here: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_state, "MOST_NAMES", 2)
    store = Memory()
    for number in range(6):
        asked(here, number, [number], [(0.6, 0.5)])
    look(here, store)
    for path in sorted(here.predictions.rglob("*.parquet"))[:4]:
        path.unlink()
    asked(here, 7, [7], [(0.6, 0.5)])
    assert look(here, store).tally.requests == 7


def test_more_answers_than_can_wait_are_a_sample(here: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_state, "MOST_WAITING", 100)
    store, numbers = Memory(), list(range(1000))
    asked(here, 1, numbers, [(0.6, 0.5)] * 1000)
    before = look(here, store, until=after(2000)).late
    assert before.answers == 1000
    label(here, [f"k{n}" for n in numbers], [float(n % 4 == 0) for n in numbers], [after(3000 + n) for n in numbers])
    found = look(here, store).late
    observed = found.observations["label_accuracy"]
    assert 40 <= observed.n <= 100
    assert observed.n == found.labelled == found.due  # its label came for each that was waited for
    assert abs(observed.total / observed.n - 0.75) < 0.2
    assert len(store.states["toy", "evidence/rel"][0]) < 200_000


@pytest.mark.parametrize("early_is_right", [True, False])
def test_what_is_judged_does_not_depend_on_how_early_its_label_came(
    here: Settings, monkeypatch: pytest.MonkeyPatch, early_is_right: bool
) -> None:
    """Labels of one kind are there at the first look, those of the other come long after it."""
    monkeypatch.setattr(evidence_state, "MOST_WAITING", 100)
    store = Memory()
    for part in range(20):
        numbers = list(range(100 * part, 100 * part + 100))
        asked(here, part, numbers, [(0.9, 0.5)] * 100)
        early, late = numbers[::2], numbers[1::2]
        right, wrong = float(early_is_right), float(not early_is_right)
        # Half of the answers turn out to be right, whenever one gets to know it.
        label(here, [f"k{n}" for n in early], [right] * 50, [after(n + 1) for n in early])
        label(here, [f"k{n}" for n in late], [wrong] * 50, [after(6000 + n) for n in late])
        look(here, store, until=after(numbers[-1] + 60))
    found = look(here, store, until=after(9000)).late
    observed = found.observations["label_accuracy"]
    assert found.due == found.labelled == observed.n >= 100
    assert abs(observed.total / observed.n - 0.5) < 4 * 0.5 / math.sqrt(observed.n)


def test_room_is_left_for_new_answers_when_labels_never_come(here: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_state, "MOST_WAITING", 40)
    store = Memory()
    lately = []
    for part in range(30):
        numbers = list(range(100 * part, 100 * part + 100))
        at = START + timedelta(hours=6 * part)
        asked(here, part, numbers, [(0.9, 0.5)] * 100, at=at)
        if part % 2:  # of every second hour no label ever comes
            label(here, [f"k{n}" for n in numbers], [1.0] * 100, [at + timedelta(minutes=30)] * 100)
        observed = look(here, store, until=at + timedelta(minutes=20)).late.observations["label_accuracy"]
        lately.append(
            look(here, store, until=at + timedelta(minutes=40)).late.observations["label_accuracy"].n - observed.n
        )
    assert min(lately[21::2]) >= 5
    found = look(here, store, until=START + timedelta(days=20)).late
    assert 0.3 < found.labelled / found.due < 0.7


def test_batches_are_those_of_a_recomputation_in_order_of_arrival(here: Settings) -> None:
    rng = np.random.default_rng(5)
    truth = (rng.random(900) < 0.3).astype(float)
    ours, theirs = (np.clip(rng.normal(0.4 + 0.2 * truth, 0.2), 0.01, 0.99).round(2) for _ in range(2))
    truth[:250] = 0  # a class alone makes no batch
    store = Memory()
    for part in range(9):
        chosen = list(range(100 * part, 100 * part + 100))
        asked(here, part, chosen, [(float(ours[n]), float(theirs[n])) for n in chosen])
        label(here, [f"k{n}" for n in chosen], [float(truth[n]) for n in chosen], [after(1000 + n) for n in chosen])
        found = look(here, store)
    expected, start = [], 0
    for end in range(1, 901):
        rows = slice(start, end)
        hits = truth[rows].sum()
        if end - start >= 200 and min(hits, end - start - hits) >= 10:
            expected.append(roc_auc(truth[rows], theirs[rows]) - roc_auc(truth[rows], ours[rows]))
            start = end
    sums = found.late.observations["label_roc_auc"]
    assert len(expected) == 4
    assert (sums.n, sums.total) == (len(expected), pytest.approx(sum(expected)))
    assert look(here, Memory()).late.observations["label_roc_auc"].model_dump() == pytest.approx(sums.model_dump())


def test_the_squared_error_of_a_regression_against_the_champion_comes_in_batches(here: Settings) -> None:
    guards = (
        {"kind": "label_metric", "metric": "rmse", "margin": 0.5},
        {"kind": "label_metric", "metric": "mae", "max": 1},
    )
    spec = toy_spec(task="regression", guards=guards, label=LABEL, gates=[{"kind": "finite"}])
    rng = np.random.default_rng(5)
    ours, theirs, truth = rng.normal(size=(3, 400))
    rows = []
    for n in range(400):
        rows += [entry(n, "2", "served", None, prediction=ours[n], error=None)]
        rows += [entry(n, "1", "shadow", None, prediction=theirs[n], error=None)]
    write_part(here, 1, rows)
    label(here, [f"k{n}" for n in range(400)], list(truth), [after(1000 + n) for n in range(400)])
    late = look(here, Memory(), spec=spec).late
    halves = [np.sqrt(np.mean((x.reshape(2, 200) - truth.reshape(2, 200)) ** 2, axis=1)) for x in (ours, theirs)]
    assert late.observations["label_rmse"].n == 2
    assert late.observations["label_rmse"].total == pytest.approx((halves[0] - halves[1]).sum())
    assert late.observations["label_mae"].total == pytest.approx(np.abs(ours - truth).sum())


def test_outcomes_are_paired_in_the_order_in_which_they_came(here: Settings) -> None:
    store, served = Memory(), ["2", "1", "1", "2", "2", "2", "1"]
    write_part(here, 1, [entry(n, version, "served", 0.5) for n, version in enumerate(served)])
    values = [5.0, 1.0, 2.0, 4.0, 3.0, 9.0, 8.0]
    for part in (slice(0, 3), slice(3, 7)):
        numbers = list(range(7))[part]
        outcome(here, "visits", [f"k{n}" for n in numbers], values[part], [after(100 + n) for n in numbers])
        found = look(here, store)
    # 1 meets 5, 4 meets 2, 3 and 9 wait, 8 meets 3.
    observed = found.late.observations["business_visits"]
    assert observed == Sums(n=3, total=-4 - 2 + 5, squares=45, smallest=-4, largest=5)


def test_outcomes_of_chosen_answers_only(here: Settings) -> None:
    """By the shares, and given by the version that they chose."""
    rows = [
        entry(1, "2", "served", 0.5),
        entry(2, "2", "served", 0.5, pin="vip"),
        entry(3, "2", "shadow", 0.5),
        entry(4, "2", "served", None),
        entry(4, "1", "served", 0.5, fallback="champion"),
        entry(5, None, "served", 0.5, fallback="rule"),
        entry(6, "2", "served", 0.5, release="other", generation=3),
    ]
    write_part(here, 1, rows)
    outcome(here, "revenue", [f"k{n}" for n in range(1, 7)], [50.0] * 6, [after(100)] * 6)
    assert look(here, Memory()).late.observations["business_revenue"].total == -50.0


def test_a_provisional_champion_is_judged_by_what_it_answers_since(here: Settings) -> None:
    rows = [
        entry(1, "2", "served", 0.9, release=None, generation=2),  # when it was champion once before
        entry(2, "2", "served", 0.9),
        entry(2, "1", "shadow", 0.8),
        entry(3, "2", "served", 0.9, release=None, generation=9, variant="champion"),
        entry(4, "2", "served", 0.9, release="next", generation=10, variant="champion"),
        entry(5, "3", "served", 0.9, release="next", generation=10, variant="candidate"),
    ]
    write_part(here, 1, rows)
    label(here, [f"k{n}" for n in range(1, 6)], [1.0] * 5, [after(100)] * 5)
    found = look(here, Memory())
    assert (found.late.answers, found.late.observations["label_accuracy"].n) == (3, 3)
    assert found.late.observations["paired_loss_brier"].n == found.tally.requests == 1


def test_without_a_champion_every_answer_stands_alone(here: Settings) -> None:
    write_part(here, 1, [entry(1, "2", "served", 0.9)])
    label(here, ["k1"], [1.0], [after(100)])
    found = look(here, Memory(), champion=None).late
    assert (found.observations["label_accuracy"].n, found.observations["paired_loss_brier"].n) == (1, 0)


def test_days_before_the_release_are_not_read(here: Settings) -> None:
    route = Route(
        model="toy", generation=4, release="rel", champion="1", candidate="2", weights={"1": 95, "2": 5},
        versions={name: Bundle(path=name, digest="sha256:" + name * 64) for name in "12"}, salt="s", reason="r",
        written_at=START,
    )  # fmt: skip
    asked(here, 1, [1], [(0.9, 0.5)])
    store = Memory([route])
    look(here, store)
    state = json.loads(store.states["toy", "evidence/rel"][0])
    assert (state["first_generation"], state["first_day"]) == (4, "2026-01-31")
    torn = here.predictions / "toy" / "day=2026-01-30" / "part-1769700000000000000-1-000001.parquet"
    torn.parent.mkdir()
    torn.write_bytes(b"not even parquet")
    assert look(here, Memory([route])).tally.requests == 1


@pytest.mark.parametrize("spoil", ["not json", '{"format": 0}', "other guards"])
def test_a_state_that_does_not_fit_is_made_anew(here: Settings, spoil: str) -> None:
    store = Memory()
    asked(here, 1, [1, 2], [(0.9, 0.5)] * 2)
    first = look(here, store)
    if spoil == "other guards":
        other = toy_spec(guards=[*GUARDS, {"kind": "label_metric", "metric": "brier", "max": 0.3}], label=LABEL)
        assert "label_brier" in look(here, store, spec=other).late.observations
    else:
        store.states["toy", "evidence/rel"] = (spoil, 1)
    assert look(here, store) == first


def test_two_that_look_at_once_count_nothing_twice(here: Settings) -> None:
    class Raced(Memory):
        def save_state(self, model: str, name: str, document: str, *, revision: int | None) -> int:
            if not self.states:
                super().save_state(model, name, document, revision=revision)
                raise Conflict("the other was first")
            return super().save_state(model, name, document, revision=revision)

    store = Raced()
    asked(here, 1, [1, 2], [(0.9, 0.5)] * 2)
    assert look(here, store).tally.requests == 2
    assert look(here, store).tally.requests == 2


def test_a_state_that_others_keep_taking_is_a_conflict(here: Settings) -> None:
    class Lost(Memory):
        def save_state(self, model: str, name: str, document: str, *, revision: int | None) -> int:
            raise Conflict("somebody else was first")

    asked(here, 1, [1], [(0.9, 0.5)])
    with pytest.raises(Conflict):
        look(here, Lost())


def test_buckets_are_the_gateways(here: Settings) -> None:
    times = [0.0, 0.05, 0.0501, 1.0, 0.05 * 2**0.25, 0.05 * 2**5, 250.0, 1e6]
    write_part(here, 1, [entry(n, "2", "shadow", 0.5, latency_ms=ms) for n, ms in enumerate(times)])
    counted = look(here, Memory()).tally.latency
    assert sum(counted) == len(times)
    assert counted == [sum(bucket(ms) == index for ms in times) for index in range(len(counted))]


def test_an_outcome_out_of_its_range_is_an_error_and_no_pass(here: Settings) -> None:
    write_part(here, 1, [entry(n, "2", "served", 0.5) for n in range(3)])
    outcome(here, "revenue", ["k0", "k1", "k2"], [900.0] * 3, [after(9)] * 3)
    late: LateEvidence = look(here, Memory()).late
    (verdict,) = (v for v in judge(limits_of(SPEC), Counters(), late=late) if v.name == "business_revenue")
    assert verdict.status is Status.ERROR
