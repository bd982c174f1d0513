"""Several processes at once, real ones: of two that want the same, one gets it; who was overtaken is fenced off."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from typing import Any, ClassVar

import pytest
from sqlalchemy import event

from airlock.core.errors import Conflict, Fenced
from airlock.core.release import Event, Phase
from airlock.ledger import Ledger
from airlock.ledger.engine import engine_of
from tests.support.releases import NOW, release, route

SPAWN = multiprocessing.get_context("spawn")
WAIT_S = 120
MINUTE = timedelta(minutes=1)
WORKERS = 3


class Racers:
    """Processes that stay for all tests of the file; to import the ledger takes each of them longer than to race."""

    _barrier: ClassVar[Barrier]

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def outcomes(self, work: Callable[..., str], url: str) -> list[str]:
        """What ``work(url, number, wait)`` returned in each process; ``wait`` returns in all of them at once."""
        futures = [self._pool.submit(Racers._race, work, url, number) for number in range(WORKERS)]
        return sorted(future.result(WAIT_S) for future in futures)

    @classmethod
    def start(cls, barrier: Barrier) -> None:
        """In the process: what all of them wait at."""
        cls._barrier = barrier

    @classmethod
    def _race(cls, work: Callable[..., str], url: str, number: int) -> str:
        try:
            return work(url, number, lambda: cls._barrier.wait(WAIT_S))
        except Exception as error:  # noqa: BLE001 - the parent compares it with what it expected
            return f"{type(error).__name__}: {error}"


@pytest.fixture(scope="module")
def racers() -> Iterator[Racers]:
    with ProcessPoolExecutor(WORKERS, SPAWN, Racers.start, (SPAWN.Barrier(WORKERS),)) as pool:
        yield Racers(pool)


def _open_first(url: str, number: int, wait: Callable[[], Any]) -> str:
    wait()
    return str(Ledger(url).models())


def test_a_new_ledger_is_opened_by_all_at_once(ledger_url: str, racers: Racers) -> None:
    assert racers.outcomes(_open_first, ledger_url) == ["[]"] * WORKERS
    Ledger(ledger_url).open(release(), key="k", actor="ann")


def _approve(url: str, number: int, wait: Callable[[], Any]) -> str:
    ledger = Ledger(url)
    seen = ledger.release("r1")
    wait()
    try:
        ledger.transition(seen, Event.APPROVE, actor=f"p{number}", reason="yes", now=NOW, effects=["record"])
    except Conflict:
        return "lost"
    return "won"


def test_a_transition_happens_once(ledger_url: str, racers: Racers) -> None:
    ledger = Ledger(ledger_url)
    ledger.open(release(), key="k", actor="ann")
    assert racers.outcomes(_approve, ledger_url) == ["lost"] * (WORKERS - 1) + ["won"]
    assert [entry.event for entry in ledger.timeline("m")] == ["open", "approve"]
    assert len(ledger.pending_effects("m")) == 1


def _write_route(url: str, number: int, wait: Callable[[], Any]) -> str:
    """Every process moves a release of its own, and all want the same generation of the route."""
    ledger = Ledger(url)
    opened = ledger.open(release(f"r{number}"), key=f"k{number}", actor="ann")
    wait()
    try:
        ledger.transition(opened, Event.APPROVE, actor="bob", reason="yes", now=NOW, route=route(1))
    except Conflict:
        return "lost"
    return "won"


def test_a_generation_has_one_route(ledger_url: str, racers: Racers) -> None:
    assert racers.outcomes(_write_route, ledger_url) == ["lost"] * (WORKERS - 1) + ["won"]
    ledger = Ledger(ledger_url)
    assert len(ledger.routes("m")) == 1
    assert [item.phase for item in ledger.releases("m")].count(Phase.APPROVED) == 1


def _open_same_key(url: str, number: int, wait: Callable[[], Any]) -> str:
    ledger = Ledger(url)
    wait()
    return ledger.open(release(f"r{number}"), key="run-1", actor="ann").id


def test_one_key_opens_one_release(ledger_url: str, racers: Racers) -> None:
    opened = racers.outcomes(_open_same_key, ledger_url)
    assert len(set(opened)) == 1
    assert [item.id for item in Ledger(ledger_url).releases("m")] == opened[:1]


def _take_lease(url: str, number: int, wait: Callable[[], Any]) -> str:
    ledger = Ledger(url)
    wait()
    try:
        return str(ledger.lease("m", f"p{number}", ttl=MINUTE, now=NOW).token)
    except Conflict:
        return "lost"


def test_a_lease_has_one_holder(ledger_url: str, racers: Racers) -> None:
    assert racers.outcomes(_take_lease, ledger_url) == ["1"] + ["lost"] * (WORKERS - 1)


def _claim(url: str, number: int, wait: Callable[[], Any]) -> str:
    ledger = Ledger(url)
    wait()
    return ledger.claim("m", "drift", f"p{number}", at=NOW + number * MINUTE, window=timedelta(hours=1))


def test_a_window_has_one_holder(ledger_url: str, racers: Racers) -> None:
    assert len(set(racers.outcomes(_claim, ledger_url))) == 1


def _count_up(url: str, number: int, wait: Callable[[], Any]) -> str:
    ledger = Ledger(url)
    wait()
    done = 0
    while done < 10:
        document, revision = ledger.load_state("m", "n") or ("0", None)
        try:
            ledger.save_state("m", "n", str(int(document) + 1), revision=revision)
        except Conflict:
            continue
        done += 1
    return "done"


def test_no_addition_to_a_state_is_lost(ledger_url: str, racers: Racers) -> None:
    assert racers.outcomes(_count_up, ledger_url) == ["done"] * WORKERS
    assert Ledger(ledger_url).load_state("m", "n") == (str(10 * WORKERS), 10 * WORKERS)


def _take_over_and_write(url: str, number: int, wait: Callable[[], Any]) -> str:
    """Take the lease from whoever has it, by a clock that is always ahead, and write while others do the same."""
    ledger = Ledger(url)
    opened = ledger.release("r1")
    wait()
    fenced = 0
    for turn in range(15):
        now = NOW + (15 * number + turn) * MINUTE
        try:
            lease = ledger.lease("m", f"p{number}", ttl=timedelta(seconds=1), now=now)
            for _ in range(3):
                ledger.note(opened, "write", actor="p", reason=str(lease.token), now=now, lease=lease)
        except Fenced:
            fenced += 1
        except Conflict:
            continue
    return "done"


def test_nobody_writes_after_the_lease_was_taken_over(ledger_url: str, racers: Racers) -> None:
    ledger = Ledger(ledger_url)
    ledger.open(release(), key="k", actor="ann")
    assert racers.outcomes(_take_over_and_write, ledger_url) == ["done"] * WORKERS
    tokens = [int(entry.reason) for entry in ledger.timeline("m") if entry.event == "write"]
    assert tokens == sorted(tokens), "a lower token wrote after a higher one was granted"
    assert len(set(tokens)) > 1


def _sleep_under_a_lease(url: str, results: Queue[str]) -> None:
    ledger = Ledger(url)
    before = ledger.release("r1")
    lease = ledger.lease("m", "sleeper", ttl=MINUTE, now=NOW)
    os.kill(os.getpid(), signal.SIGSTOP)
    try:
        # Its clock still says what it said before it fell asleep.
        ledger.transition(before, Event.REJECT, actor="sleeper", reason="late", now=NOW, route=route(1), lease=lease)
        results.put("written")
    except Fenced as error:
        results.put(f"fenced: {error}")


def test_who_slept_through_its_lease_is_fenced_off(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    opened = ledger.open(release(), key="k", actor="ann")
    results = SPAWN.Queue()
    sleeper = SPAWN.Process(target=_sleep_under_a_lease, args=(ledger_url, results))
    sleeper.start()
    assert sleeper.pid is not None
    try:
        _, status = os.waitpid(sleeper.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        ledger.lease("m", "watcher", ttl=MINUTE, now=NOW + MINUTE)
        os.kill(sleeper.pid, signal.SIGCONT)
        said = results.get(timeout=WAIT_S)
    finally:
        sleeper.kill()
        sleeper.join(WAIT_S)
    assert said.startswith("fenced: reject of release r1: it is watcher (token 2)'s turn")
    assert ledger.release("r1") == opened
    assert ledger.routes("m") == []


def _die_before_commit(url: str) -> None:
    ledger = Ledger(url)
    before = ledger.release("r1")
    event.listen(engine_of(url), "commit", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    ledger.transition(before, Event.APPROVE, actor="p", reason="", now=NOW, route=route(1), effects=["route"])


def test_who_is_killed_in_the_middle_leaves_nothing_behind(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    opened = ledger.open(release(), key="k", actor="ann")
    victim = SPAWN.Process(target=_die_before_commit, args=(ledger_url,))
    victim.start()
    victim.join(WAIT_S)
    assert victim.exitcode == -signal.SIGKILL
    assert (ledger.release("r1"), ledger.routes("m"), ledger.pending_effects("m")) == (opened, [], [])
    moved = ledger.transition(opened, Event.APPROVE, actor="q", reason="", now=NOW, route=route(1))
    assert moved.phase is Phase.APPROVED


def _approve_in_a_fork(url: str, results: Queue[str]) -> None:
    inherited = engine_of(url).pool.status()
    ledger = Ledger(url)
    ledger.transition(ledger.release("r1"), Event.APPROVE, actor="child", reason="", now=NOW)
    results.put(inherited)


@pytest.mark.filterwarnings("ignore:This process")
def test_a_forked_child_has_connections_of_its_own(ledger_url: str) -> None:
    """Airflow forks its tasks off processes that may have used the ledger."""
    ledger = Ledger(ledger_url)
    ledger.open(release(), key="k", actor="ann")
    assert "Connections in pool: 0" not in engine_of(ledger_url).pool.status()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_approve_in_a_fork, args=(ledger_url, results))
    child.start()
    assert "Connections in pool: 0" in results.get(timeout=WAIT_S)
    child.join(WAIT_S)
    assert child.exitcode == 0
    assert ledger.release("r1").phase is Phase.APPROVED
