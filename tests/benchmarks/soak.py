"""The demo and its releases over and over, until one fails: what "reliable" is counted by.

    python tests/benchmarks/soak.py demos --rounds 6 --busy 2
    python tests/benchmarks/soak.py releases --rounds 20

``demos`` plays whole demos one after the other, each on a fresh stack; during the last ``--busy`` of them both cores
do other work as well. ``releases`` starts one stack and plays the acts 2 to 4 on it until so many releases have ended:
the first champion, then in turn a candidate that is promoted and two that are taken back. Prints a row a round, and
stops at the first failure: its log, and the demo's folder with everything that it kept, stay in ``--folder``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TextIO

REPOSITORY = Path(__file__).parents[2]
WEEK = timedelta(days=7)
"""By how much more of the year the candidates of a round know than those of the round before."""
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "plugins")]

from rich.console import Console  # noqa: E402

from airlock.demo.story import ACTS  # noqa: E402
from airlock.demo.summary import Act, Summary  # noqa: E402


@dataclass
class Row:
    """One round. ``requests`` and ``failed`` are the replay's, ``acts`` seconds by act."""

    number: int
    ok: bool
    seconds: float
    requests: int = 0
    failed: int = 0
    acts: dict[str, float] = field(default_factory=dict)
    note: str = ""


class Table:
    """Markdown, a row as soon as it is known."""

    def __init__(self, acts: tuple[str, ...], out: TextIO = sys.stdout) -> None:
        self._acts = acts
        self._out = out
        self._line("round", "ok", "seconds", "requests", "failed", *acts, "load at its end", "")
        self._line(*["---"] * (7 + len(acts)))

    def add(self, row: Row) -> None:
        took = [f"{row.acts[act]:.0f}" if act in row.acts else "-" for act in self._acts]
        load = f"{os.getloadavg()[0]:.1f}"
        result = "yes" if row.ok else "**no**"
        self._line(
            str(row.number), result, f"{row.seconds:.0f}", f"{row.requests:,}", str(row.failed), *took, load, row.note
        )

    def say(self, line: str) -> None:
        self._out.write(f"{line}\n")

    def _line(self, *cells: str) -> None:
        self._out.write("| " + " | ".join(cells) + " |\n")
        self._out.flush()


def demos(rounds: int, busy: int, folder: Path, port_base: int) -> bool:
    """Whole demos in a row. Returns whether all of them were ok."""
    table = Table(ACTS)
    for number in range(1, rounds + 1):
        with working(os.cpu_count() or 1) if number > rounds - busy else contextlib.nullcontext():
            row = demo(number, folder, port_base)
        row.note = "both cores busy" if number > rounds - busy else ""
        table.add(row)
        if not row.ok:
            table.say(f"round {number} failed: {folder / f'demo-{number}.log'}; its state: {folder / f'demo-{number}'}")
            return False
        shutil.rmtree(folder / f"demo-{number}")
    return True


def demo(number: int, folder: Path, port_base: int) -> Row:
    out, began = folder / f"demo-{number}.json", time.monotonic()
    command = [
        *(sys.executable, "-c", "from airlock.cli import main; main()", "demo", "--exit", "--summary", str(out)),
        *("--home", str(folder / f"demo-{number}"), "--port-base", str(port_base)),
    ]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRLOCK_", "AIRFLOW_"))}
    with (folder / f"demo-{number}.log").open("w") as log:
        code = subprocess.run(
            command, cwd=REPOSITORY, env=env, stdout=log, stderr=subprocess.STDOUT, check=False
        ).returncode
    row = Row(number, code == 0, time.monotonic() - began)
    if out.exists():
        seen = Summary.model_validate(json.loads(out.read_text()))
        row.requests, row.failed = seen.client.requests, seen.client.failed
        row.acts = {act.name: act.seconds for act in seen.acts}
    return row


def releases(rounds: int, folder: Path, port_base: int, speed: float) -> bool:
    """Releases in a row on one stack. Returns whether all of them ended as they should."""
    from airlock.demo.run import staged

    table, log = Table(ACTS[1:4]), (folder / "releases.log").open("w")
    ended = number = 0
    with log, staged(Console(file=log, width=200), home=folder / "home", port_base=port_base, speed=speed) as stage:
        story = stage.story
        acts: list[Act] = [story.play_act("train")]
        if acts[0].ok:
            acts = [story.play_act("first_release")]
            ended += 1
        while True:
            number += 1
            traffic = stage.world.traffic()
            ok = all(act.ok for act in acts)
            table.add(
                Row(
                    number,
                    ok,
                    sum(act.seconds for act in acts),
                    traffic.requests,
                    traffic.failed,
                    {act.name: act.seconds for act in acts},
                    f"{ended} releases so far",
                )
            )
            if not ok or traffic.failed:
                table.say(f"round {number} failed, see {folder / 'releases.log'} and {folder / 'home'}:")
                table.say("\n".join(act.detail for act in acts if not act.ok) or str(traffic.first_failure))
                return False
            if ended >= rounds:
                return True
            if number > 1:
                story.learned += WEEK
            acts = []
            for name, count in (("canary_promoted", 1), ("bad_candidate_rolled_back", 2)):
                if all(act.ok for act in acts):
                    acts.append(story.play_act(name))
                    ended += count


@contextlib.contextmanager
def working(processes: int) -> Iterator[None]:
    """So many processes that only count, for as long as the context is open."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=count, daemon=True) for _ in range(processes)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def count() -> None:
    number = 0
    while True:
        number += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["demos", "releases"])
    parser.add_argument("--rounds", type=int, default=6, help="demos, or releases")
    parser.add_argument("--busy", type=int, default=0, help="how many of the demos, the last ones, have busy cores")
    parser.add_argument("--folder", type=Path, help="where logs and what a failed round kept stay")
    parser.add_argument("--port-base", type=int, default=9700)
    parser.add_argument("--speed", type=float, default=1.0, help="simulated hours a second, of releases alone")
    said = parser.parse_args()
    folder = said.folder or Path(tempfile.mkdtemp(prefix="airlock-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.write(f"logs in {folder}; load average at the start {os.getloadavg()[0]:.1f}\n\n")
    if said.what == "demos":
        return 0 if demos(said.rounds, said.busy, folder, said.port_base) else 1
    return 0 if releases(said.rounds, folder, said.port_base, said.speed) else 1


if __name__ == "__main__":
    sys.exit(main())
