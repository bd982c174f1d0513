"""``airlock demo``: the whole story."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from airlock.cli.output import Exit, out, reported
from airlock.cli.stack import PortBase
from airlock.settings import PORT_BASE


def demo(
    leave: Annotated[bool, typer.Option("--exit", help="End when the story does, instead of staying up.")] = False,
    summary: Annotated[Path | None, typer.Option(metavar="FILE", help="Write what was seen as JSON.")] = None,
    port_base: PortBase = None,
    home: Annotated[
        Path | None,
        typer.Option(help="Folder of the demo's state; emptied at the start.", show_default=".airlock/demo"),
    ] = None,
    speed: Annotated[float, typer.Option(min=1, max=24, help="Simulated hours a second.")] = 6.0,
) -> None:
    """Play a model's whole life: train, release, canary, two rollbacks, drift. Exits with 1 if an act failed."""
    from airlock.demo import demo as played
    from airlock.demo import demo_home

    with reported():
        where = home or demo_home()
        with played(out, home=where, port_base=port_base or PORT_BASE, speed=speed) as seen:
            if summary is not None:
                seen.write(summary)
            if not leave:
                out.print("the stack stays up until Ctrl-C")
                _until_interrupted()
        if not seen.ok:
            raise typer.Exit(Exit.FAILED)


def _until_interrupted() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        out.print("taking the stack down")
