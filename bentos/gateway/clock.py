"""The clock by which the gateway counts: the time of day, which here never goes back."""

from __future__ import annotations

import time

_ahead_ns = time.time_ns() - time.monotonic_ns()


def now_us() -> int:
    """Microseconds since 1970. Where the system's clock is put back this one goes on from where it was."""
    global _ahead_ns  # noqa: PLW0603 - there is one clock in a process
    steady = time.monotonic_ns()
    _ahead_ns = max(_ahead_ns, time.time_ns() - steady)
    return (steady + _ahead_ns) // 1000
