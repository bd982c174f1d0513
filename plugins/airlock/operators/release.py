"""A release's way to production: open it, step by step onto traffic, promote it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseOperatorLink, Context
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from airlock.control.release import UNSEEN
from airlock.core.decide import Evidence
from airlock.core.errors import AirlockError, GateRefused, NotFound, NotYet
from airlock.core.polls import Polls
from airlock.core.refs import VersionRef
from airlock.core.release import HELD, LIVE, TERMINAL, WAITING, Phase, Release
from airlock.core.spec import ModelSpec
from airlock.core.tally import LateEvidence
from airlock.core.verdict import Verdict
from airlock.operators.base import ModelOperator, actor, refusals_are_final, run_key, run_name, triggering_extra
from airlock.operators.links import GatewayLink, MlflowRunLink
from airlock.triggers.release import ReleaseStepTrigger

if TYPE_CHECKING:
    from airlock.steps.registry import Registry


class PackageBentoOperator(ModelOperator):
    """Pack a registered version as a Bento, verify it, and open its release in the ledger.

    Without ``version`` it is the one that the triggering asset event names, or else the newest.
    A version that an event names twice is released once. Releases that were opened earlier and have no traffic yet,
    because nobody has answered or another is on its way, give way to the new one.

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
        self.guard_traffic()
        # Airflow clears a setup with any task after it: what this run has opened stands, wherever it is by now.
        release = self._opened(context) or self._open(context)
        self._supersede(release)
        return self._let_on(release).model_dump(mode="json")

    def _opened(self, context: Context) -> Release | None:
        run = run_name(context)
        return next((release for release in self.control.ledger.releases(self.model) if release.run == run), None)

    def _open(self, context: Context) -> Release:
        from airlock.steps import packaging

        registry = self.registry_hook.get_conn()
        announced = triggering_extra(context).get("version")
        number = self.version or announced
        version = registry.version(self.model, str(number)) if number else registry.latest(self.model)
        self.links[MlflowRunLink().name] = self.registry_hook.run_url(version.run_id)
        by_event = announced is not None and not self.version
        self._refuse_champion(version.version, by_event=by_event)
        self._refuse_stale_evidence(version)
        verdicts = verdicts_of(registry, version)
        bento = packaging.package(self.spec, self.settings, version)
        key = f"{self.model}:{version.version}:announced" if by_event else f"{self.model}:{run_key(context)}"
        release = self.control.open(
            version.version,
            bento,
            actor=actor(context),
            key=key,
            author=version.author,
            run=run_name(context),
            verdicts=verdicts,
        )
        if by_event:
            self._refuse_doubled(context, release)
        self.log.info("Release %s of version %s, packed as %s", release.id, release.version, bento.tag)
        return release

    def _let_on(self, release: Release) -> Release:
        """Let a release on whose traffic nobody is asked about. Later on, to approve is for people alone."""
        asked = self.control.spec_of(release).approvals
        if release.phase is not Phase.OPENED or (asked.required and asked.before == "traffic"):
            return release
        reason = "people are asked before the promotion" if asked.required else "the spec asks for no approval"
        return self.control.approve(release.id, actor="spec", reason=reason)

    def _refuse_champion(self, version: str, *, by_event: bool) -> None:
        champion = self.ledger_hook.get_conn().champion(self.model)
        if champion is not None and champion.version == version:
            refused = AirflowSkipException if by_event else AirflowFailException
            raise refused(f"{self.model} version {version} is the champion already: nothing to release")

    def _refuse_doubled(self, context: Context, release: Release) -> None:
        """One event, one release, in one run."""
        if release.phase in TERMINAL or release.phase in HELD:
            raise AirflowSkipException(
                f"version {release.version} was released already and is {release.phase} ({release.reason}); "
                f"trigger {context['dag_run'].dag_id} by hand to release it again"
            )
        if release.run != run_name(context):
            raise AirflowSkipException(f"run {release.run} carries the release of version {release.version} already")

    def _refuse_stale_evidence(self, version: VersionRef) -> None:
        """Gates that compared a version with another champion say nothing about this one."""
        champion = self.ledger_hook.get_conn().champion(self.model)
        if champion is not None and version.judged_against != champion.version:
            raise GateRefused(
                f"{self.model} version {version.version} was judged against {version.judged_against or 'nobody'}, but "
                f"the champion is version {champion.version} by now; train again, or go back to a version that was "
                f"champion with: airlock rollback {self.model} --to VERSION"
            )

    def _supersede(self, release: Release) -> None:
        """End what waits for traffic since before this release was opened. Their tasks find it out by themselves."""
        if release.phase not in WAITING:
            return  # a doubled event of a release that is on its way
        for other in self.control.ledger.releases(self.model, phases=WAITING):
            if other.id != release.id and other.entered_at <= release.entered_at:
                reason = f"version {release.version} came while this release had no traffic yet (release {release.id})"
                self.control.abort(other.id, actor="airlock", reason=reason)


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

    @cached_property
    def spec(self) -> ModelSpec:
        """What the release was opened with, whatever has become of the file since."""
        return self.control.spec_of(self.control.ledger.release(self.release_id))

    def link_gateway(self) -> None:
        self.links[GatewayLink().name] = self.settings.gateway_url

    def look(self) -> tuple[Release, Evidence]:
        """The release, and what is known of its traffic by now: what every task of a release begins with.

        One that was ejected, or whose guards have failed, is taken back here and now, whatever the task is for.

        Raises:
            AirflowFailException: the release has ended, here or before.
        """
        release = self.control.ledger.release(self.release_id)
        if release.phase in LIVE:
            # An ejection that was written down needs neither labels nor a gateway: nothing that takes long or fails.
            self.control.guard(UNSEEN)
            release = self.control.ledger.release(release.id)
            self.refuse_ended(release)
        if release.phase in LIVE:
            evidence = self.guard_traffic(self._late(release), of=release.id)
        else:
            evidence = self.guard_traffic()
        release = self.control.ledger.release(release.id)
        self.refuse_ended(release)
        return release, evidence

    def _late(self, release: Release) -> LateEvidence | None:
        """What labels and outcomes say by now; missing, if they cannot be read."""
        if not self.spec.late_guards:
            return None
        from airlock.steps import evidence

        ledger = self.control.ledger
        try:
            return evidence.late_evidence(
                self.spec, self.settings, ledger, release, self.control.opponent_of(release), until=datetime.now(UTC)
            )
        except Exception as error:  # noqa: BLE001 - whatever labels cannot be read for, missing evidence is never a pass
            self.log.warning("No evidence from labels: %s: %s", type(error).__name__, error)
            return None

    def watch(
        self, release: Release, *, guards_only: bool, interval: float = 1.0, polls: Polls | None = None
    ) -> ReleaseStepTrigger:
        """Wakes the task up when a guard fails, the ledger moves on from ``release``, or its step has been decided."""
        limits = self.control.limits_of(release)
        return ReleaseStepTrigger(
            spec=self.spec.model_dump(mode="json"),
            release=release.model_dump(mode="json"),
            gateway_url=self.settings.gateway_url,
            ledger_conn_id=self.ledger_conn_id,
            guards_only=guards_only,
            interval=interval,
            polls=(polls or Polls()).model_dump(mode="json"),
            limits=None if limits is None else [limit.model_dump(mode="json") for limit in limits],
        )

    def refuse_ended(self, release: Release) -> None:
        """Fail without a retry when the release was taken back, rejected or aborted, by whomever.

        The message names who it was, and is the only one that a task shows whose first try ended the release: Airflow
        tries a task again that was woken up before its scheduler heard of the deferral (apache/airflow#72716).
        """
        if release.phase in TERMINAL - {Phase.COMPLETED}:
            history = self.control.ledger.timeline(self.model)
            ended = (each.actor for each in history if (each.release, each.phase) == (release.id, release.phase))
            who = next(ended, "somebody whom the journal does not name")
            raise AirflowFailException(
                f"{self.model}: release {release.id} of version {release.version} is "
                f"{release.phase.replace('_', ' ')} by {who}: {release.reason}"
            )


