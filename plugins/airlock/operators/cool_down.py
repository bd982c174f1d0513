"""One answer to one drift: asset events can be doubled, trainings must not be."""

from __future__ import annotations

import fcntl
import json
from datetime import datetime, timedelta
from pathlib import Path


def claim(path: Path, *, key: str, at: datetime, cool_down: timedelta) -> str:
    """Claim the window around ``at`` for ``key`` and return who holds it.

    The holder is another key if that one claimed a time less than ``cool_down`` away. Times are
    of the data, not of the clock on the wall. Claiming again under the same key changes nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        claims: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        for owner, claimed in claims.items():
            if owner == key or abs(datetime.fromisoformat(claimed) - at) < cool_down:
                return owner
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({**claims, key: at.isoformat()}, indent=2))
        temporary.replace(path)
        return key
