"""Answers that wait, and what became of them: labels and outcomes, joined by the hash of their key."""

# ruff: noqa: S608 - what is put into a query is a column's name of ours; values are bound

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from airlock.steps import evidence_state, once
from airlock.steps.evidence_state import MOST_EARLY, Floats, Ints, State, Stream
from airlock.steps.hash_join import Hashes, Places, meet
from airlock.steps.log_rows import ANSWERED, NO_KEY, Answers, Asked, Half, chosen, select

if TYPE_CHECKING:
    import duckdb

LABEL = "label"
"""The stream of labels; the other streams are outcomes, by name."""

SERVED = "served"
"""The keys that were served by either version; see steps/once.py."""

_ALL = 2**64 - 1
_ALWAYS = np.iinfo(np.int64).min
"""When a label without a time became known."""


class Values(NamedTuple):
    """Labels or values of an outcome, and when they became known, in microseconds."""

    key: Hashes
    value: Floats
    known: Ints

    def only(self, rows: npt.NDArray[Any]) -> Self:
        return type(self)(*chosen(self, rows))

    def then(self, other: Values) -> Values:
        return Values(*(np.concatenate(columns) for columns in zip(self, other, strict=True)))


class Matched(NamedTuple):
    """Answers that were joined to what became of them, in the order in which that became known; each key once.

    ``settled_us`` holds the event times of these answers, and ``pairs_us`` of them that the champion gave as well.
    """

    values: Floats
    ours: Floats
    theirs: Floats
    settled_us: Ints
    pairs_us: Ints


def served(asked: Asked, state: State) -> Answers:
    """Answers that an outcome may come of: those that a client got from the version that the shares chose, the first
    of each key in the release."""
    half = asked.half
    keyed = half.key != NO_KEY
    chosen = half.only(half.served & ~np.isnan(half.score) & ~half.stood_in & ~asked.pinned & keyed)
    order = np.lexsort((chosen.ours, chosen.row, chosen.asked_us))
    chosen = chosen.only(once.first(state, SERVED, chosen.key, order))
    nobody = np.full(chosen.score.size, np.nan)
    alone = np.zeros(chosen.score.size, bool)
    return Answers(chosen.key, chosen.asked_us, chosen.event_us, chosen.ours.astype(np.float64), nobody, alone)


def match(
    connection: duckdb.DuckDBPyConnection,
    state: State,
    stream: str,
    fresh: Answers,
    files: Sequence[str],
    until_us: int,
    patience_us: int,
) -> Matched:
    """Join answers that wait to what became of them by ``until_us``, and keep what goes on waiting.

    ``fresh`` has each key once, and none that was asked before. Which answers are observed is settled before any of
    their values is used (see ``Stream``). One that has waited for ``patience_us`` since its event may have to make
    room: then its value stays missing. What is delivered for a key that was settled is not used.
    """
    kind = state.streams.setdefault(stream, Stream())
    waiting, early = state.table(f"waiting {stream}"), state.table(f"early {stream}")
    fresh = fresh.only(fresh.key != NO_KEY)
    is_fresh = np.ones(fresh.key.size, bool)
    answers = fresh
    if waiting:
        answers = fresh.then(Answers(*waiting))
        is_fresh = np.arange(answers.key.size) < fresh.key.size
    values = _read(connection, stream, files)
    values = values.then(Values(*early)) if early else values
    values = values.only(~_settled(state, stream, values.key, answers.key))
    held = values.known >= until_us
    later, values = values.only(held), values.only(~held)
    chosen, of_chosen, gone, used = _join(answers, values)
    waits, spare = ~gone, values.only(~used)
    old = waits & ~is_fresh & (answers.event_us < until_us - patience_us)
    if np.count_nonzero(waits & ~is_fresh) > evidence_state.MOST_WAITING // 4:
        waits &= ~old
    observed = np.ones(answers.key.size, bool)
    if is_fresh.any():
        kind.fit(int(np.count_nonzero(waits & ~is_fresh)), answers.key[waits & is_fresh])
    if kind.halvings:
        observed = ~is_fresh | (answers.key < kind.below)
        if stream == LABEL:
            # What is not observed is neither due nor labelled, so that their ratio stays that of a fair sample.
            left_out = answers.only(~observed)
            state.maturing.count(left_out.event_us, -1, 0)
            state.pairs.count(left_out.event_us[left_out.paired], -1, 0)
        # The share for those whose value came before them may have risen by the next looks.
        spare = spare.only(spare.key < min(_ALL, kind.below << 2))
        of_chosen, chosen = of_chosen[observed[chosen]], chosen[observed[chosen]]
    rest = answers.only(waits & observed)
    if later.known.size:
        state.due_at(int(later.known.min()))
    spare = spare.then(later)
    if spare.known.size > MOST_EARLY:
        spare = spare.only(np.argsort(spare.known)[-MOST_EARLY:])
    state.put(f"waiting {stream}", rest)
    state.put(f"early {stream}", spare)
    order = _in_order(values.known[of_chosen], values.key[of_chosen])
    mine = answers.only(chosen[order])
    in_pairs = mine.event_us[~np.isnan(mine.theirs)]
    return Matched(values.value[of_chosen[order]], mine.ours, mine.theirs, mine.event_us, in_pairs)


