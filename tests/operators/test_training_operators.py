"""From snapshot to registered version: what operators hand to the steps, and what stops a run."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from airlock import assets, steps
from airlock.core.errors import DataInvalid, Unavailable
from airlock.core.refs import EvaluatedRef, OnnxRef, Ref, SnapshotRef, TrainedRef, TrainingSetRef, VersionRef
from airlock.core.verdict import Status, Verdict
from airlock.hooks.registry import RegistryHook
from airlock.ledger import Ledger
from airlock.operators.base import run_key
from airlock.operators.candidate import EvaluateGatesOperator, ExportOnnxOperator, RegisterVersionOperator
from airlock.operators.drift import DriftReportOperator, SignalDriftOperator
from airlock.operators.features import MaterializeFeaturesOperator
from airlock.operators.labels import JoinLabelsOperator
from airlock.operators.scoring import ListPartitionsOperator, ScorePartitionOperator
from airlock.operators.snapshot import FreezeSnapshotOperator, ValidateSnapshotOperator
from airlock.operators.training import BuildTrainingSetOperator, TrainOperator

Make = Callable[..., dict[str, Any]]

DIGEST = "sha256:" + "a" * 64
APRIL = datetime(2013, 4, 1, tzinfo=UTC)
SNAPSHOT = SnapshotRef(path="/s", digest=DIGEST, until=APRIL, tables={"events": 7})
TRAINING_SET = TrainingSetRef(path="/t", digest=DIGEST, snapshot=DIGEST, until=APRIL, rows=7)
TRAINED = TrainedRef(
    path="/m", digest=DIGEST, run_id="r1", training_set=TRAINING_SET, evaluation_from=APRIL, metrics={}, params={}
)
PASS = Verdict(name="finite", status=Status.PASS, reason="all finite")
FAIL = Verdict(name="rmse", status=Status.FAIL, reason="rmse is 9, at most 3 is allowed")
UNSURE = Verdict(name="rmse", status=Status.INCONCLUSIVE, reason="too few rows")
ONNX = OnnxRef(path="/o", digest=DIGEST, trained=TRAINED, parity=PASS)


def evaluated(*verdicts: Verdict) -> EvaluatedRef:
    return EvaluatedRef(path="/e", digest=DIGEST, onnx=ONNX, verdicts=verdicts, champion=None)


class Calls(list[dict[str, Any]]):
    """A step that remembers its calls and answers, or raises, what it was told."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.append({"args": args[2:], **kwargs})
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Calls]:
    """Put a fake in a step's place: ``step("training", train=TRAINED)``."""

    def fake(module: str, **functions: Any) -> Calls:
        calls = {name: Calls(answer) for name, answer in functions.items()}
        monkeypatch.setattr(steps, module, SimpleNamespace(**calls), raising=False)
        return next(iter(calls.values()))

    return fake


def run(kind: type[BaseOperator], context: dict[str, Any], **kwargs: Any) -> Any:
    dag = DAG("toy__test", schedule=None)
    operator = kind(task_id="it", dag=dag, model="toy", **kwargs)
    return operator.execute(context)  # type: ignore[arg-type]


