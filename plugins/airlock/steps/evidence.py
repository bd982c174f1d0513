"""Evidence about a release from what lies on the disk: the prediction log, and labels and outcomes as they come.

A look reads the files that have come since the look before it and keeps a state in the ledger
(steps/evidence_state.py). What is observed:

- A request that candidate and champion both answered is one observation of their difference.
- A key is due once, with its first answer in the release, and its label is used once, with that answer: the
  candidate's, and the champion's to the same question where there is one, whichever of them the client got. A key that
  is asked again is not waited for again. The label that came first stays used; a correction that comes later is for
  the next training, not for a test that has looked already.
- Where a limit compares with the champion, an answer to a question on which the champion failed is missing, label or
  not: that may say something about the question. One that the gateway never asked the champion, because its shadow
  queue was full, is no pair: it is neither due nor labelled. Neither is one whose partner may still come.
- An outcome belongs to whoever answered the client. Answers that a pin chose, or that stood in for another version,
  are left out: the shares did not choose who gave them.

Where more answers wait than can be kept, a sample of them is observed: chosen by a hash of the key before anything is
known of their labels, so that one that comes early counts no more often than one that comes late. A metric of batches
loses no row, however rare a class is (steps/observations.py).

Labels and outcomes are observed in the order in which they became known. Those that come first may not be like those
that come later: margins to the champion, which hold both versions against the same labels, are safer than bounds.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from airlock.core.decide import late_deadline
from airlock.core.errors import Conflict, DataInvalid
from airlock.core.guards import guarded, slow_limits
from airlock.core.limits import answers_apart
from airlock.core.release import Release
from airlock.core.route import Route
from airlock.core.spec import BusinessMetricGuard, ModelSpec
from airlock.core.tally import LateEvidence, Sums, Tally
from airlock.settings import Settings
from airlock.steps import arrivals, log_rows
from airlock.steps.evidence_state import (
    MOST_SURPLUS,
    Floats,
    FoundLate,
    Maturing,
    State,
    parse_state,
    unread,
)
from airlock.steps.log_rows import Answers
from airlock.steps.observations import Begun, Labelled, batches, compares, extended, outcomes, single, usable

if TYPE_CHECKING:
    import duckdb

log = logging.getLogger(__name__)

_TRIES = 3
_CLOCKS = timedelta(days=1)
"""How far the gateway's clock and the control plane's may be apart."""


class Store(Protocol):
    """What is needed of the ledger."""

    def save_state(self, model: str, name: str, document: str, *, revision: int | None) -> int: ...

    def load_state(self, model: str, name: str) -> tuple[str, int] | None: ...

    def routes(self, model: str) -> list[Route]: ...


class Gathered(NamedTuple):
    """What is known of a release by now: the candidate's tally over both roles, and what came after the answers."""

    tally: Tally
    late: LateEvidence


def gather(
    spec: ModelSpec, settings: Settings, ledger: Store, release: Release, champion: str | None, *, until: datetime
) -> Gathered:
    """Read what is new, and say what all of it amounts to.

    Args:
        champion: the version that the candidate is compared with; ``None``: none, every answer stands alone.
        until: aware; labels and outcomes that became known later are left for later looks, and an answer is due once
            its event is the model's maturity older. Times that go back take nothing back.

    Raises:
        DataInvalid: ``until`` has no time zone.
        Conflict: others kept on writing the same state meanwhile.
    """
    if until.tzinfo is None:
        raise DataInvalid(f"until {until} has no time zone; give an aware time such as 2013-07-01T00:00:00+00:00")
    name = f"evidence/{release.id}"
    look = _Look(spec, settings, release, champion, until)
    for attempt in range(1, _TRIES + 1):
        kept = ledger.load_state(spec.model, name)
        known = parse_state(kept[0], look.basis) if kept else None
        state, changed = look.from_state(known, ledger)
        if changed:
            try:
                ledger.save_state(spec.model, name, state.model_dump_json(), revision=kept[1] if kept else None)
            except Conflict:
                if attempt == _TRIES:
                    raise
                continue
        break
    return look.gathered(state)


def late_evidence(
    spec: ModelSpec, settings: Settings, ledger: Store, release: Release, champion: str | None, *, until: datetime
) -> LateEvidence:
    """What labels and outcomes say about a release by ``until``; see :func:`gather`."""
    return gather(spec, settings, ledger, release, champion, until=until).late


def release_tally(
    spec: ModelSpec, settings: Settings, ledger: Store, release: Release, champion: str | None, *, until: datetime
) -> Tally:
    """What the log says that the gateway counted of the candidate in this release, served and shadow together.

    The log does not tell time-outs from other errors: ``timeouts`` stays 0. See :func:`gather`.
    """
    return gather(spec, settings, ledger, release, champion, until=until).tally


