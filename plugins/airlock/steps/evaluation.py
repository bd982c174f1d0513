"""Judging an exported candidate: gather the evidence that the gates ask for, and let the core decide."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from airlock.core.bundle import ONNX, sha256
from airlock.core.errors import ArtifactCorrupt, DataInvalid
from airlock.core.gates import BASELINE, GateEvidence, judge
from airlock.core.refs import EvaluatedRef, OnnxRef, Ref, TrainingSetRef
from airlock.core.schema import interface_of
from airlock.core.spec import FairnessGate, LatencyGate, ModelSpec, ParityGate, SliceGate
from airlock.core.verdict import Status, Verdict, fold
from airlock.settings import Settings
from airlock.steps import tracking
from airlock.steps.feature_parity import feature_values
from airlock.steps.inference import OnnxModel
from airlock.steps.snapshot import read_table, snapshot_of
from airlock.steps.training import Split

log = logging.getLogger(__name__)

_LATENCY_ROWS = 500
_LATENCY_ROUNDS = 3


def evaluate(
    spec: ModelSpec,
    settings: Settings,
    onnx: OnnxRef,
    *,
    champion: Ref | None,
    champion_version: str | None,
) -> EvaluatedRef:
    """Score candidate and champion with their ONNX bundles on the same held-out rows and judge every gate.

    Without a champion the reference is the training rows' mean. A candidate or champion that cannot answer
    the rows gets a verdict that says so; neither lets the candidate through. The verdicts are written beside
    the bundle and to the MLflow run, which is marked FAILED if judging itself breaks.

    Raises:
        ArtifactCorrupt: the candidate's bundle is not what ``onnx`` names.
    """
    with tracking.failing(settings, onnx.trained.run_id):
        split = Split(spec, onnx.trained.training_set)
        model = OnnxModel(Path(onnx.path), digest=onnx.digest)
        verdicts = _judge(spec, settings, split, model, onnx, champion, champion_version)
        content = {
            "model": spec.model,
            "bundle": onnx.digest,
            "champion": champion_version,
            "champion_bundle": champion.digest if champion else None,
            "evaluation_from": split.evaluation_from.isoformat(),
            "rows": len(split.evaluation),
            "verdicts": [verdict.model_dump(mode="json") for verdict in verdicts],
        }
        path = Path(onnx.path).parent / f"gates-{onnx.digest[7:23]}.json"
        raw = json.dumps(content, indent=2).encode()
        path.with_suffix(".tmp").write_bytes(raw)
        path.with_suffix(".tmp").replace(path)
        _log(settings, onnx.trained.run_id, path, verdicts, champion_version)
    return EvaluatedRef(path=str(path), digest=sha256(raw), onnx=onnx, verdicts=verdicts, champion=champion_version)


def _judge(
    spec: ModelSpec,
    settings: Settings,
    split: Split,
    model: OnnxModel,
    onnx: OnnxRef,
    champion: Ref | None,
    champion_version: str | None,
) -> tuple[Verdict, ...]:
    rows = split.evaluation
    labels = rows[spec.label.name].to_numpy(np.float64)
    try:
        scores = model.scores(rows)
        latency = latencies(model, rows) if any(isinstance(gate, LatencyGate) for gate in spec.gates) else None
    except DataInvalid as error:
        return (Verdict(name="answers", status=Status.FAIL, reason=f"the candidate cannot answer: {error}"),)
    # A model that answers differently once it is exported is never let through, asked for in the spec or not.
    extra: tuple[Verdict, ...] = () if any(isinstance(gate, ParityGate) for gate in spec.gates) else (onnx.parity,)
    theirs = None
    if champion is None:
        name = BASELINE
        reference: npt.NDArray[np.float64] | None = np.full(len(rows), float(split.train[spec.label.name].mean()))
    else:
        name, reference = f"version {champion_version}", None
        try:
            reigning = OnnxModel(Path(champion.path), digest=champion.digest)
            theirs = reigning.manifest
            reference = reigning.scores(rows)
        except (ArtifactCorrupt, DataInvalid) as error:
            reason = f"champion {name} cannot answer the evaluation rows: {error}"
            extra = (*extra, Verdict(name="champion_answers", status=Status.ERROR, reason=reason))
    columns = {gate.column for gate in spec.gates if isinstance(gate, SliceGate | FairnessGate)}
    evidence = GateEvidence(
        task=spec.task,
        labels=labels,
        candidate=scores,
        reference=reference,
        reference_name=name,
        slices=_columns(spec, settings, onnx.trained.training_set, rows, columns),
        parity=onnx.parity,
        latency_ms=latency,
        size_bytes=(model.folder / ONNX).stat().st_size,
        inputs=model.manifest.inputs,
        reference_inputs=theirs.inputs if theirs else None,
        interface=interface_of(model.manifest),
        reference_interface=interface_of(theirs) if theirs else None,
        features=feature_values(spec, settings, onnx.trained.training_set),
        threshold=spec.label.threshold,
    )
    return (*judge(spec.gates, evidence), *extra)


def _columns(
    spec: ModelSpec, settings: Settings, training_set: TrainingSetRef, rows: pd.DataFrame, wanted: set[str]
) -> dict[str, npt.NDArray[Any]]:
    """Columns to group the rows by: of the training set, or of the events, which hold what no model may learn from."""
    found = {name: rows[name].to_numpy(object) for name in wanted & set(rows.columns)}
    if others := sorted(wanted - set(found)):
        try:
            events = read_table(snapshot_of(spec, settings, training_set), spec.data.table).set_index(spec.data.key)
        except ArtifactCorrupt as error:
            log.warning("%s: cannot group by %s: %s", spec.model, others, error)
            return found
        if not events.index.has_duplicates:
            there = [name for name in others if name in events]
            found |= {name: events[name].reindex(rows[spec.data.key]).to_numpy(object) for name in there}
    return found


def latencies(model: OnnxModel, rows: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Milliseconds that each of up to 500 single rows takes in ONNX Runtime, after warming up.

    Each row is run three times, in three rounds, and its quickest counts: whatever else the machine does interrupts one
    run of a row, a model that is slow on it is slow in all.
    """
    prepared = [model.feeds(rows.iloc[[place]]) for place in range(min(len(rows), _LATENCY_ROWS))]
    for feed in prepared[:50]:
        model.run(feed)
    taken = np.full((_LATENCY_ROUNDS, len(prepared)), np.inf)
    for number in range(_LATENCY_ROUNDS):
        for place, feed in enumerate(prepared):
            started = time.perf_counter()
            model.run(feed)
            taken[number, place] = (time.perf_counter() - started) * 1e3
    quickest: npt.NDArray[np.float64] = taken.min(axis=0)
    return quickest


def _log(
    settings: Settings, run_id: str, path: Path, verdicts: tuple[Verdict, ...], champion_version: str | None
) -> None:
    client = tracking.client(settings.mlflow_url)
    metrics = {}
    for verdict in verdicts:
        for suffix, value in (("", verdict.estimate), ("_low", verdict.low), ("_high", verdict.high)):
            if value is not None and np.isfinite(value):
                metrics[f"gate_{verdict.name}{suffix}"] = value
    refused = "; ".join(f"{verdict.name}: {verdict.reason}" for verdict in verdicts if verdict.holds_back)
    tags = {
        "airlock.gates": fold(verdicts),
        "airlock.refused": refused,
        "airlock.against": champion_version or BASELINE,
    }
    tracking.log_values(client, run_id, metrics=metrics, tags=tags)
    client.log_artifact(run_id, str(path), "gates")
