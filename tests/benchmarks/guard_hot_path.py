"""What the guards cost the gateway a request, beside what counting the request costs.

    python tests/benchmarks/guard_hot_path.py [--requests 20000]

One candidate with six live limits, through the functions that the gateway calls: its counters, ``breach`` and
``restart_if_due``. Processor time in microseconds a request; the ratio is what holds from one machine to another.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]

from airlock.core.counters import Counters  # noqa: E402
from airlock.core.guards import breach  # noqa: E402
from airlock.core.route import Limit  # noqa: E402

LIMITS = tuple(
    Limit.model_validate({"alpha": 0.01 / 6, "steps": 5, **fields})
    for fields in (
        {"name": "error_rate", "signal": "errors", "bound": 0.02},
        {"name": "latency_p99", "signal": "slow", "bound": 0.01, "over_ms": 100},
        {"name": "fallback_rate", "signal": "fallbacks", "bound": 0.02},
        {"name": "prediction_shift", "signal": "difference", "bound": 0.05, "reach": 2.0, "least": -1.0},
        {"name": "prediction_disagreement", "signal": "absolute", "bound": 0.1, "reach": 1.0},
        {"name": "disagreement", "signal": "flips", "bound": 0.1, "reach": 1.0},
    )
)
TRAFFIC = {
    "healthy": (0.005, 0.003, 0.0),
    "errors at the bound": (0.02, 0.01, 0.0),
    "mean at the bound": (0.0, 0.0, 0.05),
}
SLOW = {"latency_p99": 100.0}


def measure(errors: float, slow: float, shift: float, requests: int) -> tuple[float, float]:
    """Microseconds a request: of counting it, and of the guards."""
    rng, counters = random.Random(3), Counters()  # noqa: S311 - a simulation
    counting = guarding = 0
    for _ in range(requests):
        failed, latency = rng.random() < errors, 200.0 if rng.random() < slow else 5.0
        difference, flips = rng.gauss(shift, 0.048), int(rng.random() < 0.03)
        started = time.process_time_ns()
        for tally in counters.tallies("served"):
            (tally.failed if failed else tally.answered)(latency, SLOW)
            tally.fallbacks += failed
            tally.compared([difference], flips)
        counted = time.process_time_ns()
        breach(LIMITS, counters)
        counters.restart_if_due()
        guarding += time.process_time_ns() - counted
        counting += counted - started
    return counting / requests / 1000, guarding / requests / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    arguments = parser.parse_args()
    print("| traffic | counting, us | guards, us | ratio |\n| --- | --- | --- | --- |")  # noqa: T201
    for name, traffic in TRAFFIC.items():
        counting, guarding = measure(*traffic, arguments.requests)
        print(f"| {name} | {counting:.1f} | {guarding:.1f} | {guarding / counting:.2f} |")  # noqa: T201


if __name__ == "__main__":
    main()
