"""The parts of the embedded stack: each one's command, environment and how it says that it is well."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from airlock.settings import Settings
from airlock.stack.credentials import ROLES, credentials, passwords_file
from airlock.stack.ports import HOST, Ports
from airlock.stack.processes import MARKER, PART

MLFLOW = "mlflow"
GATEWAY = "gateway"
API_SERVER = "api-server"
SCHEDULER = "scheduler"
DAG_PROCESSOR = "dag-processor"
TRIGGERER = "triggerer"
PARTS = (MLFLOW, GATEWAY, API_SERVER, SCHEDULER, DAG_PROCESSOR, TRIGGERER)

_TELEMETRY_OFF = {
    "DO_NOT_TRACK": "1",
    "SCARF_ANALYTICS": "false",
    "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    "BENTOML_DO_NOT_TRACK": "True",
    "FEAST_USAGE": "False",
    "GX_ANALYTICS_ENABLED": "False",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

# For one user on a small machine: short waits between looks, few processes, no example DAGs.
# A task is forked from a process that has imported what tasks need; without it each one spends seconds on that.
_WARM = (
    "airflow.executors.local_executor",
    "airflow.sdk.execution_time.supervisor",
    "airflow.sdk.execution_time.task_runner",
    "airlock.dag_builder.build",
    "airlock.control",
    "sklearn.ensemble",
    "matplotlib.figure",
    "duckdb",
    "optuna",
    "mlflow.onnx",
    "mlflow.tracking",
    "onnxruntime",
    "skl2onnx",
    "great_expectations",
    "feast",
)
_AIRFLOW = {
    "CORE__LOAD_EXAMPLES": "False",
    "CORE__EXECUTOR": "LocalExecutor",
    "CORE__PARALLELISM": "4",
    "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "5",
    "API__HOST": HOST,
    "API__WORKERS": "1",
    # Also how long a stopping server waits for connections that a browser keeps open.
    "API__WORKER_TIMEOUT": "4",
    "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
    "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    "SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "5",
    "SCHEDULER__MP_START_METHOD": "forkserver",
    "SCHEDULER__MP_FORKSERVER_PRELOAD": ",".join(_WARM),
    "DAG_PROCESSOR__REFRESH_INTERVAL": "5",
    "DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "1",
    "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "30",
    "DAG_PROCESSOR__PARSING_PROCESSES": "1",
    "DAG_PROCESSOR__PRINT_STATS_INTERVAL": "0",
    "LOGGING__COLORED_CONSOLE_LOG": "False",
}


@dataclass(frozen=True)
class Part:
    """One process of the stack."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    log: Path


def log_file(settings: Settings, part: str) -> Path:
    return settings.stack / "logs" / f"{part}.log"


def migrate(settings: Settings, env: Mapping[str, str]) -> Part:
    """The process that makes Airflow's database, before the parts that need it."""
    return Part("db-migrate", _airflow("db", "migrate"), env, log_file(settings, "db-migrate"))


def parts(settings: Settings, ports: Ports, env: Mapping[str, str]) -> dict[str, Part]:
    """Every part by name; ``env`` is :func:`environment`'s."""
    commands = {
        MLFLOW: _mlflow(settings, ports),
        GATEWAY: _gateway(ports),
        API_SERVER: _airflow("api-server"),
        # Task and trigger logs are read from the disk, so nobody has to serve them on a port.
        SCHEDULER: _airflow("scheduler", "--skip-serve-logs"),
        DAG_PROCESSOR: _airflow("dag-processor"),
        TRIGGERER: _airflow("triggerer", "--skip-serve-logs"),
    }
    less = _without_airflow(env)
    gateway = {**less, "PYTHONPATH": os.pathsep.join(filter(None, (str(settings.bentos), env.get("PYTHONPATH"))))}
    environments = {MLFLOW: less, GATEWAY: gateway}
    return {
        name: Part(name, command, {**environments.get(name, env), PART: name}, log_file(settings, name))
        for name, command in commands.items()
    }


