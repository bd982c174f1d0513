"""Gates on what the exported model costs and whether it answers in numbers.

What is counted rather than sampled, such as bytes, is its own interval.
"""

from __future__ import annotations

import numpy as np

from airlock.core.gates.evidence import CONFIDENCE, GateEvidence, Missing, floats, span
from airlock.core.spec import FiniteGate, LatencyGate, SizeGate
from airlock.core.stats import quantile_interval
from airlock.core.verdict import Status, Verdict


def latency(gate: LatencyGate, evidence: GateEvidence) -> Verdict:
    """By the estimate of the p99."""
    if evidence.latency_ms is None:
        raise Missing("no latency was measured")
    measured = floats("latencies", evidence.latency_ms, len(evidence.latency_ms))
    if measured.size and measured.min() < 0:
        raise ValueError("a latency is below 0 ms")
    p99 = quantile_interval(measured, 0.99, confidence=CONFIDENCE)
    return Verdict(
        name=gate.kind,
        status=Status.PASS if p99.estimate <= gate.max_p99_ms else Status.FAIL,
        reason=f"p99 of {measured.size} single rows is {span(p99)} ms; at most {gate.max_p99_ms:g} ms are allowed",
        metric="p99_ms",
        estimate=p99.estimate,
        low=p99.low,
        high=p99.high,
        threshold=gate.max_p99_ms,
        n=measured.size,
        details={"p50_ms": float(np.median(measured)), "confidence_of_each_bound": CONFIDENCE},
    )


def size(gate: SizeGate, evidence: GateEvidence) -> Verdict:
    if evidence.size_bytes is None:
        raise Missing("the size of the ONNX file is not known")
    if evidence.size_bytes <= 0:
        raise ValueError(f"the ONNX file has {evidence.size_bytes} bytes")
    megabytes = evidence.size_bytes / 1e6
    return Verdict(
        name=gate.kind,
        status=Status.PASS if megabytes <= gate.max_mb else Status.FAIL,
        reason=f"the ONNX file has {megabytes:.3g} MB; at most {gate.max_mb:g} MB are allowed",
        metric="size_mb",
        estimate=megabytes,
        low=megabytes,
        high=megabytes,
        threshold=gate.max_mb,
    )


def finite(gate: FiniteGate, evidence: GateEvidence) -> Verdict:
    scores = np.asarray(evidence.candidate, dtype=np.float64)
    if scores.size == 0:
        raise Missing("the candidate has not scored a row")
    bad = int(np.count_nonzero(~np.isfinite(scores)))
    first = f"; the first is row {int(np.argmin(np.isfinite(scores)))}" if bad else ""
    return Verdict(
        name=gate.kind,
        status=Status.FAIL if bad else Status.PASS,
        reason=f"{bad} of {scores.size} answers are NaN or infinite{first}",
        metric="not_finite",
        estimate=bad,
        low=bad,
        high=bad,
        threshold=0,
        n=scores.size,
    )
