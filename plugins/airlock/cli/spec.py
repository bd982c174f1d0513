"""``airlock spec``: check, describe and show model specs. Needs no Airflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from airlock import settings
from airlock.cli.output import AsJson, Exit, err, out, print_json, reported

app = typer.Typer(help="Check, describe and show model specs. Needs no Airflow.", no_args_is_help=True)


@app.command(epilog="Example: airlock spec lint dags/models/flight_delay.yaml")
def lint(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Spec files; default: all of dags/models/.", metavar="[FILE]...")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check specs. Exits with 1 if one cannot be used, telling the file, the line and the closest name.

    A warning tells of what can be used and promises less than it seems to.
    """
    from airlock.core.errors import NotFound, SpecError
    from airlock.core.guard_warnings import warnings as warnings_of
    from airlock.specs import load_spec, spec_files

    with reported():
        folder = settings.load().specs
        found = paths or spec_files(folder)
        if not found:
            raise NotFound(f"no spec in {folder}: nothing was checked; a spec is {folder}/<model>.yaml")
        errors: dict[str, str] = {}
        warnings: dict[str, list[str]] = {}
        for path in found:
            try:
                spec = load_spec(path)
            except SpecError as error:
                errors[str(path)] = str(error)
            else:
                if warned := list(warnings_of(spec)):
                    warnings[str(path)] = warned
        if as_json:
            checked = [str(path) for path in found]
            print_json({"ok": not errors, "checked": checked, "errors": errors, "warnings": warnings})
        else:
            _tell(len(found), errors, warnings)
        if errors:
            raise typer.Exit(Exit.FAILED)


def _tell(checked: int, errors: dict[str, str], warnings: dict[str, list[str]]) -> None:
    for message in errors.values():
        err.print(message, markup=False, style="red")
    for path, messages in warnings.items():
        for message in messages:
            err.print(f"{path}: warning: {message}", markup=False, style="yellow")
    out.print(f"{checked} checked, {len(errors)} in error")


@app.command(epilog="Example: airlock spec schema --out docs/spec.schema.json")
def schema(
    to: Annotated[Path | None, typer.Option("--out", help="Write it here instead of printing it.")] = None,
) -> None:
    """Print the JSON schema of a spec, for editors."""
    from airlock import specs

    with reported():
        if to is None:
            print_json(specs.schema())
        else:
            to.write_text(specs.schema_text())


@app.command(epilog="Example: airlock spec show flight_delay --json")
def show(
    model: Annotated[str, typer.Argument(help="Name of the model.", metavar="MODEL")], as_json: AsJson = False
) -> None:
    """Show a spec as it is understood, with every default filled in."""
    import yaml

    from airlock import specs

    with reported():
        document = specs.find(settings.load(), model).model_dump(mode="json")
        if as_json:
            print_json(document)
        else:
            out.print(yaml.safe_dump(document, sort_keys=False), markup=False, end="")
