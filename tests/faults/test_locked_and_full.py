"""F16 of the fault table: the ledger is locked for 30 s, or the disk is full, and the gateway answers meanwhile."""

from __future__ import annotations

import sqlite3
import subprocess
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


def lock(points: Points, url: str) -> None:
    """Another program that keeps the ledger to itself until the test lets it go."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            points.here("locked")
        return
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        connection.execute("LOCK TABLE releases, routes, journal, leases IN SHARE ROW EXCLUSIVE MODE")
        points.here("locked")


@pytest.mark.parametrize("tries", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_f16_locked_for_several_tries(
    world: World, start: Callable[..., Worker], injected: Injected, tries: int
) -> None:
    """Each try ends after a bounded wait and says why; the one that finds it free again does it, once."""
    world.promoted("1")
    release = world.in_step("2", "canary_50")
    world.followed()
    control = world.control()
    locker = start(lock, world.settings.ledger_url, stop_at="locked")
    with Client(world.settings.gateway_url, world.model) as client:
        assert locker.stopped()
        for _ in range(tries):  # as Airflow tries a task again
            with pytest.raises(Unavailable, match="locked") as refused:
                control.roll_back(release.id, reason="enough")
            assert "nothing was written" in str(refused.value)
            client.more(1)
        locker.go_on()
        assert locker.outcome() == "done"
        control.roll_back(release.id, reason="enough")
        world.followed()
        client.more(3)
    assert client.errors == []
    assert world.require_sound().weights == {"1": 100.0}
    assert world.happened(Event.ROLL_BACK) == [release.id]
    injected("F16", f"ledger locked for {tries * LOCK_WAIT_S} s")


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
