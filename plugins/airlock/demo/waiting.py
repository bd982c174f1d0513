"""Waiting in the story: it goes on as long as something moves, so a busy machine makes it slower and never wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from airlock.core.errors import AirlockError, Unavailable

T = TypeVar("T")

STALL = 300.0
"""Seconds in which nothing at all moves, after which the story is taken to hang."""
_POLL = 0.5


class StoryBroken(AirlockError):
    """Something that the story needs did not happen."""


class Patience:
    """Waits for events. ``stall`` and ``poll`` are seconds."""

    def __init__(
        self,
        *,
        stall: float = STALL,
        poll: float = _POLL,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._stall = stall
        self._poll = poll
        self._clock = clock
        self._sleep = sleep

    def until(self, reached: Callable[[], T | None], what: str, moves: Callable[[], object] = lambda: None) -> T:
        """What ``reached`` returns, as soon as that is true.

        A part that does not answer (``Unavailable``) is asked again: that is a standstill, not an end.

        Args:
            what: what is waited for, in words.
            moves: whatever changes while it is on its way. Each change lets it wait longer.

        Raises:
            StoryBroken: nothing moved for as long as ``stall``.
        """
        seen, since, silent = object(), self._clock(), ""
        while True:
            try:
                if found := reached():
                    return found
                now, silent = moves(), ""
            except Unavailable as error:
                now, silent = seen, f"; {error}"
            if now != seen:
                seen, since = now, self._clock()
            elif self._clock() - since > self._stall:
                raise StoryBroken(f"expected {what}, but nothing moved for {self._stall:.0f} s{silent}")
            self._sleep(self._poll)
