"""The release record: one signed JSON document that says all there is to say about a release that has ended.

It is made from the ledger and the model's MLflow run alone, so it can be made again at any time with the same content.
It lies with its signature and the model card below ``records/`` and, as artifacts of the training run, with the model
in MLflow.
"""

from __future__ import annotations

import json
import os
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from airlock.core.bundle import sha256
from airlock.core.errors import NotFound
from airlock.core.refs import Ref
from airlock.core.release import LIVE, WAITING, Phase
from airlock.core.spec import ModelSpec
from airlock.core.verdict import Verdict
from airlock.ledger import Ledger, TimelineEntry
from airlock.ledger.ledger import GATES
from airlock.settings import Settings
from airlock.steps import model_card, signing, tracking
from airlock.steps.registry import Registry

RECORD = "record.json"
SIGNATURE = "record.json.sig"
_FACTS = "facts.json"
_ENVIRONMENT = "environment.txt"


class Document(BaseModel):
    """Base of the record's parts: frozen, closed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Answer(Document):
    """What one person said of the release. ``evidence`` is the digest of what that person was shown."""

    actor: str
    yes: bool
    reason: str
    evidence: str
    at: datetime


class Traffic(Document):
    """One generation of the route: who answered how much from ``at`` on. ``share`` is the candidate's, in percent."""

    at: datetime
    generation: int
    champion: str
    share: float
    shadowed: bool
    step: str | None
    reason: str


class Judged(Document):
    """A guard's verdict, and the step in which it was given."""

    step: str
    verdict: Verdict


class ReleaseRecord(Document):
    """A release from its data to its end.

    ``data``, ``features``, ``code``, ``environment`` and ``training`` hold digests, names and figures of the training
    run; ``outcome`` is the phase in which the release ended.
    """

    format: Literal[1] = 1
    release: str
    model: str
    version: str
    semantic_version: str | None
    champion_before: str | None
    author: str | None
    outcome: Phase
    reason: str
    opened_at: datetime
    ended_at: datetime
    bundle: str
    data: dict[str, Any]
    features: dict[str, Any]
    code: dict[str, Any]
    environment: tuple[str, ...]
    training: dict[str, Any]
    gates: tuple[Verdict, ...]
    answers: tuple[Answer, ...]
    traffic: tuple[Traffic, ...]
    guards: tuple[Judged, ...]
    journal: tuple[TimelineEntry, ...]

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"


def write(spec: ModelSpec, settings: Settings, ledger: Ledger, registry: Registry, release_id: str) -> Ref:
    """Write, sign and file the record of a release and its version's model card. Doing it again changes nothing.

    Raises:
        NotFound: the ledger has no such release, or MLflow no such version.
        Unavailable: MLflow does not answer; nothing was filed there, try again later.
    """
    record = gather(spec, ledger, registry, release_id)
    folder = settings.records / spec.model / release_id
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    raw = record.to_json().encode()
    _whole(folder / RECORD, raw)
    _whole(folder / SIGNATURE, signing.sign(settings, raw).encode())
    model_card.write(spec, record, folder)
    run_id = registry.run_of(spec.model, record.version)
    tracking.keep(settings.mlflow_url, run_id, folder, f"releases/{release_id}")
    digest = sha256(raw)
    registry.describe(
        spec.model,
        record.version,
        model_card.summary(spec, record),
        {"airlock.release": release_id, "airlock.release_record": digest, "airlock.outcome": record.outcome},
    )
    registry.show_states(spec.model, states(ledger, spec.model))
    return Ref(path=str(folder / RECORD), digest=digest)


def states(ledger: Ledger, model: str) -> dict[str, str]:
    """What each released version is by the ledger.

    ``champion``, ``warm`` for the way back, ``candidate`` while it is on its way, and ``archived`` otherwise.
    """
    good = [record.version for record in ledger.good_versions(model)]
    champion = ledger.champion(model)
    found = {release.version: "archived" for release in ledger.releases(model)}
    found |= {release.version: "candidate" for release in ledger.releases(model, phases=LIVE | WAITING)}
    if champion is not None:
        warm = next((version for version in good if version != champion.version), None)
        found |= {warm: "warm"} if warm is not None else {}
        found[champion.version] = "champion"
    return found


