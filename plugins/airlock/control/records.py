"""Write the release records that are due."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airlock.control.release import ReleaseControl
from airlock.core.errors import AirlockError, Unavailable
from airlock.core.refs import Ref

if TYPE_CHECKING:
    from airlock.steps.registry import Registry


def write_pending(control: ReleaseControl, registry: Registry) -> list[Ref]:
    """Write, sign and file the record of every release of the model that has ended and has none yet.

    Raises:
        Unavailable: some could not be written, and stay due; all others are.
    """
    from airlock.steps import record

    written, failed = [], []
    for effect in control.pending("record"):
        try:
            if effect.release is not None:
                spec = control.spec_of(control.ledger.release(effect.release))
                written.append(record.write(spec, control.settings, control.ledger, registry, effect.release))
        except AirlockError as error:
            # One record that cannot be written, of a version that MLflow has lost say, holds up no other.
            failed.append(f"release {effect.release}: {error}")
        else:
            control.done(effect)
    if failed:
        raise Unavailable(f"{len(failed)} of {len(failed) + len(written)} records stay due: {'; '.join(failed)}")
    return written
