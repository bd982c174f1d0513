"""F16 of the fault table: the ledger is locked for 30 s, or the disk is full, and the gateway answers meanwhile."""

from __future__ import annotations

import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from airlock.core.errors import Unavailable
from airlock.core.release import Event
from airlock.ledger.engine import LOCK_WAIT_S, engine_of
from tests.faults.conftest import Injected
from tests.support.clients import Client
from tests.support.fault_worker import Points, Worker
from tests.support.fault_world import World

pytestmark = pytest.mark.integration

LOCKED_S = 30


def lock(_points: Points, url: str, seconds: float) -> None:
    """Another program that keeps the ledger to itself."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            _points.here("locked")
            time.sleep(seconds)
        return
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        connection.execute("LOCK TABLE releases, routes, journal, leases IN SHARE ROW EXCLUSIVE MODE")
        _points.here("locked")
        time.sleep(seconds)


def test_f16_locked_for_half_a_minute(world: World, start: Callable[..., Worker], injected: Injected) -> None:
    """Each try ends after a bounded wait and says why; the one that finds it free again does it, once."""
    world.promoted("1")
    release = world.in_step("2", "canary_50")
    world.followed()
    control = world.control()
    locker = start(lock, world.settings.ledger_url, LOCKED_S, stop_at="locked")
    with Client(world.settings.gateway_url, world.model) as client:
        assert locker.stopped()
        began = time.monotonic()
        locker.go_on()
        tries: list[tuple[float, str]] = []
        while True:  # as Airflow tries a task again
            tried = time.monotonic()
            try:
                control.roll_back(release.id, reason="enough")
            except Unavailable as error:
                tries.append((time.monotonic() - tried, str(error)))
                client.more(1)
            else:
                break
        took = time.monotonic() - began
        world.followed()
        client.more(3)
    assert locker.outcome() == "done"
    assert tries
    assert all(LOCK_WAIT_S - 1 < seconds < LOCK_WAIT_S + 10 for seconds, _ in tries)
    assert all("locked" in said and "nothing was written" in said for _, said in tries)
    assert LOCKED_S - 1 < took < LOCKED_S + LOCK_WAIT_S + 10
    assert client.errors == []
    assert world.require_sound().weights == {"1": 100.0}
    assert world.happened(Event.ROLL_BACK) == [release.id]
    injected("F16", f"ledger locked for {LOCKED_S} s")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB. Where it may not be mounted the test is left out."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no disk of its own may be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    """A file that takes what is left."""
    path = folder / "filling"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return path


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_f16_the_ledgers_disk_is_full(
    make_world: Callable[..., World], small_disk: Path, start: Callable[..., Worker], injected: Injected
) -> None:
    world = make_world()
    world = replace(world, settings=replace(world.settings, ledger_url=f"sqlite:///{small_disk / 'ledger.db'}"))
    try:
        world.promoted("1")
        release = world.in_step("2", "canary_50")
        before = world.followed()
        known = world.ledger.timeline(world.model)
        with Client(world.settings.gateway_url, world.model) as client:
            filling = fill(small_disk)
            with pytest.raises(Unavailable, match=r"nothing was written, the disk .* is full.*free some"):
                world.control().roll_back(release.id, reason="enough " * 1000)
            client.more(20)
            assert world.ledger.timeline(world.model) == known
            assert world.followed().generation == before.generation
            filling.unlink()
            world.control().roll_back(release.id, reason="enough")
            world.followed()
            client.more(3)
        assert client.errors == []
        assert world.require_sound().weights == {"1": 100.0}
        assert world.happened(Event.ROLL_BACK) == [release.id]
        injected("F16", "the ledger's disk full (2 MB tmpfs)")
    finally:
        engine_of(world.settings.ledger_url).dispose()


def test_f16_the_routes_disk_is_full(make_world: Callable[..., World], small_disk: Path, injected: Injected) -> None:
    """The decision is in the ledger, the gateway goes on with the route before; with room it is put into effect."""
    world = make_world()
    world.promoted("1")
    release = world.in_step("2", "canary_50")
    before = world.followed()
    routes, model = world.settings.routes, world.model
    with Client(world.settings.gateway_url, world.model) as client:
        full = replace(world, settings=replace(world.settings, home=small_disk))
        full.settings.routes.mkdir()
        (full.settings.routes / f"{model}.json").write_bytes((routes / f"{model}.json").read_bytes())
        filling = fill(small_disk)
        with pytest.raises(Unavailable, match=r"is decided, but .* cannot be written .*No space.*airlock reconcile"):
            full.control(aliases=world.aliases).roll_back(release.id, reason="enough")
        client.more(20)
        assert world.followed(lambda _: True).generation == before.generation
        assert (full.settings.routes / f"{model}.json").read_bytes() == (routes / f"{model}.json").read_bytes()
        filling.unlink()
        assert list(full.settings.routes.glob(".*.tmp")) == []
        assert [repair.kind for repair in world.reconciled()] == ["route"], "its turn catches up on the aliases"
        assert world.control().pending("aliases") == []
        world.followed()
        client.more(3)
    assert client.errors == []
    assert world.require_sound().weights == {"1": 100.0}
    injected("F16", "the routes' disk full (2 MB tmpfs)")