def environment(settings: Settings, ports: Ports, stack_id: str) -> dict[str, str]:
    """What Airflow's processes find in their environment; the others get less. Makes the home's credentials."""
    keys = credentials(settings)
    airflow = {
        **_AIRFLOW,
        "CORE__DAGS_FOLDER": str(settings.project / "dags"),
        "CORE__PLUGINS_FOLDER": str(settings.project / "plugins"),
        "CORE__FERNET_KEY": keys.fernet_key,
        "CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:{role}" for name, role in ROLES.items()),
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords_file(settings)),
        "CORE__EXECUTION_API_SERVER_URL": f"{settings.airflow_url}/execution/",
        "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{settings.airflow_home / 'airflow.db'}",
        "API__PORT": str(ports.airflow),
        "API__BASE_URL": settings.airflow_url,
        "API__SECRET_KEY": keys.api_secret,
        "API_AUTH__JWT_SECRET": keys.jwt_secret,
    }
    inherited = {
        name: value
        for name, value in os.environ.items()
        # A stack is described by its home alone: another installation's settings must not leak in.
        if not name.startswith(("AIRFLOW_", "MLFLOW_", "BENTOML_", "FEAST_"))
        # Six processes that compile what they import at every start would be half a minute late.
        and name != "PYTHONDONTWRITEBYTECODE"
    }
    return {
        **inherited,
        **_TELEMETRY_OFF,
        **{f"AIRFLOW__{name}": value for name, value in airflow.items()},
        "AIRFLOW_HOME": str(settings.airflow_home),
        "AIRFLOW_CONN_AIRLOCK_GATEWAY": _connection("airlock_gateway", settings.gateway_url),
        "AIRFLOW_CONN_AIRLOCK_MLFLOW": _connection("airlock_mlflow", settings.mlflow_url),
        "AIRFLOW_CONN_AIRLOCK_LEDGER": _connection("airlock_ledger", settings.ledger_url),
        "AIRLOCK_PROJECT": str(settings.project),
        "AIRLOCK_HOME": str(settings.home),
        "AIRLOCK_MLFLOW_URL": settings.mlflow_url,
        "AIRLOCK_GATEWAY_URL": settings.gateway_url,
        "AIRLOCK_AIRFLOW_URL": settings.airflow_url,
        "AIRLOCK_LEDGER_URL": settings.ledger_url,
        "BENTOML_HOME": str(settings.bentoml_home),
        "MLFLOW_TRACKING_URI": settings.mlflow_url,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        MARKER: stack_id,
        # Process titles would otherwise overwrite the environment that the marker is read from.
        "SPT_NOENV": "1",
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
        "PYTHONUNBUFFERED": "1",
    }


def _without_airflow(env: Mapping[str, str]) -> dict[str, str]:
    """What a part needs that is not Airflow: none of its keys and connections, and no ledger."""
    others = ("AIRFLOW_", "AIRLOCK_LEDGER_URL")
    return {name: value for name, value in env.items() if not name.startswith(others)}


def _airflow(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "airflow", *arguments)


def _mlflow(settings: Settings, ports: Ports) -> tuple[str, ...]:
    home = settings.mlflow_home
    return (
        *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(ports.mlflow), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}"),
        *("--serve-artifacts", "--artifacts-destination", (home / "artifacts").as_uri()),
        *("--allowed-hosts", f"{HOST}:{ports.mlflow},localhost:{ports.mlflow}"),
    )


def _gateway(ports: Ports) -> tuple[str, ...]:
    return (sys.executable, "-m", "gateway", "--host", HOST, "--port", str(ports.gateway))


def _connection(kind: str, url: str) -> str:
    """A connection as JSON, the one form in which Airflow does not rewrite an URL."""
    return json.dumps({"conn_type": kind, "host": url})
