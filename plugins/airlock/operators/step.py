"""A step of a rollout: put its traffic into effect, and wait for its evidence without a worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from airflow.sdk import Context, SkipMixin
from airflow.sdk.exceptions import AirflowFailException, TaskDeferralTimeout

from airlock.core.decide import Evidence, decide
from airlock.core.errors import Conflict, NotFound, NotYet, Unavailable
from airlock.core.release import HELD, Phase, Release, plan, planned
from airlock.core.tally import GatewayStatus, LateEvidence
from airlock.operators.base import refusals_are_final, triggering_extra
from airlock.operators.release import ReleaseOperator
from airlock.triggers.ledger import LedgerTrigger, facts
from airlock.triggers.release import ReleaseStepTrigger, breached

_FOR_LABELS = timedelta(minutes=15)
_SLACK = timedelta(minutes=1)
_SOON_S, _SELDOM_S = 1.0, 30.0


class ReleaseStepOperator(ReleaseOperator, SkipMixin):
    """Put one step's traffic into effect, wait for its evidence without a worker, then go on or roll back.

    The first step waits until no other release of the model is on its way, and decides what of the rollout applies.
    Without a champion there is nothing to compare with and no traffic to split: every later step is skipped, and
    promotion comes next. With ``skip_shadow`` (here, or in the triggering event) the shadow is skipped.

    Cleared or tried again, a step that the release stands in goes on, and one that it has passed is done.

    :param step: ``warm_up``, ``shadow``, ``canary_<weight>``, ``green`` or ``experiment``, as the rollout has them
    :param skip_shadow: of the warm-up: leave the shadow out
    :return: the ``Decision`` that let the release through
    """

    template_fields: Sequence[str] = ("release", "step", "skip_shadow")
    inherits_from_skipmixin = True
    guards_only = False

    def __init__(self, *, step: str, skip_shadow: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.step = step
        self.skip_shadow = skip_shadow

    @refusals_are_final
    def execute(self, context: Context) -> dict[str, Any] | None:
        self.link_gateway()
        release = self.control.ledger.release(self.release_id)
        self.refuse_ended(release)
        if self._passed(release):
            self.log.info("Release %s has passed %s: it is %s", release.id, self.step, release.step or release.phase)
            return None
        if self.step == "warm_up" and self.control.ledger.champion(self.model) is None:
            self._without_champion(context)
            return None
        seen = facts(self.control.ledger, release.id, ("release", "in_the_way"))
        try:
            entered = self.control.enter(self.release_id, self.step)
        except NotYet as other:
            self._wait_for_the_way(other, seen)
        if entered.step != self.step:
            self.log.info("Paused in %s: %s", entered.step, entered.reason)
            self._wait(self._status())
        return self._settle(context)

    @refusals_are_final
    def resume(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any] | None:
        """Look again: a trigger may fire twice, late or wrongly, the ledger and the gateway decide."""
        self.log.info("Woken up: %s", event.get("reason"))
        return self.execute(context)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Look again when the wait timed out too: without a triggerer, that is how a task wakes up."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            return self.resume(context, {"reason": "the wait is over"})

    def _passed(self, release: Release) -> bool:
        if release.phase in HELD or release.phase is Phase.COMPLETED:
            return True
        names = [step.name for step in plan(self.spec)]
        return release.step in names and names.index(release.step) > names.index(planned(self.spec, self.step).name)

    def _without_champion(self, context: Context) -> None:
        if self.spec.rollout.plan == "shadow_only":
            raise AirflowFailException(
                f"{self.model} has no champion whose requests could be shadowed: release a version with another plan"
            )
        self.log.info("%s has no champion: the version goes straight to promotion", self.model)
        self._skip_steps(context, lambda _: True)

    def _wait_for_the_way(self, other: NotYet, seen: Mapping[str, Any]) -> NoReturn:
        """Wait until no other release has traffic. ``seen``: the facts from before, so that no change is missed."""
        self.log.info("Waiting: %s", other)
        self.defer(
            trigger=LedgerTrigger(ledger_conn_id=self.ledger_conn_id, release=self.release_id, seen=seen),
            method_name="resume",
            timeout=self.spec.rollout.deadline + _SLACK,
        )

    def _settle(self, context: Context) -> dict[str, Any]:
        status, late = self._status(), self._late()
        decision = self.control.observe(self.release_id, status, late)
        if decision.action == "roll_back":
            self.control.roll_back(self.release_id, reason=decision.reason)
            raise AirflowFailException(f"{self.model}: rolled back in {self.step}: {decision.reason}")
        if decision.action != "advance":
            self.log.info("%s: %s", decision.action.capitalize(), decision.reason)
            self._wait(status)
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

    def _late(self) -> LateEvidence | None:
        """What labels and outcomes say by now; missing, if they cannot be read."""
        if not self.spec.late_guards:
            return None
        from airlock.steps import evidence

        ledger = self.control.ledger
        release = ledger.release(self.release_id)
        try:
            return evidence.late_evidence(
                self.spec, self.settings, ledger, release, release.champion, until=datetime.now(UTC)
            )
        except Conflict as busy:
            self.log.warning("No evidence from labels: %s", busy)
            return None

    def _wait(self, status: GatewayStatus | None) -> NoReturn:
        release = self.control.ledger.release(self.release_id)
        self.refuse_ended(release)
        # The trigger knows no labels. What it would call decisive is not, if labels alone keep the release here.
        decisive = decide(self.spec, release, Evidence(gateway=status), datetime.now(UTC)).action != "wait"
        most = planned(self.spec, self.step).deadline + release.extended + _SLACK
        self.defer(
            trigger=ReleaseStepTrigger(
                spec=self.spec.model_dump(mode="json"),
                release=release.model_dump(mode="json"),
                gateway_url=self.settings.gateway_url,
                ledger_conn_id=self.ledger_conn_id,
                guards_only=self.guards_only,
                interval=_SELDOM_S if decisive and not self.guards_only else _SOON_S,
            ),
            method_name="resume",
            # Without a triggerer this is when Airflow wakes the task up; and labels are looked at from here only.
            timeout=min(most, _FOR_LABELS) if self.spec.late_guards else most,
        )

    def _skip_steps(self, context: Context, which: Callable[[str], bool]) -> None:
        later = [task for task in self.get_flat_relatives(upstream=False) if isinstance(task, ReleaseStepOperator)]
        skipped = sorted((task for task in later if which(task.step)), key=lambda task: task.task_id)
        self.skip(context["ti"], skipped)


class WatchTrafficOperator(ReleaseStepOperator):
    """Guard the last step's traffic while people are asked, and roll back on a breach; that ends their questions.

    It ends when enough of them have approved.
    """

    guards_only = True

    @refusals_are_final
    def execute(self, context: Context) -> dict[str, Any] | None:  # noqa: ARG002
        self.link_gateway()
        release = self.control.ledger.release(self.release_id)
        self.refuse_ended(release)
        if release.phase in HELD or self.control.ballot(release.id).approved:
            self.log.info("Release %s is approved", release.id)
            return None
        status = self._status()
        evidence = Evidence(gateway=status, late=self._late())
        if breached(decide(self.spec, release, evidence, datetime.now(UTC))):
            decision = self.control.observe(release.id, status, evidence.late)
            self.control.roll_back(release.id, reason=decision.reason)
            raise AirflowFailException(f"{self.model}: rolled back while people were asked: {decision.reason}")
        self._wait(status)
