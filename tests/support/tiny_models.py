"""Tiny ONNX bundles in the form that training makes them, for tests that need something to serve."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from airlock.core.bundle import MANIFEST, ONNX, Manifest, sha256
from airlock.core.route import Bundle, Limit, Route
from airlock.core.segment import Pin
from airlock.core.spec import Features, Input, Label, Serving, Task

INPUTS = {
    "distance": Input(type="float", min=0, max=10_000),
    "weekday": Input(type="int", min=0, max=6),
    "delay": Input(type="float", nullable=True),
    "carrier": Input(type="string"),
}
GOOD_ROW: dict[str, Any] = {"distance": 1000.0, "weekday": 3, "delay": None, "carrier": "UA"}


def graph(
    inputs: Mapping[str, Input],
    *,
    output: str = "probability",
    bias: float = 0.0,
    carriers: tuple[str, ...] | None = None,
    work: int = 0,
    hangs_above: tuple[str, float] | None = None,
) -> bytes:
    """``sigmoid(bias + distance / 10,000 + ...)``, or the sum itself for any output but ``probability``.

    Args:
        carriers: raise on any other value of each string input, as a one-hot encoder without
            "unknown" does; unset: strings do not matter.
        work: size of the square matrices that are multiplied before the answer, to take time.
        hangs_above: a number that never comes back when this input is above this value.
    """
    nodes, terms, constants = [], [], []

    def constant(name: str, value: Any, kind: Any = np.float32) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    zero, scale = constant("zero", 0.0), constant("scale", 1e-4)
    for name, declared in inputs.items():
        if declared.type == "string":
            if carriers is None:
                continue
            nodes.append(helper.make_node("OneHotEncoder", [name], [f"{name}_hot"], domain="ai.onnx.ml",
                                          cats_strings=list(carriers), zeros=0))  # fmt: skip
            axes = constant(f"{name}_axes", [1, 2], np.int64)
            nodes.append(helper.make_node("ReduceSum", [f"{name}_hot", axes], [f"{name}_sum"], keepdims=0))
            shape = constant(f"{name}_shape", [-1, 1], np.int64)
            nodes.append(helper.make_node("Reshape", [f"{name}_sum", shape], [f"{name}_column"]))
            nodes.append(helper.make_node("Mul", [f"{name}_column", zero], [f"{name}_term"]))
        else:
            nodes.append(helper.make_node("IsNaN", [name], [f"{name}_nan"]))
            nodes.append(helper.make_node("Where", [f"{name}_nan", zero, name], [f"{name}_known"]))
            nodes.append(helper.make_node("Mul", [f"{name}_known", scale], [f"{name}_term"]))
        terms.append(f"{name}_term")
    if work:
        shape = constant("work_shape", [work, work], np.int64)
        one = constant("one", 1e-3)
        nodes.append(helper.make_node("Mul", [terms[0], zero], ["work_nothing"]))
        nodes.append(helper.make_node("ReduceSum", ["work_nothing"], ["work_zero"], keepdims=0))
        nodes.append(helper.make_node("Add", ["work_zero", one], ["work_seed"]))
        nodes.append(helper.make_node("Expand", ["work_seed", shape], ["work_a"]))
        nodes.append(helper.make_node("MatMul", ["work_a", "work_a"], ["work_b"]))
        nodes.append(helper.make_node("ReduceMean", ["work_b"], ["work_mean"], keepdims=0))
        nodes.append(helper.make_node("Mul", ["work_mean", zero], ["work_term"]))
        terms.append("work_term")
    if hangs_above:
        name, most = hangs_above
        nodes.append(helper.make_node("ReduceMax", [f"{name}_known"], ["hang_top"], keepdims=0))
        nodes.append(helper.make_node("Greater", ["hang_top", constant("hang_most", most)], ["hang"]))
        nodes.append(helper.make_node("Cast", ["hang"], ["hang_once"], to=TensorProto.INT64))
        nodes.append(helper.make_node("Mul", ["hang_once", constant("for_ever", 2**60, np.int64)], ["hang_rounds"]))
        nodes.append(helper.make_node("Mul", [f"{name}_known", zero], ["hang_zero"]))
        nodes.append(helper.make_node("Loop", ["hang_rounds", "", "hang_zero"], ["hang_term"], body=_nothing()))
        terms.append("hang_term")
    terms.append(constant("bias", bias))
    nodes.append(helper.make_node("Sum", terms, ["total"]))
    nodes.append(helper.make_node("Sigmoid" if output == "probability" else "Identity", ["total"], [output]))
    values = [
        helper.make_tensor_value_info(
            name, TensorProto.STRING if declared.type == "string" else TensorProto.FLOAT, [None, 1]
        )
        for name, declared in inputs.items()
    ]
    answer = helper.make_tensor_value_info(output, TensorProto.FLOAT, [None, 1])
    model = helper.make_model(
        helper.make_graph(nodes, "tiny", values, [answer], constants),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)],
        ir_version=9,
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _nothing() -> onnx.GraphProto:
    """The body of a loop that hands its value on."""
    value = [None, 1]
    return helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["still"]), helper.make_node("Identity", ["value_in"], ["value_out"])],
        "nothing",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value_in", TensorProto.FLOAT, value),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value_out", TensorProto.FLOAT, value),
        ],
    )


def bundle(
    folder: Path,
    *,
    model: str = "late",
    inputs: Mapping[str, Input] = INPUTS,
    task: Task = Task.CLASSIFICATION,
    features: Features | None = None,
    serving: Serving | None = None,
    key: str | None = None,
    event_time: str | None = None,
    content: bytes | None = None,
    **options: Any,
) -> Bundle:
    """Write a bundle; ``options`` go to :func:`graph`."""
    output = "probability" if task is Task.CLASSIFICATION else "value"
    content = content if content is not None else graph(inputs, output=output, **options)
    folder.mkdir(parents=True)
    (folder / ONNX).write_bytes(content)
    manifest = Manifest(
        model=model,
        task=task,
        label=Label(name="label"),
        inputs=dict(inputs),
        features=features,
        key=key,
        event_time=event_time,
        serving=serving or Serving(),
        output=output,
        files={ONNX: sha256(content)},
    )
    (folder / MANIFEST).write_text(manifest.to_json())
    return Bundle(path=str(folder), digest=sha256(manifest.to_json().encode()))


def route(
    champion: Bundle,
    *,
    model: str = "late",
    generation: int = 1,
    candidate: Bundle | None = None,
    share: float = 0.0,
    shadow: bool = False,
    release: str | None = None,
    step: str | None = None,
    limits: tuple[Limit, ...] = (),
    pins: tuple[Pin, ...] = (),
    others: Mapping[str, Bundle] | None = None,
    timeout_ms: float = 1_000.0,
) -> Route:
    """A route with version 1 as champion and, if there is one, version 2 as candidate.

    ``others`` are versions that pins may name.
    """
    versions = {"1": champion} | ({"2": candidate} if candidate else {}) | dict(others or {})
    return Route(
        model=model,
        generation=generation,
        release=release or ("r1" if candidate else None),
        step=step,
        champion="1",
        candidate="2" if candidate else None,
        weights={"1": 100.0 - share} | ({"2": share} if candidate else {}),
        shadow=("2",) if shadow else (),
        pins=pins,
        versions=versions,
        limits=limits,
        timeout_ms=timeout_ms,
        salt="salt",
        reason="a test",
        written_at=datetime(2013, 4, 1, tzinfo=UTC),
    ).sealed()


def publish(home: Path, document: Route) -> None:
    """Put a route where a gateway looks for it."""
    folder = home / "routes"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{document.model}.tmp"
    temporary.write_text(document.to_json())
    temporary.replace(folder / f"{document.model}.json")
