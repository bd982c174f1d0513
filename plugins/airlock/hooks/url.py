"""The URL that an Airflow connection stands for."""

from __future__ import annotations

from airflow.sdk import BaseHook, Connection


class UrlHook(BaseHook):
    """A hook whose connection is one URL, kept in the host field.

    The host may be the whole URL (``http://127.0.0.1:8502``), or a name beside the port, as in a
    connection written ``http://127.0.0.1:8502`` in the environment.
    """

    def __init__(self, conn_id: str) -> None:
        super().__init__()
        self.conn_id = conn_id

    @property
    def url(self) -> str:
        return url_of(self.get_connection(self.conn_id))


def url_of(connection: Connection) -> str:
    """The connection's URL without a trailing slash.

    Raises:
        ValueError: the connection has no host.
    """
    host = connection.host
    if not host:
        raise ValueError(
            f"connection {connection.conn_id!r} has no host: write the URL there, such as http://127.0.0.1:8502 "
            "(Airflow UI, Admin, Connections)"
        )
    if "://" in host:
        return host.rstrip("/")
    scheme = "https" if connection.conn_type == "https" else "http"
    return f"{scheme}://{host}:{connection.port}" if connection.port else f"{scheme}://{host}"
