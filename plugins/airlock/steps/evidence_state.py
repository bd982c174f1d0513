"""What is kept of a release's evidence between two looks, so that a look reads only what is new.

The state is a cache: the log, the labels and the outcomes are the truth, and a state that is missing, of another
format or about other limits is made anew from them. Its size is bounded, whatever the traffic: see the ``MOST_*``.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from airlock.core.tally import Sums, Tally

FORMAT = 4
MOST_NAMES = 1_000
"""Names of read files that are kept for one folder, the newest; of older ones only the number is kept."""
MOST_HALVES = 10_000
"""Answers that wait for the other version's answer to the same question, the newest."""
HALF_LIFE = timedelta(hours=1)
"""How long they wait, by the log's own time: shadow scoring drops what it cannot cope with."""
MOST_WAITING = 10_000
"""Answers that wait for their label, or for an outcome. From half as many on a sample of the keys is observed."""
MOST_EARLY = 10_000
"""Labels, or values of an outcome, that wait for their answer: the newest."""
MOST_SURPLUS = 100
"""Outcomes of one version that wait for one of the other, the newest: pairs are of about the same time."""

_SETTLED_NS = 2_000_000_000
_STEPS = 1_000
_STEPS_OF_ROOM = 20
_MOST_HALVINGS = 63

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class FoundLate(Exception):
    """A file has appeared among those that were read long ago: only reading all of them again takes it in."""


class _Part(BaseModel):
    # A sum that is not finite is a finding: it must come back as it was.
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")


class Folder(_Part):
    """Which of a folder's files have been read. Files never change, and nearly all appear in the order of their marks.

    ``modified_ns`` is the folder's time when it was last listed, 0 while that may hide a file that came in the same
    instant. ``old`` counts the files up to ``mark``.
    """

    modified_ns: int = 0
    mark: str = ""
    old: int = 0
    recent: list[str] = []

    def unread(self, path: Path) -> list[tuple[str, Path]]:
        """Marks and paths of the files that have not been read, in the order of the marks.

        Raises:
            FoundLate: one of them is older than the names that are kept.
        """
        modified, now = path.stat().st_mtime_ns, time.time_ns()
        if modified == self.modified_ns:
            return []
        # A log's name begins with its time; a name made of a content's digest says nothing about when it came.
        found = sorted(
            (name if name[5:24].isdigit() else f"{file.stat().st_mtime_ns:020d} {name}", file)
            for file in path.glob("part-*.parquet")
            for name in (file.name,)
        )
        old = sum(mark <= self.mark for mark, _ in found)
        if old > self.old:
            raise FoundLate(f"{path} has {old - self.old} more files up to {self.mark} than when they were read")
        self.old = old  # fewer: some were deleted, which takes back nothing
        self.modified_ns = modified if now - modified > _SETTLED_NS else 0
        known = set(self.recent)
        return [(mark, file) for mark, file in found if mark > self.mark and mark not in known]

    def read(self, marks: Iterable[str]) -> None:
        """Remember that these have been read."""
        self.recent = sorted([*self.recent, *marks])
        if (beyond := len(self.recent) - MOST_NAMES) > 0:
            self.mark, self.old = self.recent[beyond - 1], self.old + beyond
            self.recent = self.recent[beyond:]


