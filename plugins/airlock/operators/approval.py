"""Ask a person whether a version may go on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import BaseOperatorLink, Context, Param
from airflow.sdk.definitions.param import ParamsDict
from airflow.sdk.exceptions import AirflowFailException, TaskDeferralTimeout
from airflow.sdk.execution_time.hitl import upsert_hitl_detail
from pydantic import BaseModel, ConfigDict

from airlock.control.approval import Ballot
from airlock.core.errors import AirlockError, NotAllowed
from airlock.core.release import HELD, Phase, Release
from airlock.operators.base import refusals_are_final
from airlock.operators.evidence import Lineage, evidence_of, question
from airlock.operators.links import DriftReportLink, MlflowRunLink
from airlock.operators.release import ReleaseOperator
from airlock.triggers.approval import ApprovalTrigger
from airlock.triggers.ledger import facts

_WATCHED = ("release", "champion")
_FOR_EVER = timedelta(days=36500)
_FACTS = {
    "semantic version": "airlock.semantic_version",
    "data until": "airlock.until",
    "snapshot": "airlock.snapshot_digest",
    "commit": "airlock.git_commit",
}
"""Tags of a version that are told with the question, by what they are called there."""


class Asked(BaseModel):
    """What a task showed when it first asked, and when: kept in the ledger for the tries and resumptions after it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    evidence: str
    at: datetime


