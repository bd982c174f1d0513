"""F21 as a property: wherever a release stands when its version fails, the first task that can run takes it back.

Two runs of the real DAG with the real operators on a real ledger, a gateway that says what it is told to, and an
Airflow whose scheduler, triggerer, workers and people come and go (tests/support/simulated_airflow.py). What must hold
is judged here by the gateway's own figures, not by the guards' code:

* the code of no task runs to its end while a failed version's release goes on;
* from the moment on when a worker takes a task, five seconds by the model's clock are enough;
* when everything is there again, nothing waits for ever, and no failed version is promoted.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import pytest
from airflow.sdk.exceptions import AirflowFailException
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from airlock.control import ReleaseControl
from airlock.control.reconcile import reconcile
from airlock.core.errors import AirlockError, Unavailable
from airlock.core.refs import BentoRef
from airlock.core.release import HELD, LIVE, WAITING, Phase, Release
from airlock.core.tally import Ejection, GatewayStatus
from airlock.dag_builder.release import release_dag
from airlock.hooks.ledger import LedgerHook
from airlock.ledger import Ledger
from airlock.operators import approval
from airlock.operators.steering import SteerReleaseOperator
from airlock.settings import Settings
from tests.support.control import FINITE, FakeAliases, bento, seen, spec_of
from tests.support.simulated_airflow import DagRun, ModelClock, SimulatedAirflow, TaskRun, context_of

WITHIN = timedelta(seconds=5)
_MEMORY = Path("/dev/shm")
_YES = {"chosen_options": ["Approve"], "responded_by_user": {"id": "bob", "name": "bob"}}


class Gateway:
    """Follows the ledger's route. Candidates are asked in every heartbeat, with good answers or with errors."""

    def __init__(self, ledger: Ledger, settings: Settings, model: str) -> None:
        self.ledger, self.settings, self.model = ledger, settings, model
        self.up, self.ejects, self.fails = True, True, False
        self.good = self.failed = 0
        self.observed_s = 0.0
        self.follows: tuple[str | None, str | None] = (None, None)
        self.ejected: dict[str, Ejection] = {}

    def beat(self, seconds: float) -> None:
        route = self.ledger.route(self.model)
        if not self.up or route is None:
            return
        if self.follows != (route.release, route.step):
            self.follows, self.good, self.failed, self.observed_s = (route.release, route.step), 0, 0, 0.0
            self.since = route.written_at
        self.observed_s += seconds
        if route.release is None or route.release in self.ejected or route.step == "warm_up":
            return
        self.good, self.failed = self.good + 20 * (not self.fails), self.failed + 20 * self.fails
        if self.ejects and self.is_bad:
            self.eject()

    @property
    def is_bad(self) -> bool:
        """Half of many requests failed; the guard allows one in twenty."""
        return self.failed >= 40 and self.failed >= self.good

    def eject(self) -> None:
        route = self.ledger.route(self.model)
        if route is None or route.release is None or route.candidate is None or not self.up:
            return
        said = {"model": self.model, "version": route.candidate, "release": route.release, "reason": "it failed"}
        found = Ejection(**said, generation=route.generation, at=route.written_at, requests=50, seconds=1)
        self.ejected[route.release] = found
        self.settings.ejections.mkdir(exist_ok=True)
        (self.settings.ejections / f"{self.model}.json").write_text(found.model_dump_json())

    def status(self, _: str = "") -> GatewayStatus:
        route = self.ledger.route(self.model)
        if not self.up or route is None:
            raise Unavailable("the gateway does not answer")
        out = self.ejected.get(str(route.release))
        if self.follows != (route.release, route.step):
            return seen(route, good=0, observed_s=0.0, ejection=out)
        counted = {"good": self.good, "failed": self.failed, "observed_s": self.observed_s, "since": self.since}
        return seen(route, **counted, ejection=out)

    def says_failed(self, release: Release) -> bool:
        """Whether whoever asks now can know that the version has failed."""
        if release.id in self.ejected:
            return True  # it is written down
        return self.up and self.follows == (release.id, release.step) and self.is_bad


