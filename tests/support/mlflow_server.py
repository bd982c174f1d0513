"""A real MLflow server on a free port: one worker, an SQLite file and proxied artifacts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.ports import free_port
from tests.support.waiting import is_up, wait_until


class MlflowServer:
    """``url`` is its address; killed and started again it has the same one and what it kept."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)),
            *("--workers", "1", "--backend-store-uri", f"sqlite:///{self._home / 'mlflow.db'}"),
            *("--artifacts-destination", str(self._home / "artifacts")),
            *("--default-artifact-root", "mlflow-artifacts:/"),
        ]
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        log = self._home / "server.log"
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=self._home, start_new_session=True
            )
        process = self._process

        def answers() -> bool:
            assert process.poll() is None, log.read_text()[-2000:]
            return is_up(f"{self.url}/health")

        wait_until(answers, "the MLflow server to answer", seen=lambda: log.read_text()[-2000:], every=0.1)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for what is left."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def _end(self, sign: signal.Signals) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        # The server's worker is a child of its own: the whole group ends, and no other process.
        os.killpg(self._process.pid, sign)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextmanager
def running(home: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(home)
    try:
        server.start()
        yield server
    finally:
        server.stop()