@pytest.mark.usefixtures("home")
class TestFreeze:
    def test_loads_what_was_known(self, step: Callable[..., Calls], make_context: Make) -> None:
        freeze = step("snapshot", freeze=SNAPSHOT)
        said = run(FreezeSnapshotOperator, make_context(), until=APRIL.isoformat(), options={"a": 1})
        assert SnapshotRef.model_validate(said) == SNAPSHOT
        assert freeze == [{"args": (), "until": APRIL, "options": {"a": 1}}]

    def test_everything_without_a_time(self, step: Callable[..., Calls], make_context: Make) -> None:
        freeze = step("snapshot", freeze=SNAPSHOT)
        for run_id in ("manual__1", "manual__2"):
            run(FreezeSnapshotOperator, make_context(run_id))
        assert [call["until"] for call in freeze] == [None, None]

    @pytest.mark.parametrize("until", ["April", "2013-04-01T00:00:00"])
    def test_a_time_without_an_offset_is_refused(
        self, step: Callable[..., Calls], make_context: Make, until: str
    ) -> None:
        step("snapshot", freeze=SNAPSHOT)
        with pytest.raises(AirflowFailException, match=f"{until}.*with an offset"):
            run(FreezeSnapshotOperator, make_context(), until=until)

    @pytest.mark.parametrize("which", [assets.data, assets.drift])
    def test_an_event_tells_the_time(self, step: Callable[..., Calls], make_context: Make, which: Any) -> None:
        freeze = step("snapshot", freeze=SNAPSHOT)
        run(FreezeSnapshotOperator, make_context(events={which("toy"): {"until": APRIL.isoformat()}}))
        assert freeze[0]["until"] == APRIL

    def test_one_drift_is_answered_once(self, step: Callable[..., Calls], make_context: Make) -> None:
        freeze = step("snapshot", freeze=SNAPSHOT)

        def drifted(run_id: str, until: datetime) -> None:
            events = {assets.drift("toy"): {"until": until.isoformat()}}
            run(FreezeSnapshotOperator, make_context(run_id, events=events))

        drifted("asset__1", APRIL)
        drifted("asset__1", APRIL)  # a retry of the same run
        with pytest.raises(AirflowSkipException, match="run toy__test/asset__1 has answered"):
            drifted("asset__2", APRIL + timedelta(hours=5))
        drifted("asset__3", APRIL + timedelta(hours=6))
        assert len(freeze) == 3

    def test_new_data_has_no_cool_down(self, step: Callable[..., Calls], make_context: Make) -> None:
        freeze = step("snapshot", freeze=SNAPSHOT)
        for run_id in ("asset__1", "asset__2"):
            events = {assets.data("toy"): {"until": APRIL.isoformat()}}
            run(FreezeSnapshotOperator, make_context(run_id, events=events))
        assert len(freeze) == 2

    def test_a_part_that_is_down_is_tried_again(self, step: Callable[..., Calls], make_context: Make) -> None:
        step("snapshot", freeze=Unavailable("the store is down"))
        with pytest.raises(Unavailable):
            run(FreezeSnapshotOperator, make_context())


@pytest.mark.usefixtures("home")
class TestTrain:
    def test_bad_data_stops_the_run(self, step: Callable[..., Calls], make_context: Make) -> None:
        refused = DataInvalid("events.x: 30 of 100 rows are missing")
        step("validation", validate=FAIL, require_valid=refused)
        with pytest.raises(AirflowFailException, match="30 of 100 rows"):
            run(ValidateSnapshotOperator, make_context(), snapshot=SNAPSHOT.model_dump(mode="json"))

    def test_a_valid_snapshot_is_handed_on(self, step: Callable[..., Calls], make_context: Make) -> None:
        step("validation", validate=PASS, require_valid=None)
        said = run(ValidateSnapshotOperator, make_context(), snapshot=SNAPSHOT.model_dump(mode="json"))
        assert SnapshotRef.model_validate(said) == SNAPSHOT

    def test_the_training_set_is_of_the_snapshot(self, step: Callable[..., Calls], make_context: Make) -> None:
        made = step("features", training_set=TRAINING_SET)
        said = run(BuildTrainingSetOperator, make_context(), snapshot=SNAPSHOT.model_dump(mode="json"))
        assert TrainingSetRef.model_validate(said) == TRAINING_SET
        assert made == [{"args": (SNAPSHOT,)}]

    def test_training_is_keyed_by_the_run_and_knows_its_origin(
        self, step: Callable[..., Calls], make_context: Make
    ) -> None:
        train = step("training", train=TRAINED)
        context = make_context("manual__2026-01-01T00:00:00+00:00")
        given = {"training_set": TRAINING_SET.model_dump(mode="json"), "recipe_params": {"depth": 3}, "trials": 2}
        run(TrainOperator, context, **given)
        (call,) = train
        assert call["run_key"].startswith("toy__test-manual__2026-01-01T00-00-00-00-00-")
        assert (call["params"], call["trials"]) == ({"depth": 3}, 2)
        assert re.fullmatch(r"[A-Za-z0-9_.-]+", call["run_key"])
        assert call["origin"]["dag_run_id"] == "manual__2026-01-01T00:00:00+00:00"
        assert call["origin"]["actor"] == "ada"

    def test_runs_of_two_dags_that_were_started_at_once_have_keys_of_their_own(self, make_context: Make) -> None:
        context = make_context("scheduled__2026-01-01T00:00:00+00:00")
        alike = make_context("scheduled__2026-01-01T00-00-00-00-00")
        other = {**context, "dag_run": SimpleNamespace(**{**vars(context["dag_run"]), "dag_id": "other__test"})}
        keys = [run_key(each) for each in (context, alike, other)]  # type: ignore[arg-type]
        assert len(set(keys)) == 3
        assert run_key(context) == keys[0]  # type: ignore[arg-type]

    def test_export_hands_the_parity_on(self, step: Callable[..., Calls], make_context: Make) -> None:
        step("export", export=ONNX)
        said = run(ExportOnnxOperator, make_context(), trained=TRAINED.model_dump(mode="json"))
        assert OnnxRef.model_validate(said) == ONNX


