"""Equal hashes among a million, found without sorting them: a sort takes three times as long."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.intp]

_ODD = np.uint64(0x9E3779B97F4A7C15)
_TURNS = 16


def meet(one: Hashes, other: Hashes) -> tuple[Places, Places] | None:
    """Where the same hashes are in both, in the order of ``other``.

    ``None`` where one of them meets several, or (which needs hashes that were made for it) where too many share a slot.
    """
    if not one.size or not other.size:
        return np.empty(0, np.intp), np.empty(0, np.intp)
    partner = np.full(other.size, -1)
    bits = one.size.bit_length() + 1
    shift = np.uint64(64 - bits)
    here, there = np.arange(one.size), np.arange(other.size)
    mixed, sought = one, other
    for _ in range(_TURNS):
        # Whatever an empty slot says is wrong, and found to be so by the comparison.
        table = np.zeros(1 << bits, np.intp)
        slots = (mixed >> shift).astype(np.intp)
        table[slots] = here
        holder = table[slots]
        found = table[(sought >> shift).astype(np.intp)]
        hit = one[found] == other[there]
        partner[there[hit]] = found[hit]
        crowded = np.flatnonzero(holder != here)
        if not crowded.size:
            break
        if (one[holder[crowded]] == one[here[crowded]]).any():
            return None
        missed = np.flatnonzero(~hit)
        # Those that had to give way try other slots; an odd factor keeps different hashes different.
        here, mixed = here[crowded], mixed[crowded] * _ODD
        there, sought = there[missed], sought[missed] * _ODD
    else:
        return None
    second = np.flatnonzero(partner >= 0)
    first = partner[second]
    met = np.zeros(one.size, bool)
    met[first] = True
    return (first, second) if np.count_nonzero(met) == first.size else None
