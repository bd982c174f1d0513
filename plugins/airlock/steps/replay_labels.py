"""Labels and outcomes of a recorded log, as they came, for a replay."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pandas as pd

from airlock.core.guards import guarded
from airlock.core.spec import BusinessMetricGuard, ModelSpec
from airlock.core.tally import LateEvidence
from airlock.settings import Settings
from airlock.steps import outcomes as delivered
from airlock.steps.evidence_state import MOST_SURPLUS
from airlock.steps.observations import Labelled, batch_ends, batches, compares, outcomes, single, usable
from airlock.steps.simulation import Arrivals

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_FOR_EVER = datetime(2200, 1, 1, tzinfo=UTC)


class Due:
    """Answers that a label is due for once they are ``maturity`` seconds old, and when it came (infinity: never)."""

    def __init__(self, asked: Floats, come: Floats, maturity: float) -> None:
        order = np.argsort(asked, kind="stable")
        self._asked, self._come, self._maturity = asked[order], come[order], maturity

    def by(self, seconds: float) -> tuple[int, int]:
        """How many are due, and how many of these have their label."""
        due = int(np.searchsorted(self._asked, seconds - self._maturity, "right"))
        return due, int(np.count_nonzero(self._come[:due] <= seconds))


class Labels:
    """Labels and outcomes as they came. Times are seconds since the start.

    ``due`` is about the first answers to all keys, ``pairs`` about those that the champion answered too or failed on:
    that is what the limits in ``compared`` are about. ``partners`` is about those that it should have answered.
    """

    def __init__(
        self,
        start: datetime,
        asked: Floats,
        due: Due,
        maturity: float,
        arrivals: dict[str, Arrivals],
        pairs: Due | None = None,
        compared: Sequence[str] = (),
        partners: Due | None = None,
    ) -> None:
        self._partners = partners
        self._asked, self._due, self._pairs, self._compared = np.sort(asked), due, pairs, tuple(compared)
        self._start, self._maturity, self._arrivals = start, maturity, arrivals

    @property
    def until(self) -> float:
        last = float(self._asked[-1]) if self._asked.size else 0.0
        return max([last + self._maturity, *(arrivals.last for arrivals in self._arrivals.values())])

    def by(self, seconds: float) -> LateEvidence:
        due, labelled = self._due.by(seconds)
        of_pairs = self._pairs.by(seconds) if self._pairs is not None else (due, labelled)
        return LateEvidence(
            until=self._start + timedelta(seconds=seconds),
            answers=int(np.searchsorted(self._asked, seconds, "right")),
            due=due,
            labelled=labelled,
            partners=self._partners.by(seconds) if self._partners is not None else of_pairs,
            of_pairs=dict.fromkeys(self._compared, of_pairs),
            observations={name: arrivals.by(seconds) for name, arrivals in self._arrivals.items()},
        )


def labels_of(
    spec: ModelSpec,
    settings: Settings,
    log: pd.DataFrame,
    pairs: pd.DataFrame,
    versions: tuple[str, str],
    start: datetime,
) -> Labels | None:
    """What came after the answers, if a guard waits for it. ``pairs`` are the candidate's rows with the champion's."""
    # As asked, so that the first answer to a key comes first.
    answered = pairs[pairs["score"].notna()].sort_values(["at", "row", "score"], kind="stable")
    asked_s = np.asarray((answered["at"] - start).dt.total_seconds(), np.float64)
    labels = _known(settings, spec, delivered.LABEL)
    come_s = np.nan_to_num(asked_s + _delays(spec, answered, labels), nan=np.inf)
    late = _label_arrivals(spec, answered, labels, come_s)
    late |= _outcome_arrivals(spec, settings, log, versions, start)
    if not late:
        return None
    # A key is due once, with its first answer, and none is due without a key; no pair of what the champion was not to
    # answer, or was not asked.
    first = (answered["key"].notna() & ~answered["key"].duplicated()).to_numpy()
    maturity = spec.maturity.total_seconds()
    pairable = first & (answered["variant"] == "candidate").to_numpy()
    asked_too = answered["index_champion"].notna().to_numpy()
    paired = pairable & asked_too
    met_s = np.where(answered["score_champion"].notna(), come_s, np.inf)
    return Labels(
        start,
        asked_s,
        Due(asked_s[first], come_s[first], maturity),
        maturity,
        late,
        Due(asked_s[paired], met_s[paired], maturity),
        [limit.name for guard, limit in guarded(spec) if compares(guard)],
        Due(asked_s[pairable], np.where(asked_too, -np.inf, np.inf)[pairable], maturity),
    )


def _known(settings: Settings, spec: ModelSpec, name: str) -> pd.DataFrame:
    """Every label, or outcome of that name, by its key."""
    return delivered.read(settings, spec.model, name, _FOR_EVER).set_index("key")


def _delays(spec: ModelSpec, rows: pd.DataFrame, known: pd.DataFrame) -> Floats:
    """Seconds from each row's event to when its label became known; NaN: never. Labels without a time take the delay
    that the spec says."""
    if known.empty:
        return np.full(len(rows), np.nan)
    found = rows["key"].isin(known.index).to_numpy()
    times = rows["key"].map(known["time"])
    delays = (times - rows["event_time"].fillna(rows["at"])).dt.total_seconds().to_numpy()
    usual = spec.label.delay.total_seconds()
    return np.where(found, np.where(np.isnan(delays), usual, delays), np.nan)


def _label_arrivals(spec: ModelSpec, rows: pd.DataFrame, labels: pd.DataFrame, come_s: Floats) -> dict[str, Arrivals]:
    """Each limit on labels; a key counts with its first answer."""
    use = np.isfinite(come_s) & ~rows["key"].duplicated().to_numpy()
    order = np.argsort(come_s[use], kind="stable")
    chosen, times = rows[use].iloc[order], come_s[use][order]
    values = chosen["key"].map(labels["value"]).to_numpy(np.float64) if len(chosen) else np.empty(0)
    ours, theirs = (chosen[name].to_numpy(np.float64) for name in ("score", "score_champion"))
    everything = Labelled(values, ours, theirs)
    arrivals = {}
    for guard, limit in guarded(spec):
        if not limit.late or isinstance(guard, BusinessMetricGuard):
            continue
        mine = usable(guard, everything)
        at = usable(guard, everything._replace(labels=times)).labels
        if limit.batch == 1:
            arrivals[limit.name] = Arrivals(at, single(guard, mine, spec.label.threshold))
        else:
            ends = np.array(batch_ends(guard, limit, mine.labels), int)
            arrivals[limit.name] = Arrivals(at[ends - 1], batches(guard, limit, mine)[0])
    return arrivals


def _outcome_arrivals(
    spec: ModelSpec, settings: Settings, log: pd.DataFrame, versions: tuple[str, str], start: datetime
) -> dict[str, Arrivals]:
    """Each limit on outcomes, of what the two versions answered by the shares."""
    chosen = log["version"].isin(versions) & (log["role"] == "served") & log["score"].notna()
    rows = log[chosen & log["fallback"].isna() & log["pin"].isna()].sort_values(["at", "row"], kind="stable")
    asked_s = (rows["at"] - start).dt.total_seconds().to_numpy()
    arrivals = {}
    for guard, limit in guarded(spec):
        if not isinstance(guard, BusinessMetricGuard):
            continue
        known = _known(settings, spec, guard.name)
        come_s = asked_s + _delays(spec, rows, known)
        use = np.isfinite(come_s) & ~rows["key"].duplicated().to_numpy()
        order = np.argsort(come_s[use], kind="stable")
        mine = rows[use].iloc[order]
        values = mine["key"].map(known["value"]).to_numpy(np.float64) if len(mine) else np.empty(0)
        candidate = (mine["version"] == versions[0]).to_numpy()
        found, places, _ = outcomes(guard, values, candidate, [], MOST_SURPLUS)
        arrivals[limit.name] = Arrivals(come_s[use][order][places], found)
    return arrivals
