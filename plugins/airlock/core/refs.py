"""References that steps hand to each other: a place, a digest and a few facts, never the data."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from airlock.core.verdict import Verdict


class Ref(BaseModel):
    """Something written once. ``path`` is absolute; ``digest`` is ``sha256:<hex>`` of its content."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    digest: str


class SnapshotRef(Ref):
    """A frozen snapshot: a folder with one parquet file a table and ``manifest.json``."""

    until: datetime
    tables: dict[str, int] = Field(description="rows by table")


class TrainingSetRef(Ref):
    """A point-in-time training set: one parquet file."""

    snapshot: str = Field(description="digest of the snapshot it was made from")
    until: datetime
    rows: int


class TrainedRef(Ref):
    """A fitted pipeline (a folder with ``pipeline.joblib`` and ``facts.json``) and its MLflow run."""

    run_id: str
    training_set: TrainingSetRef
    evaluation_from: datetime = Field(description="rows at or after this were held out")
    metrics: dict[str, float]
    params: dict[str, Any]


class OnnxRef(Ref):
    """An exported model: a bundle folder with ``model.onnx`` and ``manifest.json``."""

    trained: TrainedRef
    parity: Verdict


class EvaluatedRef(Ref):
    """The gates' judgement: a JSON file with the verdicts; ``digest`` is the evidence digest."""

    onnx: OnnxRef
    verdicts: tuple[Verdict, ...]
    champion: str | None


class VersionRef(BaseModel):
    """A registered version."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    version: str
    run_id: str
    bundle: Ref
    judged_against: str | None = Field(None, description="the champion, or baseline, that its gates compared it with")
    author: str | None = Field(None, description="who started its training: an Airflow user's name, or a DAG")
    semantic: str | None = Field(None, description="semantic version: what changed since the version before")


class BentoRef(Ref):
    """A built Bento: ``path`` is the bundle's folder inside it, ``digest`` that of the bundle's manifest."""

    model: str
    version: str
    tag: str
