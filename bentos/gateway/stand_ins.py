"""What answers when no version can: an earlier answer, a rule, the default, in this order.

Which of them a model has is declared in its spec under ``serving.fallback`` and travels in the champion's bundle.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from airlock.core.segment import met
from airlock.core.spec import Fallback
from runtime.schema import Row

CACHED_ROWS = 10_000
"""Answers that are remembered of one model; beyond it the one that was not used for longest is forgotten."""

Means = Literal["champion", "cache", "rule", "default"]


class StoodIn(NamedTuple):
    """One answer a row, and the last means that had to be taken for any of them."""

    means: Means
    answers: list[float]


class StandIns:
    """The fallback policy of one champion, and what is remembered of its answers.

    Only its own: what a candidate or an earlier champion said may be why it is not asked any more.
    ``width`` is the number of the champion's inputs, which come first in a row.
    """

    def __init__(self, policy: Fallback, width: int) -> None:
        self._policy = policy
        self._width = width
        self._seconds = policy.cache.total_seconds() if policy.cache else 0.0
        self._answers: OrderedDict[tuple[Any, ...], tuple[float, float]] = OrderedDict()

    @property
    def know_without_inputs(self) -> bool:
        """Whether anything could answer for a row whose inputs are not known."""
        return bool(self._policy.rules) or self._policy.default is not None

    def remember(self, rows: Sequence[Row], answers: Sequence[float]) -> None:
        """Keep the champion's answers, if the policy wants that."""
        if not self._seconds:
            return
        now = time.monotonic()
        for row, answer in zip(rows, answers, strict=True):
            key = tuple(row[: self._width])
            self._answers[key] = now, answer
            self._answers.move_to_end(key)
        while len(self._answers) > CACHED_ROWS:
            self._answers.popitem(last=False)

    def answer(self, rows: Sequence[Row], facts: Sequence[Mapping[str, Any]]) -> StoodIn | None:
        """Answer every row, or none.

        Args:
            rows: what was asked; none of them where the inputs are not known.
            facts: what the rules may ask about, by name, for each row.
        """
        if cached := self._cached(rows):
            return StoodIn("cache", cached)
        answers: list[float] = []
        means: Means = "rule"
        for fact in facts:
            answer = next((rule.answer for rule in self._policy.rules if met(rule.when, fact)), None)
            if answer is None:
                means, answer = "default", self._policy.default
            if answer is None:
                return None
            answers.append(answer)
        return StoodIn(means, answers)

    def _cached(self, rows: Sequence[Row]) -> list[float] | None:
        oldest = time.monotonic() - self._seconds
        found: list[float] = []
        for row in rows:
            key = tuple(row[: self._width])
            at, answer = self._answers.get(key, (oldest, 0.0))
            if at <= oldest:
                return None
            self._answers.move_to_end(key)
            found.append(answer)
        return found