@pytest.mark.usefixtures("home")
class TestGates:
    candidate = ONNX.model_dump(mode="json")

    def test_what_passes_goes_on(self, step: Callable[..., Calls], make_context: Make, ledger: Ledger) -> None:
        judged = step("evaluation", evaluate=evaluated(PASS))
        said = run(EvaluateGatesOperator, make_context(), candidate=self.candidate)
        assert EvaluatedRef.model_validate(said) == evaluated(PASS)
        assert judged == [{"args": (ONNX,), "champion": None, "champion_version": None}]

    @pytest.mark.parametrize(
        ("verdicts", "reason"),
        [
            ((PASS, FAIL), "rmse: rmse is 9, at most 3 is allowed"),
            ((PASS, UNSURE), "too few rows"),
            ((), "no gate gave a verdict"),
        ],
    )
    def test_anything_but_a_pass_stops_the_run(
        self, step: Callable[..., Calls], make_context: Make, verdicts: tuple[Verdict, ...], reason: str
    ) -> None:
        step("evaluation", evaluate=evaluated(*verdicts))
        with pytest.raises(AirflowFailException, match=reason):
            run(EvaluateGatesOperator, make_context(), candidate=self.candidate)


class Registered:
    """A registry that registers everything as version 3."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.aliases: dict[str, str] = {}

    def register(self, spec: Any, evaluated: EvaluatedRef, *, key: str, author: str | None) -> VersionRef:
        self.keys.append(key)
        return VersionRef(model="toy", version="3", run_id="r1", bundle=Ref(path="/b", digest=DIGEST))

    def set_alias(self, model: str, alias: str, version: str) -> None:
        self.aliases[alias] = version


@pytest.mark.usefixtures("home")
class TestRegister:
    @pytest.fixture
    def registry(self, monkeypatch: pytest.MonkeyPatch) -> Registered:
        registry = Registered()
        monkeypatch.setattr(RegistryHook, "get_conn", lambda _: registry)
        return registry

    def test_announces_the_version(self, make_context: Make, registry: Registered) -> None:
        outlet = assets.candidate("toy")
        context = make_context("asset__7")
        given = evaluated(PASS).model_dump(mode="json")
        said = run(RegisterVersionOperator, context, evaluated=given, skip_shadow=True, outlets=[outlet])
        assert VersionRef.model_validate(said).version == "3"
        assert context["outlet_events"][outlet].extra == {"version": "3", "skip_shadow": True}
        assert registry.aliases == {"candidate": "3"}
        assert registry.keys == [run_key(context)]  # type: ignore[arg-type]

    @pytest.mark.parametrize("verdicts", [(FAIL,), (UNSURE,), ()])
    def test_registers_nothing_that_did_not_pass(
        self, make_context: Make, registry: Registered, verdicts: tuple[Verdict, ...]
    ) -> None:
        with pytest.raises(AirflowFailException, match="passed its gates"):
            run(RegisterVersionOperator, make_context(), evaluated=evaluated(*verdicts).model_dump(mode="json"))
        assert registry.keys == []


@pytest.mark.usefixtures("home")
class TestMonitor:
    def test_materialises_up_to_the_time(self, step: Callable[..., Calls], make_context: Make) -> None:
        materialize = step("features", materialize={"weather": 9})
        said = run(MaterializeFeaturesOperator, make_context(), until=APRIL.isoformat())
        assert said == {"until": APRIL.isoformat(), "rows": {"weather": 9}}
        assert materialize == [{"args": (APRIL,)}]

    def test_joins_the_labels_of_the_window(self, step: Callable[..., Calls], make_context: Make) -> None:
        joined = step("labels", joined=[1, 2, 3])
        assert run(JoinLabelsOperator, make_context(), until=APRIL.isoformat())["labelled"] == 3
        assert joined == [{"args": (APRIL - timedelta(days=7), APRIL)}]

    def test_the_report_is_a_url_and_a_verdict(self, step: Callable[..., Calls], make_context: Make) -> None:
        step("drift", drift_report=(FAIL, "http://mlflow/report.html"))
        said = run(DriftReportOperator, make_context(), until=APRIL.isoformat())
        assert said["report"] == "http://mlflow/report.html"
        assert Verdict.model_validate(said["verdict"]) == FAIL

    @pytest.mark.parametrize("verdict", [PASS, UNSURE])
    def test_only_a_fail_is_signalled(self, make_context: Make, verdict: Verdict) -> None:
        report = {"until": APRIL.isoformat(), "verdict": verdict.model_dump(mode="json"), "report": "u"}
        with pytest.raises(AirflowSkipException, match="no drift to answer"):
            run(SignalDriftOperator, make_context(), report=report, outlets=[assets.drift("toy")])

    def test_a_fail_tells_when_and_why(self, make_context: Make) -> None:
        report = {"until": APRIL.isoformat(), "verdict": FAIL.model_dump(mode="json"), "report": "u"}
        context = make_context()
        run(SignalDriftOperator, context, report=report, outlets=[assets.drift("toy")])
        extra = context["outlet_events"][assets.drift("toy")].extra
        assert extra == {"until": APRIL.isoformat(), "reason": FAIL.reason, "report": "u"}


@pytest.mark.usefixtures("home")
class TestScore:
    def test_a_task_for_each_file(self, make_context: Make, tmp_path: Path) -> None:
        for name in ("b", "a"):
            (tmp_path / f"{name}.parquet").touch()
        named = [str(tmp_path / "*.parquet"), str(tmp_path / "a.parquet")]
        files = run(ListPartitionsOperator, make_context(), partitions=named)
        assert files == [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]

    def test_no_file_is_an_error(self, make_context: Make) -> None:
        with pytest.raises(AirflowFailException, match=r"no file matches .*nowhere"):
            run(ListPartitionsOperator, make_context(), partitions=["/nowhere/*.parquet"])

    def test_scores_are_announced(self, step: Callable[..., Calls], make_context: Make) -> None:
        scored = {"partition": "/a.parquet", "path": "/s.parquet", "rows": 3, "version": "1"}
        step("scoring", score=scored)
        context = make_context()
        outlet = assets.scores("toy")
        assert run(ScorePartitionOperator, context, partition="/a.parquet", outlets=[outlet]) == scored
        assert context["outlet_events"][outlet].extra == scored
