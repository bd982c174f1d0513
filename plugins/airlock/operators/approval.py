"""Ask a person whether a version may see traffic."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.exceptions import HITLRejectException
from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import BaseOperatorLink, Context, Param
from airflow.sdk.definitions.param import ParamsDict
from airflow.sdk.exceptions import AirflowFailException, AirflowRuntimeError
from airflow.sdk.execution_time.hitl import get_hitl_detail_content_detail

from airlock.core.errors import NotFound
from airlock.core.refs import VersionRef
from airlock.core.release import TERMINAL, Phase, Release
from airlock.core.verdict import Verdict
from airlock.operators.base import refusals_are_final
from airlock.operators.links import MlflowRunLink
from airlock.operators.release import ReleaseOperator

if TYPE_CHECKING:
    from airlock.steps.registry import Registry


class ApproveReleaseOperator(ReleaseOperator, ApprovalOperator):
    """Show the gates' verdicts in the Airflow UI and wait for Approve or Reject.

    A rejection, or no answer within ``response_timeout``, ends the release and fails the task.
    While it waits, the task takes no worker.

    :param approvers: user names that may answer; empty: whoever may edit the DAG
    """

    template_fields = ("release",)
    operator_extra_links: Collection[BaseOperatorLink] = (MlflowRunLink(),)

    def __init__(self, *, approvers: Sequence[str] = (), params: ParamsDict | None = None, **kwargs: Any) -> None:
        form = ParamsDict() if params is None else params
        comment = Param(
            None, type=["null", "string"], title="Comment", description="Kept in the ledger.", source="task"
        )
        form.update({"comment": comment})
        super().__init__(
            subject=f"May a new version of {kwargs.get('model')} see traffic?",
            fail_on_reject=True,
            assigned_users=[{"id": name, "name": name} for name in approvers] or None,
            params=form,
            **kwargs,
        )

    @refusals_are_final
    def execute(self, context: Context) -> Any:
        release = self.control.ledger.release(self.release_id)
        if release.phase in TERMINAL:
            raise AirflowFailException(f"release {release.id} is {release.phase}: {release.reason}")
        if release.phase is not Phase.OPENED:
            self.log.info("Release %s is %s: it was approved already", release.id, release.phase)
            return None
        if (event := self._answered(context)) is not None:
            return self.execute_complete(context, event)
        registry = self.registry_hook.get_conn()
        version = registry.version(self.model, release.version)
        run_url = self.registry_hook.run_url(version.run_id)
        self.links[MlflowRunLink().name] = run_url
        self.subject = f"May {self.model} version {release.version} see traffic?"
        self.body = evidence(release, version, verdicts_of(registry, version), run_url)
        ApprovalOperator.execute(self, context)
        return None

    def _answered(self, context: Context) -> dict[str, Any] | None:
        """The answer to an earlier try's question.

        Someone who answers before the scheduler has seen the task pause makes Airflow take it for
        killed, and try again. Asking again would throw the answer away.
        """
        if context["ti"].try_number == 1:
            return None
        try:
            said = get_hitl_detail_content_detail(ti_id=context["ti"].id)
        except AirflowRuntimeError:
            return None
        if not said.response_received or not said.chosen_options:
            return None
        user = said.responded_by_user
        return {
            "chosen_options": list(said.chosen_options),
            "params_input": said.params_input or {},
            "responded_at": said.responded_at,
            "responded_by_user": {"id": user.id, "name": user.name} if user else None,
        }

    @refusals_are_final
    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Keep the answer, with who gave it, in the ledger."""
        link = MlflowRunLink()
        # Airflow writes the links anew when a task ends, and this is another process than the one that asked.
        self.links[link.name] = context["ti"].xcom_pull(task_ids=self.task_id, key=link.xcom_key) or ""
        if "error" in event:
            reason = f"no answer within {self.response_timeout}"
            self.control.reject(self.release_id, actor="airflow", reason=reason)
            raise AirflowFailException(f"{self.model}: {reason}")
        actor = _name(event.get("responded_by_user"))
        comment = (event.get("params_input") or {}).get("comment") or "no comment"
        try:
            answer = ApprovalOperator.execute_complete(self, context, event)
        except HITLRejectException as rejected:
            self.control.reject(self.release_id, actor=actor, reason=comment)
            raise AirflowFailException(f"{self.model}: rejected by {actor}: {comment}") from rejected
        self.control.approve(self.release_id, actor=actor, reason=comment)
        return answer


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


def evidence(release: Release, version: VersionRef, verdicts: Iterable[Verdict], run_url: str) -> str:
    """What a person needs for the answer, in Markdown."""
    against = f"champion version {release.champion}" if release.champion else "a constant, as there is no champion yet"
    rows = [
        f"| {verdict.name} | {verdict.status} | {_number(verdict.estimate)} | {_interval(verdict)} "
        f"| {_number(verdict.threshold)} | {_cell(verdict.reason)} |"
        for verdict in verdicts
    ]
    return "\n".join(
        [
            f"**{release.model} version {version.version}**, judged against {against}. [MLflow run]({run_url})",
            "",
            "| gate | verdict | estimate | interval | bound | reason |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
        ]
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _interval(verdict: Verdict) -> str:
    return "" if verdict.low is None and verdict.high is None else f"{_number(verdict.low)} to {_number(verdict.high)}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _name(user: Mapping[str, str] | Any) -> str:
    """The name of whoever answered; Airflow hands it over as a mapping or as an object."""
    if user is None:
        return "airflow"
    return str(user["name"] if isinstance(user, Mapping) else user.name)