class Maturing(_Part):
    """Answers by when they are due, and how many of those that are due have their label.

    Times are counted in thousandths of the maturity, rounded up: an answer is due at most so much later than to the
    microsecond. ``coming`` holds answers and labelled ones by slot for what is not due yet.
    """

    width_us: int
    slots: int
    due: int = 0
    labelled: int = 0
    coming: dict[int, tuple[int, int]] = {}

    @classmethod
    def of(cls, maturity: timedelta) -> Maturing:
        whole = maturity // timedelta(microseconds=1)
        width = max(1, whole // _STEPS)
        return cls(width_us=width, slots=-(-whole // width))

    def count(self, times: Ints, answers: int, labelled: int) -> None:
        """Count ``answers`` and ``labelled`` (1, 0 or -1) for each of ``times``, in microseconds."""
        if not times.size:
            return
        slots = -(-times // self.width_us) + self.slots
        first, span = int(slots.min()), int(np.ptp(slots)) + 1
        if span <= times.size + 10 * _STEPS:  # nearly always, and to count is faster than to sort
            counts = np.bincount(slots - first)
            found = np.flatnonzero(counts)
            slots, counts = found + first, counts[found]
        else:
            slots, counts = np.unique(slots, return_counts=True)
        for slot, number in zip(slots.tolist(), counts.tolist(), strict=True):
            before = self.coming.get(slot, (0, 0))
            self.coming[slot] = (before[0] + answers * number, before[1] + labelled * number)

    def by(self, until_us: int) -> tuple[int, int]:
        """How many answers are due by then, and how many of these are labelled."""
        coming = [counts for slot, counts in self.coming.items() if slot * self.width_us <= until_us]
        return self.due + sum(due for due, _ in coming), self.labelled + sum(labelled for _, labelled in coming)

    def settle(self, until_us: int) -> None:
        """Keep only the sums of what is due by then."""
        self.due, self.labelled = self.by(until_us)
        self.coming = {slot: counts for slot, counts in self.coming.items() if slot * self.width_us > until_us}


class Stream(_Part):
    """Of which share of the newest answers one kind of value is observed: of each key in ``2**halvings``.

    When an answer is read its key decides, once and for all, whether it is observed: by a hash, which knows nothing of
    the value. So a value that is there at once counts as often as one that comes days later. Who is observed waits and
    does not give way to newer ones before its time is over; the share of the next ones follows how many wait. It is
    halved for each twentieth of the second half of the room that is taken, so that there is room left when the first
    values come even for a million times as many answers, and doubled at most once a look.
    """

    halvings: int = 0

    @property
    def below(self) -> int:
        """Keys with a 64-bit hash below this are observed."""
        return 1 << (64 - self.halvings)

    def fit(self, waiting: int, fresh: npt.NDArray[np.uint64]) -> None:
        """Choose the share for what is new, by the hashes of its keys: those that have to wait for their value."""
        self.halvings = max(0, self.halvings - 1)
        while self.halvings < _MOST_HALVINGS and (
            waiting + np.count_nonzero(fresh < self.below) > self._room(self.halvings)
        ):
            self.halvings += 1

    @staticmethod
    def _room(halvings: int) -> float:
        return MOST_WAITING / 2 * (1 + min(halvings, _STEPS_OF_ROOM) / _STEPS_OF_ROOM)


class State(_Part):
    """Everything that a look needs of the looks before it.

    ``basis`` says what the sums are of; ``first_generation`` is the first route generation of the release that was
    seen and ``first_day`` the first day whose log can be its own. ``maturing`` is about the first answers to all keys,
    ``pairs`` about those that the champion answered too or failed on, which count as labelled if it answered.
    ``partners`` counts those that it should have answered, and as labelled those on which it did or failed: of all
    keys, also where a sample is observed. ``newest_us`` is the newest time of the log, and ``next_us`` the time after
    which something that waits is to be looked at again. ``tables`` are small Arrow tables by name, in Arrow's own
    format as base64: what waits, row by row, with hashes for keys, and which keys were asked (steps/once.py).
    """

    format: int = FORMAT
    basis: str
    first_generation: int
    first_day: date
    folders: dict[str, Folder] = {}
    newest_us: int = 0
    next_us: int | None = None
    total: Tally = Tally()
    answers: int = 0
    maturing: Maturing
    pairs: Maturing
    partners: Maturing
    streams: dict[str, Stream] = {}
    observations: dict[str, Sums] = {}
    surplus: dict[str, list[float]] = {}
    tables: dict[str, str] = {}

    def due_at(self, time_us: int) -> None:
        """Something that waits is to be looked at again after this time, whatever else is new."""
        self.next_us = time_us if self.next_us is None else min(time_us, self.next_us)

    def table(self, name: str) -> list[npt.NDArray[Any]]:
        """The columns of a table that was put; none if there is no row."""
        if name not in self.tables:
            return []
        table = pa.ipc.open_stream(base64.b64decode(self.tables[name])).read_all()
        return [column.to_numpy() for column in table.columns]

    def put(self, name: str, columns: Sequence[npt.NDArray[Any]], *, packed: bool = False) -> None:
        """Keep a table; ``packed``: compressed, which pays where most of it is alike."""
        if not len(columns[0]):
            self.tables.pop(name, None)
            return
        batch = pa.record_batch([pa.array(column) for column in columns], names=[str(n) for n in range(len(columns))])
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="zstd" if packed else None)
        with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
            writer.write_batch(batch)
        self.tables[name] = base64.b64encode(sink.getvalue()).decode()


def parse_state(document: str, basis: str) -> State | None:
    """A state that was kept; ``None`` if it is of another format or about something else."""
    try:
        state = State.model_validate_json(document)
    except ValidationError:
        return None
    return state if (state.format, state.basis) == (FORMAT, basis) else None


def unread(state: State, root: Path, base: Path, since: date = date.min) -> list[tuple[str, str, Path]]:
    """What of ``root/day=*/part-*.parquet`` has not been read: its folder below ``base``, its mark, its path.

    Raises:
        FoundLate: see :meth:`Folder.unread`.
    """
    found = []
    for path in sorted(root.glob("day=*")):
        if path.name < f"day={since.isoformat()}":
            continue
        name = path.relative_to(base).as_posix()
        folder = state.folders.setdefault(name, Folder())
        found += [(name, mark, file) for mark, file in folder.unread(path)]
    return found
