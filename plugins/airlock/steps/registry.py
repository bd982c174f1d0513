"""The model registry: versions with their lineage, and the bundles that they stand for."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airlock import settings
from airlock.core.bundle import verify
from airlock.core.errors import GateRefused, NotFound, Unavailable
from airlock.core.refs import EvaluatedRef, Ref, VersionRef
from airlock.core.schema import schema_digest
from airlock.core.semantic_version import Described, following
from airlock.core.spec import ModelSpec
from airlock.core.verdict import Status, fold
from airlock.steps import tracking

log = logging.getLogger(__name__)

_KEY = "airlock.register_key"
_BUNDLE = "airlock.bundle"
_SCHEMA = "airlock.schema"
_STATE = "airlock.state"
_SEMANTIC = "airlock.semantic_version"
_JUDGED_AGAINST = "airlock.judged_against"
_AUTHOR = "airlock.author"


class Registry:
    """MLflow's registry at ``tracking_url``.

    Args:
        bundles: where fetched bundles are kept, by digest; unset: ``settings.bundles``.
    """

    def __init__(self, tracking_url: str, *, bundles: Path | None = None) -> None:
        self.url = tracking_url
        self.bundles = bundles or settings.load().bundles
        self._client = tracking.client(tracking_url)

    def register(self, spec: ModelSpec, evaluated: EvaluatedRef, *, key: str, author: str | None = None) -> VersionRef:
        """Register a candidate that passed its gates. The same ``key`` and bundle give the same version.

        A bundle that differs, as that of a run that was cleared and trained anew on other data, is another version.
        ``author`` is who started its training. The version's bundle is then fetched from MLflow, so that what is
        packaged is what was stored.

        Raises:
            GateRefused: a gate did not pass.
            ArtifactCorrupt: the stored bundle is not the one that was judged.
            Unavailable: MLflow does not answer.
        """
        if fold(evaluated.verdicts) is not Status.PASS:
            refused = "; ".join(f"{v.name}: {v.reason}" for v in evaluated.verdicts if v.holds_back)
            raise GateRefused(f"{spec.model}: not registered, {refused or 'no gate gave a verdict'}")
        known = self._search(f"name = '{spec.model}' AND tags.`{_KEY}` = '{_quoted(key)}'")
        same = [each for each in known if each.tags.get(_BUNDLE) == evaluated.onnx.digest]
        if known and not same:
            log.warning(
                "%s: %s registered version %s before, and its bundle is %s by now: this is a new version",
                *(spec.model, key, ", ".join(str(each.version) for each in known), evaluated.onnx.digest),
            )
        version = same[0] if same else self._create(spec, evaluated, key, author)
        if _SEMANTIC not in version.tags:
            version = self._numbered(version)
        return self._ref(version)

    def version(self, model: str, version: str) -> VersionRef:
        """A registered version, its bundle fetched and verified.

        Raises:
            NotFound: there is no such version; the message names the newest.
        """
        found = [each for each in self._search(f"name = '{model}'") if str(each.version) == str(version)]
        if not found:
            newest = max((int(each.version) for each in self._search(f"name = '{model}'")), default=None)
            hint = f"the newest is {newest}" if newest else "no version is registered: train it first"
            raise NotFound(f"{model} has no version {version}; {hint}")
        return self._ref(found[0])

    def latest(self, model: str) -> VersionRef:
        """The version with the highest number.

        Raises:
            NotFound: the model has none.
        """
        found = self._search(f"name = '{model}'")
        if not found:
            raise NotFound(f"{model} has no registered version: train it first")
        return self._ref(max(found, key=lambda each: int(each.version)))

    def set_alias(self, model: str, alias: str, version: str) -> None:
        """Point ``alias`` at a version. A projection of the ledger for people who look into MLflow."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.set_registered_model_alias(model, alias, str(version))
        except MlflowException as error:
            raise Unavailable(f"MLflow at {self.url} did not set {model}@{alias}: {error.message}") from error

    def clear_alias(self, model: str, alias: str, version: str) -> None:
        """Remove ``alias`` if it names ``version``."""
        from mlflow.exceptions import MlflowException

        if self.alias(model, alias) != str(version):
            return
        try:
            self._client.delete_registered_model_alias(model, alias)
        except MlflowException as error:
            raise Unavailable(f"MLflow at {self.url} did not remove {model}@{alias}: {error.message}") from error

    def alias(self, model: str, alias: str) -> str | None:
        """The number of the version that ``alias`` points at."""
        from mlflow.exceptions import MlflowException

        try:
            return str(self._client.get_model_version_by_alias(model, alias).version)
        except MlflowException as error:
            if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                return None
            raise Unavailable(f"MLflow at {self.url} does not answer: {error.message}") from error

    def run_of(self, model: str, version: str) -> str:
        """The id of the training run of a version.

        Raises:
            NotFound: there is no such version.
        """
        for each in self._search(f"name = '{model}'"):
            if str(each.version) == str(version):
                return str(each.run_id)
        raise NotFound(f"{model} has no version {version} in MLflow at {self.url}")

    def tags(self, model: str, version: str) -> dict[str, str]:
        """The tags of a version.

        Raises:
            NotFound: there is no such version.
        """
        for each in self._search(f"name = '{model}'"):
            if str(each.version) == str(version):
                return dict(each.tags)
        raise NotFound(f"{model} has no version {version} in MLflow at {self.url}")

    def describe(self, model: str, version: str, description: str, tags: Mapping[str, str]) -> None:
        """Show a description (Markdown) and tags with a version."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.update_model_version(model, version, description)
            for key, value in tags.items():
                self._client.set_model_version_tag(model, version, key, value)
        except MlflowException as error:
            message = f"MLflow at {self.url} does not describe {model} version {version}: {error.message}"
            raise Unavailable(message) from error

    def show_states(self, model: str, states: Mapping[str, str]) -> None:
        """Show with each version what it is now, such as ``champion`` or ``archived``, as its tag ``airlock.state``."""
        from mlflow.exceptions import MlflowException

        for each in self._search(f"name = '{model}'"):
            state = states.get(str(each.version))
            if state is None or each.tags.get(_STATE) == state:
                continue
            try:
                self._client.set_model_version_tag(model, str(each.version), _STATE, state)
            except MlflowException as error:
                message = f"MLflow at {self.url} does not tag {model} version {each.version}: {error.message}"
                raise Unavailable(message) from error

    def artifact(self, run_id: str, path: str, folder: Path) -> Path:
        """Download one artifact of a run into ``folder``.

        Raises:
            NotFound: the run has no such artifact, or MLflow does not give it.
        """
        from mlflow.exceptions import MlflowException

        try:
            return Path(self._client.download_artifacts(run_id, path, str(folder)))
        except (MlflowException, OSError) as error:
            raise NotFound(f"MLflow at {self.url} has no artifact {path} of run {run_id}: {error}") from error

    def _search(self, where: str) -> list[Any]:
        from mlflow.exceptions import MlflowException

        try:
            return list(self._client.search_model_versions(where, max_results=1000))
        except MlflowException as error:
            raise Unavailable(f"MLflow at {self.url} does not answer: {error.message}") from error

    def _create(self, spec: ModelSpec, evaluated: EvaluatedRef, key: str, author: str | None) -> Any:
        from mlflow.exceptions import MlflowException

        trained = evaluated.onnx.trained
        try:
            self._client.create_registered_model(spec.model, description=spec.description)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise Unavailable(f"MLflow at {self.url} does not register: {error.message}") from error
        run = self._client.get_run(trained.run_id)
        bundle = self.fetch(spec.model, trained.run_id, evaluated.onnx.digest)
        tags = {
            _KEY: key,
            _BUNDLE: evaluated.onnx.digest,
            _SCHEMA: schema_digest(verify(Path(bundle.path), bundle.digest)),
            tracking.DEFINITION: run.data.tags.get(tracking.DEFINITION, ""),
            "airlock.data_digest": trained.training_set.digest,
            "airlock.snapshot_digest": trained.training_set.snapshot,
            "airlock.until": trained.training_set.until.isoformat(),
            "airlock.evidence_digest": evaluated.digest,
            _JUDGED_AGAINST: evaluated.champion or "baseline",
            "airlock.git_commit": run.data.tags.get("mlflow.source.git.commit", "unknown"),
            "airlock.owner": spec.owner,
            _AUTHOR: author or "",
            tracking.RUN_KEY: run.data.tags.get(tracking.RUN_KEY, ""),
        }
        model_id = run.data.tags.get("airlock.model_id")
        source = f"models:/{model_id}" if model_id else f"runs:/{trained.run_id}/bundle"
        try:
            return self._client.create_model_version(
                spec.model, source, trained.run_id, tags=tags, model_id=model_id, await_creation_for=0
            )
        except MlflowException as error:
            raise Unavailable(f"MLflow at {self.url} did not create a version: {error.message}") from error

    def _numbered(self, version: Any) -> Any:
        """The version with its semantic version, which is told by the tags of it and of all before it.

        It is a step of its own, after MLflow has given the version its place in the order: two that are made at
        once do not get the same number, and a step that was not taken is taken when the key comes again.
        """
        from mlflow.exceptions import MlflowException

        found = [each for each in self._search(f"name = '{version.name}'") if _BUNDLE in each.tags]
        before: Described | None = None
        for each in sorted(found, key=lambda each: int(each.version)):
            if int(each.version) > int(version.version):
                break
            schema, definition = each.tags.get(_SCHEMA) or None, each.tags.get(tracking.DEFINITION) or None
            number = each.tags.get(_SEMANTIC) or following(before, schema=schema, definition=definition)
            before = Described(number, schema, definition)
        try:
            if before is not None:
                self._client.set_model_version_tag(version.name, version.version, _SEMANTIC, before.semantic)
            return self._client.get_model_version(version.name, version.version)
        except MlflowException as error:
            raise Unavailable(f"MLflow at {self.url} did not number {version.name}: {error.message}") from error

    def _ref(self, version: Any) -> VersionRef:
        digest = version.tags.get(_BUNDLE)
        if not digest:
            raise NotFound(f"{version.name} version {version.version} was not registered by Airlock: it has no bundle")
        bundle = self.fetch(version.name, str(version.run_id), digest)
        return VersionRef(
            model=version.name,
            version=str(version.version),
            run_id=str(version.run_id),
            bundle=bundle,
            judged_against=version.tags.get(_JUDGED_AGAINST),
            author=version.tags.get(_AUTHOR) or None,
            semantic=version.tags.get(_SEMANTIC),
        )

    def fetch(self, model: str, run_id: str, digest: str) -> Ref:
        """A run's bundle in this machine's store of bundles, downloaded unless it is there, verified either way.

        Raises:
            ArtifactCorrupt: what was stored or downloaded is not what ``digest`` says.
            NotFound: MLflow does not have it.
        """
        folder = self.bundles / model / digest[7:39]
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetching-") as work:
                fetched = self.artifact(run_id, "bundle", Path(work))
                verify(fetched, digest)
                try:
                    fetched.rename(folder)
                except OSError:
                    if not folder.is_dir():  # otherwise another process was faster with the same content
                        raise
        verify(folder, digest)
        return Ref(path=str(folder), digest=digest)


def _quoted(key: str) -> str:
    if "'" in key:
        raise ValueError(f"a key may not hold a single quote: {key!r}")
    return key
