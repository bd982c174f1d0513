"""``airlock policy replay``, as a user calls it; nothing runs beside it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from airlock import settings
from airlock.cli.app import app
from airlock.core.counters import Counters
from airlock.core.guards import breach
from airlock.core.limits import limits_of
from airlock.core.release import Phase
from airlock.ledger import Ledger
from tests.support.release_log import RELEASE, entry, write_part
from tests.support.toy_model import toy_spec

SIMULATE = "requests=3000,rate=600"
ROLLOUT = {
    "shadow": {"bake": "20s", "min_requests": 100},
    "steps": [{"weight": 100, "bake": "20s", "min_requests": 100}],
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one spec."""
    monkeypatch.setenv("AIRLOCK_PROJECT", str(tmp_path))
    monkeypatch.setenv("AIRLOCK_HOME", str(tmp_path / "home"))
    for name in ("AIRLOCK_LEDGER_URL", "AIRLOCK_MLFLOW_URL", "AIRLOCK_GATEWAY_URL", "AIRLOCK_AIRFLOW_URL"):
        monkeypatch.delenv(name, raising=False)
    spec = toy_spec(guards=[{"kind": "error_rate", "max": 0.02}], rollout=ROLLOUT)
    folder = tmp_path / "dags" / "models"
    folder.mkdir(parents=True)
    (folder / "toy.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_unset=True)))
    recipe = tmp_path / "include" / "toy" / "recipe.py"
    recipe.parent.mkdir(parents=True)
    recipe.write_text('"""A recipe that is never run."""\n')
    return tmp_path


def call(*arguments: str, code: int = 0) -> tuple[str, str]:
    done = CliRunner().invoke(app, ["policy", "replay", "toy", *arguments])
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr


def test_a_simulation_is_told_with_its_truth(project: Path) -> None:
    said, _ = call("--simulate", f"{SIMULATE},error_rate=0.2")
    assert "roll_back" in said
    assert "the truth breaks error_rate and it was taken back: right" in said
    said, _ = call("--simulate", SIMULATE)
    assert "promoted" in said
    assert "the truth keeps every bound and it was not taken back: right" in said
    assert not (project / "home").exists()  # it needs no state


def test_many_simulations_are_counted_with_an_interval(project: Path) -> None:
    picture = project / "pictures" / "many.png"
    said, _ = call("--simulate", f"{SIMULATE},error_rate=0.2", "--repeats", "5", "--plot", str(picture))
    assert "missed in 0 of 5" in said
    assert "95 % interval" in said
    assert "requests until it was taken back: median" in said
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_as_json(project: Path) -> None:
    said, _ = call("--simulate", f"{SIMULATE},error_rate=0.2", "--repeats", "3", "--seed", "1", "--json")
    document = json.loads(said)
    assert document["truth"]["bad"] == ["error_rate"]
    assert document["repeated"]["runs"] == 3
    assert document["ending"] == "rolled_back"
    assert document["decisions"][-1]["verdicts"]
    again, _ = call("--simulate", f"{SIMULATE},error_rate=0.2", "--repeats", "3", "--seed", "1", "--json")
    assert again == said


def test_another_policy_is_tried(project: Path) -> None:
    lax = project / "tried" / "toy.yaml"
    lax.parent.mkdir()
    spec = toy_spec(guards=[{"kind": "error_rate", "max": 0.5}], rollout=ROLLOUT)
    lax.write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_unset=True)))
    said, _ = call("--policy", str(lax), "--simulate", f"{SIMULATE},error_rate=0.2")
    assert "the truth keeps every bound" in said


def _record(errors: int) -> None:
    """A request a second; the candidate is in shadow for half of them and answers the others."""
    here, rows = settings.load(), []
    for number in range(400):
        roles = ("shadow", "served") if number < 200 else ("served", "shadow")
        score = None if number % 10 < errors else 0.6
        rows += [entry(number, "2", roles[0], score), entry(number, "1", roles[1], 0.5)]
    write_part(here, 1, rows)


