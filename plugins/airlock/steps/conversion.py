"""From a fitted scikit-learn pipeline to one plain ONNX graph."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from airlock.core.errors import SpecError
from airlock.core.spec import Input, Task
from airlock.steps.inference import IR_VERSION, OPSETS


def output_name(task: Task) -> str:
    """The graph's one output."""
    return "probability" if task is Task.CLASSIFICATION else "value"


def to_onnx(pipeline: Any, inputs: Mapping[str, Input], task: Task) -> Any:
    """One ONNX graph with one input a feature and one output (see :mod:`airlock.steps.inference`).

    Raises:
        SpecError: a step of the pipeline has no converter; the message names it and what to use.
    """
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    from airlock.transformers import register_converters

    register_converters()
    estimator = pipeline.steps[-1][1] if hasattr(pipeline, "steps") else pipeline
    round_thresholds_down(estimator)
    kinds = {"float": FloatTensorType, "int": FloatTensorType, "string": StringTensorType}
    types = [(name, kinds[declared.type]([None, 1])) for name, declared in inputs.items()]
    options = {id(estimator): {"zipmap": False}} if task is Task.CLASSIFICATION else None
    try:
        with warnings.catch_warnings():
            # skl2onnx 1.20 hands booleans to integer fields; the bound on protobuf in pyproject.toml allows it.
            warnings.filterwarnings("ignore", message="Field onnx.AttributeProto.ints", category=DeprecationWarning)
            model = convert_sklearn(pipeline, initial_types=types, target_opset=OPSETS, options=options)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise SpecError(
            f"the recipe's pipeline cannot be converted to ONNX: {type(error).__name__}: {' '.join(lines[:2])[:400]}."
            " Use estimators that skl2onnx converts (linear models, forests, HistGradientBoosting without native"
            " categories), the transformers in airlock.transformers, or register a converter with"
            " skl2onnx.update_registered_converter"
        ) from error
    _keep_one_output(model, task)
    model.ir_version = IR_VERSION
    return model


def round_thresholds_down(estimator: Any) -> None:
    """Make a boosted ensemble's thresholds float32 numbers, without changing one answer on float32 inputs.

    ONNX keeps thresholds as float32. Rounding one up would let the next float32 number pass; rounded
    down, ``x <= threshold`` holds for the same float32 ``x`` as before. skl2onnx does this for other trees only.
    """
    for predictors in getattr(estimator, "_predictors", ()):
        for predictor in predictors:
            exact = predictor.nodes["num_threshold"]
            near = exact.astype(np.float32)
            above = near.astype(np.float64) > exact
            near[above] = np.nextafter(near[above], np.float32(-np.inf))
            predictor.nodes["num_threshold"] = near


def _keep_one_output(model: Any, task: Task) -> None:
    """Leave the positive class's probability (or the value) as the only output, and what it needs."""
    from onnx import TensorProto, helper, numpy_helper

    graph, name = model.graph, output_name(task)
    source = graph.output[-1].name
    if task is Task.CLASSIFICATION:
        graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "positive_class"))
        graph.node.append(helper.make_node("Gather", [source, "positive_class"], [name], name="Positive", axis=1))
    else:
        graph.node.append(helper.make_node("Identity", [source], [name], name="Value"))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1]))
    needed, kept = {name}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed.update(node.input)
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(initializers)
