"""Make true again what the ledger says, and send the events again that were lost."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import BaseOperator, Context
from airflow.sdk.configuration import conf

from airlock import assets, settings
from airlock.control import records
from airlock.control.reconcile import Repair, models, reconcile
from airlock.core.errors import AirlockError, Unavailable
from airlock.hooks.ledger import LedgerHook
from airlock.operators import receipts
from airlock.operators.base import ModelOperator, refusals_are_final, run_state

EVERY = timedelta(minutes=5)
"""How often the sweep runs."""
PATIENCE = timedelta(minutes=9)
"""How long a candidate may be without a release before its event counts as lost, and is sent once more."""
_SIGHTING = "reconcile/candidate"


def _most_mapped() -> int:
    """How many tasks Airflow maps one to."""
    return int(conf.getint("core", "max_map_length"))


class ListModelsOperator(BaseOperator):
    """Name the models that have a spec file, and those that the ledger knows without one.

    Where they are more than Airflow maps a task to (``core.max_map_length``), each run takes its part of them in turn.

    :param ledger_conn_id: connection of the ledger
    :return: their names, for one ``ReconcileOperator`` each
    """

    ui_color = ModelOperator.ui_color

    def __init__(self, *, ledger_conn_id: str = LedgerHook.default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ledger_conn_id = ledger_conn_id

    def execute(self, context: Context) -> list[str]:  # noqa: ARG002
        found, most = models(settings.load(), LedgerHook(self.ledger_conn_id).get_conn()), _most_mapped()
        if len(found) <= most:
            return found
        parts = math.ceil(len(found) / most)
        part = int(datetime.now(UTC).timestamp() // EVERY.total_seconds()) % parts
        self.log.warning(
            "%s models are more than core.max_map_length, which is %s: each is swept in one of %s runs. Raise it to "
            "sweep all of them in each",
            *(len(found), most, parts),
        )
        return found[part * most : (part + 1) * most]


class ReconcileOperator(ModelOperator):
    """Repair a model's route, aliases and releases from the ledger, and send lost asset events once more.

    What cannot be repaired, such as a gateway that is down, is told and left to the next run. The events go out
    through the task's ``AssetAlias`` outlets.

    :return: the ``Repair`` list
    """

    map_index_template = "{{ task.model }}"

    @refusals_are_final
    def execute(self, context: Context) -> list[dict[str, Any]]:
        now = datetime.now(UTC)
        asked = self.confirm_announced()
        repairs = reconcile(
            self.control, status=self.gateway_status, run_state=lambda release: run_state(context, release), now=now
        )
        told = [self._send(context, repair, now, asked=asked) for repair in repairs]
        told += self._records()
        for repair in told:
            self.log.log(20 if repair.done else 30, "%s: %s", repair.kind, repair.what)
        return [repair.model_dump(mode="json") for repair in told]

    def _records(self) -> list[Repair]:
        """Records that are due; a registry that is down leaves them due."""
        try:
            written = records.write_pending(self.control, self.registry_hook.get_conn())
        except AirlockError as error:
            return [Repair(kind="record", what=f"not written: {error}", done=False)]
        return [Repair(kind="record", what=f"written to {record.path}", done=True) for record in written]

    def _send(self, context: Context, repair: Repair, now: datetime, *, asked: bool) -> Repair:
        """The repair, done if it was about a candidate whose event goes out with this task.

        That of a champion is done when the next sweep finds it among what Airflow has sent. Unless Airflow could be
        ``asked`` it may be there already, and is not sent: it stays due, so nothing is lost by waiting for the answer.
        """
        if repair.done:
            return repair
        if repair.kind == "champion_asset":
            if not asked:
                why = "Airflow does not say whether it has it, so it is not sent again before it does"
                return repair.model_copy(update={"what": f"{repair.what}; {why}"})
            self.announce_champion(context)
            return repair.model_copy(update={"what": f"{repair.what}; it is sent again with this task"})
        if repair.kind == "candidate_asset" and repair.version and self._is_lost(repair.version, now):
            for outlet in self.outlets:
                extra: dict[str, Any] = {"version": repair.version, "skip_shadow": False}
                context["outlet_events"][outlet].add(assets.candidate(self.model), extra=extra)
            return repair.model_copy(update={"done": True})
        return repair

    def _is_lost(self, version: str, now: datetime) -> bool:
        """Whether a candidate has been without a release for a while, and Airflow has not sent its event again yet."""
        ledger = self.control.ledger
        kept = ledger.load_state(self.model, _SIGHTING)
        seen = json.loads(kept[0]) if kept else {}
        revision = kept[1] if kept else None
        if seen.get("version") != version:
            fresh = {"version": version, "since": now.isoformat(), "sent": None}
            ledger.save_state(self.model, _SIGHTING, json.dumps(fresh), revision=revision)
            return False
        if now - datetime.fromisoformat(seen["since"]) < PATIENCE or self._was_sent(version, seen["sent"]):
            return False
        ledger.save_state(self.model, _SIGHTING, json.dumps({**seen, "sent": now.isoformat()}), revision=revision)
        return True

    def _was_sent(self, version: str, sent: str | bool | None) -> bool:
        """Whether an event that a sweep has sent is there: it may have been killed right before Airflow sent it.

        ``sent`` is when, or, as an earlier Airlock kept it, only whether.
        """
        if not isinstance(sent, str):
            return bool(sent)
        try:
            return receipts.is_candidate_announced(self.model, version, after=datetime.fromisoformat(sent))
        except Unavailable as error:
            self.log.warning("Whether candidate %s was announced is not known: %s", version, error)
            return True
