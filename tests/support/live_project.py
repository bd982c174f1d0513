"""A whole embedded stack with a project of its own: small models, a client that never stops asking, and people."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, TypeVar

import httpx
import numpy as np
import psutil
import yaml

from airlock import settings as environment
from airlock import specs
from airlock.airflow_api import AirflowApi, Approval, Run
from airlock.control import ReleaseControl
from airlock.core.errors import Unavailable
from airlock.core.refs import Ref, TrainingSetRef
from airlock.core.release import Release
from airlock.core.tally import GatewayStatus
from airlock.gateway_client import GatewayClient
from airlock.ledger import Ledger
from airlock.operators.release import verdicts_of
from airlock.settings import Settings
from airlock.stack import Stack, parts, password_of, processes, settings_of
from airlock.stack.ports import Ports
from airlock.stack.state import read_state, write_state
from airlock.steps import evaluation, export, features, packaging, registry, snapshot, training, validation
from tests.support.ports import free_base
from tests.support.waiting import PATIENCE_S, wait_until

T = TypeVar("T")
_AIRLOCK = (sys.executable, "-c", "from airlock.cli import main; main()")
_PAUSE_S = 0.015
GOOD: dict[str, Any] = {"C": 1.0}
CONSTANT: dict[str, Any] = {"C": 1e-7}
"""A model that answers everything alike: only labels tell."""
RAISING: dict[str, Any] = {"C": 1.0, "unknown": "error"}
"""As good as the first, but it raises on a shop that it has not seen."""

RECIPE = """
    import numpy as np
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler


    def load(until=None):
        random = np.random.default_rng(5)
        age, price = random.normal(40, 12, 400), random.normal(8, 3, 400)
        at = pd.Series(pd.date_range("2026-01-01", periods=400, freq="h", tz="UTC"))
        events = pd.DataFrame({
            "visit": [f"past-{number}" for number in range(400)],
            "at": at,
            "age": age,
            "price": price,
            "shop": random.choice(["north", "south"], 400),
            "bought": (age / 12 - price / 3 > 0.7).astype("int64"),
        })
        return {"events": events if until is None else events[events["at"] <= until]}


    def pipeline(params):
        shop = OneHotEncoder(handle_unknown=params.get("unknown", "ignore"), sparse_output=False)
        columns = ColumnTransformer([("number", StandardScaler(), ["age", "price"]), ("shop", shop, ["shop"])])
        return make_pipeline(columns, LogisticRegression(C=params["C"]))


    def search_space(trial):
        return {"C": trial.suggest_float("C", 0.5, 2.0)}
"""


def small_spec(name: str, **changes: Any) -> dict[str, Any]:
    """A spec without approvals whose rollout takes seconds; ``changes`` replace whole sections."""
    return {
        "model": name,
        "task": "classification",
        "owner": "shop",
        "data": {"key": "visit", "event_time": "at", "evaluation": "5d"},
        "label": {"name": "bought"},
        "recipe": {"module": "include.small.recipe", "trials": 1},
        "inputs": {"age": "float", "price": "float", "shop": "string"},
        "gates": [{"kind": "finite"}, {"kind": "onnx_parity"}, {"kind": "threshold", "metric": "brier", "max": 0.4}],
        "approvals": {"required": 0},
        "rollout": rollout(50, 100),
        "guards": [{"kind": "error_rate", "max": 0.05, "min_requests": 10}],
        "retrain": {"on_data": False, "on_drift": False},
        **changes,
    }


def rollout(*weights: float, bake: str = "2s", **changes: Any) -> dict[str, Any]:
    """Without a shadow, unless ``changes`` name one."""
    steps = [{"weight": weight, "bake": bake, "min_requests": 10} for weight in weights]
    return {"shadow": None, "steps": steps, "deadline": "10m", **changes}


def bought(row: Mapping[str, Any]) -> int:
    """The truth, as the recipe's data has it."""
    return int(row["age"] / 12 - row["price"] / 3 > 0.7)


@dataclass
class Asked:
    """One answer: which row, which version, when."""

    row: dict[str, Any]
    version: str
    at: float


