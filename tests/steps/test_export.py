"""Conversion changes no answer, and says so when it cannot be done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.neighbors import NeighborhoodComponentsAnalysis
from sklearn.pipeline import Pipeline

from airlock.core.bundle import ONNX, Manifest, sha256
from airlock.core.errors import SpecError
from airlock.core.spec import Input, ModelSpec, Task
from airlock.steps.conversion import output_name, round_thresholds_down, to_onnx
from airlock.steps.export import boundary_rows, parity
from airlock.steps.inference import OPSETS, OnnxModel, as_inputs
from airlock.steps.recipes import load_recipe
from airlock.transformers import Cyclical, Interaction, OutlierCapper, register_converters
from tests.support.toy_model import toy_rows, toy_settings, toy_spec


def _bundle(folder: Path, spec: ModelSpec, pipeline: Any) -> OnnxModel:
    content = to_onnx(pipeline, spec.inputs, spec.task).SerializeToString()
    manifest = Manifest(
        model=spec.model,
        task=spec.task,
        label=spec.label,
        inputs=spec.inputs,
        output=output_name(spec.task),
        files={ONNX: sha256(content)},
    )
    folder.mkdir()
    (folder / ONNX).write_bytes(content)
    (folder / "manifest.json").write_text(manifest.to_json())
    return OnnxModel(folder)


def _fitted(tmp_path: Path, spec: ModelSpec, **params: Any) -> Any:
    recipe = load_recipe(spec, toy_settings(tmp_path))
    rows = toy_rows()
    label = rows["price"] if spec.task is Task.REGRESSION else rows["bought"]
    return recipe.pipeline({"leaves": 8, **params}).fit(as_inputs(rows, spec.inputs), label)


def test_a_whole_pipeline_answers_alike(tmp_path: Path) -> None:
    spec = toy_spec()
    pipeline = _fitted(tmp_path, spec)
    verdict = parity(pipeline, _bundle(tmp_path / "bundle", spec, pipeline), toy_rows(), spec)
    assert verdict.passed, verdict.reason
    assert verdict.details["flips"] == 0
    assert verdict.details["rows"] == 1500
    assert verdict.details["boundary_rows"] > 100
    assert verdict.details["max_difference"] < 1e-6


def test_a_regression_answers_alike(tmp_path: Path) -> None:
    spec = toy_spec(task="regression", gates=[{"kind": "onnx_parity"}])
    pipeline = _fitted(tmp_path, spec, regression=True)
    model = _bundle(tmp_path / "bundle", spec, pipeline)
    assert model.manifest.output == "value"
    assert parity(pipeline, model, toy_rows(), spec).details["max_difference"] < 1e-4


def test_a_graph_that_answers_differently_fails_parity(tmp_path: Path) -> None:
    spec = toy_spec()
    pipeline, other = _fitted(tmp_path / "a", spec), _fitted(tmp_path / "b", spec, leaves=3)
    verdict = parity(other, _bundle(tmp_path / "bundle", spec, pipeline), toy_rows(), spec)
    assert not verdict.passed
    assert verdict.details["flips"] > 0


def test_a_refused_category_raises_in_onnx_runtime_too(tmp_path: Path) -> None:
    spec = toy_spec()
    model = _bundle(tmp_path / "bundle", spec, _fitted(tmp_path, spec, unknown="error"))
    model.scores(toy_rows(20))
    with pytest.raises(Exception, match="Unknown Category"):
        model.scores(toy_rows(20).assign(shop="west"))


def test_the_graph_has_one_output_and_nothing_idle(tmp_path: Path) -> None:
    spec = toy_spec()
    model = to_onnx(_fitted(tmp_path, spec), spec.inputs, spec.task)
    assert [value.name for value in model.graph.output] == ["probability"]
    assert [value.name for value in model.graph.input] == list(spec.inputs)
    assert not {"ZipMap", "Scan"} & {node.op_type for node in model.graph.node}
    used = {name for node in model.graph.node for name in node.input} | {"probability"}
    assert all(used & set(node.output) for node in model.graph.node)


def test_an_estimator_without_a_converter_is_named() -> None:
    rows = as_inputs(toy_rows(60), toy_spec().inputs)[["price", "minute"]]
    steps = [("nca", NeighborhoodComponentsAnalysis(max_iter=2)), ("trees", HistGradientBoostingClassifier(max_iter=2))]
    pipeline = Pipeline(steps).fit(rows, toy_rows(60)["bought"])
    with pytest.raises(SpecError, match=r"NeighborhoodComponentsAnalysis[\s\S]*Use estimators"):
        to_onnx(pipeline, {name: Input(type="float") for name in rows}, Task.CLASSIFICATION)


@pytest.mark.parametrize("kind", [HistGradientBoostingClassifier, HistGradientBoostingRegressor])
def test_thresholds_round_down_and_change_no_answer(kind: Any) -> None:
    random = np.random.default_rng(1)
    # Neighbouring float32 numbers: the midpoint of two is no float32 number and rounds to one of them.
    steps = np.arange(64, dtype=np.int32) + np.float32(1.1).view(np.int32)
    values = random.choice(steps.view(np.float32), (4000, 1))
    trees = kind(max_iter=5, min_samples_leaf=1).fit(values, random.integers(0, 2, 4000))
    before = trees.predict(values)
    round_thresholds_down(trees)
    assert np.array_equal(before, trees.predict(values))
    kept = np.concatenate([p[0].nodes["num_threshold"] for p in trees._predictors])
    assert np.array_equal(kept, kept.astype(np.float32))


def test_boundary_rows_lie_on_thresholds_and_beside_them(tmp_path: Path) -> None:
    spec = toy_spec()
    pipeline = _fitted(tmp_path, spec)
    model = _bundle(tmp_path / "bundle", spec, pipeline)
    rows = boundary_rows(pipeline, model.folder, as_inputs(toy_rows(), spec.inputs), spec)
    thresholds = {
        np.float32(node["num_threshold"])
        for predictors in pipeline[-1]._predictors
        for node in predictors[0].nodes
        if not node["is_leaf"]
    }
    on = [np.float32(value) in thresholds for name in ("age", "price") for value in rows[name]]
    assert sum(on) >= len(rows) / 3


def test_cyclical_counts_whole_units_on_both_sides_of_zero() -> None:
    values = pd.DataFrame({"minute": np.array([-1, 0, 359.99997, 360, 1439.9, 1440, 1441], np.float32)})
    turned = Cyclical(1440).fit(values).transform(values)
    angle = 2 * np.pi * np.array([1439, 0, 359, 360, 1439, 0, 1]) / 1440
    assert turned == pytest.approx(np.column_stack([np.sin(angle), np.cos(angle)]), abs=1e-6)
    with pytest.raises(ValueError, match="period"):
        Cyclical(1).fit(values)


def test_capper_keeps_to_the_quantiles_and_interaction_multiplies() -> None:
    values = pd.DataFrame({"a": np.arange(101.0), "b": 2.0})
    capped = OutlierCapper(0.1, 0.9).fit(values).transform(values)
    assert (capped[:, 0].min(), capped[:, 0].max()) == (10, 90)
    assert Interaction().fit(values).transform(values)[:, 0] == pytest.approx(values["a"] * 2)
    with pytest.raises(ValueError, match="two columns"):
        Interaction().fit(values[["a"]])


@pytest.mark.parametrize(
    ("transformer", "columns"),
    [(Cyclical(1440), 1), (Cyclical(7), 2), (Interaction(), 2), (OutlierCapper(0.2, 0.8), 2)],
)
def test_transformers_give_the_same_bits_in_onnx_runtime(transformer: Any, columns: int) -> None:
    random = np.random.default_rng(2)
    whole = random.integers(-3000, 3000, (2000, columns)).astype(np.float32)
    beside = np.nextafter(whole, np.float32(np.inf) * random.choice([-1, 1], whole.shape).astype(np.float32))
    values = np.concatenate([whole, beside, random.normal(0, 1e3, whole.shape).astype(np.float32)])
    transformer.fit(values)
    register_converters()
    model = convert_sklearn(
        transformer, initial_types=[("x", FloatTensorType([None, columns]))], target_opset=OPSETS
    ).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    assert np.array_equal(session.run(None, {"x": values})[0], transformer.transform(values))
