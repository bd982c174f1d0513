"""Every error that Airlock raises on purpose.

AirlockError
├── SpecError            a model spec that cannot be used
├── RouteError           a route document that may not go out
├── DataInvalid          data that broke its rules: nothing was trained
├── GateRefused          a candidate that did not pass its gates
├── ArtifactCorrupt      bytes that are not what their digest says
├── Conflict             somebody else wrote first (compare-and-set lost)
│   └── Fenced           a write under a lease that ran out or was taken over
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
    """Somebody else wrote first."""


class Fenced(Conflict):
    """A write under a lease that ran out or was taken over; nothing was written."""


class NotAllowed(AirlockError):
    """Who asked may not decide this."""


class NotFound(AirlockError):
    """What was asked for does not exist."""


class Unavailable(AirlockError):
    """A part of the stack does not answer."""
