"""How the command line speaks: results to stdout, everything else to stderr, one table of exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from airlock.core.errors import AirlockError, Unavailable


class Exit(IntEnum):
    """What a shell is told."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNAVAILABLE = 3
    INTERRUPTED = 130


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


def print_json(document: Any) -> None:
    """One JSON document on stdout. Times become ISO 8601 text."""
    sys.stdout.write(json.dumps(document, indent=2, default=str) + "\n")


def fail(message: str, code: Exit = Exit.FAILED) -> NoReturn:
    err.print(f"[red]error:[/red] {_plain(message)}")
    raise typer.Exit(code)


@contextmanager
def reported() -> Iterator[None]:
    """Turn errors that Airlock raises on purpose into a message and an exit code."""
    try:
        yield
    except Unavailable as error:
        fail(str(error), Exit.UNAVAILABLE)
    except AirlockError as error:
        fail(str(error), Exit.FAILED)
    except KeyboardInterrupt:
        err.print("interrupted")
        raise typer.Exit(Exit.INTERRUPTED) from None


def _plain(text: str) -> str:
    """Text that rich prints as it is."""
    return text.replace("[", r"\[")
