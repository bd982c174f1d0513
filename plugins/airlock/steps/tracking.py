"""What the steps write to MLflow: runs that end as what they were, and models without a pickle."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from airlock.core.bundle import ONNX
from airlock.core.errors import Unavailable
from airlock.core.refs import OnnxRef
from airlock.core.spec import ModelSpec
from airlock.settings import Settings
from airlock.steps.inference import OnnxModel

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_KEY = "airlock.run_key"
DEFINITION = "airlock.definition_digest"
"""Tag of a run and of its version: the digest of the data's and features' definitions and of the recipe."""

REFERENCE = "reference.parquet"
"""Artifact of a training run: a sample of its training rows, which drift is measured against."""

REFERENCE_ROWS = 10_000
_MODEL_DIGEST = "airlock.bundle"


def client(url: str) -> MlflowClient:
    """A client of the tracking server and the registry at ``url``. Retries for seconds, not minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    _skip_feast_headers()
    return MlflowClient(tracking_uri=url, registry_uri=url)


def _skip_feast_headers() -> None:
    """Keep MLflow from importing all of Feast, seconds of every process, for request headers that are not wanted here.

    MLflow loads every ``mlflow.request_header_provider`` entry point at once and warns of those that it cannot.
    """
    provider = "feast.infra.data_sources.mlflow.auth"
    if provider in sys.modules:
        return
    sys.modules[provider] = None  # type: ignore[assignment]  # "not to be imported"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Failure attempting to register request header provider")
            importlib.import_module("mlflow.tracking.request_header.registry")
    finally:
        del sys.modules[provider]


def experiment(mlflow_client: MlflowClient, name: str) -> str:
    """The experiment's id; made if it does not exist.

    Raises:
        Unavailable: the tracking server does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        found = mlflow_client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(mlflow_client.create_experiment(name))
            except MlflowException:  # another process was faster
                found = mlflow_client.get_experiment_by_name(name)
    except MlflowException as error:
        raise Unavailable(f"MLflow at {mlflow_client.tracking_uri} does not answer: {error.message}") from error
    if found is None:
        raise Unavailable(f"MLflow at {mlflow_client.tracking_uri} neither has nor makes experiment {name!r}")
    return str(found.experiment_id)


def find_run(mlflow_client: MlflowClient, experiment_id: str, run_key: str) -> Any | None:
    """The newest run of ``run_key`` that did not fail, or ``None``."""
    where = f"tags.`{RUN_KEY}` = '{run_key.replace(chr(39), '')}' AND attributes.status != 'FAILED'"
    runs = mlflow_client.search_runs([experiment_id], where, max_results=1, order_by=["attributes.start_time DESC"])
    return runs[0] if runs else None


def close_children(mlflow_client: MlflowClient, experiment_id: str, run_id: str) -> None:
    """Mark trial runs of ``run_id`` that were left running FAILED."""
    where = f"tags.mlflow.parentRunId = '{run_id}' AND attributes.status = 'RUNNING'"
    for run in mlflow_client.search_runs([experiment_id], where):
        mlflow_client.set_terminated(run.info.run_id, "FAILED")


@contextmanager
def failing(settings: Settings, run_id: str) -> Iterator[None]:
    """Mark the run FAILED if the body raises, whatever it raises."""
    try:
        yield
    except BaseException as error:
        from mlflow.exceptions import MlflowException

        mlflow_client = client(settings.mlflow_url)
        try:
            mlflow_client.set_tag(run_id, "airlock.error", f"{type(error).__name__}: {error}"[:4000])
            mlflow_client.set_terminated(run_id, "FAILED")
        except MlflowException as lost:
            error.add_note(f"the MLflow run {run_id} could not be marked FAILED: {lost.message}")
        raise


def log_values(
    mlflow_client: MlflowClient,
    run_id: str,
    *,
    metrics: Mapping[str, float] | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """All of it in one request."""
    from mlflow.entities import Metric, Param, RunTag

    now = int(time.time() * 1000)
    mlflow_client.log_batch(
        run_id,
        metrics=[Metric(key, float(value), now, 0) for key, value in (metrics or {}).items()],
        params=[Param(key, str(value)) for key, value in (params or {}).items()],
        tags=[RunTag(key, str(value)[:5000]) for key, value in (tags or {}).items()],
    )


def keep(url: str, run_id: str, folder: Path, artifact_path: str) -> None:
    """Log a folder's files as artifacts of a run.

    Raises:
        Unavailable: the tracking server does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        client(url).log_artifacts(run_id, str(folder), artifact_path)
    except (MlflowException, OSError) as error:
        raise Unavailable(f"MLflow at {url} does not keep {artifact_path} of run {run_id}: {error}") from error


