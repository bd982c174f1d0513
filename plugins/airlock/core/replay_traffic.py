"""What a replay is given: all that the gateway counted of a candidate, one by one, and how often control looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import NamedTuple, Protocol

from airlock.core.tally import LateEvidence, Role, Tally


class Observation(NamedTuple):
    """One thing that the gateway counted of the candidate, ``at`` so many seconds after the traffic began.

    ``asked``: a request that it answered or ``failed``, perhaps because its time was over (``timed_out``), in
    ``latency_ms``. ``stood_in``: something else answered a request that it had failed. ``differences``: both versions
    had answered, the candidate so much more than the champion, one entry a row, and ``flips`` of the rows were decided
    otherwise. What the gateway counts at one go is one observation; it looks at the limits after each.

    ``role`` is the candidate's; ``None``: the share of the step decides, by the ``place`` in [0, 100) at which the
    router's hash puts the request. ``step`` is the one in which the gateway counted it, where steps are followed.
    ``key`` is the routing key that the request carried, if it carried one.
    """

    at: float
    role: Role | None = None
    place: float = 0.0
    asked: bool = True
    failed: bool = False
    timed_out: bool = False
    latency_ms: float = 0.0
    stood_in: bool = False
    differences: tuple[float, ...] = ()
    flips: int = 0
    step: str | None = None
    key: str | None = None


class Late(Protocol):
    """Labels and outcomes as they come."""

    @property
    def until(self) -> float:
        """Seconds after which nothing changes any more."""
        ...

    def by(self, seconds: float) -> LateEvidence:
        """All that is known by then, from the beginning on."""
        ...


def _nobody(_seconds: float) -> Tally:
    return Tally()


class Traffic(NamedTuple):
    """Observations in the order in which they were counted.

    ``champion_by`` gives the tally of what the champion served by then. ``followed``: the observations say in which
    step they were counted, and the replay changes steps where they do, not where it would itself. ``salt`` is the one
    by which the gateway told keys apart: the release's id. ``unknown`` says in words what could not be known.
    """

    start: datetime
    observations: Iterable[Observation]
    late: Late | None = None
    champion_by: Callable[[float], Tally] = _nobody
    followed: bool = False
    salt: str = ""
    unknown: tuple[str, ...] = ()


class Rhythm(NamedTuple):
    """How often the control plane looks, in seconds; the defaults are the step operator's.

    It looks at the gateway's figures every ``poll_s``. Labels and outcomes are read when these figures would let the
    step end, and then every ``decisive_s``; and otherwise every ``labels_s``, also while a version is provisional. When
    the gateway ejects does not depend on it.
    """

    poll_s: float = 1.0
    decisive_s: float = 30.0
    labels_s: float = 900.0


class Glance(NamedTuple):
    """What there was to see at some point: for progress and plots."""

    request: int
    at: datetime
    step: str
    total: Tally
    late: LateEvidence | None
