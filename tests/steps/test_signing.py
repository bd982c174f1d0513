"""Signatures: what was signed verifies, and nothing else does."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from airlock.core.errors import ArtifactCorrupt
from airlock.settings import Settings
from airlock.steps import signing


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    url = "http://127.0.0.1:1"
    return Settings(
        project=tmp_path, home=tmp_path, mlflow_url=url, gateway_url=url, airflow_url=url, ledger_url="sqlite://"
    )


def test_what_was_signed_verifies(home: Settings) -> None:
    signature = signing.sign(home, b"a release")
    assert signing.verify(b"a release", signature, signing.public_key(home)) == json.loads(signature)["key"]


def test_one_changed_byte_does_not(home: Settings) -> None:
    signature = signing.sign(home, b"a release")
    with pytest.raises(ArtifactCorrupt, match="one was changed"):
        signing.verify(b"a Release", signature, signing.public_key(home))


def test_another_home_s_key_does_not(home: Settings, tmp_path: Path) -> None:
    other = Settings(**{**vars(home), "home": tmp_path / "other"})
    signing.sign(other, b"")
    with pytest.raises(ArtifactCorrupt, match="signed with key"):
        signing.verify(b"a release", signing.sign(home, b"a release"), signing.public_key(other))


@pytest.mark.parametrize(
    "document",
    ["", "{}", "[]", '{"algorithm": "none", "key": "k", "signature": ""}', '{"algorithm": "ed25519", "key": 1}'],
)
def test_what_is_no_signature_does_not(home: Settings, document: str) -> None:
    signing.sign(home, b"a release")
    with pytest.raises(ArtifactCorrupt):
        signing.verify(b"a release", document, signing.public_key(home))


def test_a_missing_public_key_is_told(home: Settings, tmp_path: Path) -> None:
    with pytest.raises(ArtifactCorrupt, match="no public key at"):
        signing.verify(b"a release", signing.sign(home, b"a release"), tmp_path / "none.pub")


def test_the_private_key_is_the_owner_s_alone_and_stays(home: Settings) -> None:
    first = signing.sign(home, b"a release")
    path = home.keys / signing.PRIVATE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.keys.stat().st_mode) == 0o700
    assert signing.sign(home, b"a release") == first
    assert sorted(entry.name for entry in home.keys.iterdir()) == [signing.PRIVATE, signing.PUBLIC]
