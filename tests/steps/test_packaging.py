"""A version becomes a Bento that holds the gated bytes and answers alone."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from airlock.core.bundle import ONNX, verify
from airlock.core.errors import ArtifactCorrupt, Unavailable
from airlock.core.refs import Ref, VersionRef
from airlock.core.route import Bundle
from airlock.core.spec import ModelSpec
from airlock.gateway_client import GatewayClient
from airlock.settings import Settings
from airlock.steps import packaging
from tests.support.gateway_process import REPOSITORY, running_gateway
from tests.support.tiny_models import GOOD_ROW, INPUTS, bundle, publish, route

SPEC = ModelSpec.model_validate(
    {
        "model": "late",
        "task": "classification",
        "data": {"key": "id", "event_time": "at"},
        "label": {"name": "late"},
        "inputs": {name: declared.model_dump() for name, declared in INPUTS.items()},
        "gates": [{"kind": "finite"}],
    }
)


def settings_at(home: Path) -> Settings:
    unused = "http://127.0.0.1:9"
    return Settings(
        project=REPOSITORY, home=home, mlflow_url=unused, gateway_url=unused, airflow_url=unused, ledger_url="sqlite://"
    )


def registered(folder: Path, **options: object) -> VersionRef:
    made = bundle(folder, **options)  # type: ignore[arg-type]
    return VersionRef(model="late", version="3", run_id="run", bundle=Ref(path=made.path, digest=made.digest))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Hidden, as the default home is: BentoML is particular about that.
    home = tmp_path_factory.mktemp("packaging") / ".airlock"
    home.mkdir()
    return home


@pytest.fixture(scope="module")
def version(home: Path) -> VersionRef:
    return registered(home / "registered")


@pytest.mark.integration
def test_a_bento_holds_the_gated_bytes(home: Path, version: VersionRef) -> None:
    bento = packaging.package(SPEC, settings_at(home), version)

    assert re.fullmatch(f"late:v3-{version.bundle.digest[7:15]}-[0-9a-f]{{8}}", bento.tag)
    assert bento.digest == version.bundle.digest
    assert Path(bento.path).is_relative_to(home / "bentoml" / "bentos" / "late")
    assert verify(Path(bento.path), version.bundle.digest).model == "late"
    root = Path(bento.path).parents[1]
    assert (root / "env" / "docker" / "Dockerfile").exists(), "BentoML writes the container build file"
    assert not list(home.glob("bentoml/building-*")), "scratch is left"


@pytest.mark.integration
def test_packaging_twice_uses_the_same_bento(home: Path, version: VersionRef, monkeypatch: pytest.MonkeyPatch) -> None:
    first = packaging.package(SPEC, settings_at(home), version)
    made_at = (Path(first.path) / ONNX).stat().st_mtime_ns
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it is built again"))
    assert packaging.package(SPEC, settings_at(home), version) == first
    assert (Path(first.path) / ONNX).stat().st_mtime_ns == made_at


@pytest.mark.integration
def test_a_damaged_bento_is_built_again(home: Path, version: VersionRef) -> None:
    bento = packaging.package(SPEC, settings_at(home), version)
    with (Path(bento.path) / ONNX).open("ab") as file:
        file.write(b"x")
    again = packaging.package(SPEC, settings_at(home), version)
    assert verify(Path(again.path), version.bundle.digest)


@pytest.mark.integration
def test_an_airlock_that_serves_otherwise_packs_it_anew(
    home: Path, version: VersionRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, bentos = packaging.package(SPEC, settings_at(home), version), tmp_path / "bentos"
    shutil.copytree(REPOSITORY / "bentos", bentos, ignore=shutil.ignore_patterns("__pycache__"))
    (bentos / "runtime" / "schema.py").write_text("# changed")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it is built again"))
    changed = Settings(**(vars(settings_at(home)) | {"project": tmp_path}))
    with pytest.raises(pytest.fail.Exception, match="built again"):
        packaging.package(SPEC, changed, version)
    assert packaging.package(SPEC, settings_at(home), version) == before, "the one of before is still there"


@pytest.mark.integration
def test_f24_the_bento_serves_alone(home: Path, version: VersionRef) -> None:
    """As ``bentoml serve`` of its tag, with what the gateway answers for the same version."""
    bento = packaging.package(SPEC, settings_at(home), version)
    publish(home, route(Bundle(path=bento.path, digest=bento.digest)))
    with running_gateway(home, "/readyz") as gateway:
        (expected,) = GatewayClient(gateway.url).predict("late", rows=[GOOD_ROW])["predictions"]
    with running_gateway(home, "/livez", bento=bento.tag) as alone:
        answer = httpx.post(f"{alone.url}/predict", json={"rows": [GOOD_ROW]})
        assert answer.status_code == 200, answer.text
        assert answer.json() == {"model": "late", "version": "3", "predictions": [expected]}
        refused = httpx.post(f"{alone.url}/predict", json={"rows": [GOOD_ROW | {"distance": "far"}]})
        assert refused.status_code == 422
        assert "distance" in refused.text
        pickled = f"cposix\nsystem\n(S'touch {home}/ran'\ntR.".encode()
        for kind in ("application/vnd.bentoml+pickle", "application/x-pickle"):
            answer = httpx.post(f"{alone.url}/predict", content=pickled, headers={"content-type": kind})
            assert answer.is_client_error, answer.text
        assert not (home / "ran").exists()


def test_a_bundle_that_was_changed_is_not_packed(tmp_path: Path) -> None:
    version = registered(tmp_path / "registered")
    with (tmp_path / "registered" / ONNX).open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArtifactCorrupt, match=ONNX):
        packaging.package(SPEC, settings_at(tmp_path), version)
    assert not (tmp_path / "bentoml").exists()


def test_a_failed_build_says_why(tmp_path: Path) -> None:
    version = registered(tmp_path / "registered")
    project = tmp_path / "project"
    shutil.copytree(REPOSITORY / "bentos", project / "bentos", ignore=shutil.ignore_patterns("__pycache__"))
    (project / "bentos" / "version" / "service.py").write_text("raise RuntimeError('no such template')")
    settings = Settings(**(vars(settings_at(tmp_path)) | {"project": project}))
    with pytest.raises(Unavailable, match="no such template"):
        packaging.package(SPEC, settings, version)
    assert not list((tmp_path / "bentoml").glob("building-*"))
