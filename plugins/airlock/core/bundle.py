"""A bundle: what is served of a version, as a folder with a manifest that names every file's digest.

The manifest is written before the version has a number, so the same bytes are gated, registered,
packed into a Bento and served. A bundle's digest is the SHA-256 of its ``manifest.json``.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from airlock.core.errors import ArtifactCorrupt
from airlock.core.spec import Features, Input, Label, Serving, Task

MANIFEST = "manifest.json"
ONNX = "model.onnx"


class Manifest(BaseModel):
    """What a bundle is. ``inputs`` are in the order of the training columns.

    ``key`` and ``event_time`` are the names under which a question may carry its own key and time.
    ``example`` is one row that the model was trained on; who loads a bundle asks it this one first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    task: Task
    label: Label
    inputs: dict[str, Input]
    features: Features | None = None
    key: str | None = None
    event_time: str | None = None
    serving: Serving = Serving()
    output: str
    files: dict[str, str]
    lineage: dict[str, str] = {}
    example: dict[str, float | int | str | None] = {}

    def plain_row(self) -> dict[str, float | int | str | None]:
        """The example, or a made-up row that keeps every bound; a model may refuse a made-up string."""
        return {name: self.example.get(name, _made_up(declared)) for name, declared in self.inputs.items()}

    def to_json(self) -> str:
        return self.model_dump_json(indent=2)


def _made_up(declared: Input) -> float | int | str:
    if declared.type == "string":
        return declared.values[0] if declared.values else ""
    value = min(max(0.0, declared.min or 0.0), declared.max if declared.max is not None else math.inf)
    return math.ceil(value) if declared.type == "int" else value


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def verify(folder: Path, expected: str) -> Manifest:
    """Check every byte of a bundle and return its manifest.

    Raises:
        ArtifactCorrupt: a file is missing, changed, or not named by the manifest.
    """
    try:
        raw = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise ArtifactCorrupt(
            f"bundle {folder}: no readable {MANIFEST} ({error.strerror}); package it again"
        ) from error
    if (got := sha256(raw)) != expected:
        raise ArtifactCorrupt(f"bundle {folder}: {MANIFEST} is {got}, expected {expected}; package it again")
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        raise ArtifactCorrupt(f"bundle {folder}: {MANIFEST} cannot be read: {error}") from error
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if stray := sorted(present ^ {MANIFEST, *manifest.files}):
        raise ArtifactCorrupt(f"bundle {folder}: files {stray} are missing or not named in {MANIFEST}")
    for name, digest in manifest.files.items():
        if (got := sha256((folder / name).read_bytes())) != digest:
            raise ArtifactCorrupt(f"bundle {folder}: {name} is {got}, expected {digest}; package it again")
    return manifest
