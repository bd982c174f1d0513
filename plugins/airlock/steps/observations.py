"""What a label or an outcome says about a late limit: observations whose mean must be at most the limit's bound."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from airlock.core.route import Limit
from airlock.core.spec import BusinessMetricGuard, Guard, LabelMetricGuard, PairedLossGuard
from airlock.core.stats import log_losses
from airlock.core.tally import Sums

RARER_CLASS = 10
"""Rows of the rarer class that a batch waits for: the ROC AUC of fewer is far from normal."""

Floats = npt.NDArray[np.float64]


class Labelled(NamedTuple):
    """Labels in the order in which they became known, with the candidate's answers and the champion's (NaN: none)."""

    labels: Floats
    ours: Floats
    theirs: Floats

    def only(self, rows: npt.NDArray[np.bool_] | slice) -> Labelled:
        return Labelled(*(column[rows] for column in self))

    def then(self, other: Labelled) -> Labelled:
        return Labelled(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


def extended(sums: Sums, values: Floats) -> Sums:
    """The sums with these observations added."""
    return sums + Sums(n=values.size, total=float(values.sum()), squares=float(values @ values))


def usable(guard: Guard, rows: Labelled) -> Labelled:
    """Those that the guard can use: a comparison needs the answers of both versions."""
    if isinstance(guard, PairedLossGuard) or (isinstance(guard, LabelMetricGuard) and guard.margin is not None):
        return rows.only(~np.isnan(rows.theirs))
    return rows


def single(guard: Guard, rows: Labelled, threshold: float) -> Floats:
    """One observation a labelled answer: the candidate's loss, less the champion's where the guard has a margin."""
    assert isinstance(guard, PairedLossGuard | LabelMetricGuard)  # noqa: S101 - no other guard is about labels
    ours = losses(guard.metric, rows.labels, rows.ours, threshold)
    if guard.margin is None:
        return ours
    return ours - losses(guard.metric, rows.labels, rows.theirs, threshold)


def losses(metric: str, labels: Floats, scores: Floats, threshold: float) -> Floats:
    """Each row's loss; for RMSE its squared error, for accuracy 1 where the decision was wrong."""
    found: Floats
    match metric:
        case "log_loss":
            found = log_losses(labels, scores)
        case "brier" | "squared_error" | "rmse":
            found = (scores - labels) ** 2
        case "absolute_error" | "mae":
            found = np.abs(scores - labels)
        case "zero_one" | "accuracy":
            found = ((scores >= threshold) != (labels == 1)).astype(np.float64)
        case _:
            raise ValueError(f"{metric} is no mean over rows")
    return found


def batches(guard: Guard, limit: Limit, rows: Labelled) -> tuple[Floats, Labelled]:
    """One observation for each whole batch of ``limit.batch`` labelled answers, and the rows that are left.

    A batch for ROC AUC goes on until it holds :data:`RARER_CLASS` rows of each class. That depends on the labels
    alone, given which its AUC is as good as that of any other batch.
    """
    assert isinstance(guard, LabelMetricGuard)  # noqa: S101 - only these are judged in batches
    ends = batch_ends(guard, limit, rows.labels)
    if not ends:
        return np.empty(0), rows
    whole, batch = rows.only(slice(None, ends[-1])), np.repeat(np.arange(len(ends)), np.diff([0, *ends]))
    ours = _of_batches(guard.metric, whole.labels, whole.ours, batch)
    found = ours if guard.margin is None else ours - _of_batches(guard.metric, whole.labels, whole.theirs, batch)
    return found, rows.only(slice(ends[-1], None))


def batch_ends(guard: Guard, limit: Limit, labels: Floats) -> list[int]:
    """Where the whole batches end."""
    size, classes = limit.batch, isinstance(guard, LabelMetricGuard) and guard.metric == "roc_auc"
    positives = np.cumsum(labels == 1)
    negatives = np.arange(1, labels.size + 1) - positives
    ends: list[int] = []
    end = 0
    while True:
        start, end = end, end + size
        if classes:
            for rows in (positives, negatives):
                before = rows[start - 1] if start else 0
                end = max(end, int(np.searchsorted(rows, before + RARER_CLASS)) + 1)
        if end > labels.size:
            return ends
        ends.append(end)


