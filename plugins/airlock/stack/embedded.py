"""Bringing the stack up, telling how it is, and taking it down without a trace."""

from __future__ import annotations

import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import psutil
from pydantic import BaseModel, ConfigDict

from airlock.core.errors import Unavailable
from airlock.settings import PORT_BASE, Settings
from airlock.stack import keeper, processes
from airlock.stack.parts import (
    API_SERVER,
    DAG_PROCESSOR,
    GATEWAY,
    MLFLOW,
    PARTS,
    SCHEDULER,
    TRIGGERER,
    Part,
    environment,
    log_file,
    migrate,
    parts,
)
from airlock.stack.ports import Ports
from airlock.stack.signals import undisturbed
from airlock.stack.state import (
    StackState,
    exclusive,
    forget_state,
    last_port_base,
    read_state,
    settings_of,
    with_ports,
    write_state,
)

_STALL = 300.0
"""Seconds without any part becoming healthy after which a start has failed; all are up in 20 on a quiet machine."""
_STOP_GRACE = 12.0
_WITHOUT_DATABASE = (MLFLOW, GATEWAY)
"""Parts that need not wait until Airflow's database is migrated."""
_AIRFLOW_HEALTH = {
    API_SERVER: "metadatabase",
    SCHEDULER: "scheduler",
    DAG_PROCESSOR: "dag_processor",
    TRIGGERER: "triggerer",
}
Progress = Callable[[str, float], None]


class PartStatus(BaseModel):
    """One part: its process, whether that runs, and whether it answers as it should."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    pid: int | None
    running: bool
    healthy: bool
    log: str


class StackStatus(BaseModel):
    """A whole stack. ``up`` means that every part is healthy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    up: bool
    home: str
    port_base: int | None = None
    urls: dict[str, str] = {}
    passwords: str = ""
    memory_mb: float = 0.0
    parts: tuple[PartStatus, ...] = ()


class Stack:
    """The embedded stack of one home."""

    def __init__(self, settings: Settings) -> None:
        self._base = settings
        self._children: list[subprocess.Popen[bytes]] = []

    @property
    def settings(self) -> Settings:
        """Settings with the URLs of the running stack."""
        return settings_of(self._base)

    def up(self, port_base: int | None = None, *, owned: bool = False, progress: Progress | None = None) -> bool:
        """Start what is needed and wait until all of it is healthy.

        Parts that run already stay as they are. Without ``port_base`` the ports are those of the last time. ``owned``
        ties the stack to the calling process. ``progress`` is told each part that became healthy and the seconds since
        the start. Answers ``False`` if the stack was up already.

        Raises:
            PortTaken, Conflict, Unavailable: nothing was left running, unless parts of the stack had run before: these
                and what was added to them stay.
        """
        with exclusive(self._base):
            state = read_state(self._base)
            if state is not None:
                if self._probe(state).up:
                    keeper.ensure(self._base, state.stack_id)
                    return False
                if self._keeps_on(state, port_base, owned=owned):
                    self._start(state, Ports(state.port_base), progress or _silent)
                    return True
                self._end(state)
            ports = Ports(port_base or last_port_base(self._base) or PORT_BASE)
            ports.require_free()
            state = StackState(
                stack_id=uuid.uuid4().hex,
                port_base=ports.base,
                owner=processes.describe(psutil.Process().pid) if owned else None,
            )
            # Written before the first process exists: whatever ends this one, `down` knows what to look for.
            write_state(self._base, state)
            try:
                self._start(state, ports, progress or _silent)
            except BaseException:
                self._end(state)
                raise
            return True

    def _keeps_on(self, state: StackState, port_base: int | None, *, owned: bool) -> bool:
        """Whether what still runs of a stack stays, and only the rest is started."""
        same = port_base in {None, state.port_base} and not owned and state.owner is None
        return same and state.parts.keys() == set(PARTS) and any(map(processes.alive, state.parts.values()))

    def down(self) -> bool:
        """End every process of the stack; ``False`` if there was none."""
        with exclusive(self._base):
            state = read_state(self._base)
            if state is None:
                return False
            found = bool(processes.members(state))
            self._end(state)
            return found

    def abandoned(self) -> bool:
        """Whether the stack belonged to a process that is gone."""
        state = read_state(self._base)
        return state is not None and state.owner is not None and not processes.alive(state.owner)

    def status(self) -> StackStatus:
        state = read_state(self._base)
        if state is None:
            return StackStatus(up=False, home=str(self._base.home))
        return self._probe(state)

    def memory_mb(self) -> float:
        """Memory of all the stack's processes now, in MB (10^6 bytes)."""
        state = read_state(self._base)
        return _memory_of(state) if state else 0.0

    def _start(self, state: StackState, ports: Ports, progress: Progress) -> None:
        """Start the parts that do not run, and wait until all are healthy."""
        settings = with_ports(self._base, ports)
        for folder in (settings.airflow_home, settings.mlflow_home / "artifacts", log_file(settings, "x").parent):
            folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        state = self._launch_missing(state, settings, ports)
        self._wait_until_healthy(state, settings, lambda part: progress(part, time.monotonic() - began))
        keeper.ensure(self._base, state.stack_id)

    def _launch_missing(self, state: StackState, settings: Settings, ports: Ports) -> StackState:
        env = environment(settings, ports, state.stack_id)
        wanted = parts(settings, ports, env)
        missing = [name for name in PARTS if name not in state.parts or not processes.alive(state.parts[name])]
        for name in missing:
            processes.clear(state.stack_id, name)
        migration = self._launch(migrate(settings, env), settings)
        for name in missing:
            if name in _WITHOUT_DATABASE:
                state = self._launch_part(state, wanted[name], settings)
        try:
            migration.wait(timeout=_STALL)
        except subprocess.TimeoutExpired as error:
            log = log_file(settings, "db-migrate")
            raise Unavailable(f"Airflow's database is not migrated after {_STALL:.0f} s; see {log}") from error
        if migration.returncode != 0:
            raise Unavailable(_died("db-migrate", migration.returncode, settings))
        for name in missing:
            if name not in _WITHOUT_DATABASE:
                state = self._launch_part(state, wanted[name], settings)
        return state

    def _wait_until_healthy(self, state: StackState, settings: Settings, healthy: Callable[[str], None]) -> None:
        waiting, moved = set(PARTS), time.monotonic()
        with httpx.Client(timeout=2.0) as client:
            while waiting:
                for name in sorted(waiting & _healthy(client, settings)):
                    waiting.discard(name)
                    moved = time.monotonic()
                    healthy(name)
                self._require_alive(state, settings)
                if time.monotonic() - moved > _STALL:
                    logs = ", ".join(str(log_file(settings, name)) for name in sorted(waiting))
                    raise Unavailable(
                        f"{', '.join(sorted(waiting))} not healthy, and nothing moved for {_STALL:.0f} s; see {logs}"
                    )
                time.sleep(0.1)

    def _launch_part(self, state: StackState, part: Part, settings: Settings) -> StackState:
        child = self._launch(part, settings)
        state = state.model_copy(update={"parts": {**state.parts, part.name: processes.describe(child.pid)}})
        write_state(self._base, state)
        return state

    def _launch(self, part: Part, settings: Settings) -> subprocess.Popen[bytes]:
        child = processes.spawn(part.command, part.env, part.log, settings.project)
        self._children.append(child)
        return child

    def _require_alive(self, state: StackState, settings: Settings) -> None:
        self._reap()
        for name, process in state.parts.items():
            if not processes.alive(process):
                child = next((child for child in self._children if child.pid == process.pid), None)
                raise Unavailable(_died(name, child.returncode if child else None, settings))

    def _reap(self) -> None:
        """Collect children that ended, so that none stays a zombie."""
        for child in self._children:
            child.poll()

    def _end(self, state: StackState) -> None:
        # A start may have been interrupted between a process and its record: the file is the newer of the two.
        with undisturbed():
            processes.end(read_state(self._base) or state, grace=_STOP_GRACE, reap=self._reap)
            forget_state(self._base)

    def _probe(self, state: StackState) -> StackStatus:
        settings = with_ports(self._base, Ports(state.port_base))
        with httpx.Client(timeout=2.0) as client:
            healthy = _healthy(client, settings)
        found = tuple(
            PartStatus(
                name=name,
                pid=process.pid if (process := state.parts.get(name)) else None,
                running=(running := process is not None and processes.alive(process)),
                healthy=running and name in healthy,
                log=str(log_file(settings, name)),
            )
            for name in PARTS
        )
        return StackStatus(
            up=all(part.healthy for part in found),
            home=str(settings.home),
            port_base=state.port_base,
            urls={"airflow": settings.airflow_url, "mlflow": settings.mlflow_url, "gateway": settings.gateway_url},
            passwords=str(settings.stack / "airflow-passwords.json"),
            memory_mb=round(_memory_of(state), 1),
            parts=found,
        )


