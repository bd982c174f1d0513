"""Ends runs of ONNX Runtime that do not end by themselves.

A version that has been quick is asked on the event loop, and one that hangs there would hold up every model. ONNX
Runtime looks between the nodes of a graph whether it is to stop: a run is over soon after its time is, unless a single
node takes for ever.
"""

from __future__ import annotations

import threading
import time

import onnxruntime

POLL_SECONDS = 0.02


class Watchdog:
    """Watches any number of runs from one thread, which starts with the first of them."""

    def __init__(self) -> None:
        self._runs: dict[int, tuple[float, onnxruntime.RunOptions]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self, seconds: float) -> onnxruntime.RunOptions:
        """Options for one run, whose ``terminate`` tells afterwards whether it was ended."""
        if self._thread is None:
            self._start()
        options = onnxruntime.RunOptions()
        # Without this entry ONNX Runtime's wrapper raises and catches an exception in each run.
        options.add_run_config_entry("gpu_graph_id", "-1")
        self._runs[id(options)] = time.monotonic() + seconds, options
        return options

    def end(self, options: onnxruntime.RunOptions) -> None:
        """The run is over."""
        del self._runs[id(options)]

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="airlock-watchdog", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            time.sleep(POLL_SECONDS)
            now = time.monotonic()
            for deadline, options in list(self._runs.values()):
                if now > deadline:
                    options.terminate = True
