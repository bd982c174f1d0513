"""Bundles answer as the convention says, and refuse what is not a plain graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper

from airlock.core.bundle import MANIFEST, ONNX
from airlock.core.errors import ArtifactCorrupt, DataInvalid
from airlock.core.spec import Input
from airlock.steps.inference import OnnxModel, as_inputs, check_graph
from tests.support.tiny_models import GOOD_ROW, INPUTS, bundle

ROWS = pd.DataFrame([GOOD_ROW, {**GOOD_ROW, "distance": 2000.0, "delay": 4.0}])


def test_it_answers_each_row(tmp_path: Path) -> None:
    made = bundle(tmp_path / "bundle")
    scores = OnnxModel(Path(made.path), digest=made.digest).scores(ROWS)
    assert scores.shape == (2,)
    assert scores[0] < scores[1]
    assert OnnxModel(Path(made.path)).scores(ROWS.iloc[:0]).shape == (0,)


def test_inputs_are_float32_and_strings_without_gaps() -> None:
    frame = pd.DataFrame({"carrier": ["UA", None], "distance": [1, 2], "weekday": [1, 2], "delay": [None, 1.5], "x": 1})
    typed = as_inputs(frame, INPUTS)
    assert list(typed.columns) == list(INPUTS)
    assert typed["carrier"].tolist() == ["UA", ""]
    assert {str(typed[name].dtype) for name in ("distance", "weekday", "delay")} == {"float32"}
    assert np.isnan(typed["delay"][0])


def test_missing_and_unreadable_columns_are_named() -> None:
    with pytest.raises(DataInvalid, match="distance"):
        as_inputs(pd.DataFrame({"x": [1]}), {"distance": Input(type="float")})
    with pytest.raises(DataInvalid, match=r"distance.*numbers"):
        as_inputs(pd.DataFrame({"distance": ["far"]}), {"distance": Input(type="float")})


def test_an_unknown_category_raises_where_the_model_refuses_them(tmp_path: Path) -> None:
    made = bundle(tmp_path / "bundle", carriers=("UA",))
    model = OnnxModel(Path(made.path))
    assert model.scores(ROWS).shape == (2,)
    with pytest.raises(DataInvalid, match="Unknown Category"):
        model.scores(ROWS.assign(carrier="EV"))


def test_changed_bytes_are_refused(tmp_path: Path) -> None:
    folder = Path(bundle(tmp_path / "bundle").path)
    content = bytearray((folder / ONNX).read_bytes())
    content[-1] ^= 1
    (folder / ONNX).write_bytes(content)
    with pytest.raises(ArtifactCorrupt, match=ONNX):
        OnnxModel(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(ArtifactCorrupt, match=MANIFEST):
        OnnxModel(folder)


def _model(change: Callable[[onnx.ModelProto], None]) -> bytes:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])
    constant = helper.make_tensor("c", TensorProto.FLOAT, [1], [1.0])
    graph = helper.make_graph([helper.make_node("Add", ["x", "c"], ["y"])], "g", [value], [out], [constant])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    change(model)
    content: bytes = model.SerializeToString()
    return content


def _external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def _custom(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.evil"


def _nested(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner))


@pytest.mark.parametrize(
    ("change", "said"), [(_external, "files outside"), (_custom, "com.evil"), (_nested, "graphs inside nodes")]
)
def test_graphs_that_reach_outside_are_refused(change: Callable[[onnx.ModelProto], None], said: str) -> None:
    check_graph(_model(lambda _: None), "plain")
    with pytest.raises(ArtifactCorrupt, match=said):
        check_graph(_model(change), "bad")


def test_what_is_no_protobuf_is_refused() -> None:
    with pytest.raises(ArtifactCorrupt, match="not an ONNX model"):
        check_graph(b"\xff\xff\xffjunk", "junk")
