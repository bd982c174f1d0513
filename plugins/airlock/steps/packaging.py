"""Packs a registered version as a Bento of its own, and proves that what was packed is what was gated."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from airlock import core
from airlock.core.bundle import sha256, verify
from airlock.core.errors import ArtifactCorrupt, DataInvalid, NotFound, Unavailable
from airlock.core.refs import BentoRef, VersionRef
from airlock.core.spec import ModelSpec
from airlock.settings import Settings
from airlock.steps.inference import OnnxModel

BUNDLE = "src/bundle"
"""Where the bundle lies in a Bento."""
_BUILD_SECONDS = 120


def package(spec: ModelSpec, settings: Settings, version: VersionRef) -> BentoRef:
    """Build the version's Bento, open it from the store and run one prediction with what lies in it.

    The tag, ``<model>:v<version>-<hex8>-<hex8>``, names the digests of the bundle and of what serves it, so that
    the same version is built once, and again by an Airlock that serves it otherwise: a Bento of that tag that is
    found whole is used again.

    Raises:
        ArtifactCorrupt: the bundle, before or after, is not what its digest says, or cannot answer.
        Unavailable: BentoML did not build it; the message ends with what it said.
    """
    source = Path(version.bundle.path)
    verify(source, version.bundle.digest)
    digests = (version.bundle.digest, _digest({**_code(settings), "requirements.txt": _requirements(settings)}))
    tag = "-".join([f"{spec.model}:v{version.version}", *(digest.removeprefix("sha256:")[:8] for digest in digests)])
    folder = settings.bentoml_home / "bentos" / Path(*tag.split(":"))
    if not _is_whole(folder, version):
        shutil.rmtree(folder, ignore_errors=True)
        _build(spec, settings, version, tag)
    opened = _open(settings, tag)
    model = OnnxModel(opened / BUNDLE, digest=version.bundle.digest)
    _ask(model, tag)
    return BentoRef(
        path=str(opened / BUNDLE), digest=version.bundle.digest, model=spec.model, version=version.version, tag=tag
    )


def _is_whole(folder: Path, version: VersionRef) -> bool:
    """Whether a finished Bento of this very bundle lies there."""
    try:
        verify(folder / BUNDLE, version.bundle.digest)
    except ArtifactCorrupt:
        return False
    return (folder / "bento.yaml").exists()


def _build(spec: ModelSpec, settings: Settings, version: VersionRef, tag: str) -> None:
    name, _, number = tag.partition(":")
    settings.bentoml_home.mkdir(parents=True, exist_ok=True, mode=0o700)
    requirements = _requirements(settings).read_text().splitlines()
    with tempfile.TemporaryDirectory(dir=settings.bentoml_home, prefix=f"building-{name}-") as scratch:
        _assemble(spec, settings, version, Path(scratch))
        options = {
            "service": "service:Version",
            "name": name,
            "version": number,
            "build_ctx": scratch,
            "include": ["**"],
            # Pinned already: locking them would ask a package index.
            "python": {"packages": [line for line in requirements if not line.startswith("#")], "lock_packages": False},
            "labels": {"run_id": version.run_id},
        }
        _run(settings, scratch, json.dumps(options), tag)


def _run(settings: Settings, scratch: str, options: str, tag: str) -> None:
    """Build in a process of its own: BentoML imports the service under its bare name and keeps its store for good."""
    # Not "bentoml build": that refuses to read its file below any folder whose name begins with a dot.
    command = (sys.executable, "-c", "import bentoml, json, sys; bentoml.build(**json.load(sys.stdin))")
    environment = {**os.environ, "BENTOML_HOME": str(settings.bentoml_home), "BENTOML_DO_NOT_TRACK": "True"}
    try:
        done = subprocess.run(
            command,
            input=options,
            env=environment,
            cwd=scratch,
            capture_output=True,
            text=True,
            timeout=_BUILD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"BentoML did not build {tag} within {_BUILD_SECONDS} s; try it again") from error
    if done.returncode != 0:
        raise Unavailable(f"BentoML did not build {tag}: {(done.stderr or done.stdout).strip()[-1000:]}")


def _code(settings: Settings) -> dict[str, Path]:
    """What serves the bundle, by its place in the Bento: the service, the runtime and the core, whole."""
    own = Path(core.__file__).parents[1]
    files = {"service.py": settings.bentos / "version" / "service.py", "airlock/__init__.py": own / "__init__.py"}
    for package, root in ((settings.bentos / "runtime", settings.bentos), (own / "core", own.parent)):
        for path in package.rglob("*.py"):
            files[str(path.relative_to(root))] = path
    return files


def _requirements(settings: Settings) -> Path:
    return settings.bentos / "version" / "requirements.txt"


def _digest(files: dict[str, Path]) -> str:
    """One digest of files and their places, whatever order they are found in."""
    return sha256("".join(f"{place} {sha256(files[place].read_bytes())}\n" for place in sorted(files)).encode())


def _assemble(spec: ModelSpec, settings: Settings, version: VersionRef, scratch: Path) -> None:
    """What goes into the Bento: the code, and the bundle; nothing of the machine."""
    for place, path in _code(settings).items():
        (scratch / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, scratch / place)
    shutil.copytree(version.bundle.path, scratch / "bundle")
    facts = {"model": spec.model, "version": version.version, "digest": version.bundle.digest}
    (scratch / "version.json").write_text(json.dumps(facts, indent=2))
    (scratch / "README.md").write_text(
        f"# {spec.model} version {version.version}\n\n{spec.description}\n\n"
        f"Bundle `{version.bundle.digest}`, MLflow run `{version.run_id}`.\n"
    )


def _open(settings: Settings, tag: str) -> Path:
    """The folder of a Bento, as BentoML's store gives it back."""
    import bentoml
    from bentoml._internal.bento import BentoStore  # bentoml.get takes one, and only this makes one
    from bentoml.exceptions import BentoMLException

    try:
        bento = bentoml.get(tag, _bento_store=BentoStore(settings.bentoml_home / "bentos"))
    except BentoMLException as error:
        raise NotFound(f"Bento {tag} was built but is not in {settings.bentoml_home}: {error}") from error
    return Path(bento.path)


def _ask(model: OnnxModel, tag: str) -> None:
    """One prediction: a bundle that answered before it was packed answers after it as well.

    Raises:
        ArtifactCorrupt: it does not.
    """
    import numpy as np
    import pandas as pd

    manifest = model.manifest
    try:
        answer = model.scores(pd.DataFrame([manifest.plain_row()]))
    except DataInvalid as error:
        # To refuse a string that was only made up is an answer too; to refuse a row it was trained on is none.
        if not manifest.example and any(declared.type == "string" for declared in manifest.inputs.values()):
            return
        raise ArtifactCorrupt(f"Bento {tag} does not answer a plain row: {error}") from error
    if not np.isfinite(answer).all():
        raise ArtifactCorrupt(f"Bento {tag} answers a plain row with {answer[0]}; export the model again")
