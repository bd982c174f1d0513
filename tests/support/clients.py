"""Clients that keep asking a gateway, and every answer that they got."""

from __future__ import annotations

import time
from threading import Event, Thread
from typing import Any, Self

import httpx

from airlock.tls import trusted
from tests.support.tiny_models import GOOD_ROW
from tests.support.waiting import wait_until


class Client:
    """One client that keeps asking for one model, in a thread of its own. Use it in a ``with`` block."""

    def __init__(self, url: str, model: str, *, pause_s: float = 0.02) -> None:
        self.row: dict[str, Any] = GOOD_ROW
        self.answers: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self._url = f"{url}/v1/models/{model}/predict"
        self._pause_s = pause_s
        self._ended = Event()
        self._thread = Thread(target=self._ask)

    def __enter__(self) -> Self:
        self._thread.start()
        self.more(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(30)

    def more(self, count: int) -> None:
        """Wait until so many more requests were answered."""
        wanted = len(self.answers) + count
        wait_until(
            lambda: len(self.answers) >= wanted,
            f"{wanted} answers",
            seen=lambda: f"{len(self.answers)} answers; {self.errors[:3]}",
        )

    def _ask(self) -> None:
        number = 0
        with httpx.Client(timeout=10, verify=trusted()) as http:
            while not self._ended.is_set():
                number += 1
                try:
                    response = http.post(self._url, json={"rows": [self.row], "key": f"k{number}"})
                except httpx.HTTPError as error:
                    self.errors.append(repr(error))
                    continue
                if response.status_code == httpx.codes.OK:
                    self.answers.append({**response.json(), "asked_at": time.monotonic()})
                else:
                    self.errors.append(response.text)
                self._ended.wait(self._pause_s)
