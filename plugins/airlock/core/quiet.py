"""Which limits need not be tested after a request, found out by a few comparisons."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence

from airlock.core.counters import Counters, Stream
from airlock.core.route import Limit
from airlock.core.tally import Checkpoint, Sums, Tally
from airlock.core.windows import COUNTS, scopes, seen

_NOTHING = Sums()


def quiet_of(limits: Sequence[Limit], counters: Counters) -> Quiet:
    """What counters remember of limits; it begins anew when the limits are others."""
    if counters.quiet is None or counters.quiet.limits is not limits:
        counters.quiet = Quiet(limits, counters)
    return counters.quiet


class Quiet:
    """Up to which excess of each limit no window of some counters can reject it.

    The excess is the sum less the bound times the observations. That of a window is the excess now less that at its
    checkpoint, and the log of its e-value is at most the excess times a slope (:func:`_slack`). As the weights of the
    windows add up to at most 1, one of these logs at least must reach log(1 / alpha) before their mean can.

    Where a limit was tested and held, nothing that lies at most as far beyond the bound can reject it either: in
    between, the wealth of every bet has fallen at least as much as the excess has, log(1 + x) being at most x.
    """

    def __init__(self, limits: Sequence[Limit], counters: Counters) -> None:
        self.limits = limits
        self._counters = counters
        self._taken = (0, 0)
        live = [limit for limit in limits if not limit.late]
        self._counts = [_Counts(limit) for limit in live if _is_count(limit)]
        self._means = [
            _Means(limit, counters.stream(scope)) for limit in live if not _is_count(limit) for scope in scopes(limit)
        ]
        self._refresh(counters.all.checkpoints, counters.served.checkpoints)

    def loud(self) -> list[Limit]:
        """The live limits that a window might reject. NaN and what is negative are never quiet."""
        every, served = self._counters.all, self._counters.served
        if every.taken != self._taken[0] or served.taken != self._taken[1]:
            self._refresh(_newest(every, self._taken[0]), _newest(served, self._taken[1]))
        # What pydantic gives by attribute costs more; this is done after each request.
        ours, theirs = every.sums.__dict__, served.sums.__dict__
        n, n_served = ours["requests"], theirs["requests"]
        if not 0 <= n_served <= n:
            return [limit for limit in self.limits if not limit.late]
        loud = []
        for count in self._counts:
            if count.field == "slow":
                hits, hits_served = ours["slow"].get(count.name, 0), theirs["slow"].get(count.name, 0)
            else:
                hits, hits_served = ours[count.field], theirs[count.field]
            bound = count.bound
            if not (0 <= hits <= count.over + bound * n and 0 <= hits_served <= count.over_served + bound * n_served):
                loud.append(count.limit)
        for mean in self._means:
            sums = mean.stream.sums.__dict__
            sums = (sums["units"].get(mean.name, _NOTHING) if mean.by_unit else sums[mean.field]).__dict__
            total, kept = sums["total"], mean.bound * sums["n"]
            low = 0 if mean.one_sided else -mean.under - kept
            if not low <= total <= mean.over + kept and mean.limit not in loud:
                loud.append(mean.limit)
        return loud

    def tested(self, limits: Container[Limit]) -> None:
        """Remember that limits were tested and held."""
        counters = self._counters
        for count in self._counts:
            if count.limit in limits:
                count.over = max(count.over, _excess(count.limit, counters.all.sums)[0])
                count.over_served = max(count.over_served, _excess(count.limit, counters.served.sums)[0])
        for mean in self._means:
            if mean.limit in limits:
                over, under = _excess(mean.limit, mean.stream.sums)
                mean.over = max(mean.over, over)
                mean.under = mean.under if mean.one_sided else max(mean.under, under)

    def _refresh(self, new: Iterable[Checkpoint], new_served: Iterable[Checkpoint]) -> None:
        self._taken = (self._counters.all.taken, self._counters.served.taken)
        for checkpoint in new:
            for count in self._counts:
                count.over = min(count.over, _excess(count.limit, checkpoint)[0] + count.slack)
            self._refresh_means(self._counters.all, checkpoint)
        for checkpoint in new_served:
            self._refresh_means(self._counters.served, checkpoint)
            for count in self._counts:
                count.over_served = min(count.over_served, _excess(count.limit, checkpoint)[0] + count.slack)

    def _refresh_means(self, stream: Stream, checkpoint: Checkpoint) -> None:
        for mean in self._means:
            if mean.stream is stream:
                over, under = _excess(mean.limit, checkpoint)
                mean.over = min(mean.over, over + mean.slack)
                mean.under = mean.under if mean.one_sided else min(mean.under, under + mean.slack)


class _Counts:
    """A limit on a share of requests, and up to which excess it is quiet in each scope."""

    __slots__ = ("bound", "field", "limit", "name", "over", "over_served", "slack")

    def __init__(self, limit: Limit) -> None:
        self.limit, self.name, self.bound, self.field = limit, limit.name, limit.bound, limit.signal
        self.over = self.over_served = self.slack = _slack(limit)


class _Means:
    """A limit on a mean, and up to which excess it is quiet. What is never negative has only one side."""

    __slots__ = ("bound", "by_unit", "field", "limit", "name", "one_sided", "over", "slack", "stream", "under")

    def __init__(self, limit: Limit, stream: Stream) -> None:
        self.limit, self.name, self.bound, self.field, self.stream = (
            limit,
            limit.name,
            limit.bound,
            limit.signal,
            stream,
        )
        self.by_unit = limit.by != "request"
        self.one_sided = limit.signal != "difference"
        self.over = self.under = self.slack = _slack(limit)


def _is_count(limit: Limit) -> bool:
    """Whether each observation is a request that either is one or is not."""
    return limit.signal in COUNTS and limit.by == "request"


def _slack(limit: Limit) -> float:
    """The excess that a window needs at least before its e-value can reach 1 / alpha.

    For means the log of a bet's wealth is at most the excess in units of the distance from the range's lower end to
    the bound, log(1 + x) being at most x and a bet at most 1. For hits and misses it is at most n times the divergence
    of the share from the bound, which for a given excess is greatest where all are hits. Of what has no range nothing
    is known.
    """
    if _is_count(limit):
        return -math.log(limit.alpha) * (1 - limit.bound) / -math.log(limit.bound)
    if limit.reach is None:
        return 0.0
    # Of two sides each is worth half.
    wanted = -math.log(limit.alpha / 2 if limit.signal == "difference" else limit.alpha)
    least = -limit.reach / 2 if limit.signal == "difference" else limit.least
    return wanted * max(0.0, limit.bound - least)


def _newest(stream: Stream, taken: int) -> list[Checkpoint]:
    """The checkpoints of a stream since so many were taken."""
    return stream.checkpoints[max(0, len(stream.checkpoints) - stream.taken + taken) :]


def _excess(limit: Limit, counted: Tally | Checkpoint) -> tuple[float, float]:
    sums = seen(limit, counted)
    kept = limit.bound * sums.n
    return sums.total - kept, -sums.total - kept
