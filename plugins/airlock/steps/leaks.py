"""Does the training set know what nobody could know when the question is asked?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from airlock.core.errors import DataInvalid
from airlock.core.spec import ModelSpec, Task

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    FloatArray = npt.NDArray[np.float64]

MAX_AUC = 0.99
"""A single input that separates the classes better than this was told the answer."""
MAX_RANK_CORRELATION = 0.999
_ROWS = 20_000
_FEW = 200


def check_leaks(spec: ModelSpec, frame: pd.DataFrame) -> None:
    """Refuse a training set whose rows or inputs give the answer away.

    Every row's label must have become known after its event, and no single input may predict it
    nearly alone: by its value, by being missing, or (for text) by its category, where the categories'
    rates come from one half of the rows and are judged on the other. At most 20,000 rows are looked
    at, evenly spaced over the whole.

    Args:
        frame: the training set, with the label, its time, the event time and every input.

    Raises:
        DataInvalid: names the column, how well it predicts, and what to do.
    """
    _labels_come_later(spec, frame)
    rows = frame.iloc[:: max(1, len(frame) // _ROWS)]
    label = rows[spec.label.name].to_numpy(dtype="float64")
    if len(rows) < _FEW or np.unique(label).size < 2:
        return  # chance alone separates a handful of rows
    for name in spec.inputs:
        score, limit, what = _strength(spec, rows[name], label)
        if score > limit:
            raise DataInvalid(
                f"{spec.model}: input {name!r} alone predicts {spec.label.name!r} with {what} {score:.4f} "
                f"(at most {limit} is believable) on {len(rows):,} rows: it knows the answer. "
                "Take it out of inputs, or compute it only from what is known at the event's time"
            )


def _labels_come_later(spec: ModelSpec, frame: pd.DataFrame) -> None:
    if spec.label.time is None:
        return
    early = int((frame[spec.label.time] < frame[spec.data.event_time]).sum())
    if early:
        raise DataInvalid(
            f"{spec.model}: {early:,} of {len(frame):,} labels have a {spec.label.time} before their "
            f"{spec.data.event_time}: the answer was known before the question"
        )


def _strength(spec: ModelSpec, column: pd.Series[Any], label: FloatArray) -> tuple[float, float, str]:
    """How well one column alone tells the label: score, limit, and the score's name."""
    values = _numbers(column, label)
    known = np.isfinite(values)
    if spec.task is Task.REGRESSION:
        return _rank_correlation(values[known], label[known]), MAX_RANK_CORRELATION, "rank correlation"
    missing = _separation((~known).astype("float64"), label)
    return max(_separation(values[known], label[known]), missing), MAX_AUC, "ROC AUC"


def _numbers(column: pd.Series[Any], label: FloatArray) -> FloatArray:
    """Numbers as they are; text as the label's mean in its category, learned on the other half of the rows."""
    if column.dtype.kind in "fiub":
        return column.to_numpy(dtype="float64")
    half = np.arange(len(column)) % 2 == 0
    learned = [column[side].to_frame("c").assign(y=label[side]).groupby("c")["y"].mean() for side in (half, ~half)]
    values = np.empty(len(column))
    values[half] = column[half].map(learned[1]).to_numpy(dtype="float64")
    values[~half] = column[~half].map(learned[0]).to_numpy(dtype="float64")
    return values


def _separation(values: FloatArray, label: FloatArray) -> float:
    """ROC AUC in either direction; one half where there is nothing to separate."""
    from scipy.stats import rankdata

    positive = label > 0
    count = int(positive.sum())
    others = len(label) - count
    if len(label) < _FEW or not count or not others:
        return 0.5
    area = (rankdata(values)[positive].sum() - count * (count + 1) / 2) / (count * others)
    return float(max(area, 1 - area))


def _rank_correlation(values: FloatArray, label: FloatArray) -> float:
    from scipy.stats import rankdata

    if len(label) < _FEW or np.ptp(values) == 0 or np.ptp(label) == 0:
        return 0.0
    return float(abs(np.corrcoef(rankdata(values), rankdata(label))[0, 1]))