def _of_batches(metric: str, labels: Floats, scores: Floats, batch: npt.NDArray[np.int64]) -> Floats:
    """1 - ROC AUC, or the RMSE, of each batch."""
    rows = np.bincount(batch)
    if metric == "rmse":
        return np.sqrt(np.bincount(batch, (scores - labels) ** 2) / rows)
    order = np.empty(scores.size, np.intp)
    starts = np.cumsum(rows) - rows
    for size in np.unique(rows):  # batches of one size are sorted side by side: nearly all are of the least size
        places = starts[rows == size][:, None] + np.arange(size)
        order[places] = places[:, :1] + np.argsort(scores[places], axis=1)
    # Ranks among all rows, of ties the mean, are as good as ranks in the batch: batches follow each other.
    ordered, of_batch = scores[order], batch[order]
    tied = np.cumsum(np.r_[True, (ordered[1:] != ordered[:-1]) | (of_batch[1:] != of_batch[:-1])]) - 1
    last = np.cumsum(np.bincount(tied))
    ranks = np.empty(scores.size)
    ranks[order] = (last - (np.bincount(tied) - 1) / 2)[tied]
    ranks -= starts[batch]
    positives = np.bincount(batch, labels == 1)
    above = np.bincount(batch, np.where(labels == 1, ranks, 0.0)) - positives * (positives + 1) / 2
    return 1 - above / (positives * (rows - positives))


def outcomes(
    guard: BusinessMetricGuard, values: Floats, candidate: npt.NDArray[np.bool_], surplus: list[float], most: int
) -> tuple[Floats, npt.NDArray[np.intp], list[float]]:
    """Observations of outcomes in the order in which they became known, the outcome that completed each, and the rest.

    For ``max_drop`` the next outcome of one version is paired with the oldest of the other's that is left. ``surplus``
    holds the values of one version, the candidate's with a 1 in front and the champion's with a 0; the newest
    ``most`` of them are kept.
    """
    if guard.max_drop is None:
        own = values[candidate]
        return (own if guard.max is not None else -own), np.flatnonzero(candidate), surplus
    step = np.where(candidate, 1, -1)
    if surplus:
        values = np.r_[surplus[1:], values]
        step = np.r_[np.full(len(surplus) - 1, 1 if surplus[0] else -1), step]
    # How many of the candidate's values (of the champion's: negative) are left after each, and before it.
    left = _held(step, most)
    before = np.r_[0, left[:-1]]
    pairs = before * step < 0
    dropped = left == before
    # The oldest goes first, paired or dropped: so a version's k-th to go is its k-th that came.
    completed = []
    for side in (1, -1):
        goes = pairs | (dropped & (step == side))
        completed.append(values[step == side][: np.count_nonzero(goes)][pairs[goes]])
    kept = values[step == np.sign(left[-1])][-abs(left[-1]) :] if left.size and left[-1] else values[:0]
    rest = [float(left[-1] > 0), *kept.tolist()] if kept.size else []
    return completed[1] - completed[0], np.flatnonzero(pairs) - max(0, len(surplus) - 1), rest


def _held(steps: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """The sums of the steps so far (each 1 or -1), which stop at ``most`` and at ``-most``."""
    sums = np.empty(steps.size, np.int64)
    have = 0
    # In so few steps a sum cannot be stopped at both ends, so that the worst excess so far is what was held back.
    for start in range(0, steps.size, 2 * most):
        free = have + np.cumsum(steps[start : start + 2 * most])
        beyond = np.minimum(np.minimum.accumulate(free) + most, 0) + np.maximum(np.maximum.accumulate(free) - most, 0)
        sums[start : start + 2 * most] = free - beyond
        have = int(free[-1] - beyond[-1])
    return sums
