"""Wait until the evidence of a release step is decisive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import httpx
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airlock.core.decide import Evidence, breach, decide
from airlock.core.polls import Polls
from airlock.core.release import Release
from airlock.core.route import Limit
from airlock.core.spec import KEPT, ModelSpec
from airlock.tls import trusted
from airlock.triggers.gateway import gateway_status
from airlock.triggers.ledger import LedgerWatch


class ReleaseStepTrigger(BaseTrigger):
    """Ask the gateway for its tallies and the ledger for steering, and fire once, when there is something to do.

    It decides nothing: the operator looks again when it is woken up. A gateway that does not answer is asked again
    until the step's deadline, which is part of the judgement. Labels are not looked at here: reading them is work.

    :param spec: the model's spec as JSON
    :param release: the release in the step it stands in, as JSON
    :param gateway_url: where the gateway is
    :param ledger_conn_id: connection of the ledger
    :param guards_only: the step is done with, and only a breach or the ledger is waited for
    :param interval: seconds between two looks
    :param polls: what came of polling the gateway before, as JSON; what comes of it here goes on from there
    :param limits: those of the release's own route, as JSON; None: as the spec has them
    """

    def __init__(
        self,
        *,
        spec: Mapping[str, Any],
        release: Mapping[str, Any],
        gateway_url: str,
        ledger_conn_id: str,
        guards_only: bool = False,
        interval: float = 1.0,
        polls: Mapping[str, Any] | None = None,
        limits: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.spec = spec
        self.release = release
        self.gateway_url = gateway_url
        self.ledger_conn_id = ledger_conn_id
        self.guards_only = guards_only
        self.interval = interval
        self.polls = polls
        self.limits = limits

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "spec": self.spec,
                "release": self.release,
                "gateway_url": self.gateway_url,
                "ledger_conn_id": self.ledger_conn_id,
                "guards_only": self.guards_only,
                "interval": self.interval,
                "polls": self.polls,
                "limits": self.limits,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        spec = ModelSpec.model_validate(self.spec, context=KEPT)
        release = Release.model_validate(self.release)
        polls = Polls.model_validate(self.polls or {})
        limits = None if self.limits is None else tuple(Limit.model_validate(limit) for limit in self.limits)
        # Of a clock that stands still while nothing runs: a triggerer that was down has not polled.
        polled_at = time.monotonic()
        watch = LedgerWatch(self.ledger_conn_id, release.id, {"release": release.model_dump(mode="json")})
        async with httpx.AsyncClient(base_url=self.gateway_url, timeout=2.0, verify=trusted()) as client:
            while True:
                # Waiting comes first: the operator has just looked, and a task that is woken up before
                # the scheduler has seen it pause counts as killed.
                await asyncio.sleep(self.interval)
                if await watch.moved():
                    said: dict[str, Any] | None = {"action": "wake", "reason": "the ledger has moved on"}
                else:
                    status = await gateway_status(client, spec.model)
                    before, polled_at = polled_at, time.monotonic()
                    polls = polls.polled(release, status, polled_at - before)
                    said = self._judged(spec, release, Evidence(gateway=status, polls=polls, limits=limits))
                if said is not None:
                    polled = polls.model_dump(mode="json")
                    yield TriggerEvent({"release": release.id, "polls": polled, **said})  # type: ignore[no-untyped-call]
                    return

    def _judged(self, spec: ModelSpec, release: Release, evidence: Evidence) -> dict[str, Any] | None:
        if self.guards_only:
            decision = breach(spec, release, evidence)
        else:
            decision = decide(spec, release, evidence, datetime.now(UTC))
        if decision is None or decision.action == "wait":
            return None
        return {"action": decision.action, "reason": decision.reason}
