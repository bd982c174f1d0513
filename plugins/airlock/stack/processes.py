"""The operating system's side: starting a part, finding what belongs to a stack, ending it.

Every process of a stack carries ``AIRLOCK_STACK_ID``, its children too, so that one that outlived
its parent is still found.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from airlock.core.errors import Unavailable
from airlock.stack.state import Process, StackState

MARKER = "AIRLOCK_STACK_ID"
PART = "AIRLOCK_PART"
_CLOCK_SLACK = 1.0


def spawn(command: Sequence[str], env: Mapping[str, str], log: Path, cwd: Path) -> subprocess.Popen[bytes]:
    """Start a part in a session of its own, so that the terminal's Ctrl-C reaches its owner first."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def describe(pid: int) -> Process:
    return Process(pid=pid, created=psutil.Process(pid).create_time())


def alive(process: Process) -> bool:
    """Whether this very process (not a later one with its number) still runs."""
    try:
        found = psutil.Process(process.pid)
        same = abs(found.create_time() - process.created) < _CLOCK_SLACK
        return bool(same and found.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def members(state: StackState) -> list[psutil.Process]:
    """Every live process of a stack, by marker, by record and by session."""
    roots = {process.pid for process in state.parts.values() if alive(process)}
    return [process for process in psutil.process_iter() if _belongs(process, state.stack_id, roots)]


def _belongs(process: psutil.Process, stack_id: str, roots: set[int]) -> bool:
    if process.pid == os.getpid():
        return False
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if process.pid in roots or process.environ().get(MARKER) == stack_id:
            return True
        return bool(roots) and os.getsid(process.pid) in roots
    except (psutil.Error, OSError):
        return False


def clear(stack_id: str, part: str) -> None:
    """Kill what a part that ended has left: its children would hold its port, or do its work a second time."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            env = process.environ()
            if (env.get(MARKER), env.get(PART)) == (stack_id, part):
                process.kill()


def end(state: StackState, *, grace: float, reap: Callable[[], None]) -> None:
    """Ask every process of a stack to end, then end it by force. ``grace`` is in seconds.

    Raises:
        Unavailable: a process outlived SIGKILL (it hangs in the kernel).
    """
    asked: set[psutil.Process] = set()
    deadline = time.monotonic() + grace
    while left := members(state):
        if time.monotonic() > deadline:
            break
        # A scheduler that stops waits for its tasks, so those are asked as well, and so are late children.
        _signal((process for process in left if process not in asked), psutil.Process.terminate)
        asked.update(left)
        reap()
        time.sleep(0.1)
    deadline = time.monotonic() + 5
    while left := members(state):
        if time.monotonic() > deadline:
            pids = ", ".join(str(process.pid) for process in left)
            raise Unavailable(f"processes {pids} of the stack do not end; they hang in the operating system")
        _signal(left, psutil.Process.kill)
        reap()
        time.sleep(0.05)
    reap()


def _signal(processes: Iterable[psutil.Process], send: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        try:
            send(process)
        except psutil.NoSuchProcess:
            continue


def memory_mb(pids: Iterable[int]) -> float:
    """Memory of processes in MB (10^6 bytes): shared pages counted once (PSS) where the system tells it."""
    return sum(_memory_bytes(pid) for pid in pids) / 1e6


def _memory_bytes(pid: int) -> int:
    try:
        # Not psutil's pss, which reads every mapping and costs a hundred times as much.
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        rollup = ""
    kilobytes = next((line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:")), None)
    if kilobytes is not None:
        return int(kilobytes) * 1024
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
