"""A process of its own that stops at a named point, so that a test can kill it or put it to sleep exactly there.

What it does is real: the work gets a ``Points``, and whoever is to be watched is wrapped by it. The points are the
borders of every effect: before and after each commit of the ledger, after a route's document was written and after it
took its place, before and after an alias or a version in the registry changes. A worker that reaches the point it was
given writes a marker and goes no further until it is let go.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import psutil

from airlock.control.projection import Aliases
from airlock.ledger import Ledger
from airlock.ledger.engine import engine_of
from tests.support.waiting import PATIENCE_S, wait_until

FORKS = multiprocessing.get_context("forkserver")
# Imports take seconds: they are done once, in a process without threads and connections, and every worker is its fork.
FORKS.set_forkserver_preload(["__main__", "tests.support.fault_preload"])

_WRITES = ("lease", "release_lease", "open", "transition", "route_only", "effect_done", "record", "save_state", "claim")


class Points:
    """Names every point that the worker passes, and stops at one of them: the ``stop_at``-th or of that name."""

    def __init__(self, folder: Path, stop_at: int | str | None) -> None:
        self._folder = folder
        self._stop_at = stop_at
        self._writing = "a write"
        self.passed: list[str] = []

    def here(self, name: str) -> None:
        """The worker is at a point."""
        self.passed.append(name)
        if self._stop_at in (name, len(self.passed) - 1):
            self._stop_at = None
            _write(self._folder / "stopped", name)
            wait_until((self._folder / "go").exists, "the test to let the worker go on", patience=600, every=0.002)

    def watch(self, url: str) -> None:
        """Watch the ledger's commits and the route's documents from now on, in this whole process."""
        for name in _WRITES:
            setattr(Ledger, name, self._named(name, getattr(Ledger, name)))
        dialect = engine_of(url).dialect
        commit, replace = dialect.do_commit, Path.replace

        def committing(connection: Any) -> None:
            what = self._writing
            self.here(f"before the commit of {what}")
            commit(connection)
            self.here(f"after the commit of {what}")

        def replacing(path: Path, target: Path) -> Path:
            self.here("route written beside its place")
            moved = replace(path, target)
            self.here("route in its place")
            return moved

        dialect.do_commit = committing  # type: ignore[method-assign]
        Path.replace = replacing  # type: ignore[method-assign, assignment]

    def _named(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def named(ledger: Ledger, *args: Any, **keywords: Any) -> Any:
            detail = {"transition": lambda: args[1], "effect_done": lambda: args[0].kind}.get(name, lambda: "")()
            self._writing = f"{name} {detail}".strip()
            if name == "transition":
                self.here(f"everything read for {self._writing}")
            return method(ledger, *args, **keywords)

        return named


class WatchedAliases:
    """Aliases whose every change is a point."""

    def __init__(self, inner: Aliases, points: Points) -> None:
        self._inner = inner
        self._points = points

    def set_alias(self, model: str, alias: str, version: str) -> None:
        self._points.here(f"before alias {alias} is set")
        self._inner.set_alias(model, alias, version)
        self._points.here(f"after alias {alias} was set")

    def clear_alias(self, model: str, alias: str, version: str) -> None:
        self._points.here(f"before alias {alias} is cleared")
        self._inner.clear_alias(model, alias, version)
        self._points.here(f"after alias {alias} was cleared")


class FileAliases:
    """Aliases of one model in a file, for several processes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def names(self) -> dict[str, str]:
        return dict(json.loads(self._path.read_text())) if self._path.exists() else {}

    def set_alias(self, model: str, alias: str, version: str) -> None:
        self._keep({**self.names, alias: version})

    def clear_alias(self, model: str, alias: str, version: str) -> None:
        self._keep({name: named for name, named in self.names.items() if (name, named) != (alias, version)})

    def alias(self, model: str, alias: str) -> str | None:
        return self.names.get(alias)

    def _keep(self, names: dict[str, str]) -> None:
        _write(self._path, json.dumps(names))


class Worker:
    """A process that runs ``work(points, *arguments)``."""

    _count: ClassVar[int] = 0

    def __init__(
        self, folder: Path, work: Callable[..., object], *arguments: object, stop_at: int | str | None = None
    ) -> None:
        Worker._count += 1
        self.folder = folder / f"worker-{Worker._count}"
        self.folder.mkdir(parents=True)
        self._process = FORKS.Process(target=_run, args=(work, arguments, self.folder, stop_at), daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def stopped(self) -> str | None:
        """The point where it has stopped, or ``None`` when it ended without reaching it."""
        marker = self.folder / "stopped"
        wait_until(lambda: marker.exists() or not self._process.is_alive(), "the worker to stop or end", every=0.002)
        return marker.read_text() if marker.exists() else None

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)
        self._process.join(PATIENCE_S)
        assert self._process.exitcode == -signal.SIGKILL

    def sleep(self) -> None:
        """SIGSTOP: it does not notice."""
        os.kill(self.pid, signal.SIGSTOP)
        process = psutil.Process(self.pid)
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED, "the worker to stand still", seen=process.status)

    def wake(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def go_on(self) -> None:
        """Let it go on from its point, as soon as it is awake."""
        (self.folder / "go").touch()

    def result(self) -> Any:
        """What the work returned, as JSON."""
        ended = self._ended()
        assert "raised" not in ended, ended["raised"]
        return ended["returned"]

    def outcome(self) -> str:
        """``done``, or the name of the error that was raised and what it said."""
        return str(self._ended().get("raised", "done"))

    def _ended(self) -> dict[str, Any]:
        self._process.join(PATIENCE_S)
        assert not self._process.is_alive(), "the worker does not end"
        assert self._process.exitcode == 0, f"the worker ended with {self._process.exitcode}"
        return dict(json.loads((self.folder / "ended").read_text()))

    def end(self) -> None:
        """SIGKILL, whatever it does."""
        if self._process.is_alive():
            os.kill(self.pid, signal.SIGKILL)
        self._process.join(PATIENCE_S)


def _run(work: Callable[..., object], arguments: tuple[object, ...], folder: Path, stop_at: int | str | None) -> None:
    points = Points(folder, stop_at)
    try:
        ended = {"returned": work(points, *arguments)}
    except Exception as error:  # noqa: BLE001 - the test compares it with what it expected
        ended = {"raised": f"{type(error).__name__}: {error}"}
    _write(folder / "ended", json.dumps(ended))


def _write(path: Path, content: str) -> None:
    """Whole or not at all: a worker may be killed in here too."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(content)
    os.replace(temporary, path)  # noqa: PTH105 - the points watch Path.replace
