"""Frames for a replay: from traffic that was recorded, or simulated with a truth that is known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from statistics import NormalDist
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from airlock import prediction_log
from airlock.core.errors import NotFound
from airlock.core.guards import guarded, limits_of, slow_limits
from airlock.core.policy import Policy
from airlock.core.replay import Frame
from airlock.core.route import Limit
from airlock.core.spec import BusinessMetricGuard, ModelSpec, Task
from airlock.core.tally import BUCKETS, LateEvidence, Sums, Tally
from airlock.settings import Settings
from airlock.steps import outcomes as delivered
from airlock.steps.evidence_state import MOST_SURPLUS
from airlock.steps.observations import Labelled, batch_ends, batches, outcomes, single, usable

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

START = datetime(2026, 1, 1, tzinfo=UTC)
_FOR_EVER = datetime(2200, 1, 1, tzinfo=UTC)
_LATER_LOOKS = 50
_TAIL = timedelta(minutes=1)


class Simulation(Policy):
    """Traffic as it might be: what is true of a candidate beside its champion.

    ``shift`` and ``noise`` are the mean and the standard deviation of the difference of the answers; ``flips`` the
    share decided otherwise; ``latency`` how far the strictest bound on latency is used: at 1.5 that quantile takes 1.5
    times what the bound allows. ``loss`` is how much worse the candidate's labels and outcomes are, in the units of
    each late guard: 0 lies at the champion's, or a tenth inside an absolute bound; ``spread`` is the standard
    deviation of one such observation. ``delay`` is how long they take, in seconds. ``rate`` is in requests a minute.
    """

    error_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    shift: Annotated[float, Field(ge=-1, le=1)] = 0.0
    noise: Annotated[float, Field(ge=0)] = 0.05
    flips: Annotated[float, Field(ge=0, le=1)] = 0.0
    latency: Annotated[float, Field(gt=0)] = 0.8
    loss: float = 0.0
    spread: Annotated[float, Field(ge=0)] = 0.2
    delay: Annotated[float, Field(ge=0)] = 0.0
    requests: Annotated[int, Field(ge=1, le=10_000_000)] = 20_000
    rate: Annotated[float, Field(gt=0)] = 600.0


_SIGMA = 0.5  # of the logarithm of a latency


class Truth(NamedTuple):
    """What a simulation makes true: each limit's mean, and which limits it breaks."""

    means: dict[str, float]
    bad: tuple[str, ...]


def _median_ms(spec: ModelSpec, simulation: Simulation) -> float:
    """The median latency at which the strictest limit is used as far as the simulation says."""
    slow = [(1 - limit.bound, limit.over_ms) for limit in limits_of(spec) if limit.over_ms is not None]
    if not slow:
        return 5.0
    return min(simulation.latency * ms / math.exp(_SIGMA * NormalDist().inv_cdf(q)) for q, ms in slow)


def _late_mean(limit: Limit, margin: bool, simulation: Simulation) -> float:
    return simulation.loss if margin else limit.bound - abs(limit.bound) / 10 + simulation.loss


def truth(spec: ModelSpec, simulation: Simulation) -> Truth:
    """What is true in a simulation. Exactly at a bound is not broken."""
    median, means = _median_ms(spec, simulation), {}
    for guard, limit in guarded(spec):
        match limit.signal:
            case "errors" | "fallbacks":
                means[limit.name] = simulation.error_rate
            case "slow":
                means[limit.name] = 1 - NormalDist().cdf(math.log((limit.over_ms or 0) / median) / _SIGMA)
            case "difference":
                means[limit.name] = simulation.shift
            case "absolute":
                means[limit.name] = _folded_mean(simulation.shift, simulation.noise)
            case "flips":
                means[limit.name] = simulation.flips
            case _:
                means[limit.name] = _late_mean(limit, _is_margin(guard), simulation)
    bad = []
    for limit in limits_of(spec):
        mean = abs(means[limit.name]) if limit.signal == "difference" else means[limit.name]
        if mean > limit.bound * (1 + 1e-9):
            bad.append(limit.name)
    return Truth(means, tuple(bad))


def _is_margin(guard: object) -> bool:
    return getattr(guard, "margin", None) is not None or getattr(guard, "max_drop", None) is not None


def _folded_mean(mean: float, spread: float) -> float:
    """The mean of the absolute value of a normal variable (Leone, Nelson, Nottingham 1961)."""
    if spread == 0:
        return abs(mean)
    normal = NormalDist()
    at = mean / spread
    return spread * math.sqrt(2 / math.pi) * math.exp(-at * at / 2) + mean * (1 - 2 * normal.cdf(-at))


