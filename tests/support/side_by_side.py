"""How ``make test`` hands the tests to its workers: file by file, what takes long first.

Tests of one file share their fixtures, so a file stays with one worker. Those that start a real Airflow are one piece:
two at once would be slower than one after the other.
"""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

AIRFLOW = "a real Airflow"
WITH_AIRFLOW = "tests/system/"
LONG = (
    AIRFLOW,
    "tests/faults/",
    "tests/dag_builder/test_dag_runs.py",
    "tests/steps/test_feature",
    "tests/steps/",
    "tests/include/",
    "tests/bentos/",
    "tests/operators/",
    "tests/control/",
    "tests/ledger/",
)
"""By processor time. What is not named takes less and fills the gaps at the end."""


class SideBySide(LoadFileScheduling):
    """Pieces in the order of the collected tests."""

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return piece(nodeid)


def piece(nodeid: str) -> str:
    """What a test is handed out with."""
    path = nodeid.partition("::")[0]
    return AIRFLOW if path.startswith(WITH_AIRFLOW) else path


def by_length(items: list[pytest.Item]) -> None:
    """Sort the collected tests in place: the longest pieces first, within a piece as they stand."""

    def place(item: pytest.Item) -> int:
        of = piece(item.nodeid)
        return next((number for number, start in enumerate(LONG) if of.startswith(start)), len(LONG))

    items.sort(key=place)
