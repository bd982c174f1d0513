"""What is remembered of a started stack: ``stack.json`` in the home, and the lock that its owner holds."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, ValidationError

from airlock.core.errors import Conflict
from airlock.settings import Settings
from airlock.stack.credentials import write_private
from airlock.stack.ports import HOST, Ports

_PATIENCE_S = 2.0


class Process(BaseModel):
    """A process, told from a later one with the same number by its start (seconds since the epoch)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pid: int
    created: float


class StackState(BaseModel):
    """A started stack. ``owner`` is the process that takes it down when it ends, if there is one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stack_id: str
    port_base: int
    owner: Process | None = None
    parts: dict[str, Process] = {}


def state_file(settings: Settings) -> Path:
    return settings.stack / "stack.json"


def _port_file(settings: Settings) -> Path:
    return settings.stack / "port-base"


def lock_file(settings: Settings) -> Path:
    """Beside the stack's folder, so that a home can be emptied while it is locked."""
    return settings.home / ".stack.lock"


def read_state(settings: Settings) -> StackState | None:
    """The remembered stack; ``None`` if there is none or the file cannot be read."""
    try:
        return StackState.model_validate_json(state_file(settings).read_bytes())
    except (OSError, ValidationError):
        return None


def write_state(settings: Settings, state: StackState) -> None:
    write_private(state_file(settings), state.model_dump_json(indent=2))
    write_private(_port_file(settings), str(state.port_base))


def last_port_base(settings: Settings) -> int | None:
    """The first port of the stack that this home had last."""
    try:
        return int(_port_file(settings).read_text())
    except (OSError, ValueError):
        return None


def forget_state(settings: Settings) -> None:
    state_file(settings).unlink(missing_ok=True)


@contextmanager
def exclusive(settings: Settings) -> Iterator[None]:
    """Hold the stack's lock, which ends with the process that holds it.

    Raises:
        Conflict: another process is starting or stopping this stack.
    """
    for folder in (settings.home, settings.stack):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    with lock_file(settings).open("a+") as lock:
        # A keeper that starts a part again holds it for a moment only.
        deadline = time.monotonic() + _PATIENCE_S
        while not _taken(lock):
            if time.monotonic() > deadline:
                lock.seek(0)
                holder = lock.read().strip() or "unknown"
                raise Conflict(
                    f"process {holder} is starting or stopping the stack of {settings.home}; wait for it and try again"
                )
            time.sleep(0.05)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _taken(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def with_ports(settings: Settings, ports: Ports) -> Settings:
    """The same settings with the URLs of a stack on ``ports``."""
    return dataclasses.replace(
        settings,
        airflow_url=f"http://{HOST}:{ports.airflow}",
        mlflow_url=f"http://{HOST}:{ports.mlflow}",
        gateway_url=f"http://{HOST}:{ports.gateway}",
    )


def settings_of(settings: Settings) -> Settings:
    """Settings whose URLs are those of the home's running stack; an URL in the environment wins."""
    state = read_state(settings)
    if state is None:
        return settings
    found = with_ports(settings, Ports(state.port_base))
    return dataclasses.replace(
        found,
        airflow_url=os.environ.get("AIRLOCK_AIRFLOW_URL") or found.airflow_url,
        mlflow_url=os.environ.get("AIRLOCK_MLFLOW_URL") or found.mlflow_url,
        gateway_url=os.environ.get("AIRLOCK_GATEWAY_URL") or found.gateway_url,
    )
