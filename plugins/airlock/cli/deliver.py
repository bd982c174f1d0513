"""``airlock deliver``: hand in what became known after an answer, as Parquet or CSV. Needs no Airflow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airlock import settings
from airlock.cli.models import Model
from airlock.cli.output import AsJson, out, print_json, reported

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(
    no_args_is_help=True, help="Hand in labels and outcomes. Handing in the same file again changes nothing."
)

File = Annotated[
    Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True, help="A .parquet or .csv file.")
]
_ZONE = r"(?:Z|[+-]\d{2}:?\d{2})$"


@app.command(epilog="Example: airlock deliver labels flight_delay labels.parquet")
def labels(model: Model, file: File, as_json: AsJson = False) -> None:
    """Hand in labels: the spec's key, its label and, where the spec names one, its label time with a zone."""
    from airlock import specs
    from airlock.steps import labels as store

    with reported():
        here = settings.load()
        spec = specs.find(here, model)
        label = spec.label
        frame = _read(file, key=spec.data.key, number=label.name, time=label.time)
        _told(model, "labels", store.deliver(spec, here, frame), as_json=as_json)


@app.command(epilog="Example: airlock deliver outcomes flight_delay revenue.csv")
def outcomes(model: Model, file: File, as_json: AsJson = False) -> None:
    """Hand in outcomes: the columns key, name, value and time (with a zone), one row for each outcome of an answer."""
    from airlock import specs
    from airlock.steps import outcomes as store

    with reported():
        here = settings.load()
        spec = specs.find(here, model)
        frame = _read(file, key="key", number="value", time="time")
        _told(model, "outcomes", store.deliver(spec, here, frame), as_json=as_json)


def _told(model: str, what: str, count: int, *, as_json: bool) -> None:
    if as_json:
        print_json({"model": model, "delivered": count, "what": what})
    else:
        out.print(f"{model}: {count:,} {what} delivered", markup=False)


def _read(path: Path, *, key: str, number: str, time: str | None) -> pd.DataFrame:
    """A table whose key is text, whose number is one, and whose time has a zone.

    Raises:
        DataInvalid: it cannot be read so.
    """
    import pandas as pd

    from airlock.core.errors import DataInvalid

    readers: dict[str, Callable[[], pd.DataFrame]] = {
        # Keys stay as they are written: 007 is not 7.
        ".csv": lambda: pd.read_csv(path, dtype={key: str}),
        ".parquet": lambda: pd.read_parquet(path),
    }
    if path.suffix not in readers:
        raise DataInvalid(f"{path} is neither .parquet nor .csv")
    try:
        frame = readers[path.suffix]()
    except (ValueError, OSError) as error:
        raise DataInvalid(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error
    if number in frame.columns:
        try:
            frame[number] = pd.to_numeric(frame[number])
        except (TypeError, ValueError) as error:
            raise DataInvalid(f"{path}: column {number!r} holds what is not a number: {error}") from error
    if time in frame.columns and not pd.api.types.is_datetime64_any_dtype(frame[time].dtype):
        frame[time] = _times(path, frame[time])
    return frame


def _times(path: Path, written: pd.Series) -> pd.Series:
    import pandas as pd

    from airlock.core.errors import DataInvalid

    text = written.astype("string")
    if bare := int((text.notna() & ~text.str.contains(_ZONE, regex=True, na=True)).sum()):
        raise DataInvalid(
            f"{path}: {bare} of {len(text)} times in column {written.name!r} have no time zone; write them as "
            "2013-04-01T06:00:00Z"
        )
    try:
        return pd.to_datetime(text, format="ISO8601", utc=True)
    except ValueError as error:
        raise DataInvalid(f"{path}: a time in column {written.name!r} is not ISO 8601: {error}") from error
