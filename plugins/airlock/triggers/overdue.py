"""What Airflow calls when a release takes longer than it may."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from asgiref.sync import sync_to_async

from airlock.core.release import LIVE, WAITING
from airlock.hooks.ledger import LedgerHook
from airlock.ledger import Ledger

log = logging.getLogger(__name__)


async def release_overdue(
    context: Mapping[str, Any], *, model: str, after: str, ledger_conn_id: str = LedgerHook.default_conn_name
) -> None:
    """Say it in the log and in the release's history. It decides nothing: what a deadline does, the policy says."""
    run = context["dag_run"]
    name = f"{run['dag_id']}/{run['dag_run_id']}"
    log.warning("%s: %s has taken longer than %s", model, name, after)
    ledger = await sync_to_async(LedgerHook(ledger_conn_id).get_conn)()
    await asyncio.to_thread(_note, ledger, model, name, f"the run has taken longer than {after}")


def _note(ledger: Ledger, model: str, run: str, reason: str) -> None:
    for release in ledger.releases(model, phases=LIVE | WAITING):
        if release.run == run:
            ledger.note(release, "overdue", actor="airflow", reason=reason, now=datetime.now(UTC))
