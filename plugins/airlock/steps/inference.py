"""Answering with a bundle: what goes into its ONNX model and what comes out.

The convention, which the gateway keeps as well:

* one graph input for each of the manifest's ``inputs``, of the same name, shape ``[N, 1]``;
* ``float`` and ``int`` inputs are float32 tensors, a missing number is NaN;
* ``string`` inputs are string tensors, a missing string is ``""``;
* one graph output, named by the manifest's ``output``: ``probability`` of the positive class for
  classification and ``value`` for regression, float32 of shape ``[N, 1]``.

A model that was trained to refuse unknown categories raises in ONNX Runtime when it meets one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from airlock.core.bundle import MANIFEST, ONNX, sha256, verify
from airlock.core.errors import ArtifactCorrupt, DataInvalid
from airlock.core.spec import Input

OPSETS = {"": 21, "ai.onnx.ml": 3}
IR_VERSION = 10
_CHUNK = 50_000
Feeds = dict[str, npt.NDArray[Any]]


def as_inputs(frame: pd.DataFrame, inputs: Mapping[str, Input]) -> pd.DataFrame:
    """The model's input columns, in order and as the model takes them: float32, or strings without gaps.

    The pipeline is fitted on this and the ONNX model asked with it, so both see the same bits.

    Raises:
        DataInvalid: a column is missing, or holds what cannot be read as its type.
    """
    if missing := [name for name in inputs if name not in frame.columns]:
        raise DataInvalid(f"inputs {missing} are not among the columns {sorted(map(str, frame.columns))}")
    columns: dict[str, Any] = {}
    for name, declared in inputs.items():
        column = frame[name]
        if declared.type == "string":
            columns[name] = column.astype(object).where(column.notna(), "").astype(str).astype(object)
            continue
        try:
            columns[name] = pd.to_numeric(column).astype(np.float32)
        except (TypeError, ValueError) as error:
            raise DataInvalid(f"input {name!r} must be numbers ({declared.type}): {error}") from error
    return pd.DataFrame(columns, index=frame.index)


def check_graph(content: bytes, source: str) -> None:
    """Refuse a graph that reaches outside itself: external data, functions, or operators that are not ONNX's own.

    Raises:
        ArtifactCorrupt: it does, or the bytes are not an ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ArtifactCorrupt(f"{source} is not an ONNX model: {error}; export it again") from error
    domains = {entry.domain or "ai.onnx" for entry in model.opset_import}
    domains |= {node.domain or "ai.onnx" for node in model.graph.node}
    if foreign := sorted(domains - {"ai.onnx", "ai.onnx.ml"}):
        raise ArtifactCorrupt(f"{source} uses operators of {foreign}; only ai.onnx and ai.onnx.ml are run")
    if model.functions:
        raise ArtifactCorrupt(f"{source} defines functions of its own; only plain graphs are run")
    if any(attribute.HasField("g") or attribute.graphs for node in model.graph.node for attribute in node.attribute):
        raise ArtifactCorrupt(f"{source} has graphs inside nodes; only plain graphs are run")
    held = [attribute.t for node in model.graph.node for attribute in node.attribute if attribute.HasField("t")]
    tensors = [*model.graph.initializer, *held]
    if external := [tensor.name for tensor in tensors if tensor.data_location == onnx.TensorProto.EXTERNAL]:
        raise ArtifactCorrupt(f"{source} keeps {external} in files outside; export it with its data inside")


class OnnxModel:
    """A verified bundle, opened in ONNX Runtime.

    Args:
        folder: the bundle.
        digest: what its manifest must hash to; unset: its files are checked against its own manifest only.
        threads: for one call; ONNX Runtime would otherwise take those of the host.

    Raises:
        ArtifactCorrupt: the bundle is not whole, or its graph may not be run.
    """

    def __init__(self, folder: Path, *, digest: str | None = None, threads: int = 1) -> None:
        import onnxruntime

        self.folder = folder
        try:
            self.digest = digest or sha256((folder / MANIFEST).read_bytes())
        except OSError as error:
            raise ArtifactCorrupt(f"bundle {folder}: no readable {MANIFEST}; export it again") from error
        self.manifest = verify(folder, self.digest)
        content = (folder / ONNX).read_bytes()
        check_graph(content, f"bundle {folder}: {ONNX}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        declared = {value.name for value in self._session.get_inputs()}
        if declared != set(self.manifest.inputs):
            difference = sorted(declared ^ set(self.manifest.inputs))
            raise ArtifactCorrupt(f"bundle {folder}: {ONNX} and {MANIFEST} disagree about inputs {difference}")

    def scores(self, frame: pd.DataFrame) -> npt.NDArray[np.float64]:
        """The answer for each row, shape ``(rows,)``: a probability, or the regression's value.

        Raises:
            DataInvalid: the frame lacks an input, or ONNX Runtime refuses a row (an unknown category).
        """
        typed = as_inputs(frame, self.manifest.inputs)
        parts = [self.run(_feeds(typed.iloc[start : start + _CHUNK])) for start in range(0, len(typed), _CHUNK)]
        return np.concatenate(parts) if parts else np.empty(0)

    def feeds(self, frame: pd.DataFrame) -> Feeds:
        """The frame's rows as ONNX Runtime takes them."""
        return _feeds(as_inputs(frame, self.manifest.inputs))

    def run(self, feeds: Feeds) -> npt.NDArray[np.float64]:
        """The answers to :meth:`feeds`, shape ``(rows,)``.

        Raises:
            DataInvalid: ONNX Runtime refuses the rows.
        """
        # ONNX Runtime's exceptions share no base class of their own.
        try:
            (answer,) = self._session.run([self.manifest.output], feeds)
        except Exception as error:
            raise DataInvalid(f"{self.manifest.model}: ONNX Runtime refuses the rows: {error}") from error
        return np.asarray(answer, np.float64).reshape(-1)


def _feeds(typed: pd.DataFrame) -> Feeds:
    return {str(name): typed[name].to_numpy().reshape(-1, 1) for name in typed.columns}