def _settled(state: State, stream: str, keys: Hashes, waiting: Hashes) -> npt.NDArray[np.bool_]:
    """Which of these keys no answer waits of, and none is going to: it was observed, or never will be."""
    asked = once.known(state, ANSWERED if stream == LABEL else SERVED, keys)
    awaited = [waiting]
    if stream == LABEL and (halves := state.table("halves")):
        awaited.append(Half(*halves).key)
    asked[asked] = ~np.isin(keys[asked], np.concatenate(awaited))
    return asked


def _read(connection: duckdb.DuckDBPyConnection, stream: str, files: Sequence[str]) -> Values:
    """What was delivered in these files."""
    if not files:
        return Values(np.empty(0, np.uint64), np.empty(0), np.empty(0, np.int64))
    value, time = ("label", "label_time") if stream == LABEL else ("value", "time")
    query = f"""
        SELECT hash(key) AS key, {value}::DOUBLE AS value, coalesce(epoch_us({{optional}}), {_ALWAYS})::BIGINT AS known
        FROM read_parquet($files, union_by_name = true, hive_partitioning = false)
        """
    # Labels of a spec that names no time have no such column.
    return Values(*select(connection, query, {"files": list(files)}, optional=time, instead="NULL::TIMESTAMPTZ"))


def _join(answers: Answers, values: Values) -> tuple[Places, Places, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """The first answer and the first value of each key that has both; which answers and values have such a key."""
    met = meet(answers.key, values.key)
    if met is None:
        return _join_repeated(answers, values)
    gone, used = np.zeros(answers.key.size, bool), np.zeros(values.key.size, bool)
    gone[met[0]] = used[met[1]] = True
    return *met, gone, used


def _join_repeated(
    answers: Answers, values: Values
) -> tuple[Places, Places, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """The same, where a key was delivered several times: the first by time, and the smallest of those."""
    size = answers.key.size
    keys = np.concatenate([answers.key, values.key])
    times = np.concatenate([answers.asked_us, values.known])
    amounts = np.concatenate([answers.ours, values.value])
    is_value = np.arange(keys.size) >= size
    order = np.lexsort((amounts, times, is_value, keys))
    number = np.cumsum(np.r_[True, keys[order][1:] != keys[order][:-1]]) - 1
    count = int(number[-1]) + 1
    first_answer, first_value = np.full(count, -1), np.full(count, -1)
    backwards = order[::-1]
    of_answers = backwards[~is_value[backwards]]
    of_values = backwards[is_value[backwards]]
    place = np.empty(keys.size, np.intp)
    place[order] = number
    first_answer[place[of_answers]] = of_answers  # the last to be written is the first in order
    first_value[place[of_values]] = of_values
    both = (first_answer >= 0) & (first_value >= 0)
    joined = both[place]
    return first_answer[both], first_value[both] - size, joined[:size], joined[size:]


def _in_order(times: Ints, hashes: Hashes) -> Places:
    """The order of the times, and of the hashes where times are equal: packed into one number, which sorts fastest."""
    timed = times != _ALWAYS
    if not times.size or not timed.all():
        return np.lexsort((hashes, times))
    since = times - times.min()
    spare = 63 - int(since.max()).bit_length()
    # Deliveries are nearly in order already, which this kind of sort makes use of.
    return np.argsort((since << spare) | (hashes >> np.uint64(64 - spare)).astype(np.int64), kind="stable")
