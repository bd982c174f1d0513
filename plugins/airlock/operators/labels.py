"""Join late labels to what was predicted, and judge versions by them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.sdk import Context

from airlock.core.release import LIVE, Phase, Release
from airlock.core.spec import ModelSpec
from airlock.operators.base import ModelOperator, refusals_are_final
from airlock.operators.features import time_or_now


class JoinLabelsOperator(ModelOperator):
    """Join the labels that have arrived to the prediction log, over the monitoring window.

    :param until: ISO time with offset at which the window ends; None: the triggering event's, or now
    :return: ``{"since", "until", "predictions", "labelled"}``; no label at all is no error here
    """

    template_fields = ("until",)

    def __init__(self, *, until: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.until = until

    @refusals_are_final
    def execute(self, context: Context) -> dict[str, Any]:
        from airlock.steps import labels

        until = time_or_now(self.until, context)
        since = until - self.spec.monitoring.drift.current
        joined = labels.joined(self.spec, self.settings, since, until)
        self.log.info("%s labelled predictions between %s and %s", len(joined), since, until)
        return {"since": since.isoformat(), "until": until.isoformat(), "labelled": len(joined)}


class JudgeLabelsOperator(ModelOperator):
    """Judge the release on its way and the provisional champion by the labels and outcomes that have come.

    A version that breaches is rolled back, late but with the reason; a provisional one whose labels have matured is
    confirmed. A rollback of the champion is announced through the task's ``AssetAlias`` outlets.

    :param until: ISO time with offset up to which labels count; None: the triggering event's, or now
    :return: ``{"until", "judged": [{"release", "version", "phase", "action", "reason", "due", "labelled", "share"}]}``
    """

    template_fields = ("until",)

    def __init__(self, *, until: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.until = until

    @refusals_are_final
    def execute(self, context: Context) -> dict[str, Any]:
        until = time_or_now(self.until, context)
        self.guard_traffic()
        judged: list[dict[str, Any]] = []
        failed: Exception | None = None
        for release in self._releases():
            try:
                if (spec := self.control.spec_of(release)).late_guards:
                    judged.append(self._judge(context, release, spec, until))
            except Exception as error:  # noqa: BLE001 - whatever one release raises, the other is judged without it
                self.log.error("Release %s of version %s is not judged: %s", release.id, release.version, error)  # noqa: TRY400
                failed = failed or error
        if failed is not None:
            raise failed
        return {"until": until.isoformat(), "judged": judged}

    def _releases(self) -> list[Release]:
        """Those whose version answers, or is asked in shadow, and whose labels decide something."""
        ledger = self.control.ledger
        champion = ledger.champion(self.model)
        holds = {champion.release} if champion else set()
        open_ = ledger.releases(self.model, phases={*LIVE, Phase.PROVISIONAL})
        return [release for release in open_ if release.phase in LIVE or release.id in holds]

    def _judge(self, context: Context, release: Release, spec: ModelSpec, until: datetime) -> dict[str, Any]:
        from airlock.steps import evidence

        ledger = self.control.ledger
        late = evidence.late_evidence(
            spec, self.settings, ledger, release, self.control.opponent_of(release), until=until
        )
        decision = self.control.judge_late(release.id, late)
        if decision.action == "roll_back":
            self.control.roll_back(release.id, reason=decision.reason)
            if release.phase is Phase.PROVISIONAL:
                self.announce_champion(context, reason=decision.reason)
        elif decision.action == "advance":
            self.control.confirm(release.id, reason=decision.reason)
        share = "none due" if late.share is None else f"{late.share:.1%}"
        self.log.info(
            "Version %s (%s): %s, %s. Labels: %s of %s due answers (%s)",
            *(release.version, release.phase, decision.action, decision.reason, late.labelled, late.due, share),
        )
        return {
            "release": release.id,
            "version": release.version,
            "phase": release.phase,
            "action": decision.action,
            "reason": decision.reason,
            "due": late.due,
            "labelled": late.labelled,
            "share": late.share,
        }
