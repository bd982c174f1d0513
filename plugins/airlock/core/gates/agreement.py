"""Gates on two things that must be the same: ONNX and scikit-learn, features online and offline, two schemas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from airlock.core.gates.evidence import BASELINE, CONFIDENCE, FeatureValues, GateEvidence, Missing, and_more, is_missing
from airlock.core.schema import changes
from airlock.core.sequential import Interval
from airlock.core.spec import FeatureParityGate, ParityGate, SchemaGate
from airlock.core.stats import wilson
from airlock.core.verdict import Status, Verdict


def onnx_parity(gate: ParityGate, evidence: GateEvidence) -> Verdict:
    found = evidence.parity
    if found is None:
        raise Missing("ONNX was not compared with scikit-learn")
    if found.status is Status.ERROR:
        return found
    if missing := [name for name in ("max_difference", "flips") if found.details.get(name) is None]:
        raise ValueError(f"the comparison of ONNX with scikit-learn does not tell {' and '.join(missing)}")
    difference, flips = found.details["max_difference"], found.details["flips"]
    if not (math.isfinite(difference) and difference >= 0 and math.isfinite(flips) and flips >= 0):
        raise ValueError(f"the comparison tells a largest difference of {difference} and {flips} flips")
    kept = difference <= gate.max_difference and flips <= gate.max_flips
    reason = (
        f"ONNX differs from scikit-learn by at most {difference:.3g} (allowed {gate.max_difference:g}) and flips "
        f"{flips} decisions (allowed {gate.max_flips})"
    )
    return Verdict(
        name=gate.kind,
        status=found.status if kept else Status.FAIL,
        reason=f"{reason}; but {found.reason}" if kept and not found.passed else reason,
        metric="max_difference",
        estimate=difference,
        low=difference,
        high=difference,
        threshold=gate.max_difference,
        n=found.n,
        details=found.details,
    )


def feature_parity(gate: FeatureParityGate, evidence: GateEvidence) -> Verdict:
    """By the share of the compared values that differ.

    Values of one row go wrong together, so the interval counts rows: it is Wilson's with each row's share of
    differing values as its hit, which is too wide rather than too narrow.
    """
    found = evidence.features
    if found is None:
        raise Missing("features were not compared between the online store and the point-in-time join")
    if found.problem is not None:
        raise ValueError(found.problem)
    differs, present = _compare(found, gate.tolerance)
    names = list(found.online)
    rows, values = differs.shape[0], differs.size
    wrong = int(differs.sum())
    interval = _interval_of_mean(differs.mean(axis=1))
    counts: dict[str, int] = dict(zip(names, differs.sum(axis=0).tolist(), strict=True))
    told = [f"{name} in {counts[name]} rows" for name in sorted(names, key=lambda name: -counts[name]) if counts[name]]
    compared = (
        f"{wrong} of {values} values differ between the online store and the point-in-time join, of {len(names)} "
        f"features of {rows} entity rows; at most {100 * gate.max_mismatch:g} % may"
    )
    parts = [compared]
    if told:
        parts.append(f"{and_more(told)}; {_first(found, names, differs)}")
    there: list[bool] = np.any(present, axis=0).tolist()
    if absent := [name for name, seen in zip(names, there, strict=True) if not seen]:
        parts.append(f"no row has a value of {and_more(absent)}, on either side")
    return Verdict(
        name=gate.kind,
        status=Status.PASS if wrong / values <= gate.max_mismatch else Status.FAIL,
        reason="; ".join(parts),
        metric="mismatch",
        estimate=wrong / values,
        low=interval.low,
        high=interval.high,
        threshold=gate.max_mismatch,
        n=rows,
        details={
            "values": values,
            "differing": counts,
            "absent": absent,
            "confidence_of_each_bound": CONFIDENCE,
        },
    )


def _interval_of_mean(shares: npt.NDArray[np.float64]) -> Interval:
    """Interval of the mean of values in [0, 1], whose variance is at most that of hits with the same mean."""
    return wilson(float(shares.sum()), shares.size, CONFIDENCE)


def _compare(found: FeatureValues, tolerance: float) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """What differs and what is there on at least one side, each of shape (rows, features)."""
    if set(found.online) != set(found.offline):
        one_sided = sorted(set(found.online) ^ set(found.offline))
        raise ValueError(f"features {one_sided} were read on one side only")
    if not found.online:
        raise Missing("no feature was compared")
    pairs = [
        _pair(name, online, found.offline[name], len(found.rows), tolerance) for name, online in found.online.items()
    ]
    differs, present = (np.column_stack([pair[side] for pair in pairs]) for side in (0, 1))
    if not present.any():
        raise Missing("no compared row has a value of any feature, so nothing was shown")
    return differs, present


def _pair(
    name: str, online: npt.NDArray[Any], offline: npt.NDArray[Any], rows: int, tolerance: float
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    if rows == 0:
        raise Missing("no entity row was compared")
    if online.shape != (rows,) or offline.shape != (rows,):
        raise ValueError(f"{name} has shapes {online.shape} and {offline.shape}, expected ({rows},)")
    here, there = (np.array([not is_missing(value) for value in values.tolist()]) for values in (online, offline))
    differs = here != there
    for row in np.flatnonzero(here & there):
        differs[row] = not _same(online[row], offline[row], tolerance)
    return differs, here | there


def _same(one: Any, two: Any, tolerance: float) -> bool:
    if isinstance(one, str) or isinstance(two, str):
        return bool(one == two)
    first, second = float(one), float(two)
    return first == second or abs(first - second) <= tolerance * max(abs(first), abs(second)) < math.inf


def _first(found: FeatureValues, names: list[str], differs: npt.NDArray[np.bool_]) -> str:
    row, place = (int(index) for index in np.argwhere(differs)[0])
    name = names[place]
    return f"such as {name} of {found.rows[row]}: {found.online[name][row]} online, {found.offline[name][row]} offline"


def schema(gate: SchemaGate, evidence: GateEvidence) -> Verdict:
    """Inputs and output against the champion's. The number of changes is its own interval."""
    theirs = evidence.reference_inputs, evidence.reference_interface
    if not evidence.inputs or not evidence.interface:
        raise Missing("the candidate's inputs and output are not known")
    if None in theirs and evidence.reference_name != BASELINE:
        raise Missing(f"the inputs and output of {evidence.reference_name} are not known")
    if theirs[0] is None or theirs[1] is None:
        reason = f"{len(evidence.inputs)} inputs; there is no champion whose inputs and output they would have to match"
        return Verdict(name=gate.kind, status=Status.PASS, reason=reason)
    said = changes(evidence.inputs, evidence.interface, theirs[0], theirs[1])
    status, reason = Status.PASS, f"the {len(theirs[0])} inputs and the output are those of {evidence.reference_name}"
    if said:
        reason = f"inputs or output differ from those of {evidence.reference_name}: {'; '.join(said)}"
        if not gate.allow_changes:
            status = Status.FAIL
            reason += "; set allow_changes if whoever asks already sends what the candidate needs and reads its answer"
    return Verdict(
        name=gate.kind,
        status=status,
        reason=reason,
        metric="changes",
        estimate=len(said),
        low=len(said),
        high=len(said),
        threshold=None if gate.allow_changes else 0,
        n=len(theirs[0]),
        details={"changes": said},
    )
