"""Scoring a batch, one file at a time, with the version that holds production."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pandas as pd

from airlock.core.errors import DataInvalid, NotFound
from airlock.core.spec import ModelSpec, Task
from airlock.ledger import Ledger
from airlock.settings import Settings
from airlock.steps.inference import OnnxModel


def score(spec: ModelSpec, settings: Settings, ledger: Ledger, partition: str) -> dict[str, Any]:
    """Score one parquet file of the model's inputs with the champion's bundle.

    The result has the file's key and event time, where it has them, with ``prediction``, ``probability``
    (classification) and ``version``. It appears whole or not at all; scoring again replaces it.

    Returns:
        ``{"partition", "path", "rows", "version"}``.

    Raises:
        NotFound: there is no champion, or no such file.
        DataInvalid: the file cannot be read, lacks an input or holds what the model refuses.
        ArtifactCorrupt: the champion's bundle is not whole.
    """
    champion = ledger.champion(spec.model)
    if champion is None:
        raise NotFound(f"{spec.model} has no champion to score with; release a version first")
    source = Path(partition)
    if not source.is_file():
        raise NotFound(f"{spec.model}: {partition} is not a file")
    try:
        frame = pd.read_parquet(source)
    except (OSError, ValueError) as error:
        raise DataInvalid(f"{spec.model}: {partition} is no parquet file: {error}") from error
    model = OnnxModel(Path(champion.bundle.path), digest=champion.bundle.digest, threads=2)
    scores = model.scores(frame)
    kept = [name for name in (spec.data.key, spec.data.event_time) if name in frame.columns]
    result = frame[kept].copy()
    if spec.task is Task.CLASSIFICATION:
        result["prediction"] = (scores >= spec.label.threshold).astype("int64")
        result["probability"] = scores
    else:
        result["prediction"] = scores
    result["version"] = champion.version
    place = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:8]
    target = settings.scores / spec.model / f"version={champion.version}" / f"{source.stem}-{place}.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    making = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        result.to_parquet(making, index=False)
        making.replace(target)
    finally:
        making.unlink(missing_ok=True)
    return {"partition": partition, "path": str(target), "rows": len(result), "version": champion.version}
