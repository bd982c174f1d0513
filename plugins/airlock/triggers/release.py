"""Wait until the evidence of a release step is decisive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

import httpx
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airlock.core.release import Release, judge_step
from airlock.core.spec import ModelSpec
from airlock.triggers.gateway import gateway_status


class ReleaseStepTrigger(BaseTrigger):
    """Ask the gateway for its tallies and fire once, when there is something to do.

    It decides nothing: the operator looks again when it is woken up. A gateway that does not
    answer is asked again until the rollout's deadline, which is part of the judgement.

    :param spec: the model's spec as JSON
    :param release: the release in the step it stands in, as JSON
    :param gateway_url: where the gateway is
    :param interval: seconds between two looks
    """

    def __init__(
        self, *, spec: Mapping[str, Any], release: Mapping[str, Any], gateway_url: str, interval: float = 1.0
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.spec = spec
        self.release = release
        self.gateway_url = gateway_url
        self.interval = interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "spec": self.spec,
                "release": self.release,
                "gateway_url": self.gateway_url,
                "interval": self.interval,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        spec = ModelSpec.model_validate(self.spec)
        release = Release.model_validate(self.release)
        async with httpx.AsyncClient(base_url=self.gateway_url, timeout=2.0) as client:
            while True:
                # Waiting comes first: the operator has just looked, and a task that is woken up before
                # the scheduler has seen it pause counts as killed.
                await asyncio.sleep(self.interval)
                decision = judge_step(spec, release, await gateway_status(client, spec.model), datetime.now(UTC))
                if decision.action != "wait":
                    yield TriggerEvent({"release": release.id, "action": decision.action, "reason": decision.reason})  # type: ignore[no-untyped-call]
                    return
