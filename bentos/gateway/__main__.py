"""``python -m gateway --port 8502``: the gateway as one process under uvicorn, with no control socket beside it."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence

import uvicorn

from gateway.app import App
from gateway.gateway import Gateway
from gateway.paths import from_environment

_GRACE_SECONDS = 5
"""A connection that a client keeps busy would otherwise hold up the stop for as long as it likes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; every request that was taken is answered and logged first."""
    parser = argparse.ArgumentParser(prog="python -m gateway", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8502)
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("airlock").setLevel(logging.INFO)
    for wanted in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal once more when it has stopped: being asked to end is no failure.
        signal.signal(wanted, lambda *_: None)
    server = uvicorn.Server(
        uvicorn.Config(
            App(Gateway(from_environment())),
            host=asked.host,
            port=asked.port,
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
    )
    server.run()
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
