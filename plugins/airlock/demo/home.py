"""The demo's own folder: its story begins with nothing, so what an earlier demo left is removed first."""

from __future__ import annotations

import shutil
from pathlib import Path

from airlock.core.errors import NotPossible

_MARK = ".made-by-airlock-demo"


def fresh_home(home: Path) -> bool:
    """Make ``home`` an empty folder of the demo. ``True`` if an earlier demo's state was removed.

    Raises:
        NotPossible: the folder holds something that no demo made; nothing was touched.
    """
    used = home.exists() and any(entry.name not in {"stack", ".stack.lock"} for entry in home.iterdir())
    if used and not (home / _MARK).exists():
        raise NotPossible(
            f"{home} holds state that no demo made, and a demo starts by emptying its folder; "
            "choose another one: --home FOLDER"
        )
    if used:
        for entry in home.iterdir():
            # The mark stays, so that an interrupted removal can be taken up again; the lock is held.
            if entry.name in {_MARK, ".stack.lock"}:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    (home / _MARK).touch()
    return used
