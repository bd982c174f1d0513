"""Wait for a person's answer, and for whatever makes the question idle."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Unpack
from uuid import UUID

from airflow.sdk.exceptions import AirflowRuntimeError
from airflow.sdk.execution_time.hitl import get_hitl_detail_content_detail
from asgiref.sync import sync_to_async

from airlock.triggers.ledger import LedgerTrigger, LedgerWatch, Watched


class ApprovalTrigger(LedgerTrigger):
    """Fire once when the question's time is over, or when the ledger has moved on: the release has ended, or there is
    another champion.

    Airflow wakes the task up by itself when somebody answers, with or without a triggerer. What it does not notice is
    an answer that comes between question and deferral, or one to a try that it took for killed: those are handed over
    from here, as tasks may not ask for them.

    :param ti_id: the task instance that asks
    :param expires_at: ISO time after which no answer counts
    """

    def __init__(self, *, ti_id: str, expires_at: str, **watched: Unpack[Watched]) -> None:
        super().__init__(**watched)
        self.ti_id = ti_id
        self.expires_at = expires_at

    def serialize(self) -> tuple[str, dict[str, Any]]:
        path, kwargs = super().serialize()
        return path, {**kwargs, "ti_id": self.ti_id, "expires_at": self.expires_at}

    async def look(self, watch: LedgerWatch) -> dict[str, Any] | None:
        if (answer := await self._answer()) is not None:
            return answer
        if datetime.now(UTC) >= datetime.fromisoformat(self.expires_at):
            return {"reason": "the question has expired"}
        return await super().look(watch)

    async def _answer(self) -> dict[str, Any] | None:
        """What somebody has answered, as Airflow itself would hand it over."""
        try:
            said = await sync_to_async(get_hitl_detail_content_detail)(ti_id=UUID(self.ti_id))
        except AirflowRuntimeError:
            return {"reason": "nothing was asked", "asked": False}
        if not said.response_received or not said.chosen_options:
            return None
        user = said.responded_by_user
        return {
            "reason": "somebody has answered",
            "chosen_options": list(said.chosen_options),
            "params_input": said.params_input or {},
            "responded_at": said.responded_at.isoformat() if said.responded_at else None,
            "responded_by_user": {"id": user.id, "name": user.name} if user else None,
        }
