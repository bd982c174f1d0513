"""Every error that Airlock raises on purpose.

AirlockError
├── SpecError            a model spec that cannot be used
├── RouteError           a route document that may not go out
├── DataInvalid          data that broke its rules: nothing was trained
├── GateRefused          a candidate that did not pass its gates
├── ArtifactCorrupt      bytes that are not what their digest says
├── Conflict             somebody else wrote first, or is at it: look again, then try again
│   └── Fenced           a write under a lease that ran out or was taken over
├── NotPossible          what the ledger says rules it out: give up, trying again gives the same answer
│   └── NotYet           until something else has happened: wait for that
├── NotAllowed           somebody who may not decide this
├── NotFound             a version, release or model that does not exist
└── Unavailable          a part of the stack does not answer
"""

from __future__ import annotations


class AirlockError(Exception):
    """Base of all. The message says what was wrong, where, what was expected, what to do."""


class SpecError(AirlockError):
    """A model spec cannot be used."""


class RouteError(AirlockError):
    """A route document may not go out."""


class DataInvalid(AirlockError):
    """Data broke its rules; nothing was trained on it."""


class GateRefused(AirlockError):
    """A candidate did not pass its gates."""


class ArtifactCorrupt(AirlockError):
    """Bytes are not what their digest says."""


class Conflict(AirlockError):
    """Somebody else wrote first (compare-and-set lost), or holds the lease. The same call may succeed the next time."""


class Fenced(Conflict):
    """A write under a lease that ran out or was taken over; nothing was written."""


class NotPossible(AirlockError):
    """What was asked for cannot be done any more, whoever asks and however often: a release that has ended or stands
    elsewhere, another champion, a gate that did not pass, an answer that is missing."""


class NotYet(NotPossible):
    """What was asked for can be done once something else has happened. Who knows how to wait for that waits; for
    everybody else it is as impossible as the rest."""


class NotAllowed(AirlockError):
    """Who asked may not decide this."""


class NotFound(AirlockError):
    """What was asked for does not exist."""


class Unavailable(AirlockError):
    """A part of the stack does not answer."""
