"""What was counted of one release: by version and role, in the step and in the release, restarts included.

While a candidate is judged, ``gateway/evidence/<model>.json`` below ``AIRLOCK_HOME`` is written about once a second and
at the stop. A gateway that is killed loses what it counted since the last of these writes, and counts on from there;
the time until it is back is not observed time. An ejection does not wait for it: that has a file of its own, written as
soon as it is made.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NamedTuple, Protocol

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from airlock.core.counters import Counters
from airlock.core.route import Route
from airlock.core.tally import Checkpoint, Role, Scope, Tally
from airlock.core.units import Units, UnitsState
from gateway import clock
from gateway.paths import write_durably

logger = logging.getLogger("airlock.gateway")

KEEP_SECONDS = 1.0

SERVED: Role = "served"
SHADOW: Role = "shadow"
Tallies = dict[str, dict[Role, Tally]]


class Kept(BaseModel):
    """Evidence as it is written down. ``earlier`` holds the tallies of the release's steps before this one.

    ``checkpoints`` are those of the candidate's counters; a file of before there were any has none. ``units`` are what
    it was asked by key and by minute. ``lost`` says why something that was counted of this release is not in it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    release: str | None
    step: str | None
    since: AwareDatetime
    observed_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    first_asked: dict[str, AwareDatetime] = {}
    current: Tallies = {}
    earlier: Tallies = {}
    checkpoints: dict[Scope, tuple[Checkpoint, ...]] | None = None
    units: UnitsState = UnitsState()
    lost: str | None = None


class Lost(NamedTuple):
    """Why what an earlier process wrote down cannot be used."""

    reason: str


class Counted(Protocol):
    """Whatever has evidence, which is another one after each route. ``unwritten``: why it cannot be kept, if so."""

    unwritten: str | None

    @property
    def evidence(self) -> Evidence: ...


class Evidence:
    """The tallies under one route, and for how many seconds its step has been watched.

    ``kept`` is what was counted under an earlier route or by an earlier process. Of the same release it goes on, of the
    same step the step's tallies do as well; of another release nothing does.

    ``counters`` are the candidate's: what its limits are held against after each request.
    """

    def __init__(self, route: Route, kept: Kept | Lost | None = None) -> None:
        now = datetime.now(UTC)
        lost = kept.reason if isinstance(kept, Lost) else None
        if not isinstance(kept, Kept) or (kept.model, kept.release) != (route.model, route.release):
            kept = Kept(model=route.model, release=route.release, step=route.step, since=now, lost=lost)
        counters = _counters(kept, route.candidate)
        self._units = Units(route.limits, counters, kept.units, salt=route.release or "")
        if kept.step != route.step:
            self._units.end_minute()
            counters.begin_step()
            earlier = _added(kept.earlier, kept.current)
            update = {"step": route.step, "since": now, "observed_s": 0.0, "current": {}, "earlier": earlier}
            kept = kept.model_copy(update=update)
        self._kept = kept
        self._began = time.monotonic()
        self.candidate = route.candidate
        self.counters = counters
        self._counted_in: dict[tuple[str, Role], tuple[Tally, ...]] = {}

    @property
    def since(self) -> datetime:
        """When the step began."""
        return self._kept.since

    @property
    def lost(self) -> str | None:
        """Why something that was counted of this release is not known any more."""
        return self._kept.lost

    @property
    def observed_s(self) -> float:
        """Seconds of the step that a gateway has watched: downtime and changes of the clock do not count."""
        return self._kept.observed_s + time.monotonic() - self._began

    @property
    def step(self) -> Tallies:
        """Tallies of the step."""
        return self._kept.current

    @property
    def total(self) -> Tallies:
        """Tallies of the release."""
        return _added(self._kept.earlier, self._kept.current)

    def tallies(self, version: str, role: Role) -> tuple[Tally, ...]:
        """Those that an observation of this version in this role belongs to."""
        try:
            return self._counted_in[version, role]
        except KeyError:
            self._kept.first_asked.setdefault(version, datetime.now(UTC))
            own = self._kept.current.setdefault(version, {}).setdefault(role, Tally())
            sums = self.counters.tallies(role) if version == self.candidate else ()
            return self._counted_in.setdefault((version, role), (own, *sums))

    def answered(
        self, version: str, role: Role, key: str | None, latency_ms: float, *, failed: bool, at_us: int
    ) -> None:
        """Count a request of the candidate for the limits that are by key or minute. ``key``: its routing key.

        ``at_us`` is the time by ``clock`` that the log has of it, so that a replay cuts minutes where they were cut.
        """
        if self._units.any and version == self.candidate:
            self._units.answered(role, key, latency_ms, failed=failed, at=at_us / 1e6)

    def compared(self, version: str, key: str | None, differences: Sequence[float], flips: int, *, at_us: int) -> None:
        """The same of a request that both versions answered."""
        if self._units.any and version == self.candidate:
            self._units.compared(key, differences, flips, at=at_us / 1e6)

    def settle(self) -> None:
        """Count the minute that is over, if one is: nobody may be asked any more."""
        if self._units.any:
            self._units.until(clock.now_us() / 1e6)

    def seconds_since_first(self, version: str, now: datetime) -> float:
        """Since the version was first asked in this release; 0 if it was not."""
        return (now - self._kept.first_asked.get(version, now)).total_seconds()

    def kept(self) -> Kept:
        """Everything as it is now. The tallies are not copied."""
        now = {"observed_s": self.observed_s, "checkpoints": self.counters.checkpoints, "units": self._units.state()}
        return self._kept.model_copy(update=now)