class Answer(BaseModel):
    """What somebody chose in Airflow; ``actor`` is empty where Airflow does not say who."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    actor: str
    yes: bool
    comment: str
    at: datetime | None


class ApproveReleaseOperator(ReleaseOperator, ApprovalOperator):
    """Show a version's evidence in the Airflow UI and wait, without a worker, for one person's Approve or Reject.

    The spec says how many have to approve; each task asks one of them. The first rejection ends the release and
    fails the task, and so does no answer in time. An answer of the author, where the spec forbids it, of somebody
    who is no approver, or of somebody who has answered another task, does not count: the task asks again.

    Airflow never changes the text of a task's question. When the evidence changes while the task waits, it succeeds
    and leaves the question to the approval tasks after it, which show what is true by then. Where there is none, or
    it changes once more, the release ends.

    The task is deferred beside its question, not only waiting for input: so it ends by itself when the release does.

    :param approvers: user names that may answer; empty: whoever may edit the DAG
    :param response_timeout: how long an answer is waited for; None: as the spec says
    """

    template_fields = ("release",)
    operator_extra_links: Collection[BaseOperatorLink] = (MlflowRunLink(), DriftReportLink())

    def __init__(self, *, approvers: Sequence[str] = (), params: ParamsDict | None = None, **kwargs: Any) -> None:
        form = ParamsDict() if params is None else params
        comment = Param(
            None, type=["null", "string"], title="Comment", description="Kept in the ledger.", source="task"
        )
        form.update({"comment": comment})
        super().__init__(
            subject=f"May a new version of {kwargs.get('model')} go on?",
            fail_on_reject=True,
            assigned_users=[{"id": name, "name": name} for name in approvers] or None,
            params=form,
            **kwargs,
        )

    @refusals_are_final
    def execute(self, context: Context) -> Any:
        return self._settle(context, {})

    @refusals_are_final
    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Look again: somebody has answered, the time is over, or the ledger has moved on."""
        self.log.info("Woken up: %s", event.get("reason", "somebody has answered"))
        # Airflow writes the links anew when a task ends, and this is another process than the one that asked.
        for link in self.operator_extra_links:
            self.links[link.name] = context["ti"].xcom_pull(task_ids=self.task_id, key=link.xcom_key) or ""
        return self._settle(context, event)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on as ``execute_complete`` when the wait timed out, which is how it ends without a triggerer."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            return self.execute_complete(context, {"reason": "the wait is over"})

    def _settle(self, context: Context, event: Mapping[str, Any]) -> Any:
        release, _ = self.look()
        if self._decided(release):
            return self._go_on(context, self.control.ballot(release.id))
        evidence = self.control.evidence(release.id)
        asked, fresh = self._asked(evidence)
        if asked.evidence != evidence:
            return self._ask_elsewhere(release, asked, evidence)
        answer, expires_at = _answer(event, yes=self.APPROVE), asked.at + self._patience
        if answer is not None and (answer.at or asked.at) < expires_at:
            counted = self._count(release, answer, evidence)
            if counted is not None:
                return self._go_on(context, counted)
        if datetime.now(UTC) >= expires_at:
            reason = f"nobody answered {self.task_id} within {self._patience}"
            self.control.expire(release.id, reason=reason)
            raise AirflowFailException(f"{self.model}: {reason}")
        if fresh or answer is not None or event.get("asked") is False:
            self._ask(context, release, expires_at)
        # Otherwise the question stands, and asking once more would take an answer off it that came meanwhile.
        return self._wait(context, release, expires_at)

    def _decided(self, release: Release) -> bool:
        if release.phase in HELD:
            return True
        if self.spec.approvals.before == "traffic":
            return release.phase is not Phase.OPENED
        return self.control.ballot(release.id).approved

    def _asked(self, evidence: str) -> tuple[Asked, bool]:
        """What this task asked first, which from now on is ``evidence`` if it has asked nothing yet: then it is new."""
        ledger, name = self.control.ledger, f"asked/{self.release_id}/{self.task_id}"
        if (kept := ledger.load_state(self.model, name)) is not None:
            return Asked.model_validate_json(kept[0]), False
        asked = Asked(evidence=evidence, at=datetime.now(UTC))
        ledger.save_state(self.model, name, asked.model_dump_json(), revision=None)
        return asked, True

    @property
    def _patience(self) -> timedelta:
        return self.response_timeout or self.spec.approvals.expires

    def _ask_elsewhere(self, release: Release, asked: Asked, evidence: str) -> dict[str, Any]:
        changed = f"the evidence changed while {self.task_id} waited (from {asked.evidence} to {evidence})"
        later = sorted(task.task_id for task in self._asked_again())
        if later:
            self.log.info("%s: %s", changed, ", ".join(later))
            return {"asked_again_in": later}
        reason = f"{changed}; release the version again"
        self.control.expire(release.id, reason=reason)
        raise AirflowFailException(f"{self.model}: {reason}")

    def _asked_again(self) -> list[ApproveReleaseOperator]:
        downstream = self.get_direct_relatives(upstream=False)
        return [task for task in downstream if isinstance(task, ApproveReleaseOperator)]

    def _count(self, release: Release, answer: Answer, evidence: str) -> Ballot | None:
        """Count an answer; ``None`` if it does not count.

        Raises:
            AirflowFailException: it is a no.
        """
        try:
            _require_known(answer)
            if answer.yes:
                self._require_first(release, answer, evidence)
            ballot = self.control.vote(
                release.id, actor=answer.actor, yes=answer.yes, reason=answer.comment, evidence=evidence
            )
        except NotAllowed as refused:
            self.log.warning("The answer does not count: %s", refused)
            self.control.ledger.note(
                release, "vote_refused", actor=answer.actor or "airflow", reason=str(refused), now=datetime.now(UTC)
            )
            return None
        if ballot.rejected:
            raise AirflowFailException(f"{self.model}: rejected by {answer.actor}: {answer.comment}")
        self.log.info("%s approves: %s of %s", answer.actor, len(ballot.yes), ballot.required)
        return ballot

    def _require_first(self, release: Release, answer: Answer, evidence: str) -> None:
        """Let nobody fill two of the tasks. Tried again, this task finds its own claim."""
        kind = f"vote/{release.id}/{evidence}/{answer.actor}"
        ledger, at = self.control.ledger, release.entered_at
        owner = ledger.claim(self.model, kind, self.task_id, at=at, window=_FOR_EVER)
        if owner != self.task_id:
            raise NotAllowed(f"{answer.actor} has answered {owner} already: somebody else must answer {self.task_id}")

    def _go_on(self, context: Context, ballot: Ballot) -> dict[str, Any]:
        said = {"approved_by": list(ballot.yes), "required": ballot.required}
        self.log.info("Approved by %s", ", ".join(ballot.yes) or "nobody yet")
        if ballot.approved and (idle := self._asked_again()):
            self.skip(context["ti"], idle)
        return said

    def _ask(self, context: Context, release: Release, expires_at: datetime) -> None:
        lineage = self._lineage(release)
        self.links |= lineage.links
        before = {"traffic": "see traffic", "promotion": "be promoted"}[self.spec.approvals.before]
        # An answer that did not count is taken off the question by this.
        upsert_hitl_detail(
            ti_id=context["ti"].id,
            options=self.options,
            subject=f"May {self.model} version {release.version} {before}?",
            body=question(self.spec, evidence_of(self.control.ledger, release), lineage, expires_at=expires_at),
            params=self.serialized_params,
            assigned_users=self.assigned_users,
        )

    def _wait(self, context: Context, release: Release, expires_at: datetime) -> NoReturn:
        self.log.info("Waiting for an answer until %s", expires_at)
        self.defer(
            trigger=ApprovalTrigger(
                ti_id=str(context["ti"].id),
                expires_at=expires_at.isoformat(),
                ledger_conn_id=self.ledger_conn_id,
                release=release.id,
                seen=facts(self.control.ledger, release.id, _WATCHED),
            ),
            method_name="execute_complete",
            timeout=max(expires_at - datetime.now(UTC), timedelta(0)) + timedelta(minutes=1),
        )

    def _lineage(self, release: Release) -> Lineage:
        """What the registry says. One that is down leaves the question without it: the evidence is in the ledger."""
        from airlock.steps import drift

        try:
            registry = self.registry_hook.get_conn()
            tags = registry.tags(self.model, release.version)
            links = {MlflowRunLink().name: self.registry_hook.run_url(registry.run_of(self.model, release.version))}
            report = drift.latest_report(self.spec, self.settings)
        except AirlockError as error:
            self.log.warning("Asking without what MLflow knows: %s", error)
            return Lineage(facts={"MLflow": f"does not answer: {error}"})
        facts = {name: tags[tag] for name, tag in _FACTS.items() if tags.get(tag)}
        return Lineage(facts=facts, links={**links, DriftReportLink().name: report} if report else links)


def _require_known(answer: Answer) -> None:
    if not answer.actor:
        raise NotAllowed("Airflow does not say who answered: nobody can be told from the author")


def _answer(event: Mapping[str, Any], *, yes: str) -> Answer | None:
    """What somebody chose, from the event with which Airflow or the trigger woke the task up; ``None`` without one.

    Airflow hands the person over as a mapping or as an object.
    """
    if not (chosen := event.get("chosen_options")):
        return None
    user = event.get("responded_by_user")
    return Answer(
        actor="" if user is None else str(user["name"] if isinstance(user, Mapping) else user.name),
        yes=list(chosen) == [yes],
        comment=(event.get("params_input") or {}).get("comment") or "no comment",
        at=event.get("responded_at"),
    )
