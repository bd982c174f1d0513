"""The rows of the log that concern a release: what they count for, and which answers are to the same question.

DuckDB reads and hashes; the rest is numpy, whose joins by sorted integers cost a small look nothing to set up. Rows are
joined by the gateway's time of the question, the hash of its id and the row: an id alone is the client's, who may use
it again.
"""

# ruff: noqa: S608 - what is put into a query is a column's name of ours; values are bound

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from airlock.core.limits import answers_apart, limits_of
from airlock.core.release import Release
from airlock.core.spec import ModelSpec, Task
from airlock.core.tally import BUCKETS, Sums, Tally
from airlock.steps import once
from airlock.steps.evidence_state import HALF_LIFE, MOST_HALVES, Floats, Ints, State
from airlock.steps.hash_join import Hashes, Places, meet
from airlock.steps.observations import extended, within

if TYPE_CHECKING:
    import duckdb

Flags = npt.NDArray[np.bool_]

NO_KEY = np.uint64(0)
"""Stands for the hash of a key that is missing."""
ANSWERED = "answered"
"""The keys that the candidate has answered; see steps/once.py."""


def chosen(columns: Sequence[npt.NDArray[Any]], rows: npt.NDArray[Any]) -> Sequence[npt.NDArray[Any]]:
    """These rows of the columns: flags or places."""
    if rows.dtype == bool:
        if rows.all():
            return columns
        rows = np.flatnonzero(rows)  # once, instead of once for each column
    return [column[rows] for column in columns]


class Half(NamedTuple):
    """One version's answer to one row of a request, or its failure: then the ``score`` is NaN.

    ``ours``: the candidate's; ``stood_in``: given in another version's place.
    """

    asked_us: Ints
    event_us: Ints
    key: Hashes
    request: Hashes
    row: npt.NDArray[np.int32]
    ours: Flags
    served: Flags
    stood_in: Flags
    score: Floats

    def only(self, rows: npt.NDArray[Any]) -> Self:
        return type(self)(*chosen(self, rows))


class Asked(NamedTuple):
    """All that was read of the log: of each row of ``half``, ``here`` says that it was logged in the release itself,
    ``pairable`` that the other version should have answered it too."""

    half: Half
    here: Flags
    pairable: Flags
    pinned: Flags
    latency: Floats


class Answers(NamedTuple):
    """Answers that wait for a label or an outcome: the candidate's score and the champion's (NaN: none).

    Of an outcome ``ours`` is 1 for the candidate and 0 for the champion. ``paired``: the champion was asked as well,
    and answered or failed.
    """

    key: Hashes
    asked_us: Ints
    event_us: Ints
    ours: Floats
    theirs: Floats
    paired: Flags

    def only(self, rows: npt.NDArray[Any]) -> Self:
        return type(self)(*chosen(self, rows))

    def then(self, *others: Answers) -> Answers:
        some = [answers for answers in (self, *others) if answers.key.size] or [self]
        return Answers(*(np.concatenate(columns) for columns in zip(*some, strict=True))) if some[1:] else some[0]


def version() -> str:
    """DuckDB's, whose hashes stand for keys and request ids."""
    import duckdb

    return str(duckdb.__version__)


@functools.lru_cache(maxsize=1)
def _database(_process: int) -> duckdb.DuckDBPyConnection:
    """One a process, because to make one costs more than a look may. A fork must not use its parent's threads."""
    import duckdb

    return duckdb.connect(config={"preserve_insertion_order": False})


