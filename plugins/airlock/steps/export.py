"""From a fitted pipeline to a bundle: one ONNX graph that answers as scikit-learn does, and the proof of it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from airlock.core.bundle import MANIFEST, ONNX, Manifest, sha256
from airlock.core.refs import OnnxRef, TrainedRef
from airlock.core.spec import ModelSpec, ParityGate, Task
from airlock.core.verdict import Status, Verdict
from airlock.settings import Settings
from airlock.steps import tracking
from airlock.steps.conversion import output_name, to_onnx
from airlock.steps.inference import OnnxModel, as_inputs
from airlock.steps.training import PIPELINE, one_thread, positive_scores, read_rows

REAL_ROWS = 25_000
_BOUNDARY_ROWS = 6_000


def export(spec: ModelSpec, settings: Settings, trained: TrainedRef) -> OnnxRef:
    """Convert, prove parity and write the bundle beside ``trained``; log it to its MLflow run.

    The bundle's place is named by the trained pipeline's digest: a second call returns the first one's bundle
    after checking it. A failure marks the MLflow run FAILED.

    Raises:
        SpecError: the pipeline cannot be converted.
        ArtifactCorrupt: an earlier bundle in this place is not whole.
    """
    import joblib

    with tracking.failing(settings, trained.run_id):
        folder = Path(trained.path).parent / f"bundle-{trained.digest[7:23]}"
        # Made by `train` in this run's own scratch folder, never fetched from elsewhere.
        pipeline = joblib.load(Path(trained.path) / PIPELINE)
        frame = read_rows(trained.training_set)
        if not folder.is_dir():
            model = to_onnx(pipeline, spec.inputs, spec.task)
            _write_bundle(spec, trained, model.SerializeToString(), _example(spec, frame), folder)
        onnx_model = OnnxModel(folder)
        with one_thread():
            verdict = parity(pipeline, onnx_model, frame, spec)
        ref = OnnxRef(path=str(folder), digest=onnx_model.digest, trained=trained, parity=verdict)
        tracking.log_bundle(spec, settings, ref, example=frame.tail(5))
    return ref


def _example(spec: ModelSpec, frame: pd.DataFrame) -> dict[str, float | int | str | None]:
    """One row that the model was trained on, the first, as JSON carries it."""
    kinds = {"float": float, "int": int, "string": str}
    row = frame.iloc[0]
    return {
        name: None if pd.isna(row[name]) else kinds[declared.type](row[name]) for name, declared in spec.inputs.items()
    }


def _write_bundle(
    spec: ModelSpec,
    trained: TrainedRef,
    content: bytes,
    example: dict[str, float | int | str | None],
    folder: Path,
) -> None:
    manifest = Manifest(
        model=spec.model,
        task=spec.task,
        label=spec.label,
        inputs=spec.inputs,
        features=spec.features,
        key=spec.data.key,
        event_time=spec.data.event_time,
        serving=spec.serving,
        output=output_name(spec.task),
        files={ONNX: sha256(content)},
        lineage={
            "run_id": trained.run_id,
            "pipeline": trained.digest,
            "training_set": trained.training_set.digest,
            "snapshot": trained.training_set.snapshot,
            "until": trained.training_set.until.isoformat(),
        },
        example=example,
    )
    making = Path(tempfile.mkdtemp(dir=folder.parent, prefix="bundle-making-"))
    try:
        (making / ONNX).write_bytes(content)
        (making / MANIFEST).write_text(manifest.to_json())
        making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def parity(pipeline: Any, model: OnnxModel, frame: pd.DataFrame, spec: ModelSpec) -> Verdict:
    """Ask scikit-learn and ONNX Runtime the same rows: real ones, and ones that lie on the trees' thresholds.

    A flip is a classification that comes out on the other side of the spec's threshold. The bounds are
    those of the spec's ``onnx_parity`` gate, or that gate's defaults.
    """
    gate = next((gate for gate in spec.gates if isinstance(gate, ParityGate)), ParityGate(kind="onnx_parity"))
    real = as_inputs(frame.sample(min(len(frame), REAL_ROWS), random_state=spec.recipe.seed), spec.inputs)
    boundary = boundary_rows(pipeline, model.folder, real, spec)
    rows = pd.concat([real, boundary], ignore_index=True)
    expected, got = positive_scores(pipeline, rows, spec.task), model.scores(rows)
    difference = float(np.max(np.abs(expected - got))) if np.all(np.isfinite(got)) else float("inf")
    flips = 0
    if spec.task is Task.CLASSIFICATION:
        flips = int(np.sum((expected >= spec.label.threshold) != (got >= spec.label.threshold)))
    passed = difference <= gate.max_difference and flips <= gate.max_flips
    return Verdict(
        name="onnx_parity",
        status=Status.PASS if passed else Status.FAIL,
        reason=f"ONNX differs from scikit-learn by at most {difference:.2g} (allowed {gate.max_difference:g}) and "
        f"flips {flips} decisions (allowed {gate.max_flips}) on {len(real)} real and {len(boundary)} boundary rows",
        metric="max_difference",
        estimate=difference,
        threshold=gate.max_difference,
        n=len(rows),
        details={"max_difference": difference, "flips": flips, "rows": len(real), "boundary_rows": len(boundary)},
    )


def boundary_rows(pipeline: Any, folder: Path, real: pd.DataFrame, spec: ModelSpec) -> pd.DataFrame:
    """Real rows with one number put on a split threshold or on a float32 neighbour of it.

    A model without trees gets each number's smallest and largest value and their neighbours instead.
    """
    numbers = [name for name, declared in spec.inputs.items() if declared.type != "string"]
    thresholds = _thresholds(pipeline, folder, numbers)
    if not thresholds:
        thresholds = {name: real[name].agg(["min", "max"]).dropna().to_numpy(np.float32) for name in numbers}
    pairs = [(name, value) for name, values in thresholds.items() for value in np.unique(values)]
    chosen = np.random.default_rng(spec.recipe.seed).permutation(len(pairs))[: _BOUNDARY_ROWS // 3]
    rows = real.sample(3 * len(chosen), replace=True, random_state=spec.recipe.seed).reset_index(drop=True)
    columns = {name: rows[name].to_numpy(copy=True) for name in thresholds}
    for place, index in enumerate(chosen):
        name, value = pairs[index]
        around = (np.nextafter(value, np.float32(-np.inf)), value, np.nextafter(value, np.float32(np.inf)))
        columns[name][3 * place : 3 * place + 3] = around
    return rows.assign(**columns)


def _thresholds(pipeline: Any, folder: Path, numbers: list[str]) -> dict[str, npt.NDArray[np.float32]]:
    """Split thresholds of the graph's tree ensembles by input, for the inputs that reach the trees as numbers."""
    import onnx
    from onnx.helper import get_attribute_value

    if not hasattr(pipeline, "steps") or len(pipeline.steps) < 2:
        return {}
    columns = np.array([str(name).rsplit("__", 1)[-1] for name in pipeline[:-1].get_feature_names_out()])
    found: dict[str, list[npt.NDArray[np.float32]]] = {}
    for node in onnx.load_model(folder / ONNX, load_external_data=False).graph.node:
        attributes = {attribute.name: get_attribute_value(attribute) for attribute in node.attribute}
        if "nodes_values" not in attributes:
            continue
        splits = np.array(attributes["nodes_modes"]) != b"LEAF"
        values = np.array(attributes["nodes_values"], np.float32)[splits]
        split_on = columns[np.array(attributes["nodes_featureids"])[splits]]
        for name in set(numbers) & set(split_on.tolist()):
            found.setdefault(name, []).append(values[split_on == name])
    return {name: np.concatenate(parts) for name, parts in found.items()}
