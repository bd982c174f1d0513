"""A real gateway on a free port, as the stack starts it; or a Bento, as ``bentoml serve`` does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.support.ports import free_port
from tests.support.waiting import is_up, wait_until

REPOSITORY = Path(__file__).parents[2]


class GatewayProcess:
    """A process and its children, if it has any; ``url`` is its address, ``log`` what it said.

    ``bento`` is the tag of one to serve in place of the gateway.
    """

    def __init__(
        self,
        home: Path,
        *,
        bento: str | None = None,
        environment: dict[str, str] | None = None,
        port: int | None = None,
    ) -> None:
        port = port or free_port()
        self.home = home
        self.url = f"http://127.0.0.1:{port}"
        self.log = home / f"gateway-{port}.log"
        program = ("bentoml", "serve", bento) if bento else ("gateway",)
        command = [sys.executable, "-m", *program, "--host", "127.0.0.1", "--port", str(port)]
        env = {
            **os.environ,
            "AIRLOCK_HOME": str(home),
            # A project without features, for which no gateway spends seconds on importing Feast.
            "AIRLOCK_PROJECT": str(home),
            "BENTOML_HOME": str(home / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "True",
            **(environment or {}),
        }
        if bento is None:
            env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(REPOSITORY / "bentos"), env.get("PYTHONPATH"))))
        (home / "bentoml").mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=env, cwd=home, start_new_session=True
            )
        self._parent = psutil.Process(self.process.pid)
        self._workers: list[psutil.Process] = []

    def wait_until_up(self, path: str = "/healthz") -> None:
        def answers() -> bool:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            return is_up(self.url + path)

        wait_until(answers, f"{path} to answer", seen=lambda: self.log.read_text()[-3000:], every=0.1)
        self._workers = self._parent.children(recursive=True)

    def kill(self) -> None:
        """SIGKILL to it and to its children, which may have process groups of their own."""
        try:
            family = [self._parent, *self._parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            family = []
        for process in {*family, *self._workers}:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(10)


@contextmanager
def running_gateway(home: Path, ready: str = "/healthz", **options: object) -> Iterator[GatewayProcess]:
    gateway = GatewayProcess(home, **options)  # type: ignore[arg-type]
    try:
        gateway.wait_until_up(ready)
        yield gateway
    finally:
        gateway.kill()
