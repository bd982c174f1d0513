"""What was counted of a candidate in one release, and the checkpoints since which it can be judged afresh.

A version that goes bad late is hidden by its good past, and one that fails only where it answers is hidden by its
shadow. So the release's running sums are kept twice, over both roles and of served requests alone, and each has
checkpoints: copies of the sums at every step's start, and every :data:`SPACING` requests. What came since a checkpoint
is a difference of two sums, so that a request costs the same however many checkpoints there are.

Checkpoints are thinned to about geometric ages: of those that are ``a`` spacings old, one in 2^l is kept, where
2^l <= a / :data:`PER_OCTAVE`. A release of a million requests keeps about fifty of each kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Self

from airlock.core.tally import SCOPES, Checkpoint, Role, Scope, Sums, Tally

if TYPE_CHECKING:
    from airlock.core.quiet import Quiet

SPACING = 50
"""Requests from one restart to the next."""
PER_OCTAVE = 4
"""Restarts that are kept of each doubling of the age."""
_NOTHING = Sums()


class Stream:
    """The running sums of one scope, and their checkpoints in the order in which they were taken.

    ``taken`` counts those that were taken here, for whoever remembers what they say of a limit.
    """

    def __init__(self, sums: Tally | None = None, checkpoints: Iterable[Checkpoint] = ()) -> None:
        self.sums = sums if sums is not None else Tally()
        self.checkpoints = list(checkpoints)
        self.taken = 0
        self.next_restart = SPACING * (1 + max((c.number for c in self.checkpoints if c.kind == "restart"), default=0))

    def begin_step(self) -> None:
        """Judge the step that begins now on its own too. One that begins with the stream has its sums anyway."""
        if self.sums.requests:
            self._take(self.sums, "step", 2 + sum(checkpoint.kind == "step" for checkpoint in self.checkpoints))

    def step_was(self, step: Tally) -> None:
        """Say afterwards which part of the sums came in the last step."""
        earlier = _difference(self.sums, step)
        if earlier.requests:
            self._take(earlier, "step", 2)

    def restart(self) -> None:
        """Take a checkpoint where another spacing of requests is full, and thin the older ones."""
        number = self.sums.requests // SPACING
        self.next_restart = SPACING * (number + 1)
        self.checkpoints = [c for c in self.checkpoints if c.kind == "step" or stays(c.number, number)]
        self._take(self.sums, "restart", number)

    @property
    def step_began(self) -> Checkpoint | None:
        """Where the last step began; ``None``: with the stream."""
        return next((c for c in reversed(self.checkpoints) if c.kind == "step"), None)

    @property
    def step(self) -> Tally:
        """What came since the last step began."""
        return self.since(self.step_began)

    def since(self, checkpoint: Checkpoint | None) -> Tally:
        """What came since a checkpoint, without the histogram of latencies; with ``None`` everything."""
        return self.sums if checkpoint is None else _difference(self.sums, checkpoint)

    def _take(self, sums: Tally, kind: Literal["step", "restart"], number: int) -> None:
        self.taken += 1
        taken = Checkpoint.model_construct(
            kind=kind,
            number=number,
            requests=sums.requests,
            errors=sums.errors,
            timeouts=sums.timeouts,
            fallbacks=sums.fallbacks,
            slow=dict(sums.slow),
            difference=sums.difference.model_copy(),
            absolute=sums.absolute.model_copy(),
            flips=sums.flips.model_copy(),
            units={name: values.model_copy() for name, values in sums.units.items()},
        )
        self.checkpoints.append(taken)


class Counters:
    """One candidate's counters in one release: what its limits are held against after each request.

    ``roles`` are the release's tallies by role, which are copied, and ``checkpoints`` and ``units`` what
    :attr:`checkpoints` and :attr:`units` gave before, so that counting goes on after a restart as if nothing had been.
    ``quiet`` is where core/quiet.py remembers what need not be tested again.
    """

    def __init__(
        self,
        roles: Mapping[str, Tally] | None = None,
        checkpoints: Mapping[Scope, Sequence[Checkpoint]] | None = None,
        units: Mapping[Scope, Mapping[str, Sums]] | None = None,
    ) -> None:
        roles, checkpoints, units = roles or {}, checkpoints or {}, units or {}
        self.all = Stream(sum(roles.values(), Tally()), checkpoints.get("all", ()))
        self.served = Stream(Tally() + roles.get("served", Tally()), checkpoints.get("served", ()))
        for scope in SCOPES:
            # A key or a minute is not one of either role alone: the roles' tallies know nothing of them.
            self.stream(scope).sums.units = {name: sums.model_copy() for name, sums in units.get(scope, {}).items()}
        self.quiet: Quiet | None = None
        self._shadow, self._both = (self.all.sums,), (self.all.sums, self.served.sums)

    @classmethod
    def at_step(cls, total: Mapping[str, Tally], step: Mapping[str, Tally]) -> Self:
        """The counters of a release by role of which ``step`` came in its last step; without restarts."""
        counters, of_step = cls(total), cls(step)
        for scope in SCOPES:
            counters.stream(scope).step_was(of_step.stream(scope).sums)
        return counters

    @property
    def checkpoints(self) -> dict[Scope, tuple[Checkpoint, ...]]:
        """What must be kept beside the tallies."""
        return {scope: tuple(self.stream(scope).checkpoints) for scope in SCOPES}

    @property
    def units(self) -> dict[Scope, dict[str, Sums]]:
        """The sums of limits that are not by request, which must be kept too."""
        return {scope: dict(self.stream(scope).sums.units) for scope in SCOPES}

    def stream(self, scope: Scope) -> Stream:
        return self.all if scope == "all" else self.served

    def tallies(self, role: Role) -> tuple[Tally, ...]:
        """Those that an observation in this role belongs to. Call :meth:`restart_if_due` once it was tested."""
        return self._both if role == "served" else self._shadow

    def include(self, role: Role, tally: Tally) -> None:
        """Count what was counted elsewhere."""
        for own in self.tallies(role):
            own.include(tally)

    def begin_step(self) -> None:
        for scope in SCOPES:
            self.stream(scope).begin_step()

    def restart_if_due(self) -> None:
        """To be called after each request that was counted, tested and broke no limit."""
        if self.all.sums.requests >= self.all.next_restart:
            self.all.restart()
        if self.served.sums.requests >= self.served.next_restart:
            self.served.restart()


def stays(number: int, newest: int) -> bool:
    """Whether a restart is kept when the newest is taken. One that goes never comes back."""
    age = max(1, (newest - number) // PER_OCTAVE)
    return number % (1 << age.bit_length() - 1) == 0


def _difference(now: Tally, before: Tally | Checkpoint) -> Tally:
    """``now`` less ``before``, without the histogram of latencies.

    A fallback is counted after its request, so that the first ones may belong to requests before: there are never
    more of them than of requests.
    """
    requests = now.requests - before.requests
    return Tally.model_construct(
        requests=requests,
        errors=now.errors - before.errors,
        timeouts=now.timeouts - before.timeouts,
        fallbacks=min(now.fallbacks - before.fallbacks, max(0, requests)),
        latency=[],
        slow={name: count - before.slow.get(name, 0) for name, count in now.slow.items()},
        difference=_less(now.difference, before.difference),
        absolute=_less(now.absolute, before.absolute),
        flips=_less(now.flips, before.flips),
        units={name: _less(values, before.units.get(name, _NOTHING)) for name, values in now.units.items()},
    )


def _less(now: Sums, before: Sums) -> Sums:
    """The sums of what came between. Whatever else sums hold, such as extremes, stays that of the whole stream."""
    update = {"n": now.n - before.n, "total": now.total - before.total, "squares": now.squares - before.squares}
    return now.model_copy(update=update)
