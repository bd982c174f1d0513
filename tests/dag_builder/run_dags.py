"""Runs a toy model's DAGs in one process with Airflow's own scheduling rules, and prints what came out.

Real: the DAGs, the operators, the triggers, the ledger, HTTP to the gateway. Stand-ins: the gateway
itself, which counts what the scenario wants, the registry and the steps that need heavy tools.
Started by ``test_dag_runs.py`` with ``AIRFLOW_HOME`` and the project in the environment.
"""

from __future__ import annotations

import json
import sys
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from airflow.models.asset import AssetEvent
from airflow.sdk import DAG
from airflow.utils.session import create_session
from sqlalchemy import select

from airlock import settings, steps
from airlock.control import ReleaseControl
from airlock.core.refs import (
    BentoRef,
    EvaluatedRef,
    OnnxRef,
    Ref,
    SnapshotRef,
    TrainedRef,
    TrainingSetRef,
    VersionRef,
)
from airlock.core.tally import GatewayStatus, Tally
from airlock.core.verdict import Status, Verdict
from airlock.dag_builder import build_dags
from airlock.hooks.registry import RegistryHook
from airlock.ledger import Ledger
from airlock.specs import find

DIGEST = "sha256:" + "a" * 64
BAD = "3"
"""This version raises on every live request."""

APRIL = datetime(2013, 4, 1, tzinfo=UTC)
SNAPSHOT = SnapshotRef(path="/s", digest=DIGEST, until=APRIL, tables={"events": 7})
TRAINING_SET = TrainingSetRef(path="/t", digest=DIGEST, snapshot=DIGEST, until=APRIL, rows=7)
TRAINED = TrainedRef(
    path="/m", digest=DIGEST, run_id="r1", training_set=TRAINING_SET, evaluation_from=APRIL, metrics={}, params={}
)
PASS = Verdict(name="finite", status=Status.PASS, reason="all finite")
ONNX = OnnxRef(path="/o", digest=DIGEST, trained=TRAINED, parity=PASS)


