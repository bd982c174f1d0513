"""What every release action shares: the model's spec, the settings, and when not to try again."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cached_property
from typing import Any, Concatenate, ParamSpec, TypeVar

from airflow.sdk import AssetAlias, BaseOperator, Context
from airflow.sdk.exceptions import AirflowFailException, AirflowRuntimeError

from airlock import assets, settings, specs
from airlock.control import ReleaseControl
from airlock.control.release import UNSEEN
from airlock.core.decide import Evidence
from airlock.core.errors import AirlockError, Conflict, DataInvalid, NotFound, Unavailable
from airlock.core.release import LIVE, Release
from airlock.core.spec import ModelSpec
from airlock.core.tally import GatewayStatus, LateEvidence
from airlock.hooks.gateway import GatewayHook
from airlock.hooks.ledger import LedgerHook
from airlock.hooks.registry import RegistryHook
from airlock.operators import receipts

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class ModelOperator(BaseOperator):
    """A step in one model's life.

    :param model: name of the model; its spec is ``dags/models/<model>.yaml``
    :param gateway_conn_id: connection of the gateway
    :param ledger_conn_id: connection of the ledger
    :param mlflow_conn_id: connection of the MLflow server
    """

    ui_color = "#e8f1fb"

    def __init__(
        self,
        *,
        model: str,
        gateway_conn_id: str = GatewayHook.default_conn_name,
        ledger_conn_id: str = LedgerHook.default_conn_name,
        mlflow_conn_id: str = RegistryHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.gateway_conn_id = gateway_conn_id
        self.ledger_conn_id = ledger_conn_id
        self.mlflow_conn_id = mlflow_conn_id
        self.links: dict[str, str] = {}

    @property
    def output(self) -> Any:
        """The result, as an argument for a later step: Airflow resolves it before that one runs."""
        return super().output

    @cached_property
    def gateway_hook(self) -> GatewayHook:
        return GatewayHook(self.gateway_conn_id)

    @cached_property
    def ledger_hook(self) -> LedgerHook:
        return LedgerHook(self.ledger_conn_id)

    @cached_property
    def registry_hook(self) -> RegistryHook:
        return RegistryHook(self.mlflow_conn_id)

    @cached_property
    def settings(self) -> settings.Settings:
        """Paths from the environment, URLs from the connections."""
        return dataclasses.replace(
            settings.load(),
            gateway_url=self.gateway_hook.url,
            ledger_url=self.ledger_hook.url,
            mlflow_url=self.registry_hook.url,
        )

    @cached_property
    def spec(self) -> ModelSpec:
        """The project's file as it is now."""
        return specs.find(self.settings, self.model)

    @cached_property
    def control(self) -> ReleaseControl:
        return ReleaseControl(self.model, self.settings, self.ledger_hook.get_conn(), aliases=self.registry_hook)

    def gateway_status(self) -> GatewayStatus | None:
        """What the gateway says about the model; ``None`` if it does not answer."""
        try:
            with self.gateway_hook.get_conn() as gateway:
                return gateway.status(self.model)
        except (Unavailable, NotFound) as error:
            self.log.warning("No evidence from the gateway: %s", error)
            return None

    def guard_traffic(self, late: LateEvidence | None = None, of: str | None = None) -> Evidence:
        """Take the model's release on its way back if the gateway has ejected it, or a guard has failed by now.

        The first task that can run does it, whatever it is for and whichever run it is of: the release's own may be
        waiting for a worker, for its next try, or for somebody who paused it.

        ``late`` is what labels say ``of`` one release. Returns what was looked at.
        """
        if not self.control.ledger.releases(self.model, phases=LIVE):
            return UNSEEN
        # What the gateway wrote down comes first: it needs no gateway that answers.
        ended, evidence = self.control.guard(UNSEEN), UNSEEN
        if ended is None:
            evidence = Evidence(gateway=self.gateway_status(), late=late)
            ended = self.control.guard(evidence, of)
        if ended is not None:
            self.log.warning("Release %s of version %s is taken back: %s", ended.id, ended.version, ended.reason)
        return evidence

    def announce_champion(self, context: Context, **extra: Any) -> None:
        """Tell of the champion through the task's outlets: an asset's event, or one of an alias.

        Airflow sends the event when the task succeeds, which no task sees: a task may be killed right before it in all
        of its tries. So the event stays due until ``confirm_announced`` finds it among the asset's events, and the
        sweep sends it again when Airflow says that it is not there: at least once, and asked first. What an event
        starts can be started twice.
        """
        route, champion = self.control.ledger.route(self.model), self.control.ledger.champion(self.model)
        if route is None or champion is None:
            return
        told = {"version": champion.version, "release": champion.release, "generation": route.generation, **extra}
        for outlet in self.outlets:
            if isinstance(outlet, AssetAlias):
                context["outlet_events"][outlet].add(assets.champion(self.model), extra=told)
            else:
                context["outlet_events"][outlet].extra = told

    def confirm_announced(self) -> bool:
        """Take the events of a champion that Airflow has for told. Returns whether it said: else they stay due."""
        if not self.control.pending("champion_asset"):
            return True
        try:
            self.control.announced(receipts.announced_generation(self.model, self.control.generation))
        except Unavailable as error:
            self.log.warning("Whether %s's champion was announced is not known: %s", self.model, error)
            return False
        return True


