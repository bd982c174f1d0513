"""The verbs on a model. Each starts the DAG run that a user would start in the Airflow UI."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airlock import settings
from airlock.cli.output import AsJson, Exit, err, fail, out, print_json, reported

if TYPE_CHECKING:
    from airlock.airflow_api import AirflowApi, Run
    from airlock.ledger import Ledger


def version_number(value: str | None) -> str | None:
    """A version as the registry counts them."""
    if value is not None and not value.isdecimal():
        raise typer.BadParameter(f"{value!r} is not a version: expected a whole number, such as 3")
    return value


Model = Annotated[str, typer.Argument(help="Name of the model: dags/models/<model>.yaml.", metavar="MODEL")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the run to its end.")]
Until = Annotated[
    str | None, typer.Option(metavar="TIME", help="What is known at this time, ISO 8601; without a zone it is UTC.")
]


AsUser = Annotated[
    str,
    typer.Option("--as", metavar="USER", help="Who answers: approver, reviewer or admin of the embedded Airflow."),
]


def train(
    model: Model,
    until: Until = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the recipe's load(); repeatable.")
    ] = None,
    param: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A parameter of the recipe's pipeline(); repeatable.")
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Tuning trials; default: the spec's.")] = None,
    skip_shadow: Annotated[bool, typer.Option("--skip-shadow", help="Release it without the shadow step.")] = False,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Train a candidate: snapshot, validation, features, tuning, ONNX, gates, registration."""
    with _api(model) as api:
        conf = {
            "until": _time(until),
            "options": _pairs(option),
            "params": _pairs(param),
            "trials": trials,
            "skip_shadow": skip_shadow,
        }
        _run(api, f"{model}__train", conf, wait=wait, as_json=as_json)


def release(
    model: Model,
    version: Annotated[
        str | None, typer.Option(callback=version_number, help="Registered version; default: the newest candidate.")
    ] = None,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Take a registered version to production: package, approval, shadow, canary steps, promotion."""
    with _api(model) as api:
        _run(api, f"{model}__release", {"version": version}, wait=wait, as_json=as_json)


def monitor(model: Model, until: Until = None, wait: Wait = True, as_json: AsJson = False) -> None:
    """Measure drift up to a time; a failed report starts a training by itself."""
    with _api(model) as api:
        _run(api, f"{model}__monitor", {"until": _time(until)}, wait=wait, as_json=as_json)


def approve(
    model: Model,
    comment: Annotated[str, typer.Option(help="Kept in the ledger.")] = "",
    user: AsUser = "approver",
    as_json: AsJson = False,
) -> None:
    """Let the release that waits for an answer go on, as far as this answer is concerned."""
    _answer(model, user=user, yes=True, comment=comment, as_json=as_json)


def reject(
    model: Model,
    comment: Annotated[str, typer.Option(help="Kept in the ledger.")] = "",
    user: AsUser = "approver",
    as_json: AsJson = False,
) -> None:
    """Refuse the release that waits for an answer."""
    _answer(model, user=user, yes=False, comment=comment, as_json=as_json)


def history(
    model: Model,
    last: Annotated[int, typer.Option(min=1, help="How many entries, the newest.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Tell a model's releases as a timeline: who, what and why."""
    from airlock.control import ReleaseControl
    from airlock.ledger import Ledger

    with reported():
        here = settings.load()
        ledger = Ledger(here.ledger_url)
        require_known(here, ledger, model)
        entries = ledger.timeline(model)[-last:]
        if as_json:
            print_json([entry.model_dump(mode="json") for entry in entries])
            return
        if not entries:
            out.print(f"{model} has no history in {here.home}")
        for entry in entries:
            where = entry.step or entry.phase or ""
            version = f"v{entry.version}" if entry.version else ""
            what = f"{entry.at:%Y-%m-%d %H:%M:%S}  {version:<5} {entry.event:<10} {where:<12}"
            out.print(f"{what} {entry.actor}: {entry.reason}", markup=False)
        control = ReleaseControl(model, here, ledger)
        for release in control.open_releases():
            if (note := control.spec_note(release)) is not None:
                out.print(f"note: {note}", markup=False)


def require_known(here: settings.Settings, ledger: Ledger, model: str) -> None:
    """Refuse a name that neither a file nor the ledger knows.

    Raises:
        NotFound: it is one; names the closest.
    """
    from airlock import specs

    if model in ledger.models() or (here.specs / f"{model}.yaml").is_file():
        return
    specs.find(here, model)


@contextmanager
def _api(model: str, user: str = "admin") -> Iterator[AirflowApi]:
    """Airflow as ``user``, for a model that there is; errors are told and become exit codes."""
    from airlock import specs
    from airlock.airflow_api import AirflowApi
    from airlock.stack import password_of, settings_of

    with reported():
        here = settings_of(settings.load())
        specs.find(here, model)
        with AirflowApi(here.airflow_url, user, password_of(here, user)) as api:
            yield api


def _run(api: AirflowApi, dag_id: str, conf: dict[str, Any], *, wait: bool, as_json: bool) -> None:
    from airlock.airflow_api import why_failed
    from airlock.cli.follow import follow

    asked = {name: value for name, value in conf.items() if value is not None}
    run = api.trigger(dag_id, asked)
    err.print(f"{dag_id} {run.dag_run_id}", markup=False)
    if not wait:
        _tell(run, None, as_json=as_json)
        return
    run = follow(api, run, lambda line: err.print(line, markup=False))
    reason = None if run.state == "success" else why_failed(api, run)
    _tell(run, reason, as_json=as_json)
    if reason is not None:
        if as_json:
            raise typer.Exit(Exit.FAILED)
        fail(reason)


def _tell(run: Run, reason: str | None, *, as_json: bool) -> None:
    if as_json:
        print_json({**run.model_dump(mode="json"), "reason": reason})
    elif reason is None:
        out.print(f"{run.dag_id} {run.dag_run_id} {run.state}", markup=False)


def _answer(model: str, *, user: str, yes: bool, comment: str, as_json: bool) -> None:
    with _api(model, user=user) as api:
        waiting = api.approvals(f"{model}__release")
        if not waiting:
            fail(f"no release of {model} waits for an answer")
        question = waiting[-1]
        option = question.options[0 if yes else -1]
        api.answer(question, option, {"comment": comment} if comment else None)
        if as_json:
            print_json({"run": question.dag_run_id, "question": question.subject, "answer": option})
        else:
            out.print(f"{question.subject}: {option}", markup=False)


def _pairs(given: list[str] | None) -> dict[str, Any]:
    """``key=value`` arguments; a value is read as YAML, so that 3, true and [a, b] mean what they say."""
    import yaml

    found: dict[str, Any] = {}
    for pair in given or ():
        key, separator, value = pair.partition("=")
        if not separator or not key:
            fail(f"expected KEY=VALUE, got {pair!r}", Exit.USAGE)
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            fail(f"{key}: {value!r} cannot be read: {error}", Exit.USAGE)
    return found


def _time(text: str | None) -> str | None:
    """An ISO 8601 time with its zone."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        fail(f"expected a time such as 2013-03-31 or 2013-03-31T12:00:00+00:00, got {text!r}", Exit.USAGE)
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).isoformat()
