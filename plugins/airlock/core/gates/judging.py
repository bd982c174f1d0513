"""The judgement: one verdict for each gate, whatever the evidence.

Evidence that is missing or too thin is ``INCONCLUSIVE``, evidence that cannot be judged (NaN, unequal lengths,
impossible labels) is ``ERROR``; neither lets a candidate through. A gate in ``dry_run`` gives the verdict that
it would give, which then does not count, but for ONNX parity: one that is not a pass counts whatever the mode says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from airlock.core.gates import agreement, groups, limits, metrics
from airlock.core.gates.evidence import GateEvidence, Missing
from airlock.core.policy import Policy
from airlock.core.spec import (
    CalibrationGate,
    FairnessGate,
    FeatureParityGate,
    FiniteGate,
    Gate,
    LatencyGate,
    NonInferiorityGate,
    ParityGate,
    RelativeGate,
    SchemaGate,
    SizeGate,
    SliceGate,
    SuperiorityGate,
    ThresholdGate,
)
from airlock.core.uncertainty import TooFew
from airlock.core.verdict import Status, Verdict

_JUDGES: dict[type[Policy], Callable[[Any, GateEvidence], Verdict]] = {
    ThresholdGate: metrics.threshold,
    RelativeGate: metrics.relative,
    NonInferiorityGate: metrics.comparison,
    SuperiorityGate: metrics.comparison,
    CalibrationGate: metrics.calibrated,
    SliceGate: groups.slices,
    FairnessGate: groups.fairness,
    ParityGate: agreement.onnx_parity,
    FeatureParityGate: agreement.feature_parity,
    SchemaGate: agreement.schema,
    LatencyGate: limits.latency,
    SizeGate: limits.size,
    FiniteGate: limits.finite,
}


def judge(gates: Iterable[Gate], evidence: GateEvidence) -> tuple[Verdict, ...]:
    """One verdict for each gate, in order. Never raises for evidence: what cannot be judged is ``ERROR``."""
    verdicts = []
    for name, gate in named(gates):
        verdict = _judge(gate, evidence)
        changes: dict[str, Any] = {"name": name}
        if gate.mode == "dry_run" and (verdict.passed or not isinstance(gate, ParityGate)):
            changes |= {"dry_run": True, "reason": f"dry run, does not count: {verdict.reason}"}
        verdicts.append(verdict.model_copy(update=changes))
    return tuple(verdicts)


def named(gates: Iterable[Gate]) -> tuple[tuple[str, Gate], ...]:
    """Every gate with its verdict's name, a number behind that of a second one of the same kind, column and metric."""
    seen: Counter[str] = Counter()
    found = []
    for gate in gates:
        seen[name := name_of(gate)] += 1
        found.append((name if seen[name] == 1 else f"{name}_{seen[name]}", gate))
    return tuple(found)


def lacking(gates: Iterable[Gate], verdicts: Iterable[Verdict]) -> tuple[str, ...]:
    """Names of enforced gates that no verdict stands for, or only one of a dry run. ONNX parity is always enforced."""
    given = {verdict.name for verdict in verdicts if not verdict.dry_run}
    enforced = {name for name, gate in named(gates) if gate.mode == "enforce" or isinstance(gate, ParityGate)}
    return tuple(name for name, _ in named(gates) if name in enforced - given)


def name_of(gate: Gate) -> str:
    """What a gate's verdict is called, such as ``threshold_roc_auc`` or ``slices_carrier_roc_auc``."""
    parts = [gate.kind, *(getattr(gate, field, None) for field in ("criterion", "column", "metric"))]
    return "_".join(part for part in parts if part)


def _judge(gate: Gate, evidence: GateEvidence) -> Verdict:
    try:
        with np.errstate(all="ignore"):
            return _JUDGES[type(gate)](gate, evidence)
    except (Missing, TooFew) as missing:
        return Verdict(name=gate.kind, status=Status.INCONCLUSIVE, reason=f"cannot be judged: {missing}")
    except Exception as error:  # noqa: BLE001 - whatever went wrong, the candidate is not let through
        kind = type(error).__name__
        reason = f"could not be judged: {error}" if str(error) else f"could not be judged: {kind}"
        return Verdict(name=gate.kind, status=Status.ERROR, reason=reason, details={"error": kind})