OBSTACLES: dict[str, Callable[[ReleaseRuns], object]] = {
    "none": lambda _: None,
    "run paused in the UI": lambda runs: runs.a_run_is_paused_or_goes_on(0),
    "pool full": lambda runs: runs.the_pool_is_full_or_free(0),
    "scheduler away": lambda runs: runs.a_part_goes_or_comes("scheduler"),
    "triggerer away": lambda runs: runs.a_part_goes_or_comes("triggerer"),
    "worker lost": lambda runs: (runs.the_next_worker_is_lost(), runs.time_goes_by(3)),
    "ledger away": lambda runs: (runs.the_ledger_goes_or_comes(), runs.time_goes_by(8)),
    "paused by somebody": lambda runs: runs.somebody_steers("pause"),
    "task cleared": lambda runs: runs.a_task_is_cleared(0, 1),
    "task doubled": lambda runs: runs.a_task_is_doubled(0, 0),
}


class ReleaseRuns(RuleBasedStateMachine):
    """A release, the one after it, and everything that may keep their tasks from running."""

    home: ClassVar[Path]
    patch: ClassVar[pytest.MonkeyPatch]
    numbers: ClassVar[Iterator[int]] = count(1)
    injected: ClassVar[int] = 0

    @initialize(
        asked=st.booleans(),
        kind=st.sampled_from(["canary", "blue_green", "shadow_only"]),
        beats=st.integers(4, 52),
        obstacle=st.sampled_from(sorted(OBSTACLES)),
        fault=st.sampled_from(["ejected", "fails and is ejected", "fails and is not ejected"]),
        second=st.booleans(),
    )
    def begin(self, asked: bool, kind: str, beats: int, obstacle: str, fault: str, second: bool) -> None:
        """Go on to some heartbeat of the release, put something in its tasks' way, and let the version fail."""
        self.model = f"r{next(self.numbers)}"
        home = self.home / self.model
        home.mkdir()
        url = f"sqlite:///{self.home / 'ledger.db'}"
        self.settings = Settings(home, home, "http://x", "http://x", "http://x", url)
        asks = {"required": int(asked), "before": "promotion"} if asked else {"required": 0}
        self.spec = spec_of(model=self.model, approvals=asks, rollout={"plan": kind})
        self.ledger, self.clock, self.aliases = Ledger(url), ModelClock(), FakeAliases()
        self.gateway = Gateway(self.ledger, self.settings, self.model)
        self.ledger_is_down = False
        self.since: dict[str, datetime] = {}
        self.failed: set[str] = set()
        self._patch_triggers()
        self.airflow = SimulatedAirflow(
            release_dag(self.spec), self.clock, self._prepare, self._starting, self._executed, self._look
        )
        self._open("1", carried=False, spec=spec_of(model=self.model))
        self._candidate("2")
        self.airflow.advance(beats / 2)
        if second and not self._champion_is_new():
            self._candidate("3")
            self.airflow.advance(2)
        OBSTACLES[obstacle](self)
        if fault == "ejected":
            self.the_gateway_ejects()
        else:
            self.the_candidate_goes_bad(ejects=fault == "fails and is ejected")

    def _patch_triggers(self) -> None:
        async def status(*_: object) -> GatewayStatus | None:
            return self.gateway.status() if self.gateway.up else None

        for module in ("release", "way"):
            self.patch.setattr(f"airlock.triggers.{module}.gateway_status", status)
        self.patch.setattr(LedgerHook, "get_conn", lambda _: self.ledger)

    def _control(self, spec: Any = None) -> ReleaseControl:
        return ReleaseControl(
            spec or self.spec, self.settings, self.ledger, aliases=self.aliases, clock=self.clock,
            patience=timedelta(0),
        )  # fmt: skip

    def _open(self, version: str, *, carried: bool = True, spec: Any = None) -> Release:
        control = self._control(spec)
        digest = f"sha256:{int(version):064d}"
        ref: BentoRef = bento(version).model_copy(update={"model": self.model, "digest": digest})
        run = f"{self.model}__release/run-{version}" if carried else None
        release = control.open(version, ref, actor="a", key=f"{self.model}-{version}", run=run, verdicts=(FINITE,))
        control.approve(release.id, actor="spec", reason="people are asked later")
        return release if carried else control.promote(release.id)

    def _candidate(self, version: str) -> None:
        self.airflow.start(self._open(version), f"run-{version}")

    # How the simulated Airflow and the real operators meet.

    def _prepare(self, operator: Any, run: DagRun) -> None:
        operator.release = run.release.id
        hook = SimpleNamespace(get_conn=lambda: _Asked(self.gateway), url="http://x")
        operator.__dict__ |= {
            "settings": self.settings,
            "gateway_hook": hook,
            "registry_hook": SimpleNamespace(get_conn=_no_registry),
            "control": _Away() if self.ledger_is_down else self._control(),
        }
        if operator.task_id == "warm_up":
            operator.skip_shadow = False  # a parameter of the run, which Airflow resolves
        if operator.task_id == "write_record":
            operator.__dict__["execute"] = lambda _: None

    def _starting(self, _: DagRun, __: TaskRun) -> None:
        """A worker has taken a task: from now on something can be done about what has failed."""
        self._note()

    def _executed(self, run: DagRun, task: TaskRun, whole: bool) -> None:
        for release in self.ledger.releases(self.model, phases=LIVE):
            if release.id not in self.since:
                continue
            if not whole:
                del self.since[release.id]  # a worker that was lost, or a ledger that is away, could do nothing
            else:
                where = f"{task.task.task_id} of {run.run_id} ran ({task.state})"
                raise AssertionError(f"{where}, and version {release.version} goes on in {release.step}")

    def _look(self) -> None:
        self.gateway.beat(0.5)
        self._note()
        now = self.clock.now
        for release in self.ledger.releases(self.model, phases=LIVE):
            began = self.since.get(release.id)
            assert began is None or now - began <= WITHIN, f"{release} goes on {now - began} after it could end"

    def _note(self) -> None:
        """Note which failed versions can be taken back from now on: a worker is at a task."""
        works = any(task.state == "running" for run in self.airflow.runs for task in run.tasks.values())
        for release in self.ledger.releases(self.model, phases=LIVE):
            if not self.gateway.says_failed(release):
                self.since.pop(release.id, None)  # nobody can know it while the gateway is down
            else:
                if release.id not in self.failed:
                    ReleaseRuns.injected += 1
                self.failed.add(release.id)
                if works:
                    self.since.setdefault(release.id, self.clock.now)

    # What happens.

    @rule(seconds=st.sampled_from([1, 3, 8, 20]))
    def time_goes_by(self, seconds: int) -> None:
        self.airflow.advance(seconds)

    @rule(ejects=st.booleans())
    def the_candidate_goes_bad(self, ejects: bool) -> None:
        self.gateway.fails, self.gateway.ejects = True, ejects

    @rule()
    def the_gateway_ejects(self) -> None:
        self.gateway.eject()
        self._note()

    @rule(what=st.sampled_from(["scheduler", "triggerer"]))
    def a_part_goes_or_comes(self, what: str) -> None:
        setattr(self.airflow, what, not getattr(self.airflow, what))

    @rule()
    def the_gateway_goes_or_comes(self) -> None:
        self.gateway.up = not self.gateway.up
        self._note()

    @rule()
    def the_ledger_goes_or_comes(self) -> None:
        self.ledger_is_down = not self.ledger_is_down

    @rule(slots=st.integers(0, 2))
    def the_pool_is_full_or_free(self, slots: int) -> None:
        self.airflow.slots = slots

    @rule(which=st.integers(0, 1))
    def a_run_is_paused_or_goes_on(self, which: int) -> None:
        run = self.airflow.runs[which % len(self.airflow.runs)]
        run.paused = not run.paused

    @rule()
    def the_next_worker_is_lost(self) -> None:
        self.airflow.next_is_killed = True

    @rule(which=st.integers(0, 1), place=st.integers(0, 9))
    def a_task_is_cleared(self, which: int, place: int) -> None:
        run = self.airflow.runs[which % len(self.airflow.runs)]
        names = [name for name in run.tasks if name not in {"package", "restore_traffic", "write_record"}]
        self.airflow.clear(run, names[place % len(names)])

    @rule(which=st.integers(0, 1), place=st.integers(0, 9))
    def a_task_is_doubled(self, which: int, place: int) -> None:
        """A task that a busy scheduler took for lost is run by a second worker, from its beginning."""
        run = self.airflow.runs[which % len(self.airflow.runs)]
        going = [task for task in run.tasks.values() if task.state in {"deferred", "running"}]
        if going:
            task = going[place % len(going)]
            task.clear()
            task.state = "queued"

    @rule()
    def somebody_approves(self) -> None:
        for run in self.airflow.runs:
            for name, task in run.tasks.items():
                if name.startswith("approve") and task.state == "deferred":
                    task.state, task.trigger, task.event, task.at = "scheduled", None, _YES, None

    @rule(action=st.sampled_from(["pause", "resume", "promote"]))
    def somebody_steers(self, action: str) -> None:
        """The control DAG's task: of another run, which nobody has paused."""
        if not (self.airflow.scheduler and self.airflow.slots) or self.ledger_is_down:
            return
        task = SteerReleaseOperator(task_id="steer", model=self.model, action=action, reason="so it is")
        self._prepare(task, self.airflow.runs[0])
        with suppress(AirflowFailException, AirlockError):
            task.execute(context_of(self.airflow, self.airflow.runs[0]))
        self._nothing_failed_goes_on()

    @rule()
    def the_sweep_comes(self) -> None:
        if self.ledger_is_down:
            return
        reconcile(
            self._control(), status=lambda: self.gateway.status() if self.gateway.up else None,
            run_state=lambda _: "running", now=self.clock(),
        )  # fmt: skip
        self._nothing_failed_goes_on()

    @precondition(lambda self: len(self.airflow.runs) < 2)
    @rule()
    def another_candidate_comes(self) -> None:
        if not self.ledger_is_down and not self._champion_is_new():
            self._candidate("3")

    def _champion_is_new(self) -> bool:
        champion = self.ledger.champion(self.model)
        return champion is None or champion.version != "1"

    def _nothing_failed_goes_on(self) -> None:
        for release in self.ledger.releases(self.model, phases=LIVE):
            assert not self.gateway.says_failed(release), release

    # What must be reached.

    def teardown(self) -> None:
        if not hasattr(self, "airflow"):
            return
        self.gateway.up, self.gateway.fails, self.ledger_is_down = True, False, False
        self.airflow.scheduler = self.airflow.triggerer = True
        self.airflow.slots, self.airflow.next_is_killed = 2, False
        for run in self.airflow.runs:
            run.paused = False
        for _ in range(60):
            for release in self.ledger.releases(self.model, phases=LIVE):
                if release.paused and not self.gateway.says_failed(release):
                    self._control().resume(release.id, actor="ann", reason="go on")
            self.somebody_approves()
            self.airflow.advance(10)
            if all(run.ended for run in self.airflow.runs):
                break
        stands = {run.run_id: {name: task.state for name, task in run.tasks.items()} for run in self.airflow.runs}
        assert all(run.ended for run in self.airflow.runs), stands
        assert self.ledger.releases(self.model, phases=LIVE | WAITING) == [], stands
        for release in self.ledger.releases(self.model):
            if release.id in self.failed:
                assert release.phase not in HELD, release
                assert release.phase is Phase.ROLLED_BACK, release