def _silent(_part: str, _seconds: float) -> None:
    return


def _memory_of(state: StackState) -> float:
    return processes.memory_mb(process.pid for process in processes.members(state))


def _healthy(client: httpx.Client, settings: Settings) -> set[str]:
    """The names of the parts that say that they are well."""
    found: set[str] = set()
    for name, url in ((MLFLOW, f"{settings.mlflow_url}/health"), (GATEWAY, f"{settings.gateway_url}/healthz")):
        if (answer := _get(client, url)) is not None and answer.status_code == httpx.codes.OK:
            found.add(name)
    answer = _get(client, f"{settings.airflow_url}/api/v2/monitor/health")
    if answer is not None and answer.status_code == httpx.codes.OK:
        said = answer.json()
        found |= {name for name, key in _AIRFLOW_HEALTH.items() if (said.get(key) or {}).get("status") == "healthy"}
    return found


def _get(client: httpx.Client, url: str) -> httpx.Response | None:
    try:
        return client.get(url)
    except httpx.HTTPError:
        return None


def _died(name: str, code: int | None, settings: Settings) -> str:
    log = log_file(settings, name)
    tail = log.read_text(errors="replace").splitlines()[-8:] if log.exists() else []
    said = "\n".join(f"    {line}" for line in tail)
    return f"{name} ended with code {code} while starting; the end of {log}:\n{said}"


@contextmanager
def watch_memory(stack: Stack, every: float = 3.0) -> Iterator[Callable[[], float]]:
    """Sample a stack's memory and that of this process and its children in the background.

    The yielded function tells the peak so far in MB (10^6 bytes). ``every`` is in seconds.
    """
    peak = 0.0
    stop = threading.Event()
    here = psutil.Process()

    def sample() -> None:
        nonlocal peak
        while not stop.wait(every):
            state = read_state(stack.settings)
            found = processes.members(state) if state else []
            # A stack started from here consists of this process's children.
            pids = {process.pid for process in (*found, here, *here.children(recursive=True))}
            peak = max(peak, processes.memory_mb(pids))

    thread = threading.Thread(target=sample, name="memory", daemon=True)
    thread.start()
    try:
        yield lambda: peak
    finally:
        stop.set()
        thread.join(timeout=every)
