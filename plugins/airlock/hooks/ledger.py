"""The ledger of releases, verdicts and routes."""

from __future__ import annotations

from airflow.sdk import BaseHook
from sqlalchemy.engine import make_url

from airlock.ledger import Ledger


class LedgerHook(BaseHook):
    """The ledger. Connection: an SQLAlchemy URL as host; login and password are put into it."""

    conn_name_attr = "ledger_conn_id"
    default_conn_name = "airlock_ledger"
    conn_type = "airlock_ledger"
    hook_name = "Airlock ledger"

    def __init__(self, ledger_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.ledger_conn_id = ledger_conn_id

    @property
    def url(self) -> str:
        """The whole SQLAlchemy URL, with its password: not for logs."""
        connection = self.get_connection(self.ledger_conn_id)
        if not connection.host or "://" not in connection.host:
            raise ValueError(
                f"connection {self.ledger_conn_id!r} has no SQLAlchemy URL as host: write one there, such as "
                "sqlite:////var/lib/airlock/ledger.db or postgresql+psycopg://db/airlock"
            )
        url = make_url(connection.host)
        if connection.login:
            url = url.set(username=connection.login)
        if connection.password:
            url = url.set(password=connection.password)
        return url.render_as_string(hide_password=False)

    def get_conn(self) -> Ledger:
        return Ledger(self.url)

    def test_connection(self) -> tuple[bool, str]:
        """Open the ledger; for the form's Test button."""
        try:
            self.get_conn()
        except Exception as error:  # noqa: BLE001 - whatever it is, the form shows it
            return False, str(error)
        return True, "the ledger answers"