class _Asked:
    """The gateway's client."""

    def __init__(self, gateway: Gateway) -> None:
        self.status = gateway.status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


class _Away:
    """A controller whose ledger does not answer."""

    def __getattr__(self, name: str) -> Any:
        raise Unavailable(f"the ledger does not answer ({name})")


def _no_registry() -> None:
    raise Unavailable("MLflow does not answer")


def test_the_first_task_that_can_run_takes_a_failed_version_back(monkeypatch: pytest.MonkeyPatch) -> None:
    home = tempfile.mkdtemp(dir=_MEMORY if _MEMORY.is_dir() else None)
    monkeypatch.setenv("AIRFLOW_HOME", str(Path(home) / "airflow"))
    monkeypatch.setattr(approval, "upsert_hitl_detail", lambda **_: None)
    unanswered = SimpleNamespace(response_received=False, chosen_options=[])
    monkeypatch.setattr("airlock.triggers.approval.get_hitl_detail_content_detail", lambda **_: unanswered)
    try:
        ReleaseRuns.home, ReleaseRuns.patch, ReleaseRuns.injected = Path(home), monkeypatch, 0
        # The same examples each time: a test that fails once in a hundred runs is no test.
        chosen = hypothesis_settings(max_examples=30, stateful_step_count=6, derandomize=True, database=None)
        run_state_machine_as_test(ReleaseRuns, settings=chosen)
        assert ReleaseRuns.injected >= 20, "examples in which nothing fails show nothing"
    finally:
        shutil.rmtree(home)
