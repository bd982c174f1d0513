"""A version's number says what changed."""

from __future__ import annotations

import pytest

from airlock.core.semantic_version import Described, following

BEFORE = Described("2.3.4", "schema", "definition")


@pytest.mark.parametrize(
    ("schema", "definition", "expected"),
    [
        ("schema", "definition", "2.3.5"),
        ("schema", "other", "2.4.0"),
        ("other", "definition", "3.0.0"),
        ("other", "other", "3.0.0"),
        ("schema", None, "2.4.0"),
        (None, "definition", "3.0.0"),
    ],
)
def test_what_changed(schema: str | None, definition: str | None, expected: str) -> None:
    assert following(BEFORE, schema=schema, definition=definition) == expected


def test_the_first() -> None:
    assert following(None, schema="schema", definition="definition") == "1.0.0"


@pytest.mark.parametrize(
    ("before", "expected"),
    [(Described("1.0.9", None, None), "2.0.0"), (Described("1.0.9", "schema", None), "1.1.0")],
)
def test_what_is_not_known_of_the_one_before_counts_as_changed(before: Described, expected: str) -> None:
    assert following(before, schema="schema", definition="definition") == expected
    assert following(before, schema=None, definition=None) == "2.0.0"
