"""``airlock policy replay`` says of a release what the gateway and the control plane made of it: to the request."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.quality import agreement
from tests.support.driven_release import TRUTHS

OTHER_UNITS = [False, pytest.param(True, marks=pytest.mark.slow)]
"""Odd seeds have guards by key or minute, even ones by request alone: the next seed turns that about."""


@pytest.mark.parametrize("other_units", OTHER_UNITS)
@pytest.mark.parametrize("number", range(len(TRUTHS)))
def test_a_recorded_release_is_replayed_to_the_request(tmp_path: Path, number: int, other_units: bool) -> None:
    """A real gateway answers, ejects and writes its log, from which the command line tells the same."""
    found = agreement.of_recorded(TRUTHS[number], number + other_units, tmp_path)
    assert found.replayed == found.happened
    assert found.disputed == 0


@pytest.mark.parametrize("other_units", OTHER_UNITS)
@pytest.mark.parametrize("number", range(len(agreement.SIMULATIONS)))
def test_a_simulated_release_is_replayed_to_the_request(tmp_path: Path, number: int, other_units: bool) -> None:
    """The gateway's own counters, and a control plane that looks every second, whether or not anything has changed."""
    truth = agreement.truths("simulated")[number]
    with agreement.own_clock() as set_clock:
        found = agreement.of_simulated(truth, number + other_units, tmp_path, set_clock)
    assert found.replayed == found.happened