def refusals_are_final(
    execute: Callable[Concatenate[T, P], R],
) -> Callable[Concatenate[T, P], R]:
    """Fail the task without a retry when the answer would be the same again.

    A part of the stack that does not answer (``Unavailable``) and a lost race (``Conflict``) are worth another try;
    what is not possible is not, and who can wait for it has waited before.
    """

    @functools.wraps(execute)
    def wrapper(self: T, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return execute(self, *args, **kwargs)
        except (Unavailable, Conflict):
            raise
        except AirlockError as error:
            raise AirflowFailException(str(error)) from error

    return wrapper


def run_key(context: Context) -> str:
    """The DAG run as a folder name: what is done twice in a run is done under the same key.

    Run ids belong to a DAG: two DAGs that were started at the same time have the same. The digest keeps apart what
    looks alike as a folder name.
    """
    name = run_name(context)
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def run_name(context: Context) -> str:
    """The DAG run as the ledger names it: ``<dag id>/<run id>``."""
    return f"{context['dag_run'].dag_id}/{context['run_id']}"


def run_state(context: Context, release: Release) -> str | None:
    """The state of the run that carries a release; ``None`` if Airflow has no such run.

    Raises:
        Unavailable: Airflow does not say.
    """
    dag_id, _, run_id = (release.run or "").partition("/")
    try:
        if not context["ti"].get_dr_count(dag_id, run_ids=[run_id]):
            return None
        return str(context["ti"].get_dagrun_state(dag_id, run_id))
    except AirflowRuntimeError as error:
        raise Unavailable(f"Airflow does not say how run {release.run} stands: {error}") from error


def actor(context: Context) -> str:
    """Who started the run: a user's name, or the DAG."""
    return context["dag_run"].triggering_user_name or f"dag {context['dag_run'].dag_id}"


def time_of(until: str) -> datetime:
    """An aware time from ISO 8601.

    Raises:
        DataInvalid: it is no time, or has no offset.
    """
    try:
        time = datetime.fromisoformat(until)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise DataInvalid(f"until is {until!r}; expected ISO 8601 with an offset, such as 2013-04-01T00:00:00+00:00")
    return time


def triggering_extra(context: Context) -> Mapping[str, Any]:
    """What the asset events that started the run say, the newest last and on top; empty for other runs."""
    events = [event for events in context["triggering_asset_events"].values() for event in events]
    merged: dict[str, Any] = {}
    for event in sorted(events, key=lambda event: event.timestamp):
        merged |= event.extra or {}
    return merged
