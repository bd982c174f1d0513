"""Runs many rollouts at once: what each rule does with them, and how soon guard and oracle find a bad one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from airlock.core.route import Limit
from airlock.core.windows import weight
from tests.benchmarks.quality.rules import COUNTS, Rollouts, airlock, critical_hits, exceeds, log_mixtures
from tests.benchmarks.quality.worlds import BUDGET, Blocks, Events, Floats, Stream, Turning

HORIZON = 100_000
"""Requests of a rollout."""
BETA = 0.01
"""The oracle's chance to take a bad candidate for a good one; its alpha is the budget."""
_AT_ONCE = 500
_BLOCK = 50

Rule = Callable[[Rollouts], Floats]


def judged(stream: Stream, rules: Mapping[str, Rule], *, rate: int, rollouts: int, seed: int) -> dict[str, Floats]:
    """Requests until each rule rolls back, by rule; looks every 100 requests, ``rate`` requests a minute."""
    rng = np.random.default_rng(seed)
    size = _BLOCK if stream.per == 1 else 1
    blocks = HORIZON // stream.per // size
    n = np.arange(1, blocks + 1) * float(size)
    found: dict[str, list[Floats]] = {name: [] for name in rules}
    for rows in _parts(rollouts):
        sums = Rollouts.of(n, stream.sums(rng, (rows, blocks), size), stream.per, rate)
        for name, rule in rules.items():
            found[name].append(rule(sums))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def detected(stream: Stream, limit: Limit, *, rollouts: int, seed: int) -> Floats:
    """Requests until the guard ejects, which looks after each of them. Only the release's sums are looked at:
    those of a step could only be quicker."""
    alpha = limit.alpha if limit.late else limit.alpha * weight(limit, "all", None)
    longest = HORIZON // stream.per
    if limit.signal in COUNTS:
        critical = critical_hits(limit, np.arange(1.0, longest + 1), alpha)

        def alarms(n: Floats, sums: Blocks) -> np.ndarray:
            return sums.total >= critical[n.astype(int) - 1]
    else:

        def alarms(n: Floats, sums: Blocks) -> np.ndarray:
            return exceeds(n, *sums, limit, alpha)

    return _run(stream, alarms, lambda *_: None, rollouts=rollouts, seed=seed)


def turned(turning: Turning, limit: Limit, *, rate: int, rollouts: int, seed: int) -> Floats:
    """Requests from the turn of a candidate until the guard, which looks after each of them, ejects it.

    Of those that it did not eject before, with looks every 100 requests. After the turn it is tested at hits alone:
    nothing else brings it to reject.
    """
    rng, size, results = np.random.default_rng(seed), _BLOCK, []
    past, longest = turning.after // size, 100 * size
    n = np.arange(1, past + longest // size + 1) * float(size)
    for rows in _parts(rollouts):
        sums = Rollouts.of(n, turning.sums(rng, (rows, len(n)), size), 1, rate)
        before = Rollouts(
            n[:past], *(part[:, :past] for part in (sums.total, sums.squares, sums.smallest, sums.largest)), 1, rate
        )
        kept = alive = np.flatnonzero(np.isinf(airlock(before, limit)))
        times, total = np.full(rows, np.inf), sums.total[:, past - 1].copy()
        for request in range(1, longest + 1):
            struck = alive[rng.random(len(alive)) < turning.mean]
            total[struck] += 1
            column = past + (request - 1) // size
            sums.total[:, column] = sums.squares[:, column] = total
            log_e = log_mixtures(sums, limit, struck, column, turning.after + request)
            times[struck[log_e >= -math.log(limit.alpha)]] = request
            alive = alive[np.isinf(times[alive])]
            if not len(alive):
                break
        results.append(times[kept])
    return np.concatenate(results)


def oracle(stream: Stream, limit: Limit, *, rollouts: int, seed: int) -> Floats:
    """Requests until Wald's SPRT, which knows both rates, rejects; infinity where it accepts the bad candidate."""
    weights = _log_ratio(stream, limit)
    upper, lower = math.log((1 - BETA) / BUDGET), math.log(BETA / (1 - BUDGET))

    def score(n: Floats, total: Floats) -> Floats:
        return weights[0] * total + weights[1] * n

    return _run(
        stream,
        lambda n, sums: score(n, sums.total) >= upper,
        lambda n, sums: score(n, sums.total) <= lower,
        rollouts=rollouts,
        seed=seed,
    )


def walds_expectation(stream: Stream, limit: Limit) -> float:
    """Wald's expected sample number, in requests, of the SPRT between the bound and the candidate as it is.

    (1 - beta) log((1 - beta) / alpha) + beta log(beta / (1 - alpha)), divided by the mean of the log likelihood
    ratio of one observation: exact rates for events, a normal with the true deviation for means (Wald 1945).
    """
    per_sum, per_one = _log_ratio(stream, limit)
    reached = (1 - BETA) * math.log((1 - BETA) / BUDGET) + BETA * math.log(BETA / (1 - BUDGET))
    return stream.per * reached / (per_sum * stream.mean + per_one)


def _log_ratio(stream: Stream, limit: Limit) -> tuple[float, float]:
    """The log likelihood ratio: so much for each unit of the sum, and so much for each observation."""
    bad, good = stream.mean, limit.bound
    if isinstance(stream, Events):
        miss = math.log((1 - bad) / (1 - good))
        return math.log(bad / good) - miss, miss
    slope = (bad - good) / stream.deviation**2
    return slope, -slope * (bad + good) / 2


def _run(
    stream: Stream,
    alarms: Callable[[Floats, Blocks], np.ndarray],
    gives_up: Callable[[Floats, Blocks], np.ndarray | None],
    *,
    rollouts: int,
    seed: int,
) -> Floats:
    """Observation by observation; requests until ``alarms``, infinity where it does not or gives up before."""
    rng = np.random.default_rng(seed)
    longest = HORIZON // stream.per
    results = []
    for rows in _parts(rollouts):
        times = np.full(rows, np.inf)
        alive = np.arange(rows)
        before = Blocks(np.zeros(rows), np.zeros(rows), np.full(rows, np.inf), np.full(rows, -np.inf))
        done, size = 0, 100
        while done < longest and len(alive):
            size = min(size, longest - done)
            values = stream.draw(rng, (len(alive), size))
            n = np.broadcast_to(np.arange(done + 1.0, done + size + 1), values.shape)
            sums = Blocks(
                before.total[alive, None] + values.cumsum(axis=1),
                before.squares[alive, None] + (values * values).cumsum(axis=1),
                np.minimum(before.smallest[alive, None], np.minimum.accumulate(values, axis=1)),
                np.maximum(before.largest[alive, None], np.maximum.accumulate(values, axis=1)),
            )
            found = alarms(n, sums)
            first = np.where(found.any(axis=1), n[0][found.argmax(axis=1)], np.inf)
            given = gives_up(n, sums)
            last = np.full(len(alive), np.inf)
            if given is not None:
                last = np.where(given.any(axis=1), n[0][given.argmax(axis=1)], np.inf)
            times[alive] = np.where(first < last, first * stream.per, np.inf)
            for kept, now in zip(before, sums, strict=True):
                kept[alive] = now[:, -1]
            alive = alive[np.isinf(first) & np.isinf(last)]
            done += size
            size = min(2 * size, 2000)
        results.append(times)
    return np.concatenate(results)


def _parts(rollouts: int) -> Iterator[int]:
    for start in range(0, rollouts, _AT_ONCE):
        yield min(_AT_ONCE, rollouts - start)
