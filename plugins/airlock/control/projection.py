"""What lies between the ledger and the others: the route file and the MLflow aliases, and what the gateway ejected.

The file and the aliases are projections: they can be made again from the ledger at any time, and neither is ever read
to decide something.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from airlock.core.errors import NotPossible, RouteError, Unavailable
from airlock.core.release import LIVE, WAITING
from airlock.core.route import Route, parse_route
from airlock.core.tally import Ejection
from airlock.ledger import Ledger

log = logging.getLogger(__name__)

_WRITING = timedelta(milliseconds=500)
"""How long the writing of a document takes at most, with a disk that is busy."""


class Aliases(Protocol):
    """Where the names ``champion`` and ``candidate`` are shown; MLflow's registry."""

    def set_alias(self, model: str, alias: str, version: str) -> None: ...

    def clear_alias(self, model: str, alias: str, version: str) -> None:
        """Remove the alias if it names ``version``."""


def project_route(folder: Path, route: Route) -> bool:
    """Write the document for the gateway, whole or not at all.

    A document of a later generation that lies there already is left alone. Returns whether the file was written. A
    writer that was put to sleep in here does not hold up the others: see ``_alone``.

    Raises:
        Unavailable: the file cannot be written.
    """
    target = folder / f"{route.model}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _alone(folder / f".{route.model}.lock"):
            lying = read_route(folder, route.model)
            if lying is not None and (lying.generation > route.generation or lying == route.sealed()):
                return False
            temporary = folder / f".{route.model}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
            try:
                with temporary.open("w") as file:
                    file.write(route.to_json())
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)  # what a full disk left of it
    except OSError as error:
        raise Unavailable(
            f"generation {route.generation} of {route.model} is decided, but {target} cannot be written ({error}); "
            "the gateway goes on with the one before. Make room and run: airlock reconcile"
        ) from error
    return True


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Be the only writer, or the only one that is awake.

    Whoever holds the lock for longer than ``_WRITING`` is asleep, and the way back must not wait for it. When it wakes
    up it may put an older document in the place of a newer one: the gateway refuses that, and ``Turn.project``, in
    which it wakes up, looks once more.
    """
    with lock.open("w") as file:
        give_up = time.monotonic() + _WRITING.total_seconds()
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    log.warning("%s is held by a writer that does not go on; writing without it", lock)
                    break
                time.sleep(0.01)
            else:
                break
        yield


def read_route(folder: Path, model: str) -> Route | None:
    """The document that lies there; ``None`` for a missing or torn one, which is to be replaced."""
    try:
        return parse_route((folder / f"{model}.json").read_bytes())
    except (FileNotFoundError, RouteError):
        return None


def read_ejection(folder: Path, model: str) -> Ejection | None:
    """What the gateway ejected last; it outlives the gateway.

    Raises:
        NotPossible: what it wrote says nothing, and so nobody knows who must not answer.
        Unavailable: the file cannot be read now.
    """
    path = folder / f"{model}.json"
    try:
        return Ejection.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unavailable(f"{path} cannot be read: {error}; it says whom the gateway ejected") from error
    except ValidationError as error:
        raise NotPossible(f"{path} does not say what the gateway ejected: {error}; repair or remove it") from error


def show_aliases(ledger: Ledger, model: str, aliases: Aliases) -> None:
    """Make the aliases say what the ledger says: who is champion, and that no release that ended is a candidate.

    Somebody may promote in between, and an alias is whatever was written last: it is written until it agrees.

    Raises:
        Unavailable: the registry does not answer.
    """
    shown = None
    while (champion := ledger.champion(model)) is not None and champion.version != shown:
        aliases.set_alias(model, "champion", champion.version)
        shown = champion.version
    going = {release.version for release in ledger.releases(model, phases=WAITING | LIVE)}
    ended = {effect.release for effect in ledger.pending_effects(model) if effect.kind == "aliases" and effect.release}
    for version in sorted({ledger.release(release).version for release in ended} - going):
        aliases.clear_alias(model, "candidate", version)
