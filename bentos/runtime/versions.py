"""A version that can answer: its verified bundle, opened in ONNX Runtime and warmed up."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from airlock.core.bundle import ONNX, Manifest, verify
from airlock.core.errors import ArtifactCorrupt
from airlock.core.route import Bundle
from airlock.core.spec import Task
from runtime.schema import Feeds, Row, Schema
from runtime.watchdog import Watchdog

INLINE_MS = 2.0
"""A run that is expected to take longer leaves the event loop and goes to a thread."""

_WINDOW = 8
_WATCHDOG = Watchdog()


class VersionFailed(Exception):
    """A version did not answer."""


class TimedOut(VersionFailed):
    """A version took longer than the route allows."""


class Version:
    """One loaded version.

    Raises:
        ArtifactCorrupt: its bytes are not what the route says, or ONNX Runtime cannot open them.
    """

    def __init__(self, name: str, bundle: Bundle) -> None:
        self.name = name
        self.bundle = bundle
        folder = Path(bundle.path)
        self.manifest = verify(folder, bundle.digest)
        options = onnxruntime.SessionOptions()
        # ONNX Runtime would take all the host's cores for one row, and log each row that it refuses.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            session = onnxruntime.InferenceSession(
                (folder / ONNX).read_bytes(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ArtifactCorrupt(f"bundle {folder}: ONNX Runtime cannot open {ONNX}: {error}") from error
        if difference := {value.name for value in session.get_inputs()} ^ set(self.manifest.inputs):
            raise ArtifactCorrupt(
                f"bundle {folder}: {ONNX} and its manifest disagree about inputs {sorted(difference)}"
            )
        self._run = session.run
        self._one_row = _OneRow(session, self.manifest) if _has_numbers_only(session) else None
        self._outputs = [self.manifest.output]
        self.ms_per_row = math.inf
        self._best, self._runs = math.inf, 0
        self._warm_up()

    def _warm_up(self) -> None:
        """Have ONNX Runtime allocate what it needs, and see what a row costs, before anybody waits."""
        manifest = self.manifest
        rows = [list(manifest.plain_row().values())]
        may_refuse = not manifest.example and any(i.type == "string" for i in manifest.inputs.values())
        feeds = Feeds(manifest.inputs, Schema(manifest.inputs))
        for _ in range(_WINDOW):
            started = time.perf_counter()
            try:
                self._answers(feeds, rows)
            except Exception as error:
                if not may_refuse:
                    raise ArtifactCorrupt(f"version {self.name} cannot answer a plain row: {error}") from error
            self._took((time.perf_counter() - started) * 1000)

    def _took(self, ms: float) -> None:
        """The best of a few runs is what a row costs: the others may have had to wait for a processor."""
        self._best, self._runs = min(ms, self._best), self._runs + 1
        if self._runs % _WINDOW == 0:
            self.ms_per_row, self._best = self._best, math.inf

    def is_cheap(self, rows: int) -> bool:
        return self.ms_per_row * rows <= INLINE_MS

    def answer(self, feeds: Feeds, rows: Sequence[Row], timeout_ms: float | None = None) -> list[float]:
        """One probability or value a row.

        Raises:
            TimedOut: the run was ended because it was not over after ``timeout_ms``.
            VersionFailed: the model raised, or an answer is not a finite number.
        """
        if missing := feeds.lacks(rows):
            raise VersionFailed(f"the request does not carry {missing}")
        options = None if timeout_ms is None else _WATCHDOG.begin(timeout_ms / 1000)
        started = time.perf_counter()
        try:
            answers = self._answers(feeds, rows, options)
        except Exception as error:  # ONNX Runtime's exceptions share no narrower base
            if options is not None and options.terminate:
                # Not on the event loop again before it has shown for a while that it comes back.
                self.ms_per_row = self._best = math.inf
                self._runs = 0
                raise TimedOut(f"ended after the {timeout_ms:g} ms that the route allows") from error
            raise VersionFailed(str(error).strip() or type(error).__name__) from error
        finally:
            if options is not None:
                _WATCHDOG.end(options)
        if len(rows) == 1:
            self._took((time.perf_counter() - started) * 1000)
        if not all(map(math.isfinite, answers)):
            raise VersionFailed("the answer is not a finite number")
        return answers

    def _answers(self, feeds: Feeds, rows: Sequence[Row], options: onnxruntime.RunOptions | None = None) -> list[float]:
        if len(rows) == 1 and self._one_row is not None and self._one_row.lock.acquire(blocking=False):
            try:
                return [self._one_row(feeds.numbers(rows[0]), options)]
            finally:
                self._one_row.lock.release()
        (output,) = self._run(self._outputs, feeds(rows), options)
        answers: list[float] = np.asarray(output, np.float64).reshape(len(rows)).tolist()
        return answers


class _OneRow:
    """One row of numbers through buffers that ONNX Runtime knows: a third of what named arrays cost.

    ``lock`` is to be held: there is one set of buffers.
    """

    def __init__(self, session: onnxruntime.InferenceSession, manifest: Manifest) -> None:
        self.lock = threading.Lock()
        names = list(manifest.inputs)
        self._numbers = np.zeros(len(names), np.float32)
        self._answer = np.zeros((1, 1), np.float32)
        self._run = session.run_with_iobinding
        self._binding = session.io_binding()
        for index, name in enumerate(names):
            address = self._numbers[index:].ctypes.data
            self._binding.bind_input(name, "cpu", 0, np.float32, (1, 1), address)
        rank = len(session.get_outputs()[0].shape)
        self._binding.bind_output(manifest.output, "cpu", 0, np.float32, (1,) * rank, self._answer.ctypes.data)

    def __call__(self, numbers: list[float | None], options: onnxruntime.RunOptions | None) -> float:
        self._answer[0, 0] = np.nan  # whatever the run does, no earlier answer is taken for this one
        self._numbers[:] = numbers
        self._run(self._binding, options)
        return float(self._answer[0, 0])


def _has_numbers_only(session: onnxruntime.InferenceSession) -> bool:
    """Whether the model takes nothing but float32 tensors and gives one, of known rank."""
    values = [*session.get_inputs(), *session.get_outputs()]
    return len(session.get_outputs()) == 1 and all(
        value.type == "tensor(float)" and len(value.shape) in (1, 2) for value in values
    )


def predictions(manifest: Manifest, answers: Sequence[float]) -> list[dict[str, float]]:
    """Answers as they are told: a decision (1 is the positive class) with its probability, or the value."""
    if manifest.task is Task.CLASSIFICATION:
        bound = manifest.label.threshold
        return [{"prediction": int(answer >= bound), "probability": answer} for answer in answers]
    return [{"prediction": answer} for answer in answers]
