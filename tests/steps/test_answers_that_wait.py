"""Which answers a label is due for: the first to each key, and in pairs those that the champion was asked too."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from airlock.core.counters import Counters
from airlock.core.guards import judge, limits_of
from airlock.core.verdict import Status, Verdict
from airlock.settings import Settings
from airlock.steps import evidence, evidence_state, labels, once, outcomes
from tests.support.release_log import RELEASE, START, Memory, entry, write_part
from tests.support.toy_model import toy_settings, toy_spec

GUARDS = (
    {"kind": "paired_loss", "metric": "brier", "margin": 0.05, "min_requests": 2},
    {"kind": "label_metric", "metric": "accuracy", "min": 0.5, "min_requests": 2},
    {"kind": "business_metric", "name": "revenue", "range": (0, 100), "min": 10},
)
SPEC = toy_spec(guards=GUARDS, label={"name": "bought", "time": "known_at", "maturity": "1h"})


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    return toy_settings(tmp_path)


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def look(here: Settings, store: Memory, *, until: datetime = START + timedelta(hours=3)) -> Any:
    return evidence.late_evidence(SPEC, here, store, RELEASE, "1", until=until)


def label(here: Settings, keys: Sequence[str], value: float = 1.0, *, known: float = 100) -> None:
    frame = pd.DataFrame({"visit": keys, "bought": value, "known_at": pd.to_datetime([after(known)] * len(keys))})
    labels.deliver(SPEC, here, frame)


def answer(
    here: Settings,
    part: int,
    keys: Sequence[str],
    *,
    alone: Sequence[str] = (),
    failed: Sequence[str] = (),
    start: int = 0,
) -> None:
    """The candidate's answers, and the champion's but to what is ``alone``; on what is ``failed`` it failed."""
    rows = []
    for number, key in enumerate(keys, start):
        rows.append(entry(number, "2", "served", 0.9, key=key))
        if key not in alone:
            rows.append(entry(number, "1", "shadow", None if key in failed else 0.9, key=key))
    write_part(here, part, rows)


def verdicts(late: Any) -> dict[str, Verdict]:
    limits = [limit for limit in limits_of(SPEC) if limit.name != "business_revenue"]
    return {verdict.name: verdict for verdict in judge(limits, Counters(), late=late)}


def test_a_key_that_is_asked_again_is_due_once(here: Settings) -> None:
    store = Memory()
    answer(here, 1, ["ann", "bob"])
    label(here, ["ann", "bob"])
    look(here, store, until=after(200))
    answer(here, 2, ["ann", "bob", "ann"], start=10)
    late = look(here, store)
    assert (late.answers, late.due, late.labelled) == (5, 2, 2)
    assert late.of_pairs == {"paired_loss_brier": (2, 2)}
    assert late.observations["label_accuracy"].n == 2, "each key counts once"
    assert {verdict.status for verdict in verdicts(late).values()} == {Status.PASS}
    assert look(here, Memory()) == late


def test_a_correction_is_not_used_for_a_key_that_is_asked_again(here: Settings) -> None:
    store = Memory()
    answer(here, 1, ["ann"])
    label(here, ["ann"])
    look(here, store)
    label(here, ["ann"], 0.0, known=200)
    look(here, store)
    answer(here, 2, ["ann"], start=10)
    late = look(here, store)
    assert (late.due, late.labelled, late.observations["label_accuracy"].n) == (1, 1, 1)


def test_an_outcome_is_used_once_too(here: Settings) -> None:
    def paid(value: float, known: float) -> None:
        frame = pd.DataFrame({"key": ["ann"], "name": "revenue", "value": value, "time": [pd.Timestamp(after(known))]})
        outcomes.deliver(SPEC, here, frame)

    store = Memory()
    answer(here, 1, ["ann"])
    paid(20, 100)
    look(here, store)
    paid(30, 200)
    answer(here, 2, ["ann"], start=10)
    assert look(here, store).observations["business_revenue"].n == 1


def test_a_key_that_is_asked_and_delivered_again_and_again_is_observed_once(here: Settings) -> None:
    store = Memory()
    for day in range(3):
        for number, key in enumerate(("ann", "bob", "cid")):
            answer(here, 10 * day + number, [key], start=10 * day + number)
            label(here, ["ann", "bob", "cid"], float(day == 0), known=100 + day)
            look(here, store)
    late = look(here, store)
    assert (late.answers, late.due, late.labelled) == (9, 3, 3)
    assert (late.observations["label_accuracy"].n, late.observations["label_accuracy"].total) == (3, 0)
    assert look(here, Memory()) == late


def test_a_key_whose_slot_is_taken_is_neither_due_nor_observed(here: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once, "SLOTS", 64)
    store, keys = Memory(), [f"k{number}" for number in range(200)]
    for part in range(4):
        answer(here, part, keys[50 * part : 50 * part + 50], start=50 * part)
        label(here, keys[50 * part : 50 * part + 50])
        look(here, store)
    late = look(here, store)
    assert 40 < late.due == late.labelled == late.observations["label_accuracy"].n <= 64
    assert look(here, Memory()) == late


def test_who_is_asked_often_does_not_thin_out_the_labels_that_are_missing(here: Settings) -> None:
    """Of 100 keys ten get no label, which could hide a loss of a tenth, however often the others are asked again."""
    store, keys = Memory(), [f"k{number}" for number in range(100)]
    answer(here, 1, keys)
    label(here, keys[:90])
    for again in range(1, 10):
        answer(here, 1 + again, [*keys[:90], *keys[:90]], start=1000 * again)
        look(here, store)
    late = look(here, store)
    assert (late.answers, late.due, late.labelled) == (100 + 9 * 180, 100, 90)
    assert late.of_pairs == {"paired_loss_brier": (100, 90)}
    paired = verdicts(late)["paired_loss_brier"]
    assert (paired.status, paired.details["missing_share"]) == (Status.INCONCLUSIVE, pytest.approx(0.1))
    assert look(here, Memory()) == late


def test_where_a_sample_is_observed_keys_that_are_asked_again_are_of_it(
    here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence_state, "MOST_WAITING", 100)
    store, keys = Memory(), [f"k{number}" for number in range(1000)]
    answer(here, 1, keys[:200])
    label(here, keys[:200])
    look(here, store, until=after(2000))
    answer(here, 2, keys, start=1000)
    look(here, store, until=after(2100))
    label(here, keys[200:], known=3000)
    late = look(here, store)
    assert 200 < late.due == late.labelled < 500
    assert late.of_pairs["paired_loss_brier"] == (late.due, late.labelled)


def test_where_the_champion_failed_on_a_row_its_label_is_missing_from_the_comparison(here: Settings) -> None:
    answer(here, 1, ["ann", "bob", "cid", "dan"], failed=["cid", "dan"])
    label(here, ["ann", "bob", "cid", "dan"])
    late = look(here, Memory())
    assert (late.due, late.labelled) == (4, 4)
    assert (late.of_pairs, late.partners) == ({"paired_loss_brier": (4, 2)}, (4, 4))
    found = verdicts(late)
    assert found["label_accuracy"].status is Status.PASS
    paired = found["paired_loss_brier"]
    assert (paired.status, paired.details["missing_share"]) == (Status.INCONCLUSIVE, 0.5)
    assert "50% of the answers that are due lack their label or the champion's answer" in paired.reason


def test_what_the_shadow_queue_dropped_is_no_lost_label(here: Settings) -> None:
    """The labels are all there; of 3 in 200 the champion was not asked, which has nothing to do with the rows."""
    keys = [f"k{number}" for number in range(200)]
    answer(here, 1, keys, alone=keys[:3])
    label(here, keys)
    late = look(here, Memory(), until=START + timedelta(hours=3))
    assert (late.due, late.labelled) == (200, 200)
    assert (late.of_pairs, late.partners) == ({"paired_loss_brier": (197, 197)}, (200, 197))
    paired = verdicts(late)["paired_loss_brier"]
    assert (paired.status, paired.details["without_champion"]) == (Status.PASS, 3)
    assert "3 more lack the champion's answer and are in no pair" in paired.reason


@pytest.mark.parametrize("dropped", [50, 51, 100])
def test_where_most_were_dropped_nothing_is_concluded(here: Settings, dropped: int) -> None:
    keys = [f"k{number}" for number in range(100)]
    answer(here, 1, keys, alone=keys[:dropped])
    label(here, keys)
    paired = verdicts(look(here, Memory()))["paired_loss_brier"]
    assert paired.status is (Status.PASS if dropped == 50 else Status.INCONCLUSIVE)
    assert dropped != 51 or "of 100 answers that are due 51 lack the champion's answer" in paired.reason
    assert dropped != 100 or "of 100 answers that are due 100 lack the champion's answer" in paired.reason


def test_an_answer_whose_partner_may_still_come_is_in_no_pair_yet(here: Settings) -> None:
    spec = toy_spec(guards=GUARDS, label={"name": "bought", "time": "known_at", "maturity": "60s"})
    store = Memory()
    answer(here, 1, ["ann", "bob"], alone=["bob"])
    label(here, ["ann", "bob"])

    def pairs(seconds: float) -> Any:
        late = evidence.late_evidence(spec, here, store, RELEASE, "1", until=after(seconds))
        return late.of_pairs["paired_loss_brier"], late.partners

    assert pairs(300) == ((1, 1), (2, 1))
    write_part(here, 2, [entry(1, "1", "shadow", None, key="bob")])
    assert pairs(301) == ((2, 1), (2, 2))


def test_a_pair_is_that_of_the_first_answer(here: Settings) -> None:
    """Of 30 of 100 keys the champion failed on the answer that is used, and has given all later ones."""
    store, keys = Memory(), [f"k{number}" for number in range(100)]
    answer(here, 1, keys, failed=keys[:30])
    label(here, keys)
    for again in range(1, 10):
        answer(here, 1 + again, keys[:30], start=1000 * again)
        look(here, store)
    late = look(here, store)
    assert late.of_pairs == {"paired_loss_brier": (100, 70)}
    assert late.observations["paired_loss_brier"].n == 70


def test_what_the_champion_was_not_to_answer_is_no_part_of_a_comparison(here: Settings) -> None:
    """As of a version that is provisional, whose answers since then nobody is held against."""
    rows = [entry(number, "2", "served", 0.9, release=None, generation=9, variant="champion") for number in range(3)]
    write_part(here, 1, rows)
    answer(here, 2, ["ann", "bob"], start=10)
    label(here, ["k0", "k1", "k2", "ann", "bob"])
    late = look(here, Memory())
    assert (late.due, late.labelled, late.of_pairs) == (5, 5, {"paired_loss_brier": (2, 2)})
    assert verdicts(late)["paired_loss_brier"].status is Status.PASS
