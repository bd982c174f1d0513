"""What candidates do: streams of observations, good and bad, and the guards that watch them.

One world makes all of them. Labels are positive with a chance of 20 %. A model's score is d * label + noise, and its
answer is the calibrated probability; d sets its ROC AUC. The champion's is 0.76; the candidate's noise correlates
with the champion's at 0.95. Latencies are lognormal with sigma 0.5. Values are drawn from 256 equally probable ones,
the means of 256 quantile bins of two million draws of this world; AUCs of a batch from 16,384 simulated batches.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from airlock.core.guards import limits_of
from airlock.core.limits import LABEL_BATCH
from airlock.core.route import Limit
from airlock.core.spec import ModelSpec

Floats = NDArray[np.float64]

BUDGET = 0.01
POSITIVE = 0.2
CHAMPION_AUC = 0.76
CORRELATION = 0.95
SIGMA = 0.5
_WORLD_SEED = 3


class Blocks(NamedTuple):
    """Sums over blocks of observations, rollouts by blocks, and the smallest and the largest of each block."""

    total: Floats
    squares: Floats
    smallest: Floats
    largest: Floats


class Stream(Protocol):
    """Observations of one candidate."""

    mean: float
    deviation: float
    per: int
    """Requests that make up one observation."""

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Floats: ...

    def sums(self, rng: np.random.Generator, shape: tuple[int, int], size: int) -> Blocks:
        """``shape`` blocks of ``size`` observations."""
        ...


@dataclass(frozen=True)
class Events:
    """Yes or no, with a chance of ``mean``."""

    mean: float
    per: int = 1

    @property
    def deviation(self) -> float:
        return math.sqrt(self.mean * (1 - self.mean))

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        return (rng.random(shape) < self.mean).astype(float)

    def sums(self, rng: np.random.Generator, shape: tuple[int, int], size: int) -> Blocks:
        return _counted(rng.binomial(size, self.mean, shape).astype(float), size)


@dataclass(frozen=True, eq=False)
class Values:
    """One of equally probable values; their number is a power of two."""

    values: Floats
    per: int = 1

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def deviation(self) -> float:
        return float(self.values.std())

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        count = len(self.values)
        index = rng.integers(0, count, shape, dtype=np.uint8 if count <= 256 else np.uint16)
        return self.values[index]

    def sums(self, rng: np.random.Generator, shape: tuple[int, int], size: int) -> Blocks:
        if size == 1:
            values = self.draw(rng, shape)
            return Blocks(values, values * values, values, values)
        rollouts, blocks = shape
        found = Blocks(*(np.empty(shape) for _ in Blocks._fields))
        for row in range(rollouts):
            values = self.draw(rng, (blocks, size))
            found.total[row] = values.sum(axis=1)
            found.squares[row] = np.einsum("ij,ij->i", values, values)
            found.smallest[row], found.largest[row] = values.min(axis=1), values.max(axis=1)
        return found

    def moved_to(self, mean: float) -> Values:
        return Values(np.clip(self.values - self.mean + mean, -1.0, 1.0), self.per)


@dataclass(frozen=True)
class Turning:
    """Events whose chance changes after so many requests."""

    before: float
    mean: float
    after: int
    per: int = 1

    @property
    def deviation(self) -> float:
        return math.sqrt(self.mean * (1 - self.mean))

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        raise NotImplementedError("what changes with time is drawn in whole rollouts: use sums")

    def sums(self, rng: np.random.Generator, shape: tuple[int, int], size: int) -> Blocks:
        rate = np.where(np.arange(shape[1]) * size < self.after, self.before, self.mean)
        return _counted(rng.binomial(size, np.broadcast_to(rate, shape)).astype(float), size)


def _counted(hits: Floats, size: int) -> Blocks:
    return Blocks(hits, hits, (hits >= size).astype(float), (hits > 0).astype(float))


@dataclass(frozen=True)
class Case:
    """A candidate: ``bad`` ones must be found, the others left alone."""

    name: str
    stream: Stream
    bad: bool
    demanded: bool = True


@dataclass(frozen=True)
class Watch:
    """A guard alone in a spec, which so has the whole budget, and the candidates that it watches."""

    name: str
    limit: Limit
    cases: tuple[Case, ...]

    @property
    def planned_for(self) -> Stream:
        """The smallest bad candidate that the issue names: what a fixed-horizon test is planned to find."""
        return next(case.stream for case in self.cases if case.bad and case.demanded)


TURNS_AFTER = 20_000


def turning() -> Case:
    """Good for 20,000 requests, bad from then on."""
    return Case("errors 0.5 %, then 5 %", Turning(0.005, 0.05, TURNS_AFTER), bad=True)


def limit_of(guard: dict[str, Any]) -> Limit:
    """The limit that a spec with this guard alone has."""
    spec = {
        "model": "m",
        "task": "classification",
        "data": {"key": "id", "event_time": "at"},
        "label": {"name": "y"},
        "inputs": {"x": "float"},
        "gates": [{"kind": "finite"}],
        "false_rollback_budget": BUDGET,
        "guards": [guard],
    }
    return limits_of(ModelSpec.model_validate(spec))[0]


def watches() -> tuple[Watch, ...]:
    return (_errors(), _latency(), _shift(), _paired_loss(), _auc())


def _errors() -> Watch:
    bad = ((0.0075, False), (0.01, True), (0.02, True), (0.05, True))
    return Watch(
        "error rate",
        limit_of({"kind": "error_rate", "max": 0.005}),
        (
            Case("equal: 0.5 % errors, the bound", Events(0.005), bad=False),
            *(Case(f"errors 0.5 % to {100 * rate:g} %", Events(rate), True, demanded) for rate, demanded in bad),
        ),
    )


def _latency() -> Watch:
    """The bound is the champion's p99 itself."""

    def slow(factor: float) -> Events:
        return Events(float(stats.norm.sf(stats.norm.ppf(0.99) - math.log(factor) / SIGMA)))

    return Watch(
        "latency p99",
        limit_of({"kind": "latency", "max_p99_ms": 100.0}),
        (
            Case("equal: the champion's p99, the bound", slow(1), bad=False),
            *(
                Case(f"p99 x{factor:g}", slow(factor), True, demanded)
                for factor, demanded in ((1.1, False), (1.5, True), (3, True))
            ),
        ),
    )


