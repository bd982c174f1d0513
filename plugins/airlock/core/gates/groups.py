"""Gates on groups of the evaluation rows: a bound in each of them, and the same treatment of all of them.

Sources:
    Benjamini, Hochberg (1995), Controlling the false discovery rate.
    Berger (1982), Multiparameter hypothesis testing and acceptance sampling (intersection-union tests).
    Hardt, Price, Srebro (2016), Equality of opportunity in supervised learning (equalised odds).
    Newcombe (1998), Interval estimation for the difference between independent proportions.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from airlock.core.comparisons import benjamini_hochberg, difference_of_shares
from airlock.core.gates.evidence import (
    CONFIDENCE,
    MINIMUM_ROWS,
    GateEvidence,
    Missing,
    and_more,
    bound_of,
    candidate_scores,
    groups_of,
    labels_of,
    only_classification,
    reaches,
    require_both_classes,
    span,
    within,
)
from airlock.core.sequential import Interval
from airlock.core.spec import FairnessGate, SliceGate
from airlock.core.stats import metric_interval, shortfall_p_value, wilson
from airlock.core.uncertainty import Floats, TooFew
from airlock.core.verdict import Status, Verdict

_MORE = "hold out a longer window (data.evaluation), or raise min_rows, and such groups decide nothing"

_Rows = npt.NDArray[np.bool_]


class _Group(NamedTuple):
    """A group of the evaluation rows as a bound on it is judged; no interval where it cannot carry the metric."""

    rows: int
    interval: Interval | None = None
    p_value: float = 1.0
    adjusted: float = 1.0
    why_open: str = ""


def slices(gate: SliceGate, evidence: GateEvidence) -> Verdict:
    """A group fails when it falls short significantly, with the false discovery rate of all groups held.

    Each group's test is one-sided against "the metric keeps its bound". Groups of fewer rows than ``min_rows``
    (and than 30, which the tests need) are told and decide nothing; a larger one that cannot carry the metric,
    for want of rows of a class, leaves the gate open.
    """
    labels, scores = labels_of(evidence), candidate_scores(evidence)
    found: dict[str, _Group] = {}
    small: dict[str, int] = {}
    least = max(gate.min_rows, MINIMUM_ROWS)
    for name, rows in groups_of(gate.column, evidence).items():
        if (n := int(rows.sum())) < least:
            small[name] = n
        else:
            found[name] = _group(gate, labels[rows], scores[rows], evidence)
    judged = [name for name, group in found.items() if group.interval is not None]
    if not judged:
        why = "; ".join(f"{name} has {group.why_open}" for name, group in found.items())
        raise Missing(
            f"no group of {gate.column} has {least} rows that can carry {gate.metric}" + (f": {why}" if why else "")
        )
    adjusted = benjamini_hochberg([found[name].p_value for name in judged])
    found |= {name: found[name]._replace(adjusted=q) for name, q in zip(judged, adjusted, strict=True)}
    return _slices_verdict(gate, found, small, labels.size)


def _group(gate: SliceGate, labels: Floats, scores: Floats, evidence: GateEvidence) -> _Group:
    (bound, _), threshold = bound_of(gate), evidence.threshold
    try:
        require_both_classes(gate.metric, labels, evidence.task, advice=_MORE)
        interval = metric_interval(gate.metric, labels, scores, confidence=CONFIDENCE, threshold=threshold)
        p_value = shortfall_p_value(
            gate.metric, labels, scores, bound, at_least=gate.min is not None, threshold=threshold
        )
    except (Missing, TooFew) as few:
        return _Group(labels.size, why_open=str(few))
    return _Group(labels.size, interval, p_value)


def _slices_verdict(gate: SliceGate, found: Mapping[str, _Group], small: Mapping[str, int], rows: int) -> Verdict:
    bound, words = bound_of(gate)
    known = {name: group.interval for name, group in found.items() if group.interval is not None}
    failed = [
        name
        for name, interval in known.items()
        if not reaches(gate, interval.estimate) and found[name].adjusted <= gate.false_discovery_rate
    ]
    below = [name for name, interval in known.items() if not reaches(gate, interval.estimate) and name not in failed]
    open_ = [name for name in found if name not in known]
    pick = min if gate.min is not None else max
    worst = pick(failed or known, key=lambda name: known[name].estimate)
    parts = [
        f"{gate.metric} must be {words} in each of the {len(found)} groups of {gate.column}",
        f"the worst is {worst} with {span(known[worst])} on {found[worst].rows} rows",
    ]
    held = f"at a false discovery rate of {gate.false_discovery_rate:g}"
    if failed:
        told = [f"{name} (adjusted p {found[name].adjusted:.2g})" for name in failed]
        parts.append(f"{len(failed)} fall short {held}: {and_more(told)}")
    if below:
        parts.append(f"{len(below)} below the bound but within what chance explains {held}: {and_more(below)}")
    if open_:
        told = [f"{name} has {found[name].why_open}" for name in open_]
        parts.append(f"{len(open_)} cannot be judged: {and_more(told, most=3)}")
    if small:
        parts.append(f"{len(small)} with too few rows decide nothing: {and_more(list(small))}")
    return Verdict(
        name=gate.kind,
        status=Status.FAIL if failed else Status.INCONCLUSIVE if open_ else Status.PASS,
        reason="; ".join(parts),
        metric=gate.metric,
        estimate=known[worst].estimate,
        low=known[worst].low,
        high=known[worst].high,
        threshold=bound,
        n=rows,
        details={
            "column": gate.column,
            "worst": worst,
            "groups": {name: _told(group, name in failed) for name, group in found.items()},
            "too_few_rows": dict(small),
            "false_discovery_rate": gate.false_discovery_rate,
            "confidence_of_each_bound": CONFIDENCE,
        },
    )


def _told(group: _Group, failed: bool) -> dict[str, object]:
    if group.interval is None:
        return {"status": Status.INCONCLUSIVE.value, "rows": group.rows, "reason": group.why_open}
    return {
        "status": (Status.FAIL if failed else Status.PASS).value,
        "rows": group.rows,
        **group.interval._asdict(),
        "p_value": group.p_value,
        "adjusted_p_value": group.adjusted,
    }


def fairness(gate: FairnessGate, evidence: GateEvidence) -> Verdict:
    """By the interval of the largest difference between any two groups.

    Differences have Newcombe's intervals. The upper bound is the largest of the pairs' upper bounds: it covers
    the true largest difference without a correction, since it covers whichever pair that is of (an
    intersection-union test). The lower bound is the largest of the pairs' lower bounds with Bonferroni's
    correction over all ordered pairs and rates, since any of them may be large by chance.
    """
    only_classification(evidence, "a fairness gate")
    labels, answered = labels_of(evidence), candidate_scores(evidence) >= evidence.threshold
    groups = groups_of(gate.column, evidence)
    judged = {name: rows for name, rows in groups.items() if int(rows.sum()) >= gate.min_rows}
    small = {name: int(rows.sum()) for name, rows in groups.items() if name not in judged}
    if len(judged) < 2:
        raise Missing(f"{len(judged)} groups of {gate.column} have {gate.min_rows} rows; two are needed to compare")
    of: dict[str, _Rows] = {"positive answers": np.ones(labels.size, bool)}
    if gate.criterion == "equalised_odds":
        of = {"true positives": labels == 1, "false positives": labels == 0}
    rates = {
        rate: {name: _share(name, rate, answered[rows & among]) for name, rows in judged.items()}
        for rate, among in of.items()
    }
    largest, where = _largest(rates)
    status, needed = within(largest, gate.max_difference)
    shares = {
        name: {group: wilson(*share, CONFIDENCE)._asdict() | {"rows": share[1]} for group, share in by_group.items()}
        for name, by_group in rates.items()
    }
    rate, *pair = where
    one, other = (f"{group} ({shares[rate][group]['estimate']:.3g})" for group in pair)
    told = (
        f"the share of {rate} differs most between {one} and {other} of the {len(judged)} groups of {gate.column}: by "
        f"{span(largest)}, where at most {gate.max_difference:g} is allowed{needed}"
    )
    parts = [told]
    if small:
        parts.append(f"{len(small)} groups with too few rows decide nothing: {and_more(list(small))}")
    return Verdict(
        name=gate.kind,
        status=status,
        reason="; ".join(parts),
        metric="largest_difference",
        estimate=largest.estimate,
        low=largest.low,
        high=largest.high,
        threshold=gate.max_difference,
        n=sum(int(rows.sum()) for rows in judged.values()),
        details={
            "column": gate.column,
            "rates": shares,
            "too_few_rows": small,
            "confidence_of_each_bound": CONFIDENCE,
            "method": "Newcombe's intervals; upper bound by intersection-union, lower bound by Bonferroni",
        },
    )


def _share(group: str, rate: str, answered: _Rows) -> tuple[int, int]:
    if answered.size == 0:
        raise Missing(f"group {group} has no rows that could be {rate}")
    return int(answered.sum()), answered.size


def _largest(rates: Mapping[str, Mapping[str, tuple[int, int]]]) -> tuple[Interval, tuple[str, str, str]]:
    """The largest difference with its bounds, and where it is: the rate, the higher group and the lower one."""
    pairs = [
        (rate, one, other) for rate, by_group in rates.items() for one, other in itertools.permutations(by_group, 2)
    ]
    corrected = 1 - (1 - CONFIDENCE) / len(pairs)

    def between(pair: tuple[str, str, str], confidence: float) -> Interval:
        rate, one, other = pair
        return difference_of_shares(rates[rate][one], rates[rate][other], confidence)

    plain = {pair: between(pair, CONFIDENCE) for pair in pairs}
    where = max(pairs, key=lambda pair: plain[pair].estimate)
    low = max(between(pair, corrected).low for pair in pairs)
    high = max(interval.high for interval in plain.values())
    return Interval(plain[where].estimate, max(0.0, low), high), where