@dataclass
class Client:
    """Asks for one model after the other in a thread of its own, and remembers every answer and every failure."""

    url: str
    answers: dict[str, list[Asked]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    _shops: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)
    _ended: Event = field(default_factory=Event)

    def ask(self, model: str, *shops: str) -> None:
        """From now on ask for the model, with visitors of these shops."""
        with self._lock:
            self._shops[model] = shops or ("north", "south")

    def rest(self, *models: str) -> None:
        """Ask no more for these models, or for any: a step that needs requests stays as it is."""
        with self._lock:
            for model in models or tuple(self._shops):
                self._shops.pop(model, None)

    def since(self, model: str, began: float) -> list[Asked]:
        return [answer for answer in self.answers.get(model, ()) if answer.at >= began]

    @contextmanager
    def running(self) -> Iterator[Client]:
        thread = Thread(target=self._run, name="client")
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join(30)

    def _run(self) -> None:
        random, number = np.random.default_rng(11), 0
        with httpx.Client(base_url=self.url, timeout=10, trust_env=False) as http:
            while not self._ended.is_set():
                with self._lock:
                    asked = dict(self._shops)
                for model, shops in asked.items():
                    number += 1
                    row = {
                        "visit": f"visit-{number}",
                        "age": float(random.normal(40, 12)),
                        "price": float(random.normal(8, 3)),
                        "shop": shops[int(random.integers(len(shops)))],
                    }
                    self._one(http, model, row)
                self._ended.wait(_PAUSE_S)

    def _one(self, http: httpx.Client, model: str, row: dict[str, Any]) -> None:
        began = time.monotonic()
        try:
            response = http.post(f"/v1/models/{model}/predict", json={"rows": [row], "key": row["visit"]})
        except httpx.HTTPError as error:
            self.failures.append(f"{model}: {error!r}")
            return
        if response.status_code != httpx.codes.OK:
            self.failures.append(f"{model}: {response.status_code} {response.text}")
            return
        self.answers.setdefault(model, []).append(Asked(row, response.json()["version"], began))


