"""Keeps a stack's parts running: the place of one that ends is taken within seconds, and no other part is touched.

Two keepers run. One holds the lock, looks after the parts and starts the other one, which waits for the lock. Whichever
of them is killed, the one that is left goes on and starts another.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from airlock.core.errors import Conflict
from airlock.settings import Settings, load
from airlock.stack import processes
from airlock.stack.parts import environment, log_file, parts
from airlock.stack.ports import Ports
from airlock.stack.state import StackState, exclusive, read_state, with_ports, write_state

KEEPER = "keeper"
PROGRAM = "from airlock.stack.keeper import main; main()"
EVERY_S = 0.5
LONGEST_PAUSE_S = 30.0


@dataclass
class _Pause:
    """How long a part that keeps ending is left alone: half a second, then twice that with each end."""

    seconds: float = EVERY_S
    started: float = 0.0

    def over(self, now: float) -> bool:
        if now - self.started < self.seconds:
            return False
        lived = now - self.started > LONGEST_PAUSE_S
        self.seconds = EVERY_S if lived else min(2 * self.seconds, LONGEST_PAUSE_S)
        self.started = now
        return True


def start(base: Settings, stack_id: str) -> subprocess.Popen[bytes]:
    """A keeper of this stack as a process of its own, which ends with the stack."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW_", "MLFLOW_"))}
    env |= {
        "AIRLOCK_HOME": str(base.home),
        "AIRLOCK_PROJECT": str(base.project),
        processes.MARKER: stack_id,
        processes.PART: KEEPER,
    }
    command = (sys.executable, "-c", PROGRAM, stack_id)
    return processes.spawn(command, env, log_file(base, KEEPER), base.project)


def ensure(base: Settings, stack_id: str) -> None:
    """Start a keeper unless one has the lock."""
    with _lock(base).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
    start(base, stack_id)


def _lock(base: Settings) -> Path:
    return base.stack / "keeper.lock"


class Keeper:
    """The one that holds the lock."""

    def __init__(self, base: Settings, stack_id: str) -> None:
        self._base = base
        self._stack_id = stack_id
        self._other: subprocess.Popen[bytes] | None = None
        self._children: list[subprocess.Popen[bytes]] = []
        self._pauses: dict[str, _Pause] = {}

    def run(self) -> None:
        """Keep the stack until there is none of this id any more."""
        while (state := self._state()) is not None:
            if self._other is None or self._other.poll() is not None:
                self._other = start(self._base, self._stack_id)
            self._look(state)
            time.sleep(EVERY_S)

    def _state(self) -> StackState | None:
        state = read_state(self._base)
        return state if state is not None and state.stack_id == self._stack_id else None

    def _look(self, state: StackState) -> None:
        for child in self._children:
            child.poll()
        for name, process in state.parts.items():
            if not processes.alive(process) and self._pauses.setdefault(name, _Pause()).over(time.monotonic()):
                # Whoever holds the stack's lock starts or ends it: then it is not for us to do.
                with suppress(Conflict):
                    self._restart(name)

    def _restart(self, name: str) -> None:
        with exclusive(self._base):
            state = self._state()
            if state is None or name not in state.parts or processes.alive(state.parts[name]):
                return
            processes.clear(self._stack_id, name)
            ports = Ports(state.port_base)
            settings = with_ports(self._base, ports)
            part = parts(settings, ports, environment(settings, ports, self._stack_id))[name]
            child = processes.spawn(part.command, part.env, part.log, settings.project)
            self._children.append(child)
            known = {**state.parts, name: processes.describe(child.pid)}
            write_state(self._base, state.model_copy(update={"parts": known}))
            sys.stderr.write(f"{name} had ended and was started again as process {child.pid}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """A keeper's process: wait for the lock, then keep the stack of the id that it was given."""
    (stack_id,) = sys.argv[1:] if arguments is None else arguments
    base = load()
    with _lock(base).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        Keeper(base, stack_id).run()
