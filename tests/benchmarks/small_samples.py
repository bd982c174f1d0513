"""How often gates and A/B tests are wrong where samples are small or skewed, by simulation, beside the usual way.

    python tests/benchmarks/small_samples.py [--samples 2000] [--part classes|calibration|outcomes]

Prints the tables of RESULTS.md, section "Small classes, calibration, skewed outcomes". What is called "normal" is the
usual way: DeLong's normal bounds, bounds around the measured ECE, Welch's variance. Seeds are fixed: the same command
prints the same tables.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator

import numpy as np
from scipy.special import chdtri
from scipy.stats import norm

from airlock.core.bootstrap import bootstrap_gain
from airlock.core.calibration import calibration
from airlock.core.comparisons import benjamini_hochberg
from airlock.core.experiment_statistics import TELLING_UNITS, Floats, Measured, difference, half_width
from airlock.core.gates import GateEvidence, judge
from airlock.core.roc import area_interval, covariance, gain_interval, placements, shortfall
from airlock.core.spec import SliceGate, Task
from airlock.core.uncertainty import TooFew, deviate
from airlock.core.verdict import Status

CONFIDENCE = 0.95
NEGATIVES = 1000


def table(title: str, head: str, rows: Iterator[str]) -> None:
    sys.stdout.write(f"\n{title}\n\n| {head} |\n|{' --- |' * (head.count('|') + 1)}\n")
    for row in rows:
        sys.stdout.write(f"| {row} |\n")
        sys.stdout.flush()


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


# Small classes


def scored(
    rng: np.random.Generator, positives: int, areas: tuple[float, float], spread: float
) -> tuple[Floats, Floats, Floats]:
    """Labels and two models' scores with these true areas, correlated by 0.9; positives spread ``spread`` as wide."""
    labels = np.repeat([1.0, 0.0], [positives, NEGATIVES])
    noise = rng.normal(size=(2, labels.size))
    noise[1] = 0.9 * noise[0] + math.sqrt(0.19) * noise[1]
    shifts = math.sqrt(1 + spread**2) * norm.ppf(areas)[:, None]
    first, second = np.where(labels == 1, spread * noise + shifts, noise)
    return labels, first, second


def non_inferiority(samples: int) -> Iterator[str]:
    rng = np.random.default_rng(41)
    for spread in (1.0, 1.5):
        for area, margin in ((0.8, 0.05), (0.95, 0.02), (0.99, 0.01)):
            for positives in (5, 10, 20, 50, 100):
                cells = []
                for truth in (area - margin, area):
                    passed = np.zeros(2)
                    for _ in range(samples):
                        labels, candidate, champion = scored(rng, positives, (truth, area), spread)
                        mine, other = placements(labels, candidate), placements(labels, champion)
                        matrix = covariance(mine, other)
                        error = math.sqrt(max(0.0, float(matrix[0, 0] + matrix[1, 1] - 2 * matrix[0, 1])))
                        passed += [
                            mine.area - other.area - deviate(CONFIDENCE) * error > -margin,
                            gain_interval(mine, other, CONFIDENCE).low > -margin,
                        ]
                    cells += [percent(share) for share in passed / samples]
                yield " | ".join((f"{spread:g} | {area} | {margin} | {positives}", *cells))