def scratch(settings: Settings, model: str, run_key: str) -> Path:
    """A training run's own folder. Keys that are no file names get one that cannot collide."""
    safe = re.sub(r"[^A-Za-z0-9_.+:=-]", "_", run_key).strip(".") or "_"
    if safe != run_key or len(safe) > 120:
        safe = f"{safe[:100]}-{hashlib.sha256(run_key.encode()).hexdigest()[:8]}"
    folder = settings.runs / model / safe
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def git_commit(project: Path) -> str:
    """The project's commit, with ``+dirty`` if files differ from it; ``unknown`` outside a repository."""
    command = ["git", "-C", str(project)]
    try:
        commit = subprocess.run([*command, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        changes = subprocess.run(
            [*command, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit.stdout.strip() + ("+dirty" if changes.stdout.strip() else "")


def environment() -> str:
    """Every installed distribution as ``name==version``, a line each."""
    found = {f"{dist.metadata['Name']}=={dist.version}" for dist in metadata.distributions()}
    return "\n".join(sorted(found, key=str.lower)) + "\n"


def lock_digest(project: Path) -> str:
    """SHA-256 of the project's uv.lock, ``none`` without one."""
    lock = project / "uv.lock"
    return hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else "none"


def log_bundle(spec: ModelSpec, settings: Settings, ref: OnnxRef, *, example: pd.DataFrame) -> str:
    """Log a bundle to its run: the files as artifacts, and an MLflow model of the ONNX flavour.

    Args:
        example: a few rows with the model's inputs, kept as the model's input example.

    Returns:
        The MLflow model's id. The same bundle is logged once.
    """
    import mlflow.onnx
    import onnx
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    mlflow_client = client(settings.mlflow_url)
    run = mlflow_client.get_run(ref.trained.run_id)
    logged = run.data.tags.get("airlock.model_id")
    if logged and run.data.tags.get(_MODEL_DIGEST) == ref.digest:
        return str(logged)
    run_id, folder = run.info.run_id, Path(ref.path)
    mlflow_client.log_artifacts(run_id, str(folder), "bundle")
    tags = {_MODEL_DIGEST: ref.digest, RUN_KEY: run.data.tags.get(RUN_KEY, "")}
    model = mlflow_client.create_logged_model(run.info.experiment_id, spec.model, source_run_id=run_id, tags=tags)
    with tempfile.TemporaryDirectory() as work:
        mlflow.onnx.save_model(
            onnx.load_model(folder / ONNX, load_external_data=False),
            f"{work}/model",
            mlflow_model=Model(run_id=run_id, model_id=model.model_id),
            signature=_signature(spec, ref),
            input_example=OnnxModel(folder, digest=ref.digest).feeds(example),
            pip_requirements=[f"{name}=={metadata.version(name)}" for name in ("mlflow", "onnx", "onnxruntime")],
            onnx_execution_providers=["CPUExecutionProvider"],
            onnx_session_options={"intra_op_num_threads": 1, "inter_op_num_threads": 1},
            save_as_external_data=False,
        )
        mlflow_client.log_model_artifacts(model.model_id, f"{work}/model")
    mlflow_client.finalize_logged_model(model.model_id, "READY")
    mlflow_client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    details = ref.parity.details
    log_values(
        mlflow_client,
        run_id,
        metrics={f"parity_{name}": details[name] for name in ("max_difference", "flips", "rows", "boundary_rows")},
        tags={**tags, "airlock.model_id": model.model_id, "airlock.parity": ref.parity.status},
    )
    return str(model.model_id)


def _signature(spec: ModelSpec, ref: OnnxRef) -> Any:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    from airlock.core.bundle import verify

    kinds = {"float": np.dtype(np.float32), "int": np.dtype(np.float32), "string": np.dtype(np.str_)}
    inputs = [TensorSpec(kinds[declared.type], (-1, 1), name) for name, declared in spec.inputs.items()]
    output = verify(Path(ref.path), ref.digest).output
    return ModelSignature(Schema(inputs), Schema([TensorSpec(np.dtype(np.float32), (-1, 1), output)]))
