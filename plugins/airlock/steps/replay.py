"""Frames for a replay from traffic that was recorded."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from airlock import prediction_log
from airlock.core.errors import NotFound
from airlock.core.guards import guarded, limits_of, slow_limits
from airlock.core.replay import Frame
from airlock.core.spec import BusinessMetricGuard, ModelSpec, Task
from airlock.core.tally import LateEvidence
from airlock.settings import Settings
from airlock.steps import outcomes as delivered
from airlock.steps.evidence_state import MOST_SURPLUS
from airlock.steps.observations import Labelled, batch_ends, batches, outcomes, single, summed, usable
from airlock.steps.simulation import Arrivals, looks, tally_of

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_FOR_EVER = datetime(2200, 1, 1, tzinfo=UTC)


class Recorded(NamedTuple):
    """A recorded log, ready to be replayed, and what the replay cannot know from it."""

    frames: list[Frame]
    requests: int
    served_share: float
    since: datetime
    until: datetime

    @property
    def caveat(self) -> str:
        """What it means that the shares of the log are not the plan's."""
        return (
            f"The log has its own shares: the candidate answered {self.served_share:.1%} of the {self.requests:,} "
            "requests that it was asked, and scored the rest in shadow. What the guards see does not depend on that, "
            "for both count; a step's least number of requests is counted by the plan's shares. Answers change no "
            "traffic here: what clients would have done after other answers, and how a version fares under more load, "
            "is not in the log. Outcomes belong to whoever answered, so their number follows the log's shares"
        )


def recorded(
    spec: ModelSpec,
    settings: Settings,
    *,
    candidate: str,
    champion: str,
    release: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    every: int = 100,
) -> Recorded:
    """Frames of ``every`` requests that the candidate was asked, at the gateway's time.

    Labels and outcomes come as long after the answer as they came after the event.

    Args:
        release: only what was logged under it.
        since, until: of the events, as in the prediction log.

    Raises:
        NotFound: the log does not hold a request that the candidate was asked.
    """
    score = "probability" if spec.task is Task.CLASSIFICATION else "prediction"
    columns = ["at", "event_time", "key", "request_id", "row", "release", "pin", "version", "role", "fallback"]
    columns += ["error", "latency_ms", score]
    log = prediction_log.read(settings, spec.model, since, until, columns, roles=("served", "shadow"))
    log = log[log["release"] == release] if release is not None else log
    log = log.rename(columns={score: "score"})
    ours = log[(log["version"] == candidate) & log["fallback"].isna()].sort_values(["at", "request_id", "row"])
    if ours.empty:
        raise NotFound(
            f"the prediction log of {spec.model} holds no request that version {candidate} was asked"
            f"{f' in release {release}' if release else ''}; versions in it: "
            f"{', '.join(sorted(log['version'].dropna().unique())) or 'none'}"
        )
    theirs = log[(log["version"] == champion) & log["fallback"].isna()]
    stood_in = log.loc[log["fallback"].notna(), ["at", "request_id"]].drop_duplicates().assign(stood_in=True)
    joint = ["at", "request_id", "row"]
    pairs = ours.merge(theirs[[*joint, "score", "latency_ms"]], on=joint, how="left", suffixes=("", "_champion"))
    pairs = pairs.merge(stood_in, on=["at", "request_id"], how="left")
    return _frames(spec, settings, pairs, log, (candidate, champion), every)


def _frames(
    spec: ModelSpec,
    settings: Settings,
    pairs: pd.DataFrame,
    log: pd.DataFrame,
    versions: tuple[str, str],
    every: int,
) -> Recorded:
    start = pairs["at"].iloc[0].to_pydatetime()
    asked_s = (pairs["at"] - start).dt.total_seconds().to_numpy()
    first = (pairs["row"] == 0).to_numpy()
    request = np.cumsum(first) - 1
    heads = pairs[first]
    times = asked_s[first]
    failed, latency = heads["error"].notna().to_numpy(), heads["latency_ms"].to_numpy(np.float64)
    fallbacks = failed & ((heads["role"] == "shadow") | heads["stood_in"].notna()).to_numpy()
    of_champion = heads["latency_ms_champion"].to_numpy(np.float64)
    both = (pairs["score"].notna() & pairs["score_champion"].notna()).to_numpy()
    mine, other = (pairs[name].to_numpy(np.float64) for name in ("score", "score_champion"))
    bound = spec.label.threshold
    flipped = (mine >= bound) != (other >= bound) if spec.task is Task.CLASSIFICATION else np.zeros(mine.size)
    by_request = {
        name: _means(values[both], request[both])
        for name, values in (("difference", mine - other), ("absolute", np.abs(mine - other)), ("flips", flipped))
    }
    labels = _known(settings, spec, delivered.LABEL)
    answered = pairs[pairs["score"].notna()]
    event_s = asked_s[pairs["score"].notna().to_numpy()]
    come_s = np.nan_to_num(event_s + _delays(spec, answered, labels), nan=np.inf)
    late = _label_arrivals(spec, answered, labels, come_s) | _outcome_arrivals(spec, settings, log, versions, start)
    limits, maturity = limits_of(spec), spec.maturity.total_seconds()
    coming = max([maturity, *(arrivals.last - times[-1] for arrivals in late.values())]) if late else 0.0
    frames = []
    for looked, until in looks(times, every, coming):
        part = slice(looked.start, looked.stop)
        tally = tally_of(failed[part], latency[part], slow_limits(limits))
        tally.fallbacks = int(fallbacks[part].sum())
        for name, (number, values) in by_request.items():
            left, right = np.searchsorted(number, [looked.start, looked.stop])
            setattr(tally, name, summed(values[left:right]))
        champions = of_champion[part][~np.isnan(of_champion[part])]
        evidence = None
        if late:
            due = int(np.searchsorted(event_s, until - maturity, "right"))
            evidence = LateEvidence(
                until=start + timedelta(seconds=until),
                answers=int(np.searchsorted(event_s, until, "right")),
                due=due,
                labelled=int(np.count_nonzero(come_s[:due] <= until)),
                observations={name: arrivals.by(until) for name, arrivals in late.items()},
            )
        champion = tally_of(np.zeros(champions.size, bool), champions, {})
        frames.append(Frame(start + timedelta(seconds=until), tally, champion, evidence))
    served = float((heads["role"] == "served").mean())
    return Recorded(frames, len(heads), served, start, pairs["at"].iloc[-1].to_pydatetime())


def _means(values: Floats, request: Ints) -> tuple[Ints, Floats]:
    """The mean of each request's values, with the requests' numbers; rows of a request follow each other."""
    if not values.size:
        return request, values
    starts = np.flatnonzero(np.r_[True, request[1:] != request[:-1]])
    return request[starts], np.add.reduceat(values.astype(np.float64), starts) / np.diff(np.r_[starts, values.size])


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
    rows = log[chosen & log["fallback"].isna() & log["pin"].isna()].sort_values("at")
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
