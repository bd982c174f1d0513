"""Which keys were asked before in a release: each is observed once, with its first answer.

They are kept in bitmaps of :data:`SLOTS` slots, whatever their number, which forget nothing: a key whose slot another
one has taken is not observed. Which keys these are is chance and has nothing to do with their labels; of new keys
e^(-n / SLOTS) are observed after n others: half after 1.4 million.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from airlock.steps.evidence_state import State
from airlock.steps.hash_join import Hashes

SLOTS = 1 << 21
"""Slots of a bitmap, which takes an eighth as many bytes."""

_ONE = np.uint8(1)


def first(state: State, name: str, keys: Hashes, order: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """Which of these keys are asked for the first time, of equal ones the first in this order; they are known then."""
    if not keys.size:
        return np.zeros(0, bool)
    places, bits = _places(keys), _bits(state, name)
    holder = np.empty(SLOTS, np.intp)
    holder[places[order[::-1]]] = order[::-1]  # the last to be written is the first in order
    found: npt.NDArray[np.bool_] = (holder[places] == np.arange(keys.size)) & ~_is_set(bits, places)
    np.bitwise_or.at(bits, places[found] >> 3, _ONE << (places[found] & 7).astype(np.uint8))
    state.put(_table(name), [bits], packed=True)
    return found


def known(state: State, name: str, keys: Hashes) -> npt.NDArray[np.bool_]:
    """Which of these keys no answer is observed of any more, unless it waits already."""
    return _is_set(_bits(state, name), _places(keys)) if keys.size else np.zeros(0, bool)


def _table(name: str) -> str:
    return f"asked {name}"


def _bits(state: State, name: str) -> npt.NDArray[np.uint8]:
    kept = state.table(_table(name))
    return kept[0].copy() if kept else np.zeros(SLOTS // 8, np.uint8)


def _places(keys: Hashes) -> npt.NDArray[np.intp]:
    # The lowest bits: a sample of the keys is chosen by the highest.
    return (keys % np.uint64(SLOTS)).astype(np.intp)


def _is_set(bits: npt.NDArray[np.uint8], places: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = (bits[places >> 3] >> (places & 7).astype(np.uint8)) & _ONE != 0
    return found
