"""The verbs that steer: pause, resume, promote, abort, extend, pin, unpin, rollback.

They write the ledger and the gateway's route and need nothing else: with Airflow and MLflow down they are in effect
within a second. A release's run finds out by itself; what Airflow and MLflow have to show follows when they are up.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airlock import settings
from airlock.cli.models import Model, require_known, version_number
from airlock.cli.output import AsJson, Exit, fail, out, print_json, reported

if TYPE_CHECKING:
    from airlock.control import ReleaseControl
    from airlock.core.release import Release
    from airlock.core.route import Route
    from airlock.core.segment import Condition


def _reason(value: str) -> str:
    if not value.strip():
        raise typer.BadParameter("it is empty; say why, or leave the option out")
    return value


Why = Annotated[str, typer.Option(callback=_reason, help="Why; it is kept in the ledger.")]
Actor = Annotated[
    str | None, typer.Option(metavar="NAME", help="Who asks for it; it is kept too.", show_default="your user name")
]
_UNSAID = "asked for on the command line"


def pause(model: Model, reason: Why = _UNSAID, actor: Actor = None, as_json: AsJson = False) -> None:
    """Keep the release on its way in its step, with the shares that it has. Guards go on."""
    _steer(
        model,
        as_json,
        lambda control, release: control.pause(release.id, actor=_who(actor), reason=reason),
        "is paused in {step}",
    )


def resume(model: Model, reason: Why = _UNSAID, actor: Actor = None, as_json: AsJson = False) -> None:
    """Let a paused release go on; its deadline moves by as long as it was paused."""
    _steer(
        model,
        as_json,
        lambda control, release: control.resume(release.id, actor=_who(actor), reason=reason),
        "goes on in {step}",
    )


def promote(model: Model, reason: Why = _UNSAID, actor: Actor = None, as_json: AsJson = False) -> None:
    """Let the release through its remaining steps without waiting for their evidence, past no breach."""
    _steer(
        model,
        as_json,
        lambda control, release: control.promote_now(release.id, actor=_who(actor), reason=reason),
        "goes on from {step} without waiting for evidence; its run does the rest",
    )


def abort(model: Model, reason: Why = _UNSAID, actor: Actor = None, as_json: AsJson = False) -> None:
    """End the release on its way; all traffic goes to the champion at once."""
    _steer(
        model,
        as_json,
        lambda control, release: control.abort(release.id, actor=_who(actor), reason=reason),
        "is aborted",
    )


def extend(
    model: Model,
    by: Annotated[str, typer.Argument(metavar="DURATION", help="By how long: 90s, 15m, 6h or 14d.")],
    reason: Why = _UNSAID,
    actor: Actor = None,
    as_json: AsJson = False,
) -> None:
    """Move the deadline of the release on its way."""
    from airlock.core.policy import written

    longer = _duration(by)
    _steer(
        model,
        as_json,
        lambda control, release: control.extend(release.id, longer, actor=_who(actor), reason=reason),
        f"has {written(longer)} more for each step",
    )


def pin(
    model: Model,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called; one of that name is replaced.")],
    version: Annotated[str, typer.Option(callback=version_number, help="The version that answers.")],
    when: Annotated[
        list[str],
        typer.Option(
            metavar="CONDITION",
            help="carrier=EV,9E or distance=500..1000; repeatable: all of them hold.",
        ),
    ],
    reason: Why = _UNSAID,
    actor: Actor = None,
    as_json: AsJson = False,
) -> None:
    """Have requests with certain attributes answered by one version, whatever the shares say."""
    from pydantic import ValidationError

    from airlock.core.segment import Pin

    try:
        wanted = Pin(name=name, when=tuple(_condition(each) for each in when), version=version)
    except ValidationError as error:
        fail(f"that is no pin: {error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}", Exit.USAGE)
    with control_of(model) as control:
        route = control.pin(wanted, actor=_who(actor), reason=reason)
        _tell_pins(route, as_json)


def unpin(
    model: Model,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which pin.")],
    reason: Why = _UNSAID,
    actor: Actor = None,
    as_json: AsJson = False,
) -> None:
    """Take a pin away."""
    with control_of(model) as control:
        _tell_pins(control.unpin(name, actor=_who(actor), reason=reason), as_json)


def rollback(
    model: Model,
    to: Annotated[
        str | None, typer.Option(metavar="VERSION", callback=version_number, help="Default: the last good one before.")
    ] = None,
    reason: Why = _UNSAID,
    actor: Actor = None,
    as_json: AsJson = False,
) -> None:
    """Go back to an earlier good version at once, and take back a release that is on its way."""
    with control_of(model) as control:
        route = control.roll_back_model(to, actor=_who(actor), reason=reason)
        if as_json:
            print_json({"generation": route.generation, "champion": route.champion, "reason": route.reason})
        else:
            out.print(f"{model} is to be answered by version {route.champion} alone: {route.reason}", markup=False)


@contextmanager
def control_of(model: str, *, aliases: bool = False) -> Iterator[ReleaseControl]:
    """Release control of a model that there is; errors are told and become exit codes.

    Its spec is not read: what is open goes by the one that it was opened with, also while the file is broken or gone.
    """
    from airlock.control import ReleaseControl
    from airlock.ledger import Ledger
    from airlock.stack import settings_of

    with reported():
        here = settings_of(settings.load())
        ledger = Ledger(here.ledger_url)
        require_known(here, ledger, model)
        registry = None
        if aliases:
            from airlock.steps.registry import Registry

            registry = Registry(here.mlflow_url)
        yield ReleaseControl(model, here, ledger, aliases=registry)


def _steer(model: str, as_json: bool, act: Callable[[ReleaseControl, Release], Release], told: str) -> None:
    with control_of(model) as control:
        release = control.current(model)
        if release is None:
            fail(
                f"{model} has no release on its way{_last(control)}; what happened is told by: airlock history "
                f"{model}, and a version that was promoted is taken back by: airlock rollback {model}"
            )
        steered = act(control, release)
        if as_json:
            print_json(steered.model_dump(mode="json"))
            return
        said = told.format(step=steered.step)
        out.print(f"release {steered.id} of {model} version {steered.version} {said}: {steered.reason}", markup=False)


def _last(control: ReleaseControl) -> str:
    """How the newest release stands, in words: somebody may have steered too late."""
    newest = next(iter(control.ledger.releases(control.model)), None)
    if newest is None:
        return ""
    phase = newest.phase.replace("_", " ")
    return f": its newest, release {newest.id} of version {newest.version}, is {phase} ({newest.reason})"


def _tell_pins(route: Route, as_json: bool) -> None:
    if as_json:
        print_json({"generation": route.generation, "pins": [pin.model_dump(mode="json") for pin in route.pins]})
        return
    for each in route.pins:
        where = ", ".join(_written(condition) for condition in each.when)
        out.print(f"{each.name}: version {each.version} where {where}", markup=False)
    if not route.pins:
        out.print(f"{route.model} has no pins", markup=False)


def _who(actor: str | None) -> str:
    if actor:
        return actor
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        fail("nobody knows who you are here: say it with --actor NAME", Exit.USAGE)


def _duration(text: str) -> timedelta:
    from pydantic import TypeAdapter, ValidationError

    from airlock.core.spec import Duration

    try:
        found: timedelta = TypeAdapter(Duration).validate_python(text)
    except ValidationError:
        fail(f"expected a duration such as 90s, 15m, 6h or 14d, got {text!r}", Exit.USAGE)
    if not found:
        fail("expected a duration longer than nothing", Exit.USAGE)
    return found


def _condition(text: str) -> Condition:
    """``carrier=EV,9E`` or ``distance=500..1000``; values are read as YAML, so that 3 and true mean what they say."""
    import yaml
    from pydantic import ValidationError

    from airlock.core.segment import Condition

    attribute, equals, said = text.partition("=")
    least, dots, most = said.partition("..")
    wanted: dict[str, Any]
    try:
        if dots:
            wanted = {"min": float(least) if least else None, "max": float(most) if most else None}
        else:
            wanted = {"values": tuple(yaml.safe_load(each) for each in said.split(",")) if equals else None}
        return Condition(attribute=attribute, **wanted)
    except (ValueError, ValidationError, yaml.YAMLError):
        fail(f"expected a condition such as carrier=EV,9E or distance=500..1000, got {text!r}", Exit.USAGE)


def _written(condition: Condition) -> str:
    if condition.values is not None:
        return f"{condition.attribute}={','.join(str(value) for value in condition.values)}"
    ends = ("" if end is None else f"{end:g}" for end in (condition.min, condition.max))
    return f"{condition.attribute}={'..'.join(ends)}"
