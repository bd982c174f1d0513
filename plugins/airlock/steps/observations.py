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

MOST_EXACT = 20_000
"""Rows of one batch that are kept as they are. Of a larger batch, which a rare class makes, it is kept how often each
class was given each score, to 1/256 in log odds: no row is left out, and what is kept does not grow any further."""

_PER_LOG_ODDS = 256
_MOST_LOG_ODDS = 17.0

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
    return sums + summed(values)


def summed(values: Floats) -> Sums:
    """Observations as sums."""
    if not values.size:
        return Sums()
    return Sums(
        n=values.size,
        total=float(values.sum()),
        squares=float(values @ values),
        smallest=float(values.min()),
        largest=float(values.max()),
    )


def within(differences: Floats, apart: float) -> Floats:
    """Differences of more than ``apart`` as just that; what is not finite stays, so that it is found."""
    if apart == np.inf:
        return differences
    return np.where(np.isfinite(differences), differences.clip(-apart, apart), differences)


def compares(guard: Guard) -> bool:
    """Whether the guard holds each labelled answer against the champion's to the same question."""
    return isinstance(guard, PairedLossGuard) or (isinstance(guard, LabelMetricGuard) and guard.margin is not None)


def usable(guard: Guard, rows: Labelled) -> Labelled:
    """Those that the guard can use: a comparison needs the answers of both versions."""
    return rows.only(~np.isnan(rows.theirs)) if compares(guard) else rows


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


class Begun(NamedTuple):
    """The rows of a batch that is not whole yet, each as often as ``times`` says."""

    labels: Floats
    ours: Floats
    theirs: Floats
    times: Floats

    @property
    def size(self) -> float:
        """How many rows it holds."""
        return float(self.times.sum())

    @property
    def counted(self) -> bool:
        """Whether rows of the same score were put together."""
        return self.size > MOST_EXACT

    def then(self, rows: Labelled) -> Begun:
        return _begun(*(np.concatenate(pair) for pair in zip(self[:3], rows, strict=True)), extra=self.times)


def begin(rows: Labelled) -> Begun:
    """A batch of these rows."""
    return _begun(*rows)


def _begun(labels: Floats, ours: Floats, theirs: Floats, *, extra: Floats | None = None) -> Begun:
    """Rows as they are, or how often each class was given each score if there are too many of them.

    An AUC needs each version's own scores alone: which score of the other goes with them is lost.
    """
    first = np.empty(0) if extra is None else extra
    rows = Begun(labels, ours, theirs, np.r_[first, np.ones(labels.size - first.size)])
    if not rows.counted:
        return rows
    parts = [_of_class(rows, label) for label in (0.0, 1.0)]
    return Begun(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _of_class(rows: Begun, label: float) -> Begun:
    """Both versions' scores in order side by side, one row where neither of them changes."""
    chosen = (rows.labels == 1) == (label == 1)
    ours, our_ends = _counts(rows.ours[chosen], rows.times[chosen])
    theirs, their_ends = _counts(rows.theirs[chosen], rows.times[chosen])
    ends = np.union1d(our_ends, their_ends)
    ours, theirs = ours[np.searchsorted(our_ends, ends)], theirs[np.searchsorted(their_ends, ends)]
    return Begun(np.full(ends.size, label), ours, theirs, np.diff(ends, prepend=0.0))


def _counts(scores: Floats, times: Floats) -> tuple[Floats, Floats]:
    """The different scores, rounded, in order, and how many are at most each of them. NaN, of no answer, is one."""
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = np.clip(np.log(scores / (1 - scores)), -_MOST_LOG_ODDS, _MOST_LOG_ODDS)
    rounded = np.nan_to_num(np.round(odds * _PER_LOG_ODDS), nan=0.0) / _PER_LOG_ODDS
    values, place = np.unique(rounded, return_inverse=True)
    return 1 / (1 + np.exp(-values)), np.cumsum(np.bincount(place, times, minlength=values.size))


def batches(guard: Guard, limit: Limit, rows: Labelled, begun: Begun | None = None) -> tuple[Floats, Begun]:
    """One observation for each whole batch of ``limit.batch`` labelled answers, and the batch that is begun.

    A batch for ROC AUC goes on until it holds :data:`RARER_CLASS` rows of each class. That depends on the labels
    alone, given which its AUC is as good as that of any other batch. Batches then differ in how sure they are: those
    with more of the rarer class scatter less. The sequential t-test stands that: differences of two equally good
    versions lie evenly around their mean whatever the sizes, and sums of such values in units of their own squares
    keep alpha whatever their variances (de la Pena 1999, A general class of exponential inequalities for martingales
    and ratios). Of an absolute bound, whose batches lean to one side where the AUC is high, it holds asymptotically.
    """
    assert isinstance(guard, LabelMetricGuard)  # noqa: S101 - only these are judged in batches
    if begun is not None and not begun.counted:
        rows, begun = Labelled(*begun[:3]).then(rows), None
    had = (begun.size, float(begun.times[begun.labels == 1].sum())) if begun is not None else (0.0, 0.0)
    ends = batch_ends(guard, limit, rows.labels, had)
    if not ends:
        return np.empty(0), begun.then(rows) if begun is not None else begin(rows)
    found = np.empty(len(ends))
    starts = np.array([0, *ends[:-1]])
    sizes = np.diff([0, *ends])
    large = sizes > MOST_EXACT
    large[0] |= begun is not None
    for number in np.flatnonzero(large):
        part = rows.only(slice(starts[number], ends[number]))
        found[number] = _of_begun(guard, begun.then(part) if begun is not None and number == 0 else begin(part))
    if not large.all():
        chosen = np.repeat(~large, sizes)
        whole, batch = (
            rows.only(slice(None, ends[-1])).only(chosen),
            np.repeat(np.arange((~large).sum()), sizes[~large]),
        )
        ours = _of_batches(guard.metric, whole.labels, whole.ours, batch)
        theirs = 0.0 if guard.margin is None else _of_batches(guard.metric, whole.labels, whole.theirs, batch)
        found[~large] = ours - theirs
    return found, begin(rows.only(slice(ends[-1], None)))


def _of_begun(guard: LabelMetricGuard, batch: Begun) -> float:
    ours = _counted_auc(batch.labels, batch.ours, batch.times)
    return 1 - ours if guard.margin is None else _counted_auc(batch.labels, batch.theirs, batch.times) - ours


def _counted_auc(labels: Floats, scores: Floats, times: Floats) -> float:
    _, place = np.unique(scores, return_inverse=True)
    hits, misses = (np.bincount(place, np.where(labels == label, times, 0.0)) for label in (1, 0))
    return float(hits @ (np.cumsum(misses) - misses / 2) / (hits.sum() * misses.sum()))


def batch_ends(guard: Guard, limit: Limit, labels: Floats, begun: tuple[float, float] = (0, 0)) -> list[int]:
    """Where the whole batches end. ``begun``: how many rows the first one has already, and positive ones of these."""
    size, classes = limit.batch, isinstance(guard, LabelMetricGuard) and guard.metric == "roc_auc"
    rows = begun[0] + np.arange(1, labels.size + 1)
    positives = begun[1] + np.cumsum(labels == 1)
    needs = [(rows, size), *([(positives, RARER_CLASS), (rows - positives, RARER_CLASS)] if classes else [])]
    ends: list[int] = []
    before = [0.0] * len(needs)
    while True:
        end = max(int(np.searchsorted(have, b + need)) + 1 for (have, need), b in zip(needs, before, strict=True))
        if end > labels.size:
            return ends
        ends.append(end)
        before = [float(have[end - 1]) for have, _ in needs]


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
