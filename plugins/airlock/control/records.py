"""Write the release records that are due."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airlock.control.release import ReleaseControl
from airlock.core.refs import Ref

if TYPE_CHECKING:
    from airlock.steps.registry import Registry


def write_pending(control: ReleaseControl, registry: Registry) -> list[Ref]:
    """Write, sign and file the record of every release of the model that has ended and has none yet.

    Raises:
        Unavailable: MLflow does not answer; what is not written stays due.
    """
    from airlock.steps import record

    written = []
    for effect in control.pending("record"):
        if effect.release is not None:
            written.append(record.write(control.spec, control.settings, control.ledger, registry, effect.release))
        control.done(effect)
    return written
