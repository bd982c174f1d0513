"""How long a step has been watched, by the gateway or by whoever polled it in vain.

A deadline counts time in which somebody looked. While nobody does, as when the whole machine is down, none passes: the
first poll after it may find the gateway still starting, and must not take the time before for the gateway's silence.
"""

from __future__ import annotations

import math
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from airlock.core.release import Release
from airlock.core.tally import GatewayStatus


class Polls(BaseModel):
    """What came of polling the gateway about a step.

    ``observed_s`` is how long it had observed the step, in seconds, when it last answered, and ``unanswered_s`` for how
    many seconds it was polled in vain, all together. A gateway that lost its counts begins anew: ``since`` is when the
    counts began that it answered with, and ``earlier_s`` of ``observed_s`` was observed before.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    observed_s: float = 0.0
    unanswered_s: float = 0.0
    earlier_s: float = 0.0
    since: datetime | None = None

    @property
    def waited_s(self) -> float:
        """What counts towards a deadline while the gateway does not answer."""
        return self.observed_s + self.unanswered_s

    def polled(self, release: Release, status: GatewayStatus | None, elapsed_s: float) -> Polls:
        """After another poll, ``elapsed_s`` after the one before by a clock that runs only while somebody polls."""
        if status is not None and unobserved(release, status) is None:
            # What was observed does not become less. A gateway that was killed goes on from a second or so before.
            anew = self.since is not None and self.since != status.since
            earlier = self.observed_s if anew else self.earlier_s
            observed = max(self.observed_s, earlier + status.observed_s)
            return self.model_copy(update={"observed_s": observed, "earlier_s": earlier, "since": status.since})
        return self.model_copy(update={"unanswered_s": self.unanswered_s + max(0.0, elapsed_s)})

    def together(self, other: Polls) -> Polls:
        """What two that polled the same step know of it."""
        older, newer = sorted((self, other), key=_began)
        anew = older.since is not None and older.since != newer.since
        return Polls(
            observed_s=max(self.observed_s, other.observed_s),
            unanswered_s=max(self.unanswered_s, other.unanswered_s),
            earlier_s=max(older.observed_s if anew else older.earlier_s, newer.earlier_s),
            since=newer.since,
        )


def _began(polls: Polls) -> float:
    return -math.inf if polls.since is None else polls.since.timestamp()


def unobserved(release: Release, status: GatewayStatus | None) -> str | None:
    """Why the gateway's figures are not about the step that the release stands in; ``None`` if they are."""
    if status is None:
        return "the gateway does not answer"
    here = (status.release, status.generation, status.rollout_step)
    if here != (release.id, release.generation, release.step):
        seen = status.error or f"the gateway observes generation {status.generation} of release {status.release}"
        return f"{seen}; waiting for generation {release.generation} of {release.id}"
    if release.version not in status.loaded:
        return f"version {release.version} is not loaded yet"
    if not math.isfinite(status.observed_s):
        return f"the gateway says that it observed the step for {status.observed_s} s"
    return None
