"""The periodic sweep: repairs, orphans by Airflow's word, and events that are sent once more."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowRuntimeError

from airlock import assets
from airlock.control import ReleaseControl, records
from airlock.core.errors import AirlockError, Unavailable
from airlock.core.refs import Ref
from airlock.core.release import Phase, Release
from airlock.ledger import Ledger
from airlock.operators import receipts, reconcile
from airlock.operators.reconcile import ListModelsOperator, ReconcileOperator
from tests.support.operator_world import Gateway, Versions, opened, shares, waiting

Make = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.usefixtures("gateway", "versions", "registry_of_records")


@pytest.fixture
def registry_of_records(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Ref] | AirlockError], None]:
    """What comes of writing the records that are due; nothing is, unless a test says so."""

    def becomes(found: list[Ref] | AirlockError) -> None:
        def write(*_: object) -> list[Ref]:
            if isinstance(found, AirlockError):
                raise found
            return found

        monkeypatch.setattr(records, "write_pending", write)

    becomes([])
    return becomes


@pytest.fixture
def context(make_context: Make) -> dict[str, Any]:
    return make_context()


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Move the sweep's clock on."""

    def move(by: timedelta) -> None:
        moved = SimpleNamespace(now=lambda zone: datetime.now(zone) + by, fromisoformat=datetime.fromisoformat)
        monkeypatch.setattr(reconcile, "datetime", moved)

    return move


