"""The gateway that serves the versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airlock.hooks.url import UrlHook

if TYPE_CHECKING:
    from airlock.gateway_client import GatewayClient


class GatewayHook(UrlHook):
    """A client of the gateway. Connection: the gateway's URL as host."""

    conn_name_attr = "gateway_conn_id"
    default_conn_name = "airlock_gateway"
    conn_type = "airlock_gateway"
    hook_name = "Airlock gateway"

    def __init__(self, gateway_conn_id: str = default_conn_name) -> None:
        super().__init__(gateway_conn_id)

    def get_conn(self) -> GatewayClient:
        from airlock.gateway_client import GatewayClient

        return GatewayClient(self.url)

    def test_connection(self) -> tuple[bool, str]:
        """Ask whether the gateway is ready to answer; for the form's Test button."""
        try:
            with self.get_conn() as gateway:
                ready = gateway.ready()
        except Exception as error:  # noqa: BLE001 - whatever it is, the form shows it
            return False, str(error)
        return ready, "ready" if ready else "the gateway answers, but has no version to serve yet"
