"""Asking the gateway without blocking the triggerer."""

from __future__ import annotations

import httpx

from airlock.core.tally import GatewayStatus


async def gateway_status(client: httpx.AsyncClient, model: str) -> GatewayStatus | None:
    """The gateway's status of a model, or None when it gives none that can be read."""
    try:
        response = await client.get(f"/v1/models/{model}/status")
        response.raise_for_status()
        return GatewayStatus.model_validate_json(response.content)
    except (httpx.HTTPError, ValueError):
        return None
