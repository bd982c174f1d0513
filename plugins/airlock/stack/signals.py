"""Signals: every polite way of ending a command cleans up, and cleaning up is not interrupted."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


def interrupt_on_termination() -> None:
    """Let SIGTERM and SIGHUP clean up as Ctrl-C does, and Ctrl-C also where a shell started this with it ignored."""

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put off Ctrl-C: what is being taken down is taken down to the end. For the main thread."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
