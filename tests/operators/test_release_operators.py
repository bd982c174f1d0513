"""Release operators against a real ledger, with a gateway that says what the test wants."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowSkipException,
    DownstreamTasksSkipped,
    TaskDeferred,
)

from airlock import assets, settings, steps
from airlock.control import ReleaseControl
from airlock.core.errors import Conflict, NotFound, Unavailable
from airlock.core.refs import BentoRef, Ref, VersionRef
from airlock.core.release import Phase, Release
from airlock.core.route import Route, parse_route
from airlock.core.tally import Ejection, GatewayStatus, Tally
from airlock.core.verdict import Status, Verdict
from airlock.hooks.gateway import GatewayHook
from airlock.hooks.registry import RegistryHook
from airlock.ledger import Ledger
from airlock.operators.release import (
    PackageBentoOperator,
    PromoteOperator,
    ReleaseStepOperator,
    RestoreTrafficOperator,
)
from airlock.operators.rollback import RollbackOperator
from airlock.specs import find
from airlock.triggers.release import ReleaseStepTrigger

DIGEST = "sha256:" + "a" * 64
Make = Callable[..., dict[str, Any]]


class Gateway:
    """A gateway that observes the newest route and has counted ``requests`` of everybody."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.requests = 0
        self.errors = 0
        self.ejected = ""
        self.down = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def status(self, model: str) -> GatewayStatus:
        if self.down:
            raise Unavailable("the gateway does not answer")
        route = self.ledger.route(model)
        if route is None:
            raise NotFound("no such model")
        tally = Tally(requests=self.requests, errors=self.errors, latency=[self.requests] + [0] * 71)
        both = {"served": tally, "shadow": tally}
        counted = dict.fromkeys(route.versions, both)
        return GatewayStatus(
            model=model,
            generation=route.generation,
            checksum=route.checksum,
            release=route.release,
            champion=route.champion,
            candidate=route.candidate,
            share=route.share,
            loaded=tuple(route.versions),
            since=route.written_at,
            ejection=self.ejection(route),
            step=counted,
            total=counted,
        )

    def ejection(self, route: Route) -> Ejection | None:
        if not self.ejected:
            return None
        return Ejection(
            model=route.model,
            version=str(route.candidate),
            release=route.release,
            generation=route.generation,
            at=route.written_at,
            reason=self.ejected,
            requests=60,
            seconds=1.5,
        )


