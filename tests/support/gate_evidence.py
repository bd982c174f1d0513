"""Evidence on which a good candidate passes every gate, for tests that spoil it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from airlock.core.gates import FeatureValues, GateEvidence, judge
from airlock.core.spec import (
    CalibrationGate,
    FairnessGate,
    FeatureParityGate,
    FiniteGate,
    Gate,
    Input,
    LatencyGate,
    NonInferiorityGate,
    ParityGate,
    RelativeGate,
    SchemaGate,
    SizeGate,
    SliceGate,
    SuperiorityGate,
    Task,
    ThresholdGate,
)
from airlock.core.verdict import Status, Verdict

ROWS = 4000
_RNG = np.random.default_rng(5)
_TRUTH = _RNG.uniform(0.02, 0.6, ROWS)
LABELS = (_RNG.uniform(size=ROWS) < _TRUTH).astype(int)
GOOD = np.clip(_TRUTH + _RNG.normal(0, 0.02, ROWS), 0, 1)
FAIR = np.clip(_TRUTH + _RNG.normal(0, 0.15, ROWS), 0, 1)
GROUP = np.array(["AA", "UA", None, "EV"], dtype=object)[np.repeat([0, 1, 2, 3], [2000, 1700, 250, 50])]
PARITY = Verdict(name="parity", status=Status.PASS, reason="fine", n=ROWS, details={"max_difference": 2e-6, "flips": 0})
INTERFACE = {"task": "classification", "label": "late", "output": "probability", "positive class": "late"}
FEATURES = FeatureValues(
    online={"waiting": np.linspace(0, 1, 200), "kind": np.array(["a", None] * 100, dtype=object)},
    offline={"waiting": np.linspace(0, 1, 200), "kind": np.array(["a", None] * 100, dtype=object)},
    rows=tuple(f"origin {number}" for number in range(200)),
)
INPUTS = {"distance": Input(type="float", min=0), "carrier": Input(type="string")}

EVIDENCE = GateEvidence(
    task=Task.CLASSIFICATION,
    labels=LABELS,
    candidate=GOOD,
    reference=FAIR,
    reference_name="version 3",
    slices={"carrier": GROUP},
    parity=PARITY,
    latency_ms=np.linspace(1, 3, 500),
    size_bytes=2_500_000,
    inputs=INPUTS,
    reference_inputs=INPUTS,
    interface=INTERFACE,
    reference_interface=INTERFACE,
    features=FEATURES,
)
REGRESSION = dataclasses.replace(
    EVIDENCE, task=Task.REGRESSION, labels=_TRUTH * 300, candidate=GOOD * 300, reference=FAIR * 300
)

ALL: dict[str, Gate] = {
    "threshold": ThresholdGate(kind="threshold", metric="roc_auc", min=0.65),
    "relative": RelativeGate(kind="relative", metric="brier", max_loss=0.01),
    "non_inferiority": NonInferiorityGate(kind="non_inferiority", metric="roc_auc", margin=0.005),
    "superiority": SuperiorityGate(kind="superiority", metric="log_loss", margin=0.001, method="bootstrap"),
    "slices": SliceGate(kind="slices", column="carrier", metric="roc_auc", min=0.6),
    "fairness": FairnessGate(
        kind="fairness", criterion="demographic_parity", column="carrier", max_difference=0.1, min_rows=1000
    ),
    "calibration": CalibrationGate(kind="calibration", max_error=0.05),
    "onnx_parity": ParityGate(kind="onnx_parity"),
    "feature_parity": FeatureParityGate(kind="feature_parity"),
    "latency": LatencyGate(kind="latency", max_p99_ms=5),
    "size": SizeGate(kind="size", max_mb=5),
    "finite": FiniteGate(kind="finite"),
    "schema": SchemaGate(kind="schema"),
}


def only(gate: Gate, **changes: Any) -> Verdict:
    (verdict,) = judge([gate], dataclasses.replace(EVIDENCE, **changes))
    return verdict