class Gateway(BaseHTTPRequestHandler):
    """A gateway that observes the newest route and has answered 500 requests of each version a second later."""

    ledger: Ledger

    def do_GET(self) -> None:
        model = self.path.split("/")[3]
        route = self.ledger.route(model)
        assert route is not None
        age = (datetime.now(UTC) - route.written_at).total_seconds()
        requests = 500 if age > 1 else 0
        counted: dict[str, dict[str, Tally]] = {}
        for version in route.versions:
            errors = requests if version == BAD else 0
            if route.weights.get(version):
                counted[version] = {"served": Tally(requests=requests, errors=errors, latency=[requests] + [0] * 71)}
            elif version in route.shadow:
                counted[version] = {"shadow": Tally(requests=requests, latency=[requests] + [0] * 71)}
        status = GatewayStatus(
            model=model,
            generation=route.generation,
            checksum=route.checksum,
            release=route.release,
            rollout_step=route.step,
            observed_s=age,
            champion=route.champion,
            candidate=route.candidate,
            share=route.share,
            loaded=tuple(route.versions),
            since=route.written_at,
            step=counted,
            total=counted,
        )
        body = status.model_dump_json().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Keep the output for the result."""


class Versions:
    """A registry that knows every version."""

    def version(self, model: str, version: str) -> VersionRef:
        champion = Gateway.ledger.champion(model) if Gateway.ledger else None
        return VersionRef(
            model=model,
            version=version,
            run_id="r1",
            bundle=Ref(path="/b", digest=DIGEST),
            judged_against=champion.version if champion else "baseline",
        )

    def register(self, spec: Any, evaluated: EvaluatedRef, *, key: str, author: str | None) -> VersionRef:
        return self.version(spec.model, "1")

    def artifact(self, run_id: str, path: str, folder: Path) -> Path:
        judged = {"bundle": DIGEST, "verdicts": [PASS.model_dump(mode="json")]}
        (folder / "judged.json").write_text(json.dumps(judged))
        return folder

    def alias(self, model: str, alias: str) -> str | None: ...

    def set_alias(self, model: str, alias: str, version: str) -> None: ...

    def clear_alias(self, model: str, alias: str, version: str) -> None: ...


def stand_in(verdict: Verdict) -> None:
    """Put stand-ins in the places of what needs heavy tools."""
    evaluated = EvaluatedRef(path="/e", digest=DIGEST, onnx=ONNX, verdicts=(verdict,), champion=None)
    fakes = {
        "snapshot": {"freeze": lambda *_, **__: SNAPSHOT},
        "validation": {"validate": lambda *_: PASS, "require_valid": lambda _: None},
        "features": {"training_set": lambda *_: TRAINING_SET},
        "training": {"train": lambda *_, **__: TRAINED},
        "export": {"export": lambda *_: ONNX},
        "evaluation": {"evaluate": lambda *_, **__: evaluated},
        "packaging": {"package": lambda _spec, _settings, version: bento(version.version)},
        "record": {"write": lambda *_: Ref(path="/record", digest=DIGEST)},
        "scoring": {"score": lambda _spec, _settings, _ledger, partition: {"partition": partition, "rows": 1}},
    }
    for name, functions in fakes.items():
        setattr(steps, name, SimpleNamespace(**functions))
    RegistryHook.get_conn = lambda _: Versions()  # type: ignore[assignment, method-assign, return-value]


def bento(version: str) -> BentoRef:
    return BentoRef(path=f"/bento/{version}", digest=DIGEST, model="toy", version=version, tag=f"toy:v{version}-aa")


def run(dag: DAG, conf: dict[str, Any]) -> dict[str, Any]:
    dag.deadline = None  # dag.test() of Airflow 3.3.2 fails on a DAG with a deadline alert
    dag_run = dag.test(run_conf=conf)
    states = {f"{ti.task_id}[{ti.map_index}]": str(ti.state) for ti in dag_run.get_task_instances()}
    return {
        "run": str(dag_run.state.value),
        "tasks": {name.replace("[-1]", ""): state for name, state in sorted(states.items())},
        "weights": route.weights if (route := Gateway.ledger.route(dag.dag_id.partition("__")[0])) else {},
    }


def waiting(model: str, version: str, run_id: str) -> str:
    """A release that nobody has answered for; its id."""
    where = settings.load()
    control = ReleaseControl(find(where, model), where, Gateway.ledger)
    return control.open(version, bento(version), actor="test", key=run_id, run=run_id, verdicts=(PASS,)).id


def promote_first(model: str) -> None:
    """Version 1 as the champion of a model whose own rollout promotes nothing."""
    where = settings.load()
    spec = find(where, model)
    canary = spec.model_copy(update={"rollout": spec.rollout.model_copy(update={"plan": "canary"})})
    control = ReleaseControl(canary, where, Gateway.ledger)
    release = control.open("1", bento("1"), actor="test", key=f"{model} 1", verdicts=(PASS,))
    control.approve(release.id, actor="test", reason="first")
    control.promote(release.id)


def main() -> None:
    where = settings.load()
    Gateway.ledger = Ledger(where.ledger_url)
    server = ThreadingHTTPServer(("127.0.0.1", int(where.gateway_url.rpartition(":")[2])), Gateway)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    dags = build_dags(where.specs)
    stand_in(PASS)
    said: dict[str, Any] = {"train": run(dags["toy__train"], {"until": APRIL.isoformat(), "skip_shadow": True})}
    with create_session() as session:
        said["events"] = [[event.uri, event.extra] for event in session.scalars(select(AssetEvent))]
    releases = {"first": {}, "good": {}, "bad": {}, "no_shadow": {"skip_shadow": True}}
    for number, (name, conf) in enumerate(releases.items(), start=1):
        said[name] = run(dags["toy__release"], {"version": str(number), **conf})
    said["rollback"] = run(dags["toy__rollback"], {"to": "1", "reason": "just because"})
    run(dags["green__release"], {"version": "1"})
    promote_first("watched")
    for model in ("green", "watched"):
        said[model] = run(dags[f"{model}__release"], {"version": "2"})
    release = waiting("toy", "5", "toy__release/never_ran")
    said["reconcile"] = run(dags["airlock__reconcile"], {})
    said["orphan"] = str(Gateway.ledger.release(release).phase)
    release = waiting("toy", "6", "toy__release/never_ran_either")
    said["abort"] = run(dags["toy__control"], {"action": "abort", "reason": "not today"})
    aborted = Gateway.ledger.release(release)
    said["aborted"] = [str(aborted.phase), aborted.reason]
    files = [str(Path(where.home) / f"{name}.parquet") for name in "ab"]
    for file in files:
        Path(file).touch()
    said["score"] = run(dags["toy__score"], {"partitions": files})
    stand_in(Verdict(name="rmse", status=Status.FAIL, reason="too large"))
    said["refused"] = run(dags["toy__train"], {})
    server.shutdown()
    sys.stdout.write("RESULT" + json.dumps(said) + "\n")


if __name__ == "__main__":
    main()
