"""The embedded stack's ports: one base, a fixed place for each part, and who is in the way."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass

import psutil

from airlock.core.errors import Unavailable
from airlock.settings import PORT_BASE

HOST = "127.0.0.1"


class PortTaken(Unavailable):
    """Another process listens on a port that the stack needs."""


@dataclass(frozen=True)
class Ports:
    """Loopback ports, counted from ``base``."""

    base: int = PORT_BASE

    @property
    def airflow(self) -> int:
        return self.base

    @property
    def mlflow(self) -> int:
        return self.base + 1

    @property
    def gateway(self) -> int:
        return self.base + 2

    def by_part(self) -> dict[str, int]:
        return {"airflow": self.airflow, "mlflow": self.mlflow, "gateway": self.gateway}

    def require_free(self) -> None:
        """Check that every port can be bound.

        Raises:
            PortTaken: names each taken port, the process that has it, and ``--port-base``.
        """
        taken = [(part, port) for part, port in self.by_part().items() if not _bindable(port)]
        if not taken:
            return
        said = "; ".join(f"port {port} ({part}) is taken by {_listener(port)}" for part, port in taken)
        raise PortTaken(f"{said}. Stop that process, or choose other ports: --port-base {self.base + 100}")


def _bindable(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do, so that a port whose last connections are still closing counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def _listener(port: int) -> str:
    """The process that listens on ``port``, in words."""
    try:
        listeners = [
            connection.pid
            for connection in psutil.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        ]
    except psutil.AccessDenied:
        listeners = []
    for pid in listeners:
        if pid is None:
            continue
        try:
            return f"{psutil.Process(pid).name()} (pid {pid})"
        except psutil.NoSuchProcess:
            continue
    return "a process that this user may not see"
