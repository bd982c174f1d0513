"""Steering from the command line, with Airflow, MLflow and the gateway down: the ledger and the route are enough."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from airlock import settings, specs
from airlock.cli.app import app
from airlock.control import ReleaseControl
from airlock.control import reconcile as reconciling
from airlock.core.errors import NotPossible
from airlock.core.release import Release
from airlock.core.route import Route, parse_route
from airlock.ledger import Ledger
from tests.support.control import ejection, in_step, promoted, spec_of

MODEL = "m"


@pytest.fixture
def control(tmp_path: Path, empty_ledger: Path, monkeypatch: pytest.MonkeyPatch) -> ReleaseControl:
    """A home and a project with one promoted version of a small model, and nothing that runs."""
    project = tmp_path / "project"
    (project / "dags" / "models").mkdir(parents=True)
    spec = spec_of().model_dump(mode="json", exclude_defaults=True)
    (project / "dags" / "models" / f"{MODEL}.yaml").write_text(yaml.safe_dump(spec))
    monkeypatch.setenv("AIRLOCK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AIRLOCK_PROJECT", str(project))
    (tmp_path / "home").mkdir()
    shutil.copy(empty_ledger, tmp_path / "home" / "ledger.db")
    for part in ("AIRFLOW", "MLFLOW", "GATEWAY"):
        monkeypatch.setenv(f"AIRLOCK_{part}_URL", "http://127.0.0.1:1")
    # Nothing answers there, however often it is asked.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    here = settings.load()
    made = ReleaseControl(specs.find(here, MODEL), here, Ledger(here.ledger_url))
    promoted(made, "1")
    return made


@pytest.fixture
def candidate(control: ReleaseControl) -> Release:
    """Version 2, with the first share of the traffic."""
    return in_step(control, "2", "canary_5")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def said(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def route() -> Route:
    return parse_route((settings.load().routes / f"{MODEL}.json").read_bytes())


def test_a_release_is_paused_and_resumed_by_whoever_asks(control: ReleaseControl, candidate: Release) -> None:
    before = route().generation
    paused = said("pause", MODEL, "--reason", "odd figures", "--actor", "ann")
    assert (paused["id"], paused["paused"], paused["reason"]) == (candidate.id, True, "odd figures")
    assert route().generation == before + 1
    assert control.ledger.timeline(MODEL)[-1].actor == "ann"
    assert said("resume", MODEL)["paused"] is False


def test_the_actor_is_the_user_of_this_machine(
    control: ReleaseControl, candidate: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "eve")
    assert run("pause", MODEL).exit_code == 0
    assert control.ledger.timeline(MODEL)[-1].actor == "eve"


def test_deadlines_move_and_releases_are_let_through(control: ReleaseControl, candidate: Release) -> None:
    assert "6h more for each step" in run("extend", MODEL, "6h").stdout
    assert "5m more for each step" in run("extend", MODEL, "5m").stdout
    assert said("promote", MODEL, "--reason", "hurry")["promote_now"] is True


def test_an_abort_gives_the_traffic_back_at_once(control: ReleaseControl, candidate: Release) -> None:
    assert route().share == 5
    result = run("abort", MODEL, "--reason", "wrong data")
    assert result.exit_code == 0
    assert f"release {candidate.id} of {MODEL} version 2 is aborted: wrong data" in result.stdout
    assert route().weights == {"1": 100.0}


def test_an_abort_of_what_the_gateway_took_back_tells_why_it_did(control: ReleaseControl, candidate: Release) -> None:
    here = settings.load()
    here.ejections.mkdir(parents=True)
    (here.ejections / f"{MODEL}.json").write_text(ejection(candidate).model_dump_json())
    for _ in "ab":  # the first to come ends it, the second finds it ended
        result = run("abort", MODEL)
        assert result.exit_code == 1
        assert "the gateway ejected version 2: 9 of 50 requests failed" in " ".join(result.output.split())


def test_a_rollback_needs_nothing_that_runs(control: ReleaseControl) -> None:
    promoted(control, "2")
    assert route().champion == "2"
    back = said("rollback", MODEL, "--reason", "complaints", "--actor", "ann")
    assert (back["champion"], back["generation"]) == ("1", route().generation)
    assert route().weights == {"1": 100.0}
    assert control.pending("champion_asset"), "Airflow tells it on when it is up again"
    refused = run("rollback", MODEL)
    assert refused.exit_code == 1
    assert "good ones: none" in refused.output


def test_an_empty_reason_is_none(control: ReleaseControl) -> None:
    promoted(control, "2")
    refused = run("rollback", MODEL, "--reason", " ")
    assert refused.exit_code == 2
    assert "it is empty; say why" in " ".join(refused.output.split())
    assert route().champion == "2"


def test_pins_are_set_shown_and_taken_away(control: ReleaseControl, candidate: Release) -> None:
    arguments = ("pin", MODEL, "beta", "--version", "2", "--when", "carrier=EV,9E", "--when", "distance=500..1000")
    shown = run(*arguments)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.strip() == "beta: version 2 where carrier=EV,9E, distance=500..1000"
    (pin,) = route().pins
    assert pin.version == "2"
    assert pin.when[0].met({"carrier": "9E"})
    assert pin.when[1].met({"distance": 700})
    assert not pin.when[1].met({"distance": 1200})
    assert said("unpin", MODEL, "beta")["pins"] == []
    assert run("unpin", MODEL, "beta").exit_code == 1
    missing = run("pin", MODEL, "beta", "--version", "9", "--when", "carrier=EV")
    assert missing.exit_code == 1
    assert "cannot be pinned" in missing.output


@pytest.mark.parametrize(
    ("condition", "wanted", "refused"),
    [("express=true", True, "true"), ("stops=3", 3, "3"), ("code='3'", "3", 3), ("carrier=UA", "UA", "AA")],
)
def test_values_of_a_condition_mean_what_they_say(
    control: ReleaseControl, condition: str, wanted: object, refused: object
) -> None:
    assert run("pin", MODEL, "beta", "--version", "1", "--when", condition).exit_code == 0
    (met,) = route().pins[0].when
    assert met.met({met.attribute: wanted})
    assert not met.met({met.attribute: refused})


@pytest.mark.parametrize("verb", ["pause", "resume", "promote", "abort"])
def test_without_a_release_on_its_way_there_is_nothing_to_steer(control: ReleaseControl, verb: str) -> None:
    result = run(verb, MODEL)
    assert result.exit_code == 1
    assert "no release on its way" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("extend", MODEL, "soon"), "expected a duration"),
        (("extend", MODEL, "0s"), "longer than nothing"),
        (("pin", MODEL, "beta", "--version", "2", "--when", "carrier"), "expected a condition"),
        (("pin", MODEL, "beta", "--version", "2", "--when", "distance=9..1"), "expected a condition"),
        (("pin", MODEL, "Beta!", "--version", "2", "--when", "carrier=EV"), "that is no pin: name"),
        (("pin", MODEL, "beta", "--version", "two", "--when", "carrier=EV"), "is not a version"),
        (("pin", MODEL, "beta", "--version", "2"), "--when"),
        (("rollback", MODEL, "--to", "two"), "is not a version"),
    ],
)
def test_wrong_usage_exits_with_2_and_changes_nothing(
    control: ReleaseControl, arguments: tuple[str, ...], words: str
) -> None:
    before = route()
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert words in result.output
    assert route() == before


def test_an_unknown_model_is_refused(control: ReleaseControl) -> None:
    result = run("pause", "mm")
    assert result.exit_code == 1
    assert "mm" in result.output


def test_reconciling_tells_what_it_did_and_what_is_left(control: ReleaseControl, candidate: Release) -> None:
    (settings.load().routes / f"{MODEL}.json").write_text("{ torn")
    looked = run("reconcile", MODEL, "--dry-run", "--json")
    assert looked.exit_code == 1
    found = json.loads(looked.stdout)[MODEL]
    assert {"kind": "route", "done": False}.items() <= found[0].items()
    assert "torn" in found[0]["what"]
    repaired = run("reconcile", MODEL)
    assert repaired.exit_code == 1, "the gateway does not answer"
    assert "repaired  route" in repaired.stdout
    assert "gateway: the gateway does not answer" in " ".join(repaired.stdout.split())
    assert route() == control.ledger.route(MODEL)


def test_a_broken_spec_keeps_no_other_model_from_being_repaired(control: ReleaseControl) -> None:
    (settings.load().specs / "broken.yaml").write_text("model: broken\n")
    (settings.load().routes / f"{MODEL}.json").write_text("{ torn")
    result = run("reconcile", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert ("spec", False) in [(repair["kind"], repair["done"]) for repair in found["broken"]]
    assert "broken.yaml" in found["broken"][0]["what"]
    assert ("route", True) in [(repair["kind"], repair["done"]) for repair in found[MODEL]]


def test_a_model_that_fails_keeps_no_later_one_from_being_repaired(
    control: ReleaseControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    (settings.load().specs / "first.yaml").write_text("model: first\n")
    (settings.load().routes / f"{MODEL}.json").write_text("{ torn")
    repair = reconciling.reconcile

    def fails_first(control: ReleaseControl, **how: Any) -> list[reconciling.Repair]:
        if control.model == "first":
            raise NotPossible("its route names a champion that nobody promoted")
        return repair(control, **how)

    monkeypatch.setattr(reconciling, "reconcile", fails_first)
    result = run("reconcile", "--json")
    assert result.exit_code == 1
    assert "a champion that nobody promoted" in result.stderr
    assert "first was not reconciled" in result.stderr
    assert list(json.loads(result.stdout)) == [MODEL]
    assert route().champion == "1"


@pytest.fixture(params=["broken", "gone"])
def unreadable(request: pytest.FixtureRequest, candidate: Release) -> Path:
    """The spec of a model whose release is on its way, after somebody has broken or removed it."""
    path = settings.load().specs / f"{MODEL}.yaml"
    if request.param == "gone":
        path.unlink()
    else:
        path.write_text("model: m\n\tguards: [")
    return path


def test_a_release_is_steered_without_its_file(control: ReleaseControl, unreadable: Path) -> None:
    assert said("pause", MODEL)["paused"] is True
    assert "canary_5, paused" in run("status").stdout
    assert said("resume", MODEL)["paused"] is False
    assert said("extend", MODEL, "6h")["paused"] is False
    assert said("pin", MODEL, "west", "--version", "1", "--when", "x=1")["pins"][0]["version"] == "1"
    assert said("unpin", MODEL, "west")["pins"] == []
    assert said("promote", MODEL)["promote_now"] is True
    assert said("abort", MODEL)["phase"] == "aborted"
    assert route().weights == {"1": 100.0}


def test_a_model_is_rolled_back_without_its_file(control: ReleaseControl) -> None:
    promoted(control, "2")
    (settings.load().specs / f"{MODEL}.yaml").write_text("[")
    assert said("rollback", MODEL)["champion"] == "1"
    assert route().champion == "1"


def test_reconciling_repairs_a_model_without_its_file(control: ReleaseControl, unreadable: Path) -> None:
    (settings.load().routes / f"{MODEL}.json").write_text("{ torn")
    found = json.loads(run("reconcile", "--json").stdout)[MODEL]
    assert ("spec", False) in [(repair["kind"], repair["done"]) for repair in found]
    assert ("route", True) in [(repair["kind"], repair["done"]) for repair in found]
    assert route().candidate == "2"


def test_history_and_status_tell_of_a_file_that_a_release_was_not_opened_with(
    control: ReleaseControl, candidate: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> tuple[str, list[dict[str, Any]]]:
        return run("history", MODEL).stdout, json.loads(run("status", "--json").stdout)["releases"]

    history, [release] = told()
    assert "note:" not in history
    assert (release["release"], release["step"], release["note"]) == (candidate.id, "canary_5", None)
    path = settings.load().specs / f"{MODEL}.yaml"
    path.write_text(f"{path.read_text()}\nfalse_rollback_budget: 0.05\n")
    history, [release] = told()
    assert "false_rollback_budget in the file changed since" in history
    assert "false_rollback_budget in the file changed since" in release["note"]
    assert "goes on by the spec that it was opened with" in run("status").stdout
    path.write_text("[")
    assert "m.yaml" in told()[0]


def test_a_name_that_nobody_knows_is_refused(control: ReleaseControl) -> None:
    for verb in ("pause", "rollback", "history", "reconcile"):
        result = run(verb, "nothing")
        assert result.exit_code == 1
        assert "no model 'nothing'" in result.stderr