def gather(spec: ModelSpec, ledger: Ledger, registry: Registry, release_id: str) -> ReleaseRecord:
    """The record of a release as the ledger and MLflow tell it now.

    Raises:
        NotFound: the ledger has no such release, or MLflow no such version.
        Unavailable: MLflow does not answer.
    """
    release = ledger.release(release_id)
    tags = registry.tags(spec.model, release.version)
    journal = tuple(entry for entry in ledger.timeline(spec.model) if entry.release == release_id)
    with tempfile.TemporaryDirectory() as work:
        run_id = registry.run_of(spec.model, release.version)
        facts = json.loads(registry.artifact(run_id, _FACTS, Path(work)).read_text())
        environment = registry.artifact(run_id, _ENVIRONMENT, Path(work)).read_text().split()
    judged = ledger.verdicts(release_id)
    routes = ledger.routes(spec.model)
    # Whom it was compared with: another one may have become champion between its opening and its first step.
    compared = next((route.champion for route in reversed(routes) if route.release == release_id), release.champion)
    return ReleaseRecord(
        release=release.id,
        model=release.model,
        version=release.version,
        semantic_version=tags.get("airlock.semantic_version"),
        champion_before=compared,
        author=release.author,
        outcome=release.phase,
        reason=release.reason,
        opened_at=journal[0].at if journal else release.entered_at,
        ended_at=release.entered_at,
        bundle=release.bundle.digest,
        data={
            "snapshot": tags.get("airlock.snapshot_digest"),
            "training_set": tags.get("airlock.data_digest"),
            "until": tags.get("airlock.until"),
            "train": facts["train"],
            "evaluation": facts["evaluation"],
        },
        features={
            "service": spec.features.service if spec.features else None,
            "inputs": {name: declared.type for name, declared in spec.inputs.items()},
            "schema": tags.get("airlock.schema"),
        },
        code={"commit": tags.get("airlock.git_commit"), "recipe": spec.recipe_module, "seed": facts["seed"]},
        environment=tuple(environment),
        training={"run_id": facts["run_id"], "params": facts["params"], "metrics": facts["metrics"]},
        gates=tuple(verdict for step, verdict in judged if step == GATES),
        answers=tuple(
            Answer(actor=vote.actor, yes=vote.yes, reason=vote.reason, evidence=vote.evidence, at=vote.at)
            for vote in ledger.votes(release_id)
        ),
        traffic=tuple(
            Traffic(
                at=route.written_at,
                generation=route.generation,
                champion=route.champion,
                share=route.share,
                shadowed=release.version in route.shadow,
                step=route.step,
                reason=route.reason,
            )
            for route in routes
            if route.release == release_id or route.generation in {entry.generation for entry in journal}
        ),
        guards=tuple(Judged(step=step, verdict=verdict) for step, verdict in judged if step != GATES),
        journal=journal,
    )


def verify(path: Path, settings: Settings, *, public_key: Path | None = None) -> ReleaseRecord:
    """Read a record whose signature lies beside it.

    Raises:
        ArtifactCorrupt: the record or its signature was changed, or another key signed it.
        NotFound: there is no record or no signature at ``path``.
    """
    if path.is_dir():
        raise NotFound(f"{path} is a folder; name the record in it, such as {path / RECORD}")
    try:
        raw, signature = path.read_bytes(), path.with_name(path.name + ".sig").read_text()
    except FileNotFoundError as error:
        raise NotFound(f"no record with a signature beside it at {path}: {error.filename} is missing") from error
    signing.verify(raw, signature, public_key or signing.public_key(settings))
    return ReleaseRecord.model_validate_json(raw)


def _whole(path: Path, content: bytes) -> None:
    making = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    making.write_bytes(content)
    making.replace(path)
