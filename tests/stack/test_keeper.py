"""Keepers of small stand-ins: what ends comes back, alone, whoever else is killed, and stays away after ``down``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from airlock import settings
from airlock.stack import Stack, embedded, keeper, processes
from airlock.stack.parts import PARTS, Part
from airlock.stack.ports import Ports
from airlock.stack.state import StackState, read_state
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SLEEP = "import time; time.sleep(600)"
STAND_INS = """
import json, os, sys
from airlock.stack import keeper
from airlock.stack.parts import Part
programs = json.loads(os.environ["STAND_INS"])
def parts(settings, _ports, env):
    return {name: Part(name, (sys.executable, "-c", program), {**env, "AIRLOCK_PART": name},
                       settings.stack / "logs" / f"{name}.log") for name, program in programs.items()}
keeper.parts = parts
spawn = keeper.processes.spawn
def again(command, env, log, cwd):
    if keeper.PROGRAM in command:
        command = (sys.executable, "-c", os.environ["KEEPER"], command[-1])
    return spawn(command, env, log, cwd)
keeper.processes.spawn = again
keeper.main()
"""
"""A keeper that starts stand-ins, and whose other one does as well."""


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    programs = dict.fromkeys(PARTS, SLEEP)
    monkeypatch.setenv("AIRLOCK_HOME", str(tmp_path))
    monkeypatch.setenv("STAND_INS", json.dumps(programs))
    monkeypatch.setenv("KEEPER", STAND_INS)

    def part(of: settings.Settings, name: str, program: str, env: dict[str, str]) -> Part:
        env = {**env, processes.PART: name}
        return Part(name, (sys.executable, "-c", program), env, of.stack / "logs" / f"{name}.log")

    monkeypatch.setattr(embedded, "parts", lambda of, _, env: {n: part(of, n, p, env) for n, p in programs.items()})
    monkeypatch.setattr(embedded, "migrate", lambda of, env: part(of, "db-migrate", "pass", env))
    monkeypatch.setattr(embedded, "_healthy", lambda _client, _settings: set(PARTS))
    monkeypatch.setattr(Ports, "require_free", lambda _self: None)
    spawn = processes.spawn

    def stood_in(command: tuple[str, ...], env: dict[str, str], log: Path, cwd: Path) -> subprocess.Popen[bytes]:
        if keeper.PROGRAM in command:
            command = (sys.executable, "-c", STAND_INS, command[-1])
        return spawn(command, env, log, cwd)

    monkeypatch.setattr(processes, "spawn", stood_in)
    found = Stack(settings.load())
    found.up(9300)
    yield found
    found.down()


def known() -> dict[str, int]:
    state = read_state(settings.load())
    assert state is not None
    return {name: process.pid for name, process in state.parts.items()}


def keepers(state: StackState) -> list[int]:
    return [p.pid for p in processes.members(state) if p.environ().get(processes.PART) == "keeper"]


def two_keepers() -> list[int]:
    state = read_state(settings.load())
    assert state is not None

    def found() -> list[int] | None:
        both = keepers(state)
        return both if len(both) == 2 else None

    return wait_until(found, "two keepers", seen=lambda: keepers(state))


@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_is_killed_comes_back_alone(stack: Stack, name: str) -> None:
    two_keepers()
    before = known()
    os.kill(before[name], signal.SIGKILL)
    wait_until(lambda: known()[name] != before[name], f"{name} to be started again")
    after = known()
    assert psutil.Process(after[name]).is_running()
    assert {n: pid for n, pid in after.items() if n != name} == {n: pid for n, pid in before.items() if n != name}


def test_whichever_keeper_is_killed_the_other_one_goes_on(stack: Stack) -> None:
    for _ in range(3):
        for place in range(2):
            victim = sorted(two_keepers())[place]
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda victim=victim: victim not in two_keepers(), "two keepers again")  # type: ignore[misc]
    before = known()
    os.kill(before["gateway"], signal.SIGKILL)
    wait_until(lambda: known()["gateway"] != before["gateway"], "the gateway to be started again")


def test_nothing_comes_back_after_down(stack: Stack) -> None:
    two_keepers()
    state = read_state(settings.load())
    assert state is not None
    assert stack.down()
    assert processes.members(state) == []
    assert read_state(settings.load()) is None


def test_up_starts_what_is_missing_and_leaves_the_rest(stack: Stack) -> None:
    state = read_state(settings.load())
    assert state is not None
    for pid in two_keepers():
        os.kill(pid, signal.SIGSTOP)  # they would be quicker
    before = known()
    os.kill(before["scheduler"], signal.SIGKILL)
    wait_until(lambda: not processes.alive(state.parts["scheduler"]), "the scheduler to be gone")
    assert stack.up()
    after = known()
    assert after["scheduler"] != before["scheduler"]
    assert {**after, "scheduler": 0} == {**before, "scheduler": 0}
    assert read_state(settings.load()).port_base == 9300  # type: ignore[union-attr]