def resampled(samples: int) -> Iterator[str]:
    rng, count = np.random.default_rng(42), max(50, samples // 10)
    for area, margin in ((0.8, 0.05), (0.95, 0.02)):
        for positives in (20, 50, 100):
            passed = np.zeros(2)
            for _ in range(count):
                rows = scored(rng, positives, (area - margin, area), 1.0)
                scored_bounds = gain_interval(placements(rows[0], rows[1]), placements(rows[0], rows[2]), CONFIDENCE)
                try:
                    low = bootstrap_gain("roc_auc", *rows, resamples=500).low
                except TooFew:
                    low = -1.0
                passed += [low > -margin, min(low, scored_bounds.low) > -margin]
            yield f"{area} | {margin} | {positives} | {' | '.join(percent(share) for share in passed / count)}"


def one_group(samples: int) -> Iterator[str]:
    """A group whose area is the bound: how often it is called short, and how often the area's bounds miss it."""
    rng = np.random.default_rng(43)
    for area in (0.7, 0.9, 0.97):
        for positives, negatives in ((4, 196), (20, 180), (20, 980), (100, 900)):
            short, missed = np.zeros(2), np.zeros(2)
            for _ in range(samples):
                labels, scores, _ = scored(rng, positives, (area, area), 1.0)
                keep = slice(0, positives + negatives)
                found = placements(labels[keep], scores[keep])
                error = math.sqrt(float(covariance(found, found)[0, 0]))
                above = found.area - area
                normal = norm.cdf(above / error) if error > 0 else float(above >= 0)
                short += [normal <= 0.05, shortfall(found, area, at_least=True) <= 0.05]
                bounds = area_interval(found, CONFIDENCE)
                missed += [found.area - deviate(CONFIDENCE) * error > area, bounds.low > area]
            cells = [percent(share) for share in (*(short / samples), *(missed / samples))]
            yield f"{area} | {positives} of {positives + negatives} | {' | '.join(cells)}"


def slices(samples: int) -> Iterator[str]:
    """Ten groups whose area is a little above the bound: how often the slices gate fails such a candidate."""
    rng, gate = np.random.default_rng(46), SliceGate(kind="slices", column="carrier", metric="roc_auc", min=0.85)
    for rows, share in ((200, 0.02), (200, 0.15), (1000, 0.03)):
        counts = dict.fromkeys(("normal", *Status), 0)
        for _ in range(max(100, samples // 4)):
            groups = np.repeat(np.arange(10), rows)
            labels = (rng.random(10 * rows) < share).astype(float)
            scores = norm.cdf(rng.normal(size=labels.size) + labels * math.sqrt(2) * norm.ppf(0.87))
            counts["normal"] += _fails(labels.reshape(10, rows), scores.reshape(10, rows), 0.85)
            evidence = GateEvidence(
                task=Task.CLASSIFICATION,
                labels=labels,
                candidate=scores,
                reference=None,
                reference_name="none",
                slices={"carrier": groups.astype(str)},
                parity=None,
                latency_ms=None,
                size_bytes=None,
                inputs={},
                reference_inputs=None,
                interface={},
                reference_interface=None,
            )
            counts[judge([gate], evidence)[0].status] += 1
        wanted = ("normal", Status.FAIL, Status.INCONCLUSIVE, Status.PASS)
        cells = (percent(counts[name] / max(100, samples // 4)) for name in wanted)
        yield f"{rows} | {100 * share:g} % | {' | '.join(cells)}"


def _fails(labels: Floats, scores: Floats, bound: float) -> bool:
    """Whether a group falls short by DeLong's normal test, the false discovery rate held at 5 %."""
    p_values = []
    for mine, of in zip(labels, scores, strict=True):
        if min(mine.sum(), mine.size - mine.sum()) < 2:
            continue
        found = placements(mine, of)
        error = math.sqrt(float(covariance(found, found)[0, 0]))
        above = found.area - bound
        p_values.append(float(norm.cdf(above / error)) if error > 0 else float(above >= 0))
    return min(benjamini_hochberg(p_values)) <= 0.05


# Calibration


def worlds() -> dict[str, Callable[[Floats], Floats]]:
    return {
        "perfect": lambda scores: scores,
        "0.05 off everywhere": lambda scores: scores + 0.05,
        "too steep by half": lambda scores: np.clip(scores.mean() + 1.5 * (scores - scores.mean()), 0, 1),
        "0.3 off in the top tenth": lambda scores: np.where(scores > 0.42, scores - 0.3, scores),
    }


def calibrated(samples: int) -> Iterator[str]:
    """Scores are 0.9 of a beta(2, 6) variable: 22 % positives. The bound is 0.05."""
    rng = np.random.default_rng(44)
    for name, truth in worlds().items():
        for rows in (500, 1000, 2000, 5000):
            found = np.zeros(8)
            for _ in range(samples // 2):
                scores = rng.beta(2, 6, rows) * 0.9
                chances = truth(scores)
                error = np.abs(np.bincount(np.argsort(np.argsort(scores)) * 10 // rows, chances - scores)).sum() / rows
                seen = calibration((rng.random(rows) < chances).astype(float), scores, 10)
                # The bounds around what was measured, as Scheffé's ellipsoid has them.
                spread = sum(each.share * (1 - each.share) * each.rows for each in seen.bins) / rows**2
                reach = math.sqrt(float(chdtri(len(seen.bins), 0.05)) * spread)
                found += [
                    error,
                    seen.measured,
                    seen.error.estimate,
                    seen.measured + reach <= 0.05,
                    seen.error.high <= 0.05,
                    seen.error.low > 0.05,
                    seen.error.high < error,
                    seen.error.low > error + 1e-12,
                ]
            found /= samples // 2
            means = " | ".join(f"{value:.4f}" for value in found[:3])
            yield f"{name} | {rows:,} | {means} | {' | '.join(percent(value) for value in found[3:])}"


# Skewed outcomes

Draw = Callable[[np.random.Generator, tuple[int, int]], Floats]
OUTCOMES: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(3, 1, shape),
    "exponential": lambda rng, shape: rng.exponential(1, shape),
    "lognormal, sigma 1": lambda rng, shape: rng.lognormal(0, 1, shape),
    "lognormal, sigma 1.5": lambda rng, shape: rng.lognormal(0, 1.5, shape),
    "one in twenty buys": lambda rng, shape: (rng.random(shape) < 0.05) * rng.exponential(1, shape),
}
ALPHA, UNITS, BATCH = 0.05, 20_000, 100
LOOKS = np.unique(np.geomspace(2_000, UNITS, 30).astype(int))


def _seen(values: Floats, sizes: np.ndarray) -> tuple[Floats, Floats, Floats]:
    """Mean, variance and the number of values that are not 0, of the first so many values of each row."""
    sums, squares, telling = (np.cumsum(of, axis=1)[:, sizes - 1] for of in (values, values**2, values != 0))
    means: Floats = sums / sizes
    return means, (squares / sizes - means**2) * sizes / (sizes - 1), telling


def _statistics(champion: Floats, candidate: Floats, share: float) -> tuple[Floats, Floats, Floats]:
    """Welch's and the shipped statistic of each experiment at each look, and whether an interval is given at all."""
    mine = np.maximum(100, (LOOKS * share).round().astype(int))
    theirs = LOOKS - mine
    one, two = _seen(champion, theirs), _seen(candidate, mine)
    own = one[1] / theirs + two[1] / mine
    pooled = ((theirs - 1) * one[1] + (mine - 1) * two[1]) / (LOOKS - 2) * (1 / theirs + 1 / mine)
    shipped = np.maximum(own, pooled)
    ready = np.minimum(one[2], two[2]) >= TELLING_UNITS
    if ready[0, -1]:
        found = difference(Measured(champion[0, : theirs[-1]], candidate[0, : mine[-1]]))
        assert math.isclose(found.variance, shipped[0, -1], rel_tol=1e-6), "the tables are not of the shipped code"
    with np.errstate(all="ignore"):
        return (two[0] - one[0]) / np.sqrt(own), (two[0] - one[0]) / np.sqrt(shipped), ready


def called(draw: Draw, share: float, effect: float, samples: int, seed: int) -> Floats:
    """Shares of experiments called different: at any look (two-sided, then worse and better one-sided) and at one look.

    Each by Welch's variance and by the shipped one. ``effect`` is what the candidate's values are multiplied with.
    """
    rng, calls = np.random.default_rng(seed), np.zeros((2, 4))
    two, one = (
        np.array([half_width(1.0, int(units), ALPHA, sides=sides, sharpest=10_000) for units in LOOKS])
        for sides in (2, 1)
    )
    mine = round(UNITS * share)
    for _ in range(samples // BATCH):
        champion, candidate = draw(rng, (BATCH, UNITS - mine)), draw(rng, (BATCH, mine)) * effect
        *statistics, ready = _statistics(champion, candidate, share)
        for row, statistic in enumerate(statistics):
            first = statistic[:, LOOKS.size // 3]
            calls[row] += [
                int(((np.abs(statistic) > two) & ready).any(axis=1).sum()),
                int(((statistic < -one) & ready).any(axis=1).sum()),
                int(((statistic > one) & ready).any(axis=1).sum()),
                int((np.abs(first) > deviate(1 - ALPHA / 2))[ready[:, LOOKS.size // 3]].sum()),
            ]
    return calls / (samples // BATCH * BATCH)


def no_difference(samples: int) -> Iterator[str]:
    for place, (name, draw) in enumerate(OUTCOMES.items()):
        for share in (0.05, 0.2, 0.5, 0.95):
            welch, shipped = called(draw, share, 1.0, samples, 4500 + place)
            cells = " | ".join(f"{percent(old)} | {percent(new)}" for old, new in zip(welch, shipped, strict=True))
            yield f"{name} | {100 * share:g} | {cells}"


def some_difference(samples: int) -> Iterator[str]:
    effects = {"normal": 0.03, "exponential": 0.15, "lognormal, sigma 1": 0.2, "lognormal, sigma 1.5": 0.5}
    for place, (name, effect) in enumerate(effects.items()):
        for share in (0.05, 0.5):
            scale = effect if share == 0.05 else effect / 2.3
            cells = []
            for factor in (1 + scale, 1 - scale):
                welch, shipped = called(OUTCOMES[name], share, factor, max(BATCH, samples // 2), 4600 + place)
                cells += [percent(welch[0]), percent(shipped[0])]
            yield f"{name} | {100 * share:g} | {100 * scale:.0f} % | {' | '.join(cells)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--part", choices=("classes", "calibration", "outcomes"))
    arguments = parser.parse_args()
    samples, part = arguments.samples, arguments.part
    if part in (None, "classes"):
        table(
            f"Non-inferiority of the ROC AUC, {NEGATIVES:,} negatives: % that pass",
            "spread of positives | area | margin | positives | worse by the margin, normal | score bounds "
            "| as good, normal | score bounds",
            non_inferiority(samples),
        )
        table(
            "The same by the bootstrap (BCa, 500 resamples), worse by the margin: % that pass",
            "area | margin | positives | BCa alone | the wider of both, as the gate has it",
            resampled(samples),
        )
        table(
            "One group whose area is the bound: % called short at 5 %, % whose lower bound lies above the truth",
            "area | positives | short, normal | score test | missed, normal | score bounds",
            one_group(samples),
        )
        table(
            "Slices: ten groups with a true area of 0.87, bound 0.85: % of candidates",
            "rows of a group | positives | failed by the normal test | failed | inconclusive | passed",
            slices(samples),
        )
    if part in (None, "calibration"):
        table(
            "Calibration, bound 0.05: mean errors, and % of samples",
            "truth | rows | true ECE | measured | debiased | pass by bounds around the measured | pass | fail "
            "| true above the upper bound | true below the lower bound",
            calibrated(samples),
        )
    if part in (None, "outcomes"):
        table(
            "A/B, no difference, 30 looks from 2,000 to 20,000 units: % called different (alpha 5 %)",
            "outcome | candidate's % | two-sided, Welch | shipped | worse, Welch | shipped | better, Welch | shipped "
            "| one look by the normal deviate, Welch | shipped",
            no_difference(samples),
        )
        table(
            "A/B, power: % called different at any of the looks",
            "outcome | candidate's % | change | more, Welch | shipped | less, Welch | shipped",
            some_difference(samples),
        )


if __name__ == "__main__":
    main()
