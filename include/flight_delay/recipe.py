"""The owner's code for ``flight_delay``: where its data comes from and how it is learned."""

from __future__ import annotations

from include.flight_delay.data import load

__all__ = ["load"]
