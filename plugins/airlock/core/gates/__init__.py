"""Gates: policies judged once, before a candidate sees traffic."""

from airlock.core.gates.evidence import BASELINE, MINIMUM_OF_CLASS, MINIMUM_ROWS, FeatureValues, GateEvidence
from airlock.core.gates.judging import judge, lacking, name_of

__all__ = [
    "BASELINE",
    "MINIMUM_OF_CLASS",
    "MINIMUM_ROWS",
    "FeatureValues",
    "GateEvidence",
    "judge",
    "lacking",
    "name_of",
]