class EndReleaseOperator(ReleaseOperator):
    """Ends a rollout that went well. While somebody has paused the release it waits, without a worker."""

    def wait_while_paused(self, paused: NotYet, release: Release) -> NoReturn:
        """Pause the task until a guard fails or the ledger has moved on from ``release``."""
        self.log.info("%s", paused)
        self.defer(trigger=self.watch(release, guards_only=True), method_name="resume")

    def resume(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Look again: the ledger says whether it was resumed, aborted or taken back."""
        self.log.info("Woken up: %s", event.get("reason"))
        return self.execute(context)


class PromoteOperator(EndReleaseOperator):
    """Make the release's version the champion, provisionally where its labels come later.

    The outlet's event names the version.
    """

    @refusals_are_final
    def execute(self, context: Context) -> dict[str, Any]:
        self.link_gateway()
        release, evidence = self.look()
        try:
            promoted = self.control.promote(release.id, evidence)
        except NotYet as paused:
            self.wait_while_paused(paused, release)
        self.announce_champion(context)
        self.log.info("Version %s is the champion: %s", promoted.version, promoted.phase)
        return promoted.model_dump(mode="json")


class CompleteReleaseOperator(EndReleaseOperator):
    """End a rollout that promotes nothing, such as one that only shadows, with its verdicts kept."""

    @refusals_are_final
    def execute(self, context: Context) -> dict[str, Any]:  # noqa: ARG002
        self.link_gateway()
        release, evidence = self.look()
        try:
            completed = self.control.complete(release.id, evidence)
        except NotYet as paused:
            self.wait_while_paused(paused, release)
        self.log.info("Release %s is %s: %s", completed.id, completed.phase, completed.reason)
        return completed.model_dump(mode="json")


class RestoreTrafficOperator(ReleaseOperator):
    """Teardown of a release: whatever happened, a version that was not promoted has no traffic after it."""

    @refusals_are_final
    def execute(self, context: Context) -> dict[str, Any]:  # noqa: ARG002
        self.link_gateway()
        try:
            self.guard_traffic()  # for the reason: what it was taken back for says more than that its run ended
        except AirlockError as error:
            self.log.warning("%s", error)
        restored = self.control.restore(self.release_id)
        self.log.info("Release %s is %s: %s", restored.id, restored.phase, restored.reason)
        return restored.model_dump(mode="json")


def verdicts_of(registry: Registry, version: VersionRef) -> tuple[Verdict, ...]:
    """What the gates said of a version, from its MLflow run.

    Raises:
        NotFound: the run holds no judgement of this version's bundle.
    """
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(registry.artifact(version.run_id, "gates", Path(folder)).glob("*.json")):
            judged = json.loads(path.read_text())
            if judged["bundle"] == version.bundle.digest:
                return tuple(Verdict.model_validate(verdict) for verdict in judged["verdicts"])
    raise NotFound(
        f"{version.model} version {version.version}: MLflow run {version.run_id} has no gate verdicts for its bundle "
        f"{version.bundle.digest}; train it again"
    )
