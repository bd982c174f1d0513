"""Files of what people hand in: whole or not there, and named by their content, so that twice is once."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from airlock.core.bundle import sha256

FILES = "day=*/part-*.parquet"
"""The files below a folder, as a glob."""


def write_part(folder: Path, part: pd.DataFrame) -> None:
    """Write a table as a file of ``folder``, unless it is there already."""
    content = pd.util.hash_pandas_object(part, index=False).to_numpy().tobytes()
    target = folder / f"part-{sha256(content)[7:39]}.parquet"
    if target.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    making = folder / f".{target.name}.{os.getpid()}.tmp"
    try:
        part.to_parquet(making, index=False)
        making.rename(target)
    finally:
        making.unlink(missing_ok=True)
