"""The semantic version of a model: what its users and its owner have to expect of the step to it."""

from __future__ import annotations

from typing import NamedTuple

FIRST = "1.0.0"


class Described(NamedTuple):
    """A version with the digests of its schema and of its definition; ``None``: not known."""

    semantic: str
    schema: str | None
    definition: str | None


def following(before: Described | None, *, schema: str | None, definition: str | None) -> str:
    """The number of the version that comes after ``before``.

    Major: the schema changed, inputs or output, and who asks has to change with it. Minor: the data or the
    features did, or the code that makes the model of them. Patch: it was trained again, on newer rows or with
    other parameters. What is not known counts as changed.

    Raises:
        ValueError: ``before`` has no number of three parts.
    """
    if before is None:
        return FIRST
    major, minor, patch = (int(part) for part in before.semantic.split("."))
    if schema is None or schema != before.schema:
        return f"{major + 1}.0.0"
    if definition is None or definition != before.definition:
        return f"{major}.{minor + 1}.0"
    return f"{major}.{minor}.{patch + 1}"
