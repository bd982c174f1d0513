"""Projections of the ledger: the route file that the gateway reads, and the MLflow aliases.

Both can be made again from the ledger at any time; neither is ever read to decide something.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from airlock.core.errors import RouteError
from airlock.core.route import Route, parse_route


def project_route(folder: Path, route: Route) -> bool:
    """Write the document for the gateway, whole or not at all.

    A document of a later generation that lies there already is left alone. Returns whether the
    file was written.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    target = folder / f"{route.model}.json"
    with (folder / f".{route.model}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _generation(target) >= route.generation:
            return False
        temporary = folder / f".{route.model}.{os.getpid()}.tmp"
        with temporary.open("w") as file:
            file.write(route.to_json())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    return True


def _generation(path: Path) -> int:
    """The generation of a whole document; 0 for a missing or torn one, which is to be replaced."""
    try:
        return parse_route(path.read_bytes()).generation
    except (FileNotFoundError, RouteError):
        return 0
