"""A release's way to production: open it, approve it, step by step onto traffic, promote it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from typing import Any, NoReturn

from airflow.sdk import BaseOperatorLink, Context, SkipMixin
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from airlock.core.errors import GateRefused, NotFound, Unavailable
from airlock.core.refs import VersionRef
from airlock.core.release import TERMINAL, Phase
from airlock.core.tally import GatewayStatus
from airlock.operators.base import ModelOperator, actor, refusals_are_final, run_key, triggering_extra
from airlock.operators.links import GatewayLink, MlflowRunLink
from airlock.triggers.release import ReleaseStepTrigger


class PackageBentoOperator(ModelOperator):
    """Pack a registered version as a Bento, verify it, and open its release in the ledger.

    Without ``version`` it is the one that the triggering asset event names, or else the newest.
    A version that an event names twice is released once.

    :param version: number of a registered version
    :return: the ``Release``
    """

    template_fields = ("version",)
    operator_extra_links = (MlflowRunLink(),)

    def __init__(self, *, version: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.version = version

    @refusals_are_final
    def execute(self, context: Context) -> dict[str, Any]:
        from airlock.steps import packaging

        registry = self.registry_hook.get_conn()
        announced = triggering_extra(context).get("version")
        number = self.version or announced
        version = registry.version(self.model, str(number)) if number else registry.latest(self.model)
        self.links[MlflowRunLink().name] = self.registry_hook.run_url(version.run_id)
        by_event = announced is not None and not self.version
        self._refuse_champion(version.version, by_event=by_event)
        self._refuse_stale_evidence(version)
        bento = packaging.package(self.spec, self.settings, version)
        key = f"{self.model}:{version.version}:announced" if by_event else f"{self.model}:{run_key(context)}"
        release = self.control.open(version.version, bento, actor=actor(context), key=key)
        if by_event and (release.phase in TERMINAL or release.phase is Phase.PROMOTED):
            raise AirflowSkipException(
                f"version {release.version} was released already and is {release.phase} ({release.reason}); "
                f"trigger {context['dag_run'].dag_id} by hand to release it again"
            )
        if not self.spec.approval.required:
            release = self.control.approve(release.id, actor="spec", reason="the spec asks for no approval")
        self.log.info("Release %s of version %s, packed as %s", release.id, release.version, bento.tag)
        return release.model_dump(mode="json")

    def _refuse_champion(self, version: str, *, by_event: bool) -> None:
        champion = self.ledger_hook.get_conn().champion(self.model)
        if champion is not None and champion.version == version:
            refused = AirflowSkipException if by_event else AirflowFailException
            raise refused(f"{self.model} version {version} is the champion already: nothing to release")

    def _refuse_stale_evidence(self, version: VersionRef) -> None:
        """Gates that compared a version with another champion say nothing about this one."""
        champion = self.ledger_hook.get_conn().champion(self.model)
        if champion is not None and version.judged_against != champion.version:
            raise GateRefused(
                f"{self.model} version {version.version} was judged against {version.judged_against or 'nobody'}, but "
                f"the champion is version {champion.version} by now; train again, or go back to a version that was "
                f"champion with: airlock rollback {self.model} --to VERSION"
            )


class ReleaseOperator(ModelOperator):
    """An action on an open release.

    :param release: the ``Release`` that ``PackageBentoOperator`` returned, or a release's id
    """

    template_fields: Sequence[str] = ("release",)
    operator_extra_links: Collection[BaseOperatorLink] = (GatewayLink(),)

    def __init__(self, *, release: Mapping[str, Any] | str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.release = release

    @cached_property
    def release_id(self) -> str:
        return self.release if isinstance(self.release, str) else str(self.release["id"])

    def link_gateway(self) -> None:
        self.links[GatewayLink().name] = self.settings.gateway_url


class ReleaseStepOperator(ReleaseOperator, SkipMixin):
    """Put one step's traffic into effect, wait for its evidence without a worker, then go on or roll back.

    The warm-up also decides what of the rollout applies. Without a champion there is nothing to
    compare with and no traffic to split: every later step is skipped, and promotion comes next.
    With ``skip_shadow`` (here, or in the triggering event) the shadow is skipped.

    :param step: ``warm_up``, ``shadow`` or ``canary_<weight>``, as the spec's rollout has them
    :param skip_shadow: of the warm-up: leave the shadow out
    :return: the ``Decision`` that let the release through
    """

    template_fields: Sequence[str] = ("release", "step", "skip_shadow")
    inherits_from_skipmixin = True

    def __init__(self, *, step: str, skip_shadow: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.step = step
        self.skip_shadow = skip_shadow

    @refusals_are_final
    def execute(self, context: Context) -> dict[str, Any] | None:
        self.link_gateway()
        if self.step == "warm_up" and self.ledger_hook.get_conn().champion(self.model) is None:
            self.log.info("%s has no champion: version goes straight to promotion", self.model)
            self._skip_steps(context, lambda _: True)
            return None
        self.control.enter(self.release_id, self.step)
        return self._settle(context)

    @refusals_are_final
    def resume(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """Look again: a trigger may fire twice, late or wrongly, the ledger and the gateway decide."""
        self.link_gateway()
        self.log.info("Woken up: %s", event.get("reason"))
        return self._settle(context)

    def _settle(self, context: Context) -> dict[str, Any]:
        decision = self.control.observe(self.release_id, self._status())
        if decision.action == "wait":
            self.log.info("Waiting: %s", decision.reason)
            self._wait()
        if decision.action == "roll_back":
            self.control.roll_back(self.release_id, reason=decision.reason)
            raise AirflowFailException(f"{self.model}: rolled back in {self.step}: {decision.reason}")
        self.log.info("Advancing: %s", decision.reason)
        if self.step == "warm_up" and (self.skip_shadow or triggering_extra(context).get("skip_shadow")):
            self._skip_steps(context, lambda step: step == "shadow")
        return decision.model_dump(mode="json")

    def _status(self) -> GatewayStatus | None:
        try:
            with self.gateway_hook.get_conn() as gateway:
                return gateway.status(self.model)
        except (Unavailable, NotFound) as error:
            self.log.warning("No evidence from the gateway: %s", error)
            return None

    def _wait(self) -> NoReturn:
        release = self.control.ledger.release(self.release_id)
        self.defer(
            trigger=ReleaseStepTrigger(
                spec=self.spec.model_dump(mode="json"),
                release=release.model_dump(mode="json"),
                gateway_url=self.settings.gateway_url,
            ),
            method_name="resume",
            # Should no triggerer run, Airflow wakes the task up for another try, which then judges by itself.
            timeout=self.spec.rollout.deadline + timedelta(minutes=1),
        )

    def _skip_steps(self, context: Context, which: Callable[[str], bool]) -> None:
        later = [task for task in self.get_flat_relatives(upstream=False) if isinstance(task, ReleaseStepOperator)]
        skipped = sorted((task for task in later if which(task.step)), key=lambda task: task.task_id)
        self.skip(context["ti"], skipped)


class PromoteOperator(ReleaseOperator):
    """Make the release's version the champion. The outlet's event names it."""

    @refusals_are_final
    def execute(self, context: Context) -> dict[str, Any]:
        self.link_gateway()
        promoted = self.control.promote(self.release_id)
        for outlet in self.outlets:
            context["outlet_events"][outlet].extra = {"version": promoted.version, "release": promoted.id}
        self.log.info("Version %s is the champion", promoted.version)
        return promoted.model_dump(mode="json")


class RestoreTrafficOperator(ReleaseOperator):
    """Teardown of a release: whatever happened, a version that was not promoted has no traffic after it."""

    @refusals_are_final
    def execute(self, context: Context) -> dict[str, Any]:  # noqa: ARG002
        self.link_gateway()
        restored = self.control.restore(self.release_id)
        self.log.info("Release %s is %s: %s", restored.id, restored.phase, restored.reason)
        return restored.model_dump(mode="json")
