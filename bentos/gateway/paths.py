"""Where the gateway reads and writes, all below ``AIRLOCK_HOME``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """The same folders that the control plane knows by ``airlock.settings``, which this process does not import."""

    home: Path
    project: Path

    @property
    def routes(self) -> Path:
        return self.home / "routes"

    @property
    def ejections(self) -> Path:
        return self.home / "ejections"

    @property
    def predictions(self) -> Path:
        return self.home / "predictions"

    @property
    def last_good(self) -> Path:
        """The gateway's own copies of the routes that it took."""
        return self.home / "gateway"

    @property
    def evidence(self) -> Path:
        """What the gateway counted of each model's release, for after a restart."""
        return self.last_good / "evidence"

    @property
    def feature_store(self) -> Path:
        return self.project / "feature_repo" / "feature_store.yaml"


def from_environment() -> Paths:
    project = Path(os.environ.get("AIRLOCK_PROJECT") or Path.cwd()).resolve()
    home = Path(os.environ.get("AIRLOCK_HOME") or project / ".airlock").resolve()
    return Paths(home=home, project=project)


def write_durably(target: Path, content: str) -> None:
    """Write a file whole or not at all, and have it on the disk before returning."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with temporary.open("w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
