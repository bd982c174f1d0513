"""Which errors a task is tried again for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airlock.core import errors
from airlock.core.errors import AirlockError, Conflict, Fenced, NotPossible, NotYet, Unavailable
from airlock.operators.base import refusals_are_final

AGAIN = {Conflict, Fenced, Unavailable}


def _all(error: type[AirlockError]) -> set[type[AirlockError]]:
    return {error}.union(*(_all(each) for each in error.__subclasses__()))


@pytest.mark.parametrize("error", sorted(_all(AirlockError), key=lambda error: error.__name__))
def test_only_what_may_go_otherwise_the_next_time_is_tried_again(error: type[AirlockError]) -> None:
    @refusals_are_final
    def execute(self: object) -> None:
        raise error("because")

    with pytest.raises(error if issubclass(error, tuple(AGAIN)) else AirflowFailException, match="because"):
        execute(None)


def test_what_is_not_possible_is_no_lost_race() -> None:
    assert not issubclass(NotPossible, Conflict)
    assert issubclass(NotYet, NotPossible), "who cannot wait takes it for final"


def test_the_tree_that_is_drawn_is_the_tree() -> None:
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__ or ""))
    assert drawn == {error.__name__ for error in _all(AirlockError) if error.__module__ == errors.__name__} - {
        "AirlockError"
    }


def test_every_conflict_in_the_tree_is_a_race_or_a_lock_that_another_holds() -> None:
    """A new ``raise Conflict`` is looked at here: would the same call, a moment later, be answered otherwise?"""
    package = Path(errors.__file__).parents[1]
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"\b(raise|return) (Conflict|Fenced)\(", path.read_text())
    }
    assert found == {
        "control/approval.py",  # the evidence has changed since it was shown
        "control/reconcile.py",
        "ledger/engine.py",
        "ledger/leases.py",
        "ledger/ledger.py",
        "ledger/shared.py",
        "ledger/store.py",
        "stack/state.py",
    }
