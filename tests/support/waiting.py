"""Waiting for what a test is about to look at. The tests sleep here and nowhere else.

The time-outs are generous on purpose: they end a test that would hang, and say nothing about how quick the code is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx

from airlock.tls import trusted

T = TypeVar("T")

PATIENCE_S = 120.0
_EVERY_S = 0.02


def wait_until(
    reached: Callable[[], T | None],
    what: str,
    *,
    seen: Callable[[], object] | None = None,
    patience: float = PATIENCE_S,
    every: float = _EVERY_S,
) -> T:
    """What ``reached`` returns, as soon as that is true.

    Args:
        what: what is waited for, in words, for the message.
        seen: what there is instead, asked when the time is over; without it the last value of ``reached``.
        patience: seconds.
        every: seconds between two looks.

    Raises:
        AssertionError: it did not come in time.
    """
    deadline = time.monotonic() + patience
    while not (found := reached()):
        if time.monotonic() > deadline:
            raise AssertionError(_missed(what, patience, seen() if seen else found))
        time.sleep(every)
    return found


async def wait_until_async(
    reached: Callable[[], Awaitable[T | None]],
    what: str,
    *,
    seen: Callable[[], object] | None = None,
    patience: float = PATIENCE_S,
    every: float = _EVERY_S,
) -> T:
    """The same for the event loop."""
    deadline = time.monotonic() + patience
    while not (found := await reached()):
        if time.monotonic() > deadline:
            raise AssertionError(_missed(what, patience, seen() if seen else found))
        await asyncio.sleep(every)
    return found


def is_up(url: str) -> bool:
    """Whether a server answers there, and well."""
    try:
        return httpx.get(url, timeout=5, verify=trusted()).is_success
    except httpx.HTTPError:
        return False


def _missed(what: str, patience: float, seen: object) -> str:
    return f"waited {patience:g} s for {what}; last seen: {seen}"