def sweep(context: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What was found, by kind."""
    dag = DAG("airlock__reconcile", schedule=None)
    task = ReconcileOperator(task_id="reconcile", dag=dag, model="toy", outlets=[assets.repairs()])
    found = task.execute(context)  # type: ignore[arg-type]
    assert json.loads(json.dumps(found)) == found
    return {repair["kind"]: repair for repair in found}


def sent(context: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    events = context["outlet_events"][assets.repairs()].asset_alias_events
    return [(event.dest_asset_key.uri, event.extra) for event in events]


def test_what_agrees_is_left_alone(champion: Release, control: ReleaseControl, context: dict[str, Any]) -> None:
    sweep(context)
    assert sweep(context) == {}
    assert sent(context) == []


def test_every_model_is_swept_that_has_a_file_or_is_in_the_ledger(champion: Release, home: Path) -> None:
    """A file is gone, another was just written, and a third cannot be read."""
    models = home.parent / "project" / "dags" / "models"
    (models / "toy.yaml").rename(models / "fresh.yaml")
    (models / "broken.yaml").write_text("{")
    task = ListModelsOperator(task_id="list_models", dag=DAG("airlock__reconcile", schedule=None))
    assert task.execute({}) == ["broken", "fresh", "toy"]  # type: ignore[typeddict-item]


def test_more_models_than_airflow_maps_a_task_to_are_swept_in_turn(
    champion: Release, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c", "d"):
        (home.parent / "project" / "dags" / "models" / f"{name}.yaml").write_text("{")
    monkeypatch.setattr(reconcile, "_most_mapped", lambda: 2)
    task = ListModelsOperator(task_id="list_models", dag=DAG("airlock__reconcile", schedule=None))
    swept: list[str] = []
    for number in range(3):
        at = datetime(2013, 4, 1, tzinfo=UTC) + number * reconcile.EVERY
        monkeypatch.setattr(reconcile, "datetime", SimpleNamespace(now=lambda _, at=at: at))
        named = task.execute({})  # type: ignore[typeddict-item]
        assert len(named) <= 2
        swept += named
    assert sorted(swept) == ["a", "b", "c", "d", "toy"]


def test_a_release_is_ended_although_its_file_is_gone(
    champion: Release, control: ReleaseControl, context: dict[str, Any], gateway: Gateway, ledger: Ledger, home: Path
) -> None:
    release = opened(control, "2")
    control.enter(release.id, "warm_up")
    (home.parent / "project" / "dags" / "models" / "toy.yaml").unlink()
    gateway.ejected = "12 of 60 requests failed"
    found = sweep(context)
    assert found["ejection"]["done"]
    assert ledger.release(release.id).phase is Phase.ROLLED_BACK


def test_a_lost_route_is_written_again(champion: Release, context: dict[str, Any], home: Path) -> None:
    (home / "routes" / "toy.json").unlink()
    assert sweep(context)["route"]["done"]
    assert shares(home) == {"1": 100}


@pytest.mark.parametrize(
    ("count", "state", "phase"),
    [(1, "running", Phase.WARM), (1, "failed", Phase.ROLLED_BACK), (0, "", Phase.ROLLED_BACK)],
)
def test_a_release_whose_run_is_over_is_ended(
    champion: Release,
    control: ReleaseControl,
    context: dict[str, Any],
    ledger: Ledger,
    count: int,
    state: str,
    phase: Phase,
) -> None:
    asked: list[Any] = []
    context["ti"].get_dr_count = lambda dag_id, run_ids: asked.append((dag_id, run_ids)) or count
    context["ti"].get_dagrun_state = lambda *_: state
    release = waiting(control, "2", run="toy__release/asset__1/2")
    control.approve(release.id, actor="ada", reason="fine")
    control.enter(release.id, "warm_up")
    sweep(context)
    assert asked == [("toy__release", ["asset__1/2"])]
    assert ledger.release(release.id).phase is phase


def test_what_airflow_does_not_say_ends_nothing(
    champion: Release, control: ReleaseControl, context: dict[str, Any], ledger: Ledger
) -> None:
    def silent(*_: Any, **__: Any) -> int:
        raise AirflowRuntimeError(SimpleNamespace(error=SimpleNamespace(value="API_SERVER_ERROR"), detail={}))  # type: ignore[arg-type]

    context["ti"].get_dr_count = silent
    release = waiting(control, "2", run="toy__release/asset__1")
    assert not sweep(context)["orphan"]["done"]
    assert ledger.release(release.id).phase is Phase.OPENED


def test_a_lost_champion_event_is_sent_again_until_airflow_has_it(
    champion: Release,
    make_context: Make,
    later: Callable[[timedelta], None],
    announced: list[dict[str, Any]],
) -> None:
    later(timedelta(minutes=5))
    for _ in range(2):  # the first sweep is killed before its event goes out
        context = make_context()
        assert "sent again with this task" in sweep(context)["champion_asset"]["what"]
        [(uri, extra)] = sent(context)
        assert (uri, extra) == ("airlock://toy/champion", {"version": "1", "release": champion.id, "generation": 1})
    announced.append(extra)
    again = make_context()
    assert "champion_asset" not in sweep(again)
    assert sent(again) == []


def test_a_champion_event_is_not_sent_again_while_airflow_does_not_say_whether_it_has_it(
    champion: Release,
    make_context: Make,
    later: Callable[[timedelta], None],
    control: ReleaseControl,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def silent(*_: object) -> int:
        raise Unavailable("Airflow does not tell the events")

    later(timedelta(minutes=5))
    with monkeypatch.context() as airflow:
        airflow.setattr(receipts, "announced_generation", silent)
        context = make_context()
        told = sweep(context)["champion_asset"]
    assert "Airflow does not say whether it has it" in told["what"]
    assert not told["done"]
    assert sent(context) == []
    assert control.pending("champion_asset")
    context = make_context()
    sweep(context)
    assert len(sent(context)) == 1


def test_a_lost_candidate_event_is_sent_again_until_airflow_has_it(
    champion: Release,
    announced: list[dict[str, Any]],
    context: dict[str, Any],
    make_context: Make,
    versions: Versions,
    later: Callable[[timedelta], None],
) -> None:
    announced.append({"version": "1", "generation": 1})
    versions.aliases["candidate"] = "2"
    assert not sweep(context)["candidate_asset"]["done"], "its release may be on the way"
    later(timedelta(minutes=10))
    for _ in range(2):  # the first sweep is killed before its event goes out
        context = make_context()
        assert sweep(context)["candidate_asset"]["done"]
        assert sent(context) == [("airlock://toy/candidate", {"version": "2", "skip_shadow": False})]
    announced.append({"version": "2", "generation": 0})
    later(timedelta(minutes=30))
    again = make_context()
    assert not sweep(again)["candidate_asset"]["done"], "whoever refused it does so again"
    assert sent(again) == []


@pytest.mark.parametrize("sent_before", [False, True])
def test_what_an_earlier_airlock_kept_of_a_candidate_is_understood(
    sent_before: bool, champion: Release, context: dict[str, Any], ledger: Ledger, versions: Versions
) -> None:
    versions.aliases["candidate"] = "2"
    kept = {"version": "2", "since": "2013-04-01T00:00:00+00:00", "sent": sent_before}
    ledger.save_state("toy", "reconcile/candidate", json.dumps(kept), revision=None)
    assert sweep(context)["candidate_asset"]["done"] is not sent_before


def test_an_ejection_that_nobody_saw_ends_the_release(
    champion: Release, control: ReleaseControl, context: dict[str, Any], gateway: Gateway, ledger: Ledger
) -> None:
    release = opened(control, "2")
    control.enter(release.id, "warm_up")
    gateway.ejected = "12 of 60 requests failed"
    assert sweep(context)["ejection"]["done"]
    assert ledger.release(release.id).phase is Phase.ROLLED_BACK


def test_a_gateway_that_is_down_is_told(champion: Release, context: dict[str, Any], gateway: Gateway) -> None:
    gateway.down = True
    found = sweep(context)
    assert found["gateway"]["what"] == "the gateway does not answer"
    assert not found["gateway"]["done"]


@pytest.mark.parametrize(
    ("found", "done", "what"),
    [
        ([Ref(path="/r/record.json", digest="sha256:1")], True, "/r/record.json"),
        (Unavailable("MLflow does not answer"), False, "MLflow does not answer"),
    ],
)
def test_records_that_are_due_are_written_or_stay_due(
    found: list[Ref] | AirlockError,
    done: bool,
    what: str,
    champion: Release,
    context: dict[str, Any],
    registry_of_records: Callable[[list[Ref] | AirlockError], None],
) -> None:
    registry_of_records(found)
    told = sweep(context)["record"]
    assert told["done"] is done
    assert what in told["what"]