def _shift() -> Watch:
    differences, _ = _pairs(CHAMPION_AUC)
    return Watch(
        "prediction shift",
        limit_of({"kind": "prediction_shift", "max_mean": 0.01}),
        (
            Case("equal: no shift", differences.moved_to(0.0), bad=False),
            Case("on the bound: shift 0.01", differences.moved_to(0.01), bad=False),
            *(
                Case(f"shift {shift:g}", differences.moved_to(shift), True, demanded)
                for shift, demanded in ((0.015, False), (0.02, True), (0.05, True))
            ),
        ),
    )


def _paired_loss() -> Watch:
    margin = 0.001
    _, equal = _pairs(CHAMPION_AUC)
    return Watch(
        "paired loss (Brier)",
        limit_of({"kind": "paired_loss", "metric": "brier", "margin": margin}),
        (
            Case("equal: no loss", equal.moved_to(0.0), bad=False),
            Case(f"on the bound: loss {margin:g}", equal.moved_to(margin), bad=False),
            Case("AUC -0.03, by Brier", _pairs(CHAMPION_AUC - 0.03)[1], bad=True),
        ),
    )


def _auc() -> Watch:
    margin = 0.002
    return Watch(
        "label AUC",
        limit_of({"kind": "label_metric", "metric": "roc_auc", "margin": margin}),
        (
            Case("equal: no loss", _batches(CHAMPION_AUC).moved_to(0.0), bad=False),
            Case(f"on the bound: loss {margin:g}", _batches(CHAMPION_AUC).moved_to(margin), bad=False),
            *(Case(f"AUC -{drop:g}", _batches(CHAMPION_AUC - drop).moved_to(drop), True) for drop in (0.01, 0.03)),
        ),
    )


def _separation(auc: float) -> float:
    return math.sqrt(2) * float(stats.norm.ppf(auc))


def _world(rng: np.random.Generator, n: int, auc: float) -> tuple[NDArray[np.bool_], Floats, Floats]:
    """Labels, champion's and candidate's answers."""
    labels = rng.random(n) < POSITIVE
    shared, own = rng.standard_normal(n), rng.standard_normal(n)
    answers = []
    for d, noise in (
        (_separation(CHAMPION_AUC), shared),
        (_separation(auc), CORRELATION * shared + math.sqrt(1 - CORRELATION**2) * own),
    ):
        log_odds = math.log(POSITIVE / (1 - POSITIVE)) + d * (d * labels + noise) - d * d / 2
        answers.append(1 / (1 + np.exp(-log_odds)))
    return labels, answers[0], answers[1]


@functools.lru_cache
def _pairs(auc: float) -> tuple[Values, Values]:
    """Differences of the answers, and of their Brier scores: candidate minus champion."""
    labels, champion, candidate = _world(np.random.default_rng(_WORLD_SEED), 2**21, auc)
    difference, loss = candidate - champion, (candidate - labels) ** 2 - (champion - labels) ** 2
    return _binned(difference), _binned(loss)


def _binned(values: Floats) -> Values:
    return Values(np.sort(values).reshape(256, -1).mean(axis=1))


@functools.lru_cache
def _batches(auc: float) -> Values:
    """AUCs of batches of labelled answers: champion's minus candidate's."""
    count = 2**14
    rng = np.random.default_rng(_WORLD_SEED + 1)
    labels, champion, candidate = (part.reshape(count, -1) for part in _world(rng, count * LABEL_BATCH, auc))
    return Values(_aucs(labels, champion) - _aucs(labels, candidate), LABEL_BATCH)


def _aucs(labels: NDArray[np.bool_], answers: Floats) -> Floats:
    ranks = answers.argsort(axis=1).argsort(axis=1) + 1
    positives = labels.sum(axis=1)
    above = (ranks * labels).sum(axis=1) - positives * (positives + 1) / 2
    return above / (positives * (labels.shape[1] - positives))