class _Look:
    """One look at one release."""

    def __init__(
        self, spec: ModelSpec, settings: Settings, release: Release, champion: str | None, until: datetime
    ) -> None:
        self._spec, self._settings, self._release, self._champion = spec, settings, release, champion
        self._until = until
        self._until_us = (until - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
        self._patience_us = late_deadline(spec) // timedelta(microseconds=1)
        pairs = guarded(spec)
        self._slow = slow_limits(limit for _, limit in pairs)
        self._on_labels = [(g, limit) for g, limit in pairs if limit.late and not isinstance(g, BusinessMetricGuard)]
        self._on_outcomes = [(g, limit) for g, limit in pairs if isinstance(g, BusinessMetricGuard)]
        self.basis = json.dumps(
            {
                "versions": [release.version, champion],
                "slow": self._slow,
                "apart": str(answers_apart(limit for _, limit in pairs)),
                "late": [[limit.name, limit.batch, g.model_dump(mode="json")] for g, limit in pairs if limit.late],
                "maturity": spec.maturity.total_seconds(),
                "threshold": spec.label.threshold,
                "label": spec.label.name,
                # Whose hashes of keys and request ids the state holds: another DuckDB may hash otherwise.
                "duckdb": log_rows.version(),
            },
            sort_keys=True,
        )

    def from_state(self, known: State | None, ledger: Store) -> tuple[State, bool]:
        """The state as of now, and whether it has to be kept."""
        if known is not None:
            try:
                return known, self._go_on(known)
            except FoundLate as late:
                log.info("%s: evidence about release %s is read anew: %s", self._spec.model, self._release.id, late)
        state = self._first(ledger)
        self._go_on(state)
        return state, True

    def _first(self, ledger: Store) -> State:
        """The state before anything was read. What lies before the release's first route is never read."""
        routes = ledger.routes(self._spec.model)
        own = next((route for route in routes if route.release == self._release.id), None)
        # A first version has no release in its route: it was put in place at once.
        own = own or next((route for route in routes if route.generation == self._release.generation), None)
        return State(
            basis=self.basis,
            first_generation=own.generation if own else self._release.generation,
            first_day=(own.written_at.astimezone(UTC) - _CLOCKS).date() if own else date.min,
            maturing=Maturing.of(self._spec.maturity),
            pairs=Maturing.of(self._spec.maturity),
            partners=Maturing.of(self._spec.maturity),
        )

    def _go_on(self, state: State) -> bool:
        """Take in what is new; whether anything was.

        Raises:
            FoundLate: a file came so late that the state cannot tell it from those it has read.
        """
        home, model = self._settings.home, self._spec.model
        asked = unread(state, self._settings.predictions / model, home, state.first_day)
        labels = unread(state, self._settings.labels / model, home) if self._on_labels else []
        names = {guard.name for guard, _ in self._on_outcomes}
        named = {name: unread(state, self._settings.outcomes / model / name, home) for name in sorted(names)}
        files = [*asked, *labels, *(found for part in named.values() for found in part)]
        waited = state.next_us is not None and state.next_us < self._until_us
        if not files and not waited:
            return False
        state.next_us = None
        with log_rows.opened() as connection:
            rows = log_rows.read(connection, self._spec, self._release, self._champion, state, _paths(asked))
            served = arrivals.served(rows, state) if named else None
            rows = log_rows.first_answers(rows, state)
            log_rows.count(rows, state, self._slow)
            answers = log_rows.pair(rows, self._spec, state, self._until_us)
            self._take_labels(connection, state, answers, _paths(labels))
            if served is not None:
                for name, part in named.items():
                    self._take_outcomes(connection, state, name, served, _paths(part))
        for name, found in groupby(sorted(files), key=lambda file: file[0]):
            state.folders[name].read(mark for _, mark, _ in found)
        state.maturing.settle(self._until_us)
        state.pairs.settle(self._until_us)
        state.partners.settle(self._until_us)
        return True

    def _take_labels(
        self, connection: duckdb.DuckDBPyConnection, state: State, answers: Answers, files: list[str]
    ) -> None:
        if not self._on_labels:
            return
        matched = arrivals.match(connection, state, arrivals.LABEL, answers, files, self._until_us, self._patience_us)
        state.maturing.count(matched.settled_us, 0, 1)
        state.pairs.count(matched.pairs_us, 0, 1)
        rows = Labelled(matched.values, matched.ours, matched.theirs)
        for guard, limit in self._on_labels:
            mine = usable(guard, rows)
            if limit.batch == 1:
                found = single(guard, mine, self._spec.label.threshold)
            else:
                kept = state.table(f"batch {limit.name}")
                found, begun = batches(guard, limit, mine, Begun(*kept) if kept else None)
                state.put(f"batch {limit.name}", begun)
            _add(state, limit.name, found)

    def _take_outcomes(
        self, connection: duckdb.DuckDBPyConnection, state: State, name: str, answers: Answers, files: list[str]
    ) -> None:
        matched = arrivals.match(connection, state, name, answers, files, self._until_us, self._patience_us)
        for guard, limit in self._on_outcomes:
            if guard.name == name:
                spare = state.surplus.get(limit.name, [])
                found, _, spare = outcomes(guard, matched.values, matched.ours == 1, spare, MOST_SURPLUS)
                state.surplus[limit.name] = spare
                _add(state, limit.name, found)

    def gathered(self, state: State) -> Gathered:
        due, labelled = state.maturing.by(self._until_us)
        of_pairs = state.pairs.by(self._until_us)
        late = LateEvidence(
            until=self._until,
            answers=state.answers,
            due=due,
            labelled=labelled,
            partners=state.partners.by(self._until_us),
            of_pairs={limit.name: of_pairs for guard, limit in self._on_labels if compares(guard)},
            observations={
                limit.name: state.observations.get(limit.name, Sums())
                for _, limit in (*self._on_labels, *self._on_outcomes)
            },
        )
        return Gathered(state.total, late)


def _add(state: State, name: str, found: Floats) -> None:
    state.observations[name] = extended(state.observations.get(name, Sums()), found)


def _paths(files: list[tuple[str, str, Path]]) -> list[str]:
    return [str(path) for *_, path in files]
