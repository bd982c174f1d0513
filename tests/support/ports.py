"""Ports that a server of a test can have."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from random import SystemRandom

_FIRST, _LAST = 15_000, 30_000
"""Below those that the system gives to outgoing connections: a free one of these stays free until it is listened on."""
_CHOICE = SystemRandom()


def free_port() -> int:
    return free_base(1)


def free_base(count: int = 3) -> int:
    """The first of so many free ports in a row."""
    while True:
        base = _CHOICE.randrange(_FIRST, _LAST - count)
        with ExitStack() as probes:
            try:
                for offset in range(count):
                    probe = probes.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", base + offset))
            except OSError:
                continue
            return base
