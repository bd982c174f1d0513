"""``airlock record``: what is known of a release that has ended, and whether it is still what was signed."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airlock import settings
from airlock.cli.models import Model
from airlock.cli.output import AsJson, fail, out, print_json, reported

if TYPE_CHECKING:
    from airlock.core.spec import ModelSpec

app = typer.Typer(no_args_is_help=True, help="Release records: signed, and model cards made from them.")


class Form(StrEnum):
    """How a card is told."""

    MARKDOWN = "markdown"
    HTML = "html"


@app.command(epilog="Example: airlock record show flight_delay --json")
def show(
    model: Model,
    release: Annotated[str | None, typer.Option(metavar="ID", help="Default: the newest that has a record.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what became of a release; its signature is verified first."""
    from airlock.steps import record
    from airlock.steps.model_card import markdown

    with reported():
        here = settings.load()
        found = record.verify(_folder(here, model, release) / record.RECORD, here)
        if as_json:
            print_json(found.model_dump(mode="json"))
        else:
            out.print(markdown(_spec(here, model, found.release), found), markup=False)


@app.command(epilog="Example: airlock record card flight_delay --form html > card.html")
def card(
    model: Model,
    release: Annotated[str | None, typer.Option(metavar="ID", help="Default: the newest that has a record.")] = None,
    form: Annotated[Form, typer.Option(help="Markdown, or one HTML file.")] = Form.MARKDOWN,
) -> None:
    """Print the model card of a released version."""
    from airlock.steps import model_card

    with reported():
        here = settings.load()
        name = model_card.HTML if form is Form.HTML else model_card.MARKDOWN
        typer.echo((_folder(here, model, release) / name).read_text())


@app.command(epilog="Example: airlock record verify record.json --key release.pub")
def verify(
    file: Annotated[Path, typer.Argument(help="A record; its signature lies beside it as FILE.sig.")],
    key: Annotated[Path | None, typer.Option(help="The public key; default: the home's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check that a record is what was signed."""
    from airlock.steps import record

    with reported():
        found = record.verify(file, settings.load(), public_key=key)
        if as_json:
            print_json({"release": found.release, "model": found.model, "version": found.version, "valid": True})
        else:
            what = f"release {found.release} of {found.model} version {found.version}, {found.outcome}"
            out.print(f"{file}: {what}; valid", markup=False)


def _spec(here: settings.Settings, model: str, release: str) -> ModelSpec:
    """What the release was opened with."""
    from airlock.control import ReleaseControl
    from airlock.ledger import Ledger

    control = ReleaseControl(model, here, Ledger(here.ledger_url))
    return control.spec_of(control.ledger.release(release))


def _folder(here: settings.Settings, model: str, release: str | None) -> Path:
    """The folder of one release's record, or of the newest."""
    from airlock.steps.record import RECORD

    found = sorted((here.records / model).glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime)
    if release is not None:
        found = [path for path in found if path.parent.name == release]
    if not found:
        which = f"no release {release}" if release else "no release"
        fail(f"{which} of {model} has a record in {here.records}; it is written when a release ends")
    return found[-1].parent
