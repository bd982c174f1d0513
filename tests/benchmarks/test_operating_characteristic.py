"""The operating characteristic in small: what is clearly inside is promoted at once, what is twice the bound never."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import operating_characteristic as oc


@pytest.mark.parametrize(
    ("guard", "truth", "promoted"),
    [("errors", 0.2, 4), ("errors", 2.0, 0), ("shift", 0.4, 4), ("shift", 2.0, 0), ("served", 3.0, 0)],
)
def test_what_becomes_of_four_releases(guard: str, truth: float, promoted: int) -> None:
    """Seed 77; 50 requests a minute, in each of five steps for ten minutes and the last one for its 800 requests."""
    found = oc.cell(guard, 50, truth, 4, 77)
    assert found["airlock"]["promoted"] == promoted
    if promoted:
        assert found["airlock"]["promoted after"] == found["no breach"]["promoted after"]


def test_without_the_rule_twice_the_bound_is_promoted() -> None:
    """Why a pass asks for more than that no breach is proved. Seed 78."""
    found = oc.cell("errors", 50, 2.0, 5, 78)
    assert found["no breach"]["promoted"] >= 2
    assert found["airlock"]["promoted"] == 0


def test_the_table_and_the_picture(tmp_path: Path) -> None:
    cells = oc.measure(1, (0.2, 3.0), (("errors", 500),))
    assert oc.table(cells).count("\n") == 3
    assert oc.plot(cells, tmp_path).stat().st_size > 1000