class Versions:
    """A registry of versions 1 to 9 that remembers its aliases."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.aliases: dict[str, str] = {}
        self.judged_against: str | None = "1"

    def version(self, model: str, version: str) -> VersionRef:
        if not version.isdigit():
            raise NotFound(f"{model} has no version {version}; the newest is 9")
        bundle = Ref(path="/b", digest=DIGEST)
        return VersionRef(model=model, version=version, run_id="r1", bundle=bundle, judged_against=self.judged_against)

    def latest(self, model: str) -> VersionRef:
        return self.version(model, "9")

    def set_alias(self, model: str, alias: str, version: str) -> None:
        self.aliases[alias] = version

    def clear_alias(self, model: str, alias: str, version: str) -> None:
        if self.aliases.get(alias) == version:
            del self.aliases[alias]


@pytest.fixture
def gateway(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    gateway = Gateway(ledger)
    monkeypatch.setattr(GatewayHook, "get_conn", lambda _: gateway)
    return gateway


@pytest.fixture
def versions(home: Path, monkeypatch: pytest.MonkeyPatch) -> Versions:
    versions = Versions(home)
    monkeypatch.setattr(RegistryHook, "get_conn", lambda _: versions)
    packaging = SimpleNamespace(package=lambda _spec, _settings, version: bento(version.version))
    monkeypatch.setattr(steps, "packaging", packaging, raising=False)
    return versions


def bento(version: str) -> BentoRef:
    return BentoRef(path=f"/bento/{version}", digest=DIGEST, model="toy", version=version, tag=f"toy:v{version}-aa")


@pytest.fixture
def control(home: Path, ledger: Ledger) -> ReleaseControl:
    where = settings.load()
    return ReleaseControl(find(where, "toy"), where, ledger)


@pytest.fixture
def champion(control: ReleaseControl) -> Release:
    """Version 1 holds production."""
    return promoted(control, "1")


def promoted(control: ReleaseControl, version: str) -> Release:
    release = opened(control, version)
    if release.champion is None:
        return control.promote(release.id)
    for step in ("warm_up", "shadow", "canary_5", "canary_100"):
        control.enter(release.id, step)
    held = Verdict(name="errors", status=Status.PASS, reason="0 of 800 requests failed")
    standing = control.ledger.release(release.id)
    control.ledger.record(standing, [held], step="canary_100", now=standing.entered_at)
    return control.promote(release.id)


def opened(control: ReleaseControl, version: str) -> Release:
    release = control.open(version, bento(version), actor="test", key=f"test-{version}")
    return control.approve(release.id, actor="ada", reason="fine")


def shares(home: Path) -> dict[str, float]:
    return parse_route((home / "routes" / "toy.json").read_bytes()).weights


@pytest.mark.usefixtures("gateway", "versions")
class TestPackage:
    def run(self, dag: DAG, context: dict[str, Any], **kwargs: Any) -> Release:
        operator = PackageBentoOperator(task_id="package", dag=DAG(dag.dag_id, schedule=None), model="toy", **kwargs)
        return Release.model_validate(operator.execute(context))  # type: ignore[arg-type]

    def test_opens_a_release_of_the_newest_version(self, dag: DAG, make_context: Make, ledger: Ledger) -> None:
        release = self.run(dag, make_context())
        assert (release.version, release.phase) == ("9", Phase.OPENED)
        assert ledger.timeline("toy")[0].actor == "ada"

    def test_done_again_in_the_same_run_is_the_same_release(self, dag: DAG, make_context: Make) -> None:
        first = self.run(dag, make_context())
        assert self.run(dag, make_context()).id == first.id
        assert self.run(dag, make_context("manual__2")).id != first.id

    def test_takes_the_version_from_the_event(self, dag: DAG, make_context: Make) -> None:
        context = make_context(events={assets.candidate("toy"): {"version": "4", "skip_shadow": False}})
        assert self.run(dag, context).version == "4"

    def test_a_parameter_beats_the_event(self, dag: DAG, make_context: Make) -> None:
        context = make_context(events={assets.candidate("toy"): {"version": "4"}})
        assert self.run(dag, context, version="2").version == "2"

    def test_a_doubled_event_releases_once(self, dag: DAG, make_context: Make, control: ReleaseControl) -> None:
        event = {assets.candidate("toy"): {"version": "4"}}
        first = self.run(dag, make_context("asset__1", events=event))
        control.roll_back(first.id, reason="it was slow")
        with pytest.raises(AirflowSkipException, match=r"rolled_back.*it was slow.*by hand"):
            self.run(dag, make_context("asset__2", events=event))

    def test_an_event_for_the_champion_is_skipped(self, dag: DAG, make_context: Make, champion: Release) -> None:
        with pytest.raises(AirflowSkipException, match="champion already"):
            self.run(dag, make_context(events={assets.candidate("toy"): {"version": "1"}}))

    def test_the_champion_by_hand_fails_without_retry(self, dag: DAG, make_context: Make, champion: Release) -> None:
        with pytest.raises(AirflowFailException, match="champion already"):
            self.run(dag, make_context(), version="1")

    @pytest.mark.parametrize("judged_against", ["0", "baseline", None])
    def test_evidence_against_another_champion_is_refused(
        self, dag: DAG, make_context: Make, champion: Release, versions: Versions, judged_against: str | None
    ) -> None:
        versions.judged_against = judged_against
        with pytest.raises(AirflowFailException, match="but the champion is version 1 by now; train again"):
            self.run(dag, make_context(), version="2")

    def test_a_version_that_does_not_exist_fails_without_retry(self, dag: DAG, make_context: Make) -> None:
        with pytest.raises(AirflowFailException, match="no version nine; the newest is 9"):
            self.run(dag, make_context(), version="nine")


class TestStep:
    @pytest.fixture
    def release(self, champion: Release, control: ReleaseControl) -> Release:
        return opened(control, "2")

    def step(self, release: Release, name: str, **kwargs: Any) -> ReleaseStepOperator:
        dag = DAG("toy__release", schedule=None)
        given = {"dag": dag, "model": "toy", "release": release.id}
        step = ReleaseStepOperator(task_id=name, step=name, **given, **kwargs)
        if name == "warm_up":
            shadow = ReleaseStepOperator(task_id="shadow", step="shadow", **given)
            canary = ReleaseStepOperator(task_id="canary_5", step="canary_5", **given)
            step >> shadow >> canary >> PromoteOperator(task_id="promote", **given)
        return step

    def test_waits_with_a_trigger_and_without_a_worker(
        self, release: Release, gateway: Gateway, control: ReleaseControl, make_context: Make, home: Path
    ) -> None:
        control.enter(release.id, "warm_up")
        with pytest.raises(TaskDeferred) as deferred:
            self.step(release, "canary_5").execute(make_context())  # type: ignore[arg-type]
        assert shares(home) == {"1": 95, "2": 5}
        trigger = deferred.value.trigger
        assert isinstance(trigger, ReleaseStepTrigger)
        assert deferred.value.method_name == "resume"
        assert deferred.value.timeout == timedelta(hours=2, minutes=1)
        _, kwargs = trigger.serialize()
        assert json.loads(json.dumps(kwargs)) == kwargs
        assert Release.model_validate(kwargs["release"]).step == "canary_5"

    def test_advances_on_evidence(
        self, release: Release, gateway: Gateway, control: ReleaseControl, make_context: Make, ledger: Ledger
    ) -> None:
        control.enter(release.id, "warm_up")
        gateway.requests = 500
        decision = self.step(release, "shadow").execute(make_context())  # type: ignore[arg-type]
        assert decision is not None
        assert decision["action"] == "advance"
        assert [step for step, _ in ledger.verdicts(release.id)] == ["shadow"]

    def test_rolls_back_and_fails_with_the_reason(
        self, release: Release, gateway: Gateway, control: ReleaseControl, make_context: Make, home: Path
    ) -> None:
        control.enter(release.id, "warm_up")
        gateway.ejected = "12 of 60 requests failed"
        with pytest.raises(AirflowFailException, match="12 of 60 requests failed"):
            self.step(release, "canary_5").execute(make_context())  # type: ignore[arg-type]
        assert shares(home) == {"1": 100}
        assert control.ledger.release(release.id).phase is Phase.ROLLED_BACK

    def test_a_gateway_that_is_down_is_waited_for(self, release: Release, gateway: Gateway, make_context: Make) -> None:
        gateway.down = True
        with pytest.raises(TaskDeferred):
            self.step(release, "warm_up").execute(make_context())  # type: ignore[arg-type]

    def test_a_trigger_that_fires_for_nothing_changes_nothing(
        self, release: Release, gateway: Gateway, control: ReleaseControl, make_context: Make, ledger: Ledger
    ) -> None:
        control.enter(release.id, "warm_up")
        control.enter(release.id, "canary_5")
        before = ledger.timeline("toy")
        for _ in "ab":
            with pytest.raises(TaskDeferred):
                self.step(release, "canary_5").resume(make_context(), {"action": "advance"})  # type: ignore[arg-type]
        assert ledger.timeline("toy") == before

    def test_a_step_done_again_does_not_move_traffic(
        self, release: Release, gateway: Gateway, control: ReleaseControl, make_context: Make, ledger: Ledger
    ) -> None:
        control.enter(release.id, "warm_up")
        gateway.requests = 500
        for _ in "ab":
            self.step(release, "canary_5").execute(make_context())  # type: ignore[arg-type]
        assert [route.generation for route in ledger.routes("toy")] == [1, 2, 3]

    def test_the_first_version_skips_every_step(
        self, control: ReleaseControl, gateway: Gateway, make_context: Make
    ) -> None:
        with pytest.raises(DownstreamTasksSkipped) as skipped:
            self.step(opened(control, "1"), "warm_up").execute(make_context())  # type: ignore[arg-type]
        assert list(skipped.value.tasks) == ["canary_5", "shadow"]

    @pytest.mark.parametrize("where", ["parameter", "event"])
    def test_the_shadow_can_be_skipped(
        self, where: str, release: Release, gateway: Gateway, make_context: Make
    ) -> None:
        events = {assets.candidate("toy"): {"version": "2", "skip_shadow": where == "event"}}
        step = self.step(release, "warm_up", skip_shadow=where == "parameter")
        with pytest.raises(DownstreamTasksSkipped) as skipped:
            step.execute(make_context(events=events))  # type: ignore[arg-type]
        assert list(skipped.value.tasks) == ["shadow"]

    def test_nothing_is_skipped_unless_asked(self, release: Release, gateway: Gateway, make_context: Make) -> None:
        decision = self.step(release, "warm_up").execute(make_context())  # type: ignore[arg-type]
        assert decision is not None
        assert decision["action"] == "advance"


@pytest.mark.usefixtures("versions")
class TestPromoteAndBack:
    def test_promotion_announces_the_champion(
        self, control: ReleaseControl, make_context: Make, dag: DAG, versions: Versions, home: Path
    ) -> None:
        release = opened(control, "1")
        outlet = assets.champion("toy")
        context = make_context()
        promote = PromoteOperator(
            task_id="promote", dag=dag, model="toy", release=release.model_dump(mode="json"), outlets=[outlet]
        )
        promote.execute(context)  # type: ignore[arg-type]
        assert context["outlet_events"][outlet].extra == {"version": "1", "release": release.id}
        assert versions.aliases == {"champion": "1"}
        assert shares(home) == {"1": 100}

    def test_promotion_before_the_last_step_is_refused(
        self, control: ReleaseControl, champion: Release, make_context: Make, dag: DAG
    ) -> None:
        release = opened(control, "2")
        control.enter(release.id, "warm_up")
        with pytest.raises(Conflict, match="after canary_100 only"):
            PromoteOperator(task_id="promote", dag=dag, model="toy", release=release.id).execute(make_context())  # type: ignore[arg-type]

    def test_teardown_takes_an_unfinished_release_off_traffic(
        self, control: ReleaseControl, champion: Release, make_context: Make, dag: DAG, home: Path
    ) -> None:
        release = opened(control, "2")
        control.enter(release.id, "warm_up")
        control.enter(release.id, "canary_5")
        restore = RestoreTrafficOperator(task_id="restore", dag=dag, model="toy", release=release.id)
        for _ in "ab":
            assert restore.execute(make_context())["phase"] == "rolled_back"  # type: ignore[arg-type]
        assert shares(home) == {"1": 100}

    def test_teardown_leaves_a_promoted_version_alone(
        self, champion: Release, make_context: Make, dag: DAG, home: Path
    ) -> None:
        restore = RestoreTrafficOperator(task_id="restore", dag=dag, model="toy", release=champion.id)
        assert restore.execute(make_context())["phase"] == "promoted"  # type: ignore[arg-type]
        assert shares(home) == {"1": 100}

    def test_rollback_names_who_and_why(
        self, control: ReleaseControl, champion: Release, make_context: Make, dag: DAG, home: Path, ledger: Ledger
    ) -> None:
        promoted(control, "2")
        outlet = assets.champion("toy")
        context = make_context()
        back = RollbackOperator(task_id="back", dag=dag, model="toy", reason="complaints", outlets=[outlet])
        assert back.execute(context)["champion"] == "1"  # type: ignore[arg-type]
        assert shares(home) == {"1": 100}
        last = ledger.timeline("toy")[-1]
        assert last.actor == "ada"
        assert "complaints" in last.reason
        assert context["outlet_events"][outlet].extra["version"] == "1"

    def test_a_rollback_that_is_tried_again_is_one_step_back(
        self, control: ReleaseControl, champion: Release, make_context: Make, dag: DAG, home: Path
    ) -> None:
        promoted(control, "2")
        promoted(control, "3")
        back = RollbackOperator(task_id="back", dag=dag, model="toy")
        for _ in "ab":
            assert back.execute(make_context("manual__1"))["champion"] == "2"  # type: ignore[arg-type]
        assert shares(home) == {"2": 100}
        assert back.execute(make_context("manual__2"))["champion"] == "1"  # type: ignore[arg-type]

    def test_rollback_to_the_champion_finishes_what_was_cut_off(
        self, control: ReleaseControl, champion: Release, make_context: Make, dag: DAG, home: Path, ledger: Ledger
    ) -> None:
        (home / "routes" / "toy.json").unlink()
        before = ledger.timeline("toy")
        said = RollbackOperator(task_id="back", dag=dag, model="toy", to="1").execute(make_context())  # type: ignore[arg-type]
        assert said["champion"] == "1"
        assert shares(home) == {"1": 100}
        assert ledger.timeline("toy") == before

    def test_rollback_to_nowhere_fails_without_retry(self, champion: Release, make_context: Make, dag: DAG) -> None:
        with pytest.raises(AirflowFailException, match=r"version 7 was never promoted.*good ones: none"):
            RollbackOperator(task_id="back", dag=dag, model="toy", to="7").execute(make_context())  # type: ignore[arg-type]


def test_a_release_can_be_handed_over_whole_or_by_id(dag: DAG) -> None:
    whole = PromoteOperator(task_id="whole", dag=dag, model="toy", release={"id": "r1"})
    assert whole.release_id == PromoteOperator(task_id="id", dag=dag, model="toy", release="r1").release_id == "r1"