@contextmanager
def opened() -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection of its own."""
    with _database(os.getpid()).cursor() as connection:
        yield connection


def select(
    connection: duckdb.DuckDBPyConnection, query: str, values: Mapping[str, object], *, optional: str, instead: str
) -> list[npt.NDArray[Any]]:
    """The columns of a query; where no file has the ``optional`` one, with the expression ``instead`` of it.

    Columns are matched by name: files of an older gateway lack some, and versions differ in their inputs. To look first
    which there are would open every file twice.
    """
    import duckdb

    try:
        found = connection.execute(query.replace("{optional}", optional), dict(values))
    except duckdb.BinderException:
        found = connection.execute(query.replace("{optional}", instead), dict(values))
    return [np.asarray(column) for column in found.fetchnumpy().values()]


def read(
    connection: duckdb.DuckDBPyConnection,
    spec: ModelSpec,
    release: Release,
    champion: str | None,
    state: State,
    files: Sequence[str],
) -> Asked:
    """What of these files concerns the release: its own rows, and what its version answered as the champion since."""
    if not files:
        dtypes = ("i8", "i8", "u8", "u8", "i4", "?", "?", "?", "f8", "?", "?", "?", "f8")
        empty = [np.empty(0, kind) for kind in dtypes]
        return Asked(Half(*empty[:9]), *empty[9:])
    score = "probability" if spec.task is Task.CLASSIFICATION else "prediction"
    query = f"""
        SELECT epoch_us("at") AS asked_us, epoch_us(coalesce(event_time, "at")) AS event_us,
            CASE WHEN key IS NULL THEN 0::UBIGINT ELSE hash(key) END AS key, hash(request_id) AS request, "row",
            version IS NOT DISTINCT FROM $version AS ours, role = 'served' AS served,
            coalesce(CAST(fallback AS VARCHAR), 'false') <> 'false' AS stood_in,
            CASE WHEN error IS NULL AND {score} IS NOT NULL THEN {score} ELSE 'nan'::DOUBLE END AS score,
            release IS NOT DISTINCT FROM $release AS here,
            ours AND here AND variant = 'candidate' AND $champion IS NOT NULL AS pairable,
            {{optional}} IS NOT NULL AS pinned, coalesce(latency_ms, 0) AS latency
        FROM read_parquet($files, union_by_name = true, hive_partitioning = false)
        WHERE (release = $release AND (version IS NULL OR version IN ($version, $champion)))
            OR (version = $version AND generation >= $generation)
        """
    values: dict[str, object] = {"version": release.version, "champion": champion, "release": release.id}
    values |= {"generation": state.first_generation, "files": list(files)}
    columns = select(connection, query, values, optional="pin", instead="NULL")
    asked = Asked(Half(*columns[:9]), *columns[9:])
    if asked.half.asked_us.size:
        state.newest_us = max(state.newest_us, int(asked.half.asked_us.max()))
    return asked


def first_answers(asked: Asked, state: State) -> Asked:
    """The same, with a key only where the candidate's first answer to it in the release is: no other is observed."""
    half = asked.half
    places = np.flatnonzero(half.ours & ~np.isnan(half.score) & (half.key != NO_KEY))
    mine = half.only(places)
    order = np.lexsort((mine.score, mine.row, mine.asked_us))
    places = places[once.first(state, ANSWERED, mine.key, order)]
    key = np.full_like(half.key, NO_KEY)
    key[places] = half.key[places]
    return asked._replace(half=half._replace(key=key))


def count(asked: Asked, state: State, slow: Mapping[str, float]) -> None:
    """Add to the candidate's tally, and to the answers that a label is due for. A request counts by its first row."""
    half = asked.half
    failed = np.isnan(half.score)
    first = half.ours & asked.here & ~half.stood_in & (half.row == 0)
    latency = asked.latency[first]
    buckets = np.ceil(4 * np.log2(np.maximum(latency, 0.05) / 0.05)).astype(np.int64)
    over = {name: int(np.count_nonzero(latency > ms)) for name, ms in slow.items()}
    state.total += Tally(
        requests=int(np.count_nonzero(first)),
        errors=int(np.count_nonzero(first & failed)),
        # In shadow nobody has to stand in for a version that fails; but somebody would have had to.
        fallbacks=int(np.count_nonzero(first & failed & ~half.served)),
        latency=np.bincount(np.minimum(buckets, BUCKETS - 1), minlength=BUCKETS).tolist(),
        slow=over,
    )
    answered = half.ours & ~failed
    state.answers += int(np.count_nonzero(answered))
    # A key is due once, with its first answer; without a key nothing can be joined, so that nothing is due.
    due = answered & (half.key != NO_KEY)
    state.maturing.count(half.event_us[due], 1, 0)
    state.partners.count(half.event_us[due & asked.pairable], 1, 0)


