"""Bringing a stack of small stand-ins up and down: what is left when it goes wrong half-way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from airlock import settings
from airlock.core.errors import Unavailable
from airlock.settings import Settings
from airlock.stack import Stack, embedded, processes
from airlock.stack.parts import PARTS, Part
from airlock.stack.ports import Ports
from airlock.stack.state import Process, StackState, read_state, state_file, write_state
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SLEEP = "import time; time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
# A child in a session of its own that outlives its parent, as a task of a killed worker does.
ORPHANING = (
    "import subprocess, sys, time; "
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)"
)


class StandIns:
    """The stack's parts as small Python programs."""

    def __init__(self) -> None:
        self.programs = dict.fromkeys(PARTS, SLEEP)
        self.migration = "pass"
        self.healthy = set(PARTS)

    def parts(self, settings: Settings, _ports: Ports, env: Mapping[str, str]) -> dict[str, Part]:
        return {name: self._part(settings, name, program, env) for name, program in self.programs.items()}

    def migrate(self, settings: Settings, env: Mapping[str, str]) -> Part:
        return self._part(settings, "db-migrate", self.migration, env)

    @staticmethod
    def _part(settings: Settings, name: str, program: str, env: Mapping[str, str]) -> Part:
        return Part(name, (sys.executable, "-c", program), env, settings.stack / "logs" / f"{name}.log")


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> StandIns:
    found = StandIns()
    monkeypatch.setattr(embedded, "parts", found.parts)
    monkeypatch.setattr(embedded, "migrate", found.migrate)
    monkeypatch.setattr(embedded, "_healthy", lambda _client, _settings: found.healthy)
    monkeypatch.setattr(embedded, "_STOP_GRACE", 1.0)
    monkeypatch.setattr(embedded.keeper, "ensure", lambda _settings, _stack_id: None)
    return found


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_ins: StandIns) -> Iterator[Stack]:
    monkeypatch.setenv("AIRLOCK_HOME", str(tmp_path))
    monkeypatch.setattr(Ports, "require_free", lambda _self: None)
    found = Stack(settings.load())
    yield found
    found.down()


def marked(home: Path) -> list[psutil.Process]:
    """Live processes whose environment names this home."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("AIRLOCK_HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.pid != os.getpid()]


def test_up_down_and_up_again(stack: Stack, tmp_path: Path) -> None:
    told: list[str] = []
    assert stack.up(9200, progress=lambda part, _seconds: told.append(part))
    assert sorted(told) == sorted(PARTS)
    assert stack.status().up
    assert state_file(settings.load()).stat().st_mode & 0o777 == 0o600
    assert not stack.up(9200), "the second one finds it up"
    assert len(marked(tmp_path)) == len(PARTS)
    assert stack.down()
    assert marked(tmp_path) == []
    assert not stack.down()
    assert stack.up(9200)


def test_without_ports_it_takes_those_of_the_last_time(stack: Stack) -> None:
    assert stack.up()
    assert stack.status().port_base == settings.PORT_BASE
    assert stack.down()
    assert stack.up(9200)
    assert stack.down()
    assert stack.up()
    assert stack.status().port_base == 9200


def test_a_part_that_dies_is_told_with_its_log_and_nothing_is_left(
    stack: Stack, stand_ins: StandIns, tmp_path: Path
) -> None:
    stand_ins.healthy = set()
    stand_ins.programs["gateway"] = "raise SystemExit('no route to the moon')"
    with pytest.raises(Unavailable, match=r"(?s)gateway ended .*no route to the moon"):
        stack.up(9200)
    assert marked(tmp_path) == []
    assert read_state(settings.load()) is None


def test_a_failed_migration_starts_nothing_else(stack: Stack, stand_ins: StandIns, tmp_path: Path) -> None:
    stand_ins.migration = "raise SystemExit('table is locked')"
    with pytest.raises(Unavailable, match=r"(?s)db-migrate ended .*table is locked"):
        stack.up(9200)
    assert marked(tmp_path) == []


@pytest.mark.parametrize("after", range(4))
def test_an_interruption_at_any_moment_leaves_nothing(
    stack: Stack, stand_ins: StandIns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    stand_ins.healthy = set()
    real = processes.spawn
    started: list[object] = []

    def interrupted(*arguments: object, **named: object) -> object:
        child = real(*arguments, **named)  # type: ignore[arg-type]
        started.append(child)
        if len(started) > after:
            raise KeyboardInterrupt  # the process runs, and nobody has written it down yet
        return child

    monkeypatch.setattr(processes, "spawn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stack.up(9200)
    assert len(started) == after + 1
    assert marked(tmp_path) == []


def test_what_ignores_a_request_and_what_lost_its_parent_is_ended_too(
    stack: Stack, stand_ins: StandIns, tmp_path: Path
) -> None:
    stand_ins.programs["scheduler"] = f"{ORPHANING}; {SLEEP}"
    stand_ins.programs["triggerer"] = STUBBORN
    stack.up(9200)
    wait_until(lambda: len(marked(tmp_path)) == len(PARTS) + 1, "every process", seen=lambda: marked(tmp_path))
    state = read_state(settings.load())
    assert state is not None
    os.kill(state.parts["scheduler"].pid, signal.SIGKILL)
    assert stack.down()
    assert marked(tmp_path) == []


def test_a_stack_that_was_killed_half_way_up_is_cleared_first(stack: Stack, tmp_path: Path) -> None:
    stray = subprocess.Popen(
        [sys.executable, "-c", SLEEP],
        env={**os.environ, "AIRLOCK_STACK_ID": "before", "AIRLOCK_HOME": str(tmp_path)},
    )
    (tmp_path / "stack").mkdir()
    write_state(settings.load(), StackState(stack_id="before", port_base=9200))
    reaped = stray.poll
    wait_until(lambda: len(marked(tmp_path)) == 1, "all but one to end", seen=lambda: marked(tmp_path))
    assert stack.up(9200)
    assert reaped() is not None
    assert len(marked(tmp_path)) == len(PARTS)


def test_a_stack_is_abandoned_when_its_owner_is_gone(stack: Stack) -> None:
    stack.up(9200, owned=True)
    assert not stack.abandoned()
    state = read_state(settings.load())
    assert state is not None
    write_state(settings.load(), state.model_copy(update={"owner": Process(pid=2**22 - 1, created=1.0)}))
    assert stack.abandoned()


def test_memory_is_counted_once() -> None:
    here = processes.memory_mb([os.getpid()])
    assert 5 < here < 5_000
    assert processes.memory_mb([]) == 0.0
    assert processes.memory_mb([2**22 - 1]) == 0.0