def test_a_recorded_release_is_ejected_at_the_very_request(project: Path) -> None:
    """Which lies in no frame of a hundred."""
    _record(errors=3)
    spec = toy_spec(guards=[{"kind": "error_rate", "max": 0.02}], rollout=ROLLOUT)
    limits, counters = limits_of(spec), Counters()
    for number in range(400):
        for tally in counters.tallies("shadow"):
            (tally.failed if number % 10 < 3 else tally.answered)(5.0)
        if breach(limits, counters):
            break
    document = json.loads(call("--candidate", "2", "--champion", "1", "--json")[0])
    assert document["decisions"][-1]["request"] == number + 1 < 100


def test_a_rollout_that_may_not_be_provisional_is_not_replayed_as_if_it_might(project: Path) -> None:
    guards = [
        {"kind": "error_rate", "max": 0.02},
        {"kind": "paired_loss", "metric": "brier", "margin": 0.05, "min_requests": 100},
    ]
    for provisional, ending in ((True, "confirmed"), (False, "promoted")):
        spec = toy_spec(
            guards=guards,
            rollout={**ROLLOUT, "provisional": provisional},
            label={"name": "bought", "maturity": "1m"},
        )
        tried = project / f"tried-{provisional}" / "toy.yaml"
        tried.parent.mkdir()
        tried.write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_unset=True)))
        simulate = ("--simulate", "requests=6000,rate=600,delay=30", "--labels-every", "20")
        document = json.loads(call("--policy", str(tried), *simulate, "--json")[0])
        assert document["ending"] == ending
        assert ("provisional" in {decided["step"] for decided in document["decisions"]}) is provisional


def test_a_recorded_log_is_replayed_by_versions(project: Path) -> None:
    _record(errors=3)
    picture = project / "one.svg"
    said, _ = call("--candidate", "2", "--champion", "1", "--poll", "5", "--plot", str(picture))
    assert "version 2 against 1, 400 requests" in said
    assert "roll_back" in said
    assert "all of the traffic says the same" in said
    assert "roles are those of the log" in said.replace("\n", " ")
    assert "not known: 400 requests were logged by a gateway that did not write" in said.replace("\n", " ")
    assert picture.read_text().lstrip().startswith("<?xml")


def test_the_newest_release_of_the_ledger_is_the_default(project: Path) -> None:
    _record(errors=0)
    ledger = Ledger(settings.load().ledger_url)
    fresh = RELEASE.model_copy(update={"phase": Phase.OPENED, "entered_at": datetime.now(UTC), "step": None})
    ledger.open(fresh.model_copy(update={"generation": 0}), key="k", actor="test")
    for arguments in ((), ("--release", "rel")):
        document = json.loads(call("--json", *arguments)[0])
        assert document["recorded"]["requests"] == 400
        assert document["ending"] == "promoted"
    _, said = call("--release", "unknown", code=1)
    assert "the ledger has no release unknown" in said


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 1, "--simulate"),
        (("--candidate", "2"), 2, "go together"),
        (("--candidate", "2", "--champion", "1"), 1, "versions in it: none"),
        (("--release", "r", "--candidate", "2", "--champion", "1"), 2, "leave --candidate"),
        (("--simulate", "eror_rate=0.1"), 2, "did you mean error_rate?"),
        (("--simulate", "error_rate"), 2, "KEY=VALUE"),
        (("--simulate", "error_rate=2"), 2, "error_rate=2"),
        (("--simulate", SIMULATE, "--release", "r"), 2, "leave --release out"),
        (("--repeats", "3"), 2, "goes with --simulate"),
        (("--candidate", "2", "--champion", "1", "--roles", "other"), 2, "expected logged or plan"),
        (("--simulate", SIMULATE, "--roles", "plan"), 2, "leave --roles out"),
        (("--simulate", SIMULATE, "--plot", "picture.txt"), 2, ".png"),
        (("--candidate", "2", "--champion", "1", "--from", "yesterday"), 2, "expected a time"),
    ],
)
def test_what_cannot_be_replayed_is_refused(project: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    assert said in call(*arguments, code=code)[1].replace("\n", " ")
    assert not (project / "home" / "ledger.db").exists()


def test_a_policy_of_another_model_is_refused(project: Path) -> None:
    other = project / "another.yaml"
    spec = toy_spec(model="another")
    other.write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_unset=True)))
    assert "is the spec of another" in call("--policy", str(other), "--simulate", SIMULATE, code=2)[1]