def pair(asked: Asked, spec: ModelSpec, state: State, until_us: int) -> Answers:
    """Compare the answers to the same questions, keep what has no partner yet, and return what a label may come for.

    That is what has its partner, what will not get one any more, and what never had one to wait for. A champion that
    failed on a row has left a row with an error, which is a partner; one that the gateway's shadow queue dropped, which
    says nothing about the row, has left none, so that the answer belongs to no pair.
    """
    half, failed = asked.half, np.isnan(asked.half.score)
    fits = asked.pairable | (asked.here & ~half.ours & ~(failed & half.served))
    halves = _then(half.only(fits), state.table("halves"))
    ours, theirs = _partners(halves)
    one, other, stood_in = halves.only(ours), halves.score[theirs], halves.stood_in[theirs]
    _compare(one, other, stood_in, spec, state)
    alone = np.ones(halves.row.size, bool)
    alone[ours] = alone[theirs] = False
    patience = HALF_LIFE // timedelta(microseconds=1)
    cut = max(state.newest_us, until_us) - patience
    waiting = np.flatnonzero(alone)
    if waiting.size > MOST_HALVES:
        cut = max(cut, int(np.partition(halves.asked_us[waiting], -MOST_HALVES)[-MOST_HALVES]))
    stays = alone & (halves.asked_us >= cut)
    _keep(state, halves.only(stays), patience)
    given_up = halves.only(alone & ~stays & halves.ours)
    never = half.only(half.ours & ~asked.pairable)
    paired = _answers(one, np.where(stood_in, np.nan, other), paired=True)
    due_us = paired.event_us[paired.key != NO_KEY]
    state.pairs.count(due_us, 1, 0)
    state.partners.count(due_us, 0, 1)
    return paired.then(_alone(given_up), _alone(never))


def _alone(half: Half) -> Answers:
    return _answers(half, np.full(half.score.size, np.nan), paired=False)


def _answers(half: Half, theirs: Floats, *, paired: bool) -> Answers:
    answered, pairs = ~np.isnan(half.score), np.full(half.score.size, paired)
    return Answers(half.key, half.asked_us, half.event_us, half.score, theirs, pairs).only(answered)


def _partners(halves: Half) -> tuple[Places, Places]:
    """The places of the candidate's answers, and of the other answers to the same questions."""
    odd = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))
    question = halves.request ^ (halves.asked_us.astype(np.uint64) * odd[0])
    question ^= halves.row.astype(np.uint64) * odd[1]
    mine, other = np.flatnonzero(halves.ours), np.flatnonzero(~halves.ours)
    met = meet(question[mine], question[other])
    if met is not None:
        return mine[met[0]], other[met[1]]
    order = np.argsort(question)
    ordered, ours = question[order], halves.ours[order]
    meets = (ordered[1:] == ordered[:-1]) & (ours[1:] != ours[:-1])
    for place in np.flatnonzero(meets[1:] & meets[:-1]) + 1:
        meets[place] &= not meets[place - 1]  # three of one question: each has one partner
    first, second = order[:-1][meets], order[1:][meets]
    ours = halves.ours[first]
    return np.where(ours, first, second), np.where(ours, second, first)


def _compare(one: Half, other: Floats, stood_in: Flags, spec: ModelSpec, state: State) -> None:
    """Add the requests that both versions answered, each once."""
    tally = state.total
    failed = np.isnan(one.score)
    tally.fallbacks += int(np.count_nonzero(stood_in & one.served & failed & (one.row == 0)))
    both = ~(failed | np.isnan(other) | stood_in)
    ours, theirs, bound = one.score[both], other[both], spec.label.threshold
    difference = within(ours - theirs, answers_apart(limits_of(spec)))
    flipped = np.zeros(ours.size)
    if spec.task is Task.CLASSIFICATION:
        flipped = ((ours >= bound) != (theirs >= bound)).astype(np.float64)
    mean = _by_request(one, both)
    for name, values in (("difference", difference), ("absolute", np.abs(difference)), ("flips", flipped)):
        sums: Sums = getattr(tally, name)
        setattr(tally, name, extended(sums, mean(values)))


def _by_request(rows: Half, both: Flags) -> Callable[[Floats], Floats]:
    """A function that takes the mean of a column over the rows of each request."""
    if not rows.row.any():
        return lambda values: values  # nearly always: one row a request
    rows = rows.only(both)
    _, request = np.unique(np.stack([rows.asked_us.astype(np.uint64), rows.request]), axis=1, return_inverse=True)
    size = np.bincount(request)
    return lambda values: np.bincount(request, values) / size


def _keep(state: State, halves: Half, patience: int) -> None:
    state.put("halves", halves)
    if halves.row.size:
        state.due_at(int(halves.asked_us.min()) + patience)


def _then(half: Half, kept: Sequence[npt.NDArray[Any]]) -> Half:
    if not kept:
        return half
    return Half(*(np.concatenate([half[place], column]) for place, column in enumerate(kept)))