class Keeper:
    """Writes evidence down, away from the event loop. ``models`` are those that are served."""

    def __init__(self, folder: Path, models: Mapping[str, Counted]) -> None:
        self._folder = folder
        self._models = models
        # One thread: a write that is still under way at the stop ends before the last one begins.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="airlock-evidence")

    async def run(self) -> None:
        """Keep what is counted while somebody is judged by it, until cancelled."""
        while True:
            await asyncio.sleep(KEEP_SECONDS)
            await self._write([model for model, served in self._models.items() if served.evidence.candidate])

    async def close(self) -> None:
        """Write everything once more."""
        await self._write(list(self._models))
        self._thread.shutdown()

    async def _write(self, models: Sequence[str]) -> None:
        loop = asyncio.get_running_loop()
        for model in models:
            served = self._models[model]
            content = served.evidence.kept().model_dump_json()
            try:
                await loop.run_in_executor(self._thread, write_durably, self._folder / f"{model}.json", content)
            except OSError as error:
                failed = f"what is counted cannot be written, so a restart would lose it: {error}"
                if served.unwritten != failed:
                    logger.error("%s: %s", model, failed)  # noqa: TRY400
                served.unwritten = failed
            else:
                served.unwritten = None


def read_kept(path: Path, model: str, judged: str | None = None) -> Kept | Lost | None:
    """What an earlier process wrote down of a model. A file that is torn or another model's is said and left out.

    ``judged`` is the release whose candidate that process was counting; without a file of it something is lost.
    """
    try:
        kept = Kept.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return _lost(model, f"{path} is gone, so counting starts anew") if judged else None
    except (OSError, ValidationError) as error:
        return _lost(model, f"{path} cannot be read, so counting starts anew: {_first(error)}")
    if kept.model != model:
        return _lost(model, f"{path} is the evidence of {kept.model}, so counting starts anew")
    if judged and kept.release != judged:
        return _lost(model, f"{path} is the evidence of release {kept.release}, so counting starts anew")
    return kept


def _first(error: OSError | ValidationError) -> str:
    """The first mistake of a document alone: a file of an unknown form has hundreds."""
    if isinstance(error, OSError):
        return str(error)
    first, *others = error.errors(include_url=False, include_input=False)
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" + (f" (and {len(others)} more)" if others else "")


def _lost(model: str, reason: str) -> Lost:
    logger.warning("%s: %s", model, reason)
    return Lost(reason)


def _added(one: Tallies, other: Tallies) -> Tallies:
    return {
        version: {
            role: one.get(version, {}).get(role, Tally()) + other.get(version, {}).get(role, Tally())
            for role in {**one.get(version, {}), **other.get(version, {})}
        }
        for version in {**one, **other}
    }


def _named(roles: dict[Role, Tally]) -> dict[str, Tally]:
    return {str(role): tally for role, tally in roles.items()}


def _counters(kept: Kept, candidate: str | None) -> Counters:
    """The candidate's, as they were when they were written down."""
    current = kept.current.get(candidate or "", {})
    total = _added(kept.earlier, kept.current).get(candidate or "", {})
    if kept.checkpoints is None:
        return Counters.at_step(_named(total), _named(current))
    return Counters(_named(total), kept.checkpoints, kept.units.sums)
