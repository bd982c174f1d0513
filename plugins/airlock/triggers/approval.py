"""Wait for a person's answer, and for whatever makes the question idle."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from airflow.sdk.execution_time.hitl import get_hitl_detail_content_detail
from asgiref.sync import sync_to_async

from airlock.triggers.ledger import LedgerTrigger, LedgerWatch


class ApprovalTrigger(LedgerTrigger):
    """Fire once when the question's time is over, or when the ledger has moved on: the release has ended, or there is
    another champion.

    Airflow wakes the task up by itself when somebody answers, with or without a triggerer. Only an answer that comes
    in the moment between question and deferral is left to be found here.

    :param ti_id: the task instance that asks
    :param expires_at: ISO time after which no answer counts
    """

    def __init__(
        self,
        *,
        ti_id: str,
        expires_at: str,
        ledger_conn_id: str,
        release: str,
        seen: Mapping[str, Any],
        interval: float = 2.0,
    ) -> None:
        super().__init__(ledger_conn_id=ledger_conn_id, release=release, seen=seen, interval=interval)
        self.ti_id = ti_id
        self.expires_at = expires_at

    def serialize(self) -> tuple[str, dict[str, Any]]:
        path, kwargs = super().serialize()
        return path, {**kwargs, "ti_id": self.ti_id, "expires_at": self.expires_at}

    async def look(self, watch: LedgerWatch) -> str | None:
        if datetime.now(UTC) >= datetime.fromisoformat(self.expires_at):
            return "the question has expired"
        said = await sync_to_async(get_hitl_detail_content_detail)(ti_id=UUID(self.ti_id))
        return "somebody has answered" if said.response_received else await super().look(watch)