def simulated(spec: ModelSpec, simulation: Simulation, *, seed: int, every: int) -> Iterator[Frame]:
    """Frames of ``every`` requests; where guards wait for labels, frames without requests until they have come."""
    random = np.random.default_rng(seed)
    n, limits = simulation.requests, limits_of(spec)
    times = np.arange(1, n + 1) * 60 / simulation.rate
    failed = random.random(n) < simulation.error_rate
    latency = _median_ms(spec, simulation) * np.exp(_SIGMA * random.standard_normal(n))
    differences = random.normal(simulation.shift, simulation.noise, n)
    flips = (random.random(n) < simulation.flips).astype(np.float64)
    late = {
        limit.name: _Arrivals(
            (times + simulation.delay)[limit.batch - 1 :: limit.batch],
            _late_values(random, n, guard, limit, simulation),
        )
        for guard, limit in guarded(spec)
        if limit.late
    }
    maturity = spec.maturity.total_seconds()
    for asked, until in _looks(times, every, simulation.delay + maturity if late else 0.0):
        part = slice(asked.start, asked.stop)
        tally = _tally(failed[part], latency[part], slow_limits(limits))
        ok = ~failed[part]
        tally.difference, tally.absolute = _sums(differences[part][ok]), _sums(np.abs(differences[part][ok]))
        tally.flips = _sums(flips[part][ok])
        tally.fallbacks = tally.errors
        evidence = None
        if late:
            due = int(np.searchsorted(times, until - maturity, "right"))
            came = int(np.searchsorted(times, until - simulation.delay, "right"))
            evidence = LateEvidence(
                until=START + timedelta(seconds=until),
                answers=asked.stop,
                due=min(due, asked.stop),
                labelled=min(due, came),
                observations={name: arrivals.by(until) for name, arrivals in late.items()},
            )
        yield Frame(START + timedelta(seconds=until), tally, None, evidence)


def _late_values(random: np.random.Generator, n: int, guard: object, limit: Limit, simulation: Simulation) -> Floats:
    count = n // limit.batch
    mean = _late_mean(limit, _is_margin(guard), simulation)
    spread = simulation.spread / math.sqrt(limit.batch)
    if limit.reach is not None:
        # Two values that have this mean and this spread and stay in the range: of a normal one the tails would not.
        room = max(0.0, min(mean - limit.least, limit.least + limit.reach - mean))
        return mean + min(spread, room) * random.choice([-1.0, 1.0], count)
    return random.normal(mean, spread, count)


class _Arrivals:
    """Observations of one late limit by when they become known, as sums that can be read at any time."""

    def __init__(self, times: Floats, values: Floats) -> None:
        self._times, self._total, self._squares = times, np.cumsum(values), np.cumsum(values * values)

    @property
    def last(self) -> float:
        return float(self._times[-1]) if self._times.size else 0.0

    def by(self, time: float) -> Sums:
        n = int(np.searchsorted(self._times, time, "right"))
        return Sums(n=n, total=float(self._total[n - 1]), squares=float(self._squares[n - 1])) if n else Sums()


def _looks(times: Floats, every: int, wait: float) -> Iterator[tuple[range, float]]:
    """Which requests each look adds, and its time: after every so many, and then until all has come."""
    for start in range(0, times.size, every):
        stop = min(start + every, times.size)
        yield range(start, stop), float(times[stop - 1])
    for number in range(1, _LATER_LOOKS + 1 if wait else 0):
        until = float(times[-1]) + (wait + _TAIL.total_seconds()) * number / _LATER_LOOKS
        yield range(times.size, times.size), until


def _sums(values: Floats) -> Sums:
    return Sums(n=values.size, total=float(values.sum()), squares=float(values @ values))


def _tally(failed: npt.NDArray[np.bool_], latency: Floats, slow: Mapping[str, float]) -> Tally:
    buckets = np.ceil(4 * np.log2(np.maximum(latency, 0.05) / 0.05)).astype(int)
    over = {name: int(np.count_nonzero(latency > ms)) for name, ms in slow.items()}
    return Tally(
        requests=failed.size,
        errors=int(failed.sum()),
        latency=np.bincount(np.minimum(buckets, BUCKETS - 1), minlength=BUCKETS).tolist(),
        slow={name: count for name, count in over.items() if count},
    )


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
    for looked, until in _looks(times, every, coming):
        part = slice(looked.start, looked.stop)
        tally = _tally(failed[part], latency[part], slow_limits(limits))
        tally.fallbacks = int(fallbacks[part].sum())
        for name, (number, values) in by_request.items():
            left, right = np.searchsorted(number, [looked.start, looked.stop])
            setattr(tally, name, _sums(values[left:right]))
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
        champion = _tally(np.zeros(champions.size, bool), champions, {})
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


def _label_arrivals(spec: ModelSpec, rows: pd.DataFrame, labels: pd.DataFrame, come_s: Floats) -> dict[str, _Arrivals]:
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
            arrivals[limit.name] = _Arrivals(at, single(guard, mine, spec.label.threshold))
        else:
            ends = np.array(batch_ends(guard, limit, mine.labels), int)
            arrivals[limit.name] = _Arrivals(at[ends - 1], batches(guard, limit, mine)[0])
    return arrivals


def _outcome_arrivals(
    spec: ModelSpec, settings: Settings, log: pd.DataFrame, versions: tuple[str, str], start: datetime
) -> dict[str, _Arrivals]:
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
        arrivals[limit.name] = _Arrivals(come_s[use][order][places], found)
    return arrivals
