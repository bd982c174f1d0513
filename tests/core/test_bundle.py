"""Bundles: not a byte of them is served that the manifest's digest does not cover."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock.core.bundle import MANIFEST, ONNX, Manifest, sha256, verify
from airlock.core.errors import ArtifactCorrupt
from airlock.core.segment import Condition
from airlock.core.spec import Fallback, Input, Label, Rule, Serving, Task

MODEL = b"not really a model"


def written(folder: Path) -> str:
    """A bundle with one more file in a folder of its own; returns its digest."""
    (folder / "extra").mkdir(parents=True)
    (folder / ONNX).write_bytes(MODEL)
    (folder / "extra" / "card.md").write_bytes(b"# card")
    manifest = Manifest(
        model="house",
        task=Task.REGRESSION,
        label=Label(name="price"),
        inputs={"area": Input(type="float"), "rooms": Input(type="int")},
        output="variable",
        files={ONNX: sha256(MODEL), "extra/card.md": sha256(b"# card")},
    )
    raw = manifest.to_json().encode()
    (folder / MANIFEST).write_bytes(raw)
    return sha256(raw)


def test_digests_are_plain_sha256() -> None:
    assert sha256(b"abc") == "sha256:" + hashlib.sha256(b"abc").hexdigest()


def test_a_whole_bundle_is_read_with_its_inputs_in_order(tmp_path: Path) -> None:
    manifest = verify(tmp_path, written(tmp_path))
    assert list(manifest.inputs) == ["area", "rooms"]
    assert manifest.model == "house"


def test_a_manifest_from_before_there_were_fallbacks_still_holds(tmp_path: Path) -> None:
    written(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_bytes())
    del manifest["serving"]["fallback"]
    raw = json.dumps(manifest, indent=2).encode()
    (tmp_path / MANIFEST).write_bytes(raw)
    assert verify(tmp_path, sha256(raw)).serving == Serving(fallback=Fallback())


def test_fallbacks_travel_in_the_manifest(tmp_path: Path) -> None:
    rule = Rule(when=(Condition(attribute="rooms", min=9),), answer=1e6)
    serving = Serving(fallback=Fallback(cache=timedelta(minutes=10), rules=(rule,), default=2e5))
    written(tmp_path)
    manifest = Manifest.model_validate_json((tmp_path / MANIFEST).read_bytes()).model_copy(update={"serving": serving})
    (tmp_path / MANIFEST).write_text(manifest.to_json())
    assert verify(tmp_path, sha256(manifest.to_json().encode())).serving == serving


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        (ONNX, _flip, "model.onnx is sha256"),
        (ONNX, lambda path: path.write_bytes(MODEL[:-1]), "model.onnx is sha256"),
        (ONNX, Path.unlink, "missing or not named"),
        ("extra/card.md", _flip, "card.md is sha256"),
        (MANIFEST, _flip, "manifest.json is sha256"),
        (MANIFEST, Path.unlink, "no readable manifest.json"),
        ("extra/payload.so", lambda path: path.write_bytes(b"x"), r"files \['extra/payload.so'\]"),
        ("model.onnx.data", lambda path: path.write_bytes(b"x"), "missing or not named"),
    ],
)
def test_one_thing_wrong_is_no_bundle(tmp_path: Path, name: str, damage: object, words: str) -> None:
    digest = written(tmp_path)
    damage(tmp_path / name)  # type: ignore[operator]
    with pytest.raises(ArtifactCorrupt, match=words):
        verify(tmp_path, digest)


def test_the_digest_is_asked_for_and_not_taken_from_the_folder(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(ArtifactCorrupt, match="expected sha256:0000"):
        verify(tmp_path, "sha256:" + "0" * 64)


def test_a_manifest_that_is_none_is_told(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / MANIFEST).write_bytes(b"{}")
    with pytest.raises(ArtifactCorrupt, match="cannot be read"):
        verify(tmp_path, sha256(b"{}"))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactCorrupt, match="No such file"):
        verify(tmp_path / "none", "sha256:" + "0" * 64)


@given(st.integers(0, len(MODEL) - 1), st.integers(0, 7))
def test_any_flipped_bit_of_the_model_is_seen(
    tmp_path_factory: pytest.TempPathFactory, position: int, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("bundle")
    digest = written(folder)
    raw = bytearray(MODEL)
    raw[position] ^= 1 << bit
    (folder / ONNX).write_bytes(raw)
    with pytest.raises(ArtifactCorrupt):
        verify(folder, digest)