class Live:
    """The stack, and every door of it that a person has."""

    def __init__(self, base: Settings, stack: Stack, client: Client) -> None:
        self.base = base
        self.stack = stack
        self.client = client
        self.settings = settings_of(base)
        self.ledger = Ledger(self.settings.ledger_url)
        self.registry = registry.Registry(self.settings.mlflow_url, bundles=self.settings.bundles)
        self._rows: dict[str, TrainingSetRef] = {}

    def api(self, user: str = "admin") -> AirflowApi:
        return AirflowApi(self.settings.airflow_url, user, password_of(self.settings, user))

    def airlock(self, *arguments: str, code: int | None = 0) -> str:
        """What the command line says, which has to end with ``code``; with any, if that is ``None``."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("AIRLOCK_", "AIRFLOW_"))}
        environ |= {"AIRLOCK_PROJECT": str(self.base.project), "AIRLOCK_HOME": str(self.base.home)}
        done = subprocess.run(
            [*_AIRLOCK, *arguments], env=environ, capture_output=True, text=True, timeout=120, check=False
        )
        said = f"{done.returncode}\n{done.stdout}{done.stderr}"
        assert code in (None, done.returncode), f"airlock {' '.join(arguments)}: {said}"
        return done.stdout

    def told(self, *arguments: str, code: int | None = 0) -> Any:
        """The same as JSON."""
        return json.loads(self.airlock(*arguments, "--json", code=code))

    # Versions.

    def train(self, model: str, params: Mapping[str, Any], *, author: str = "ada") -> str:
        """Train, judge and register a version as the training DAG does, without its tasks."""
        spec, champion = specs.find(self.settings, model), self.ledger.champion(model)
        if model not in self._rows:
            frozen = snapshot.freeze(spec, self.settings, until=None, options={})
            validation.validate(spec, self.settings, frozen)
            self._rows[model] = features.training_set(spec, self.settings, frozen)
        key = f"{model}-{time.time_ns()}"
        trained = training.train(
            spec, self.settings, self._rows[model], run_key=key, params=dict(params), trials=1, origin={"dag_run": key}
        )
        judged = evaluation.evaluate(
            spec,
            self.settings,
            export.export(spec, self.settings, trained),
            champion=Ref(path=champion.bundle.path, digest=champion.bundle.digest) if champion else None,
            champion_version=champion.version if champion else None,
        )
        return self.registry.register(spec, judged, key=key, author=author).version

    def first(self, model: str) -> str:
        """A champion, and the client asking for it."""
        version = self.registry.version(model, self.train(model, GOOD))
        spec = specs.find(self.settings, model)
        control = ReleaseControl(spec, self.settings, self.ledger, aliases=self.registry)
        bento = packaging.package(spec, self.settings, version)
        release = control.open(
            version.version,
            bento,
            actor="ada",
            key=f"first-{model}",
            author="ada",
            verdicts=verdicts_of(self.registry, version),
        )
        if not spec.approvals.required or spec.approvals.before == "promotion":
            control.approve(release.id, actor="spec", reason="the first version")
        for actor in ("grace", "linus")[: spec.approvals.required]:
            control.vote(release.id, actor=actor, yes=True, reason="the first", evidence=control.evidence(release.id))
        control.promote(release.id)
        for effect in control.pending("champion_asset"):
            control.done(effect)  # as the release's own task would have told it
        self.until(f"{model} to be served", lambda: self.champion(model) == version.version)
        self.client.ask(model)
        return version.version

    # Releases.

    def release(self, model: str, version: str) -> Run:
        with self.api() as api:
            return api.trigger(f"{model}__release", {"version": version})

    def control_form(self, model: str, action: str, reason: str) -> None:
        """What the control DAG's form does in the UI."""
        with self.api() as api:
            run = api.trigger(f"{model}__control", {"action": action, "reason": reason})
        assert self.ended(run).state == "success", self.story(run)

    def current(self, model: str) -> Release | None:
        return ReleaseControl(specs.find(self.settings, model), self.settings, self.ledger).current()

    def on_its_way(self, model: str) -> Release:
        found = self.current(model)
        assert found is not None, f"{model} has no release on its way"
        return found

    def in_step(self, model: str, step: str) -> Release:
        """The release on its way, once it stands in a step and the gateway has taken its route."""

        def there() -> Release | None:
            found, seen = self.current(model), self.status(model)
            if found is None or found.step != step or seen is None or seen.generation != found.generation:
                return None
            return found if found.version in seen.loaded else None

        return self.until(f"{model} to stand in {step}", there)

    def of(self, run: Run) -> Release:
        """The release that a run carries."""
        name = f"{run.dag_id}/{run.dag_run_id}"
        model = run.dag_id.removesuffix("__release")
        return next(release for release in self.ledger.releases(model) if release.run == name)

    def ended(self, run: Run) -> Run:
        with self.api() as api:

            def finished() -> Run | None:
                found = api.run(run.dag_id, run.dag_run_id)
                return found if found.finished else None

            what = f"{run.dag_id} {run.dag_run_id} to end"
            return self.until(what, finished, patience=300, tell=lambda: self.story(run))

    def question(self, run: Run, task: str, user: str = "approver") -> Approval:
        """The question of a task, once a person can answer it."""

        with self.api(user) as api:

            def asked() -> Approval | None:
                waiting = api.approvals(run.dag_id, run.dag_run_id)
                return next((each for each in waiting if each.task_id == task), None)

            return self.until(f"{task} to ask", asked, tell=lambda: self.story(run))

    def answer(self, run: Run, task: str, user: str, option: str, comment: str) -> None:
        question = self.question(run, task, user)
        with self.api(user) as api:
            api.answer(question, option, {"comment": comment})

    def log(self, run: Run, task: str) -> str:
        with self.api() as api:
            found = next(each for each in api.tasks(run.dag_id, run.dag_run_id) if each.task_id == task)
            return "\n".join(api.task_log(run.dag_id, run.dag_run_id, found))

    def states(self, run: Run) -> dict[str, str | None]:
        with self.api() as api:
            return {each.task_id: each.state for each in api.tasks(run.dag_id, run.dag_run_id)}

    def story(self, run: Run) -> str:
        model = run.dag_id.rpartition("__")[0]
        told = [f"{entry.actor} {entry.event} {entry.step}: {entry.reason}" for entry in self.ledger.timeline(model)]
        return "\n".join([str(self.states(run)), *told, *self.client.failures[:3]])

    # The gateway.

    def status(self, model: str) -> GatewayStatus | None:
        with GatewayClient(self.settings.gateway_url) as gateway:
            try:
                return gateway.status(model)
            except Exception:  # noqa: BLE001 - asked until it answers
                return None

    def champion(self, model: str) -> str | None:
        """Who answers everything; ``None`` while traffic is split."""
        status = self.status(model)
        return status.champion if status is not None and status.share == 0 else None

    def watched(self, model: str) -> float:
        """How many seconds of the step the gateway has watched."""
        status = self.status(model)
        assert status is not None
        return status.observed_s

    def shares(self, model: str, seconds: float) -> set[float]:
        """Every share that the gateway gives the candidate for so long."""
        seen, end = set(), time.monotonic() + seconds
        while time.monotonic() < end:
            if (status := self.status(model)) is not None:
                seen.add(0.0 if status.ejection is not None else status.share)
            time.sleep(0.1)  # sleeps because: it watches for a while that nothing happens
        return seen

    def until(
        self,
        what: str,
        reached: Callable[[], T | None],
        *,
        patience: float = PATIENCE_S,
        tell: Callable[[], str] = lambda: "",
    ) -> T:
        """What ``reached`` answers, as soon as that is something."""
        return wait_until(reached, what, seen=tell, patience=patience, every=0.25)

    # Accidents.

    def kill(self, *names: str) -> None:
        """End parts of the stack, and whatever they started, by SIGKILL."""
        state = read_state(self.base)
        assert state is not None
        for name in names:
            parent = psutil.Process(state.parts[name].pid)
            for process in [*parent.children(recursive=True), parent]:
                process.kill()
            parent.wait(10)

    def restart(self, *names: str) -> None:
        """Start parts again as the stack starts them."""
        state = read_state(self.base)
        assert state is not None
        ports = Ports(state.port_base)
        wanted = parts.parts(self.settings, ports, parts.environment(self.settings, ports, state.stack_id))
        for name in names:
            part = wanted[name]
            child = processes.spawn(part.command, part.env, part.log, self.settings.project)
            state = state.model_copy(update={"parts": {**state.parts, name: processes.describe(child.pid)}})
            write_state(self.base, state)
        self.until(f"{', '.join(names)} to be well", lambda: self._well(names))

    def _well(self, names: tuple[str, ...]) -> bool:
        try:
            return all(part.healthy for part in self.stack.status().parts if part.name in names)
        except Unavailable:
            return False


