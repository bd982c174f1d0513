"""``airlock policy replay`` says of a release what the gateway and the control plane made of it: to the request."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.quality import agreement
from tests.support.driven_release import TRUTHS


@pytest.mark.parametrize("seed", range(10))
def test_a_recorded_release_is_replayed_to_the_request(tmp_path: Path, seed: int) -> None:
    """A real gateway answers, ejects and writes its log, from which the command line tells the same."""
    found = agreement.of_recorded(TRUTHS[seed % len(TRUTHS)], seed, tmp_path)
    assert found.replayed == found.happened
    assert found.disputed == 0


@pytest.mark.parametrize("seed", range(16))
def test_a_simulated_release_is_replayed_to_the_request(tmp_path: Path, seed: int) -> None:
    """The gateway's own counters, and a control plane that looks every second, whether or not anything has changed."""
    truths = agreement.truths("simulated")
    with agreement.own_clock() as set_clock:
        found = agreement.of_simulated(truths[seed % len(truths)], seed, tmp_path, set_clock)
    assert found.replayed == found.happened
