"""A step of a rollout: put its traffic into effect, and wait for its evidence without a worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from airflow.sdk import Context, SkipMixin
from airflow.sdk.exceptions import AirflowFailException, TaskDeferralTimeout

from airlock.control.reconcile import orphaned
from airlock.core.decide import Evidence, decide
from airlock.core.errors import AirlockError, NotYet
from airlock.core.polls import Polls
from airlock.core.release import HELD, LIVE, Phase, Release, plan
from airlock.core.tally import GatewayStatus
from airlock.operators.base import refusals_are_final, run_state, triggering_extra
from airlock.operators.release import ReleaseOperator
from airlock.triggers.ledger import facts
from airlock.triggers.way import ClearWayTrigger

_FOR_LABELS = timedelta(minutes=15)
_SLACK = timedelta(minutes=1)
_FOR_THE_WAY = timedelta(minutes=1)
"""How long a release in the way is waited for before the task looks whether its run still carries it."""
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
        return self._go(context, {})

    def _go(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any] | None:
        self.link_gateway()
        release, evidence = self.look()
        if self._passed(release):
            self.log.info("Release %s has passed %s: it is %s", release.id, self.step, release.step or release.phase)
            return None
        if self.step == "warm_up" and self.control.ledger.champion(self.model) is None:
            self._without_champion(context)
            return None
        if (entered := self._enter(context, evidence)).step != self.step:
            self.log.info("Paused in %s: %s", entered.step, entered.reason)
            self._wait(evidence.gateway)
        # What woke it up was about this step only if the release stood in it then: the first poll starts fresh.
        return self._settle(context, event if release.step == self.step else {})

    @refusals_are_final
    def resume(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any] | None:
        """Look again: a trigger may fire twice, late or wrongly, the ledger and the gateway decide."""
        self.log.info("Woken up: %s", event.get("reason"))
        return self._go(context, event)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Look again when the wait timed out too: without a triggerer, that is how a task wakes up."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            return self.resume(context, {"reason": "the wait is over", "timed_out": True})

    def _passed(self, release: Release) -> bool:
        if release.phase in HELD or release.phase is Phase.COMPLETED:
            return True
        mine = self.control.step_of(release, self.step)
        names = [step.name for step in plan(self.spec)]
        return release.step in names and names.index(release.step) > names.index(mine.name)

    def _without_champion(self, context: Context) -> None:
        if self.spec.rollout.plan == "shadow_only":
            raise AirflowFailException(
                f"{self.model} has no champion whose requests could be shadowed: release a version with another plan"
            )
        self.log.info("%s has no champion: the version goes straight to promotion", self.model)
        self._skip_steps(context, lambda _: True)

    def _enter(self, context: Context, evidence: Evidence) -> Release:
        """Put the step's traffic into effect, or wait until no other release has traffic."""
        while True:
            # The facts from before: a change in between wakes the task up.
            seen = facts(self.control.ledger, self.release_id, ("release", "in_the_way"))
            try:
                return self.control.enter(self.release_id, self.step, evidence)
            except NotYet as other:
                if self._cleared(context):
                    continue
                self.log.info("Waiting: %s", other)
            trigger = ClearWayTrigger(
                model=self.model,
                gateway_url=self.settings.gateway_url,
                ledger_conn_id=self.ledger_conn_id,
                release=self.release_id,
                seen=seen,
            )
            self.defer(trigger=trigger, method_name="resume", timeout=_FOR_THE_WAY)

    def _cleared(self, context: Context) -> bool:
        """Whether what was in the way has been ended here: a release that nobody carries on any more."""
        for other in self.control.ledger.releases(self.model, phases=LIVE):
            if other.id == self.release_id or other.run is None:
                continue
            try:
                why = orphaned(other, run_state(context, other))
            except AirlockError as nobody_knows:
                self.log.warning("%s", nobody_knows)
                continue
            if why is not None:
                self.control.restore(other.id, reason=why)
                return True
        return False

    def _settle(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        release = self.control.ledger.release(self.release_id)
        status, late = self.gateway_status(), self._late(release)
        known = Polls.model_validate(event["polls"]) if event.get("polls") else None
        polls = self.control.polled(release.id, status, known, timed_out=bool(event.get("timed_out")))
        decision = self.control.observe(release.id, status, late, polls)
        if decision.action == "roll_back":
            raise AirflowFailException(f"{self.model}: rolled back in {self.step}: {decision.reason}")
        if decision.action != "advance":
            self.log.info("%s: %s", decision.action.capitalize(), decision.reason)
            self._wait(status, polls)
        self.log.info("Advancing: %s", decision.reason)
        if self.step == "warm_up" and (self.skip_shadow or triggering_extra(context).get("skip_shadow")):
            self._skip_steps(context, lambda step: step == "shadow")
        return decision.model_dump(mode="json")

    def _wait(self, status: GatewayStatus | None, polls: Polls | None = None) -> NoReturn:
        release = self.control.ledger.release(self.release_id)
        self.refuse_ended(release)
        # The trigger knows no labels. What it would call decisive is not, if labels alone keep the release here.
        evidence = Evidence(gateway=status, polls=polls or Polls(), limits=self.control.limits_of(release))
        decisive = decide(self.spec, release, evidence, datetime.now(UTC)).action != "wait"
        most = self.control.step_of(release, self.step).deadline + release.extended + _SLACK
        self.defer(
            trigger=self.watch(
                release,
                guards_only=self.guards_only,
                interval=_SELDOM_S if decisive and not self.guards_only else _SOON_S,
                polls=polls,
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

    def _go(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any] | None:  # noqa: ARG002
        self.link_gateway()
        release, evidence = self.look()
        if release.phase in HELD or self.control.ballot(release.id).approved:
            self.log.info("Release %s is approved", release.id)
            return None
        self._wait(evidence.gateway)
