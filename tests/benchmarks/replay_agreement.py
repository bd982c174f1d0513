"""How often a replay agrees with the gateway and the control plane about a release, to the request.

    python tests/benchmarks/replay_agreement.py [--releases 200]

Half of the releases are recorded: a real gateway in this process answers requests of a candidate whose conduct is made
up, a control plane takes it from step to step, and ``airlock policy replay`` reads the log. Half are simulated: the
gateway's counters and a control plane that looks every second judge simulated requests, and so does the replay. Guards,
plan and conduct differ from seed to seed. Printed: a table in Markdown, and every release about which they differ.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins"), str(ROOT / "bentos")]

from tests.benchmarks.quality import agreement  # noqa: E402
from tests.support.driven_release import TRUTHS  # noqa: E402


def measure(releases: int) -> list[agreement.Agreement]:
    """So many releases, every other one recorded; two with each conduct in turn, one of them with guards by customer
    or by minute."""
    found = []
    simulations = agreement.truths("simulated")
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(releases // 2):
            found.append(agreement.of_recorded(TRUTHS[seed // 2 % len(TRUTHS)], seed, Path(folder) / f"r{seed}"))
            with agreement.own_clock() as set_clock:
                truth = simulations[seed // 2 % len(simulations)]
                found.append(agreement.of_simulated(truth, seed, Path(folder) / f"s{seed}", set_clock))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--releases", type=int, default=200)
    arguments = parser.parse_args()
    logging.getLogger("airlock.gateway").setLevel(logging.ERROR)
    began = time.monotonic()
    found = measure(arguments.releases)
    print(agreement.table(found))  # noqa: T201
    for one in found:
        if not one.whole or one.disputed:
            print(f"\n{one}")  # noqa: T201
    same = sum(one.whole for one in found)
    print(f"\n{same} of {len(found)} agree to the request and the word, {time.monotonic() - began:.0f} s")  # noqa: T201
    sys.exit(same != len(found))


if __name__ == "__main__":
    main()