@contextmanager
def running(projects: Mapping[str, Mapping[str, Any]]) -> Iterator[Live]:
    """A stack for a project with these specs, which is gone afterwards with all of its processes.

    Project and home are those of the environment, where what runs in this process finds them too.
    """
    base = environment.load()
    files = {
        "include/small/recipe.py": textwrap.dedent(RECIPE).lstrip(),
        "dags/model_releases.py": (Path(__file__).parents[2] / "dags" / "model_releases.py").read_text(),
        **{f"dags/models/{name}.yaml": yaml.safe_dump(dict(spec)) for name, spec in projects.items()},
    }
    for name, text in files.items():
        (base.project / name).parent.mkdir(parents=True, exist_ok=True)
        (base.project / name).write_text(text)
    stack = Stack(base)
    stack.up(free_base(), owned=True)
    try:
        client = Client(settings_of(base).gateway_url)
        with client.running():
            live = Live(base, stack, client)
            live.until("the DAGs to be read", lambda: _has_dags(live, projects))
            yield live
    finally:
        stack.down()


def _has_dags(live: Live, projects: Mapping[str, Any]) -> bool:
    with live.api() as api:
        assert not (broken := api.import_errors()), broken
        return all(api.has_dag(f"{name}__{kind}") for name in projects for kind in ("release", "control", "monitor"))
