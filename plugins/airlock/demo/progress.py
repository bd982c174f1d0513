"""What a person sees while the story runs: a line for everything that happened, and one line of now."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from rich.console import Console
from rich.live import Live
from rich.text import Text

_REFRESH = 4


@dataclass
class Now:
    """The line of now. ``weights`` are percent by version."""

    act: str = "starting"
    task: str = ""
    weights: Mapping[str, float] = field(default_factory=dict)
    shadow: tuple[str, ...] = ()
    champion: str | None = None
    generation: int = 0
    requests: int = 0
    failed: int = 0
    clock: datetime | None = None


class Progress:
    """Lines to ``console``; on a terminal a live line below them, elsewhere nothing but lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self.now = Now()

    @contextmanager
    def shown(self) -> Iterator[None]:
        if not self._console.is_terminal:
            yield
            return
        with Live(get_renderable=self._line, console=self._console, refresh_per_second=_REFRESH, transient=True):
            yield

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._began

    def act(self, number: int, name: str, title: str) -> None:
        self.now.act = f"act {number} {name}"
        self.now.task = ""
        self._print(Text(f"act {number}  {name}: {title}", style="bold"))

    def say(self, line: str, *, style: str = "") -> None:
        self._print(Text(f"        {line}", style=style))

    def task(self, dag_id: str, task_id: str, state: str, seconds: float | None) -> None:
        """A task that changed."""
        kind = dag_id.partition("__")[2]
        if state in {"running", "deferred", "queued"}:
            self.now.task = f"{kind}.{task_id}"
        elif state in {"success", "failed"}:
            took = f" {seconds:.1f} s" if seconds else ""
            self.say(f"{kind}.{task_id} {state}{took}", style="" if state == "success" else "yellow")

    def route(self, weights: Mapping[str, float], champion: str, shadow: tuple[str, ...], reason: str) -> None:
        """New shares."""
        self.now.weights, self.now.champion, self.now.shadow = dict(weights), champion, shadow
        self.say(f"traffic {shares(weights, champion, shadow)}  ({reason})", style="cyan")

    def _print(self, line: Text) -> None:
        with self._lock:
            self._console.print(Text(f"{self.seconds:6.1f} s  ", style="dim").append_text(line))

    def _line(self) -> Text:
        now = self.now
        parts = [f"{self.seconds:6.1f} s", now.act, now.task or "..."]
        if now.champion is not None:
            parts.append(shares(now.weights, now.champion, now.shadow))
        if now.clock is not None:
            parts.append(f"{now.clock:%d %b %Hh}")
            parts.append(f"{now.requests:,} answered, {now.failed} lost")
        return Text("  |  ".join(parts), style="reverse")


def shares(weights: Mapping[str, float], champion: str, shadow: tuple[str, ...]) -> str:
    """Shares of traffic in words: ``v1 95 %, v2 5 %``."""
    said = [
        f"v{version} {weight:g} %"
        for version, weight in sorted(weights.items(), key=lambda item: item[0] != champion)
        if weight > 0
    ]
    return ", ".join([*said, *(f"v{version} in shadow" for version in shadow)])


class Poll:
    """Calls a function every so often in the background, until it is stopped."""

    def __init__(self, every: float, look: Callable[[], None]) -> None:
        self._stop = threading.Event()
        self._every = every
        self._look = look
        self._thread = threading.Thread(target=self._run, name="poll", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            self._look()
