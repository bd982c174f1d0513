"""``airlock experiment`` and ``airlock deliver``, from the files that a user has to the ledger's journal."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from airlock import settings
from airlock.cli.app import app
from airlock.control import ReleaseControl
from airlock.core.bundle import sha256
from airlock.core.refs import BentoRef
from airlock.core.release import Phase
from airlock.core.tally import GatewayStatus, Tally
from airlock.ledger import Ledger
from airlock.settings import Settings
from airlock.steps import labels
from tests.support.control import passing
from tests.support.experiment_world import MODEL, experiment_spec, log_rows, values_of, write_rows

SPEC = experiment_spec()
BEGAN = datetime.now(UTC) - timedelta(days=3)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A project with the spec of an experiment, and nothing else."""
    monkeypatch.setenv("AIRLOCK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AIRLOCK_PROJECT", str(tmp_path))
    monkeypatch.delenv("AIRLOCK_LEDGER_URL", raising=False)
    (tmp_path / "home").mkdir()
    folder = tmp_path / "dags" / "models"
    folder.mkdir(parents=True)
    (folder / f"{MODEL}.yaml").write_text(yaml.safe_dump(SPEC.model_dump(mode="json", exclude_none=True)))
    return settings.load()


@pytest.mark.parametrize(
    "verb", ["experiment plan", "experiment status", "experiment conclude", "deliver labels", "deliver outcomes"]
)
def test_every_verb_helps_with_an_example(verb: str) -> None:
    result = run(*verb.split(), "--help")
    assert result.exit_code == 0
    assert f"Example: airlock {verb}" in " ".join(result.output.split())


def bento(version: str) -> BentoRef:
    return BentoRef(
        model=MODEL, version=version, tag=f"{MODEL}:{version}", path="/nowhere", digest=sha256(version.encode())
    )


@pytest.fixture
def testing(here: Settings) -> ReleaseControl:
    """Version 2 on half of the traffic, against version 1."""
    control = ReleaseControl(SPEC, here, Ledger(here.ledger_url))
    for version in ("1", "2"):
        release = control.open(version, bento(version), actor="ann", key=version, verdicts=passing(SPEC))
        control.approve(release.id, actor="bob", reason="yes")
        if version == "1":
            control.promote(release.id)
    for step in ("warm_up", "shadow", "experiment"):
        control.enter(release.id, step)
    return control


def answer(control: ReleaseControl, units: int, *, gain: float) -> Path:
    """Traffic of the running experiment, and a file with its outcomes."""
    release = control.current()
    assert release is not None
    rows = log_rows(units, began=BEGAN, generation=release.generation, release=release.id)
    write_rows(control.settings, rows)
    values = values_of(rows, gain=gain)
    file = control.settings.project / "outcomes.csv"
    time = (BEGAN + timedelta(days=2)).isoformat()
    pd.DataFrame({"key": list(values), "name": "spent", "value": list(values.values()), "time": time}).to_csv(
        file, index=False
    )
    return file


def seen(control: ReleaseControl) -> GatewayStatus:
    """What a gateway says that follows the newest route, after a thousand good answers of each version."""
    route = control.ledger.route(MODEL)
    assert route is not None
    tally = Tally(requests=1_000)
    tallies = {version: {"served": tally} for version in ("1", "2")}
    return GatewayStatus(
        model=MODEL, generation=route.generation, checksum=route.checksum, release=route.release,
        rollout_step=route.step, champion="1", candidate="2", share=route.share, loaded=("1", "2"), since=BEGAN,
        observed_s=3_600, step=tallies, total=tallies,
    )  # fmt: skip


def test_the_traffic_stays_until_it_is_concluded(testing: ReleaseControl) -> None:
    release = testing.current()
    assert release is not None
    decision = testing.observe(release.id, seen(testing))
    assert (decision.action, decision.reason) == ("wait", "the experiment is not concluded")


def test_what_is_handed_in_is_judged_and_concluded(testing: ReleaseControl) -> None:
    file = answer(testing, 2_000, gain=0.8)
    handed_in = run("deliver", "outcomes", MODEL, str(file), "--json")
    assert handed_in.exit_code == 0, handed_in.output
    assert json.loads(handed_in.stdout)["delivered"] == 2_000
    told = run("experiment", "status", MODEL)
    assert told.exit_code == 0, told.output
    assert "promote the candidate. spent: the candidate is better" in told.output
    assert "spent has come of 100.0% and 100.0% of them" in told.output
    found = json.loads(run("experiment", "status", MODEL, "--json").stdout)
    assert (found["version"], found["champion"], found["candidate"]) == ("2", 1_000, 1_000)
    assert found["conclusion"]["status"] == "pass"
    assert Path(found["picture"]).exists()
    concluded = run("experiment", "conclude", MODEL, "--json")
    assert concluded.exit_code == 0, concluded.output
    release = testing.ledger.release(found["release"])
    assert (release.phase, release.promote_now) == (Phase.CANARY, True)
    entry = testing.ledger.timeline(MODEL)[-1]
    assert entry.event == "promote_now"
    assert "the candidate is better" in entry.reason
    assert testing.observe(release.id, seen(testing)).action == "advance"
    assert testing.promote(release.id).phase is Phase.PROMOTED
    kept = [verdict for step, verdict in testing.ledger.verdicts(release.id) if step == "conclusion"]
    assert [v.name for v in kept if v.passed][-1] == "primary spent"


def test_a_worse_candidate_is_taken_back(testing: ReleaseControl) -> None:
    run("deliver", "outcomes", MODEL, str(answer(testing, 2_000, gain=-0.8)))
    concluded = run("experiment", "conclude", MODEL, "--reason", "as planned", "--actor", "cleo")
    assert concluded.exit_code == 0, concluded.output
    assert "the champion is kept" in concluded.output
    entry = testing.ledger.timeline(MODEL)[-1]
    assert (entry.event, entry.phase, entry.actor) == ("abort", "aborted", "cleo")
    assert entry.reason.startswith("as planned: keep the champion. spent: the candidate is worse")
    again = run("experiment", "conclude", MODEL)
    assert again.exit_code == 1
    assert "is over" in again.output
    assert "aborted" in run("experiment", "status", MODEL).output


def test_an_open_experiment_is_concluded_by_a_person_only(testing: ReleaseControl) -> None:
    answer(testing, 300, gain=0.8)
    refused = run("experiment", "conclude", MODEL)
    assert refused.exit_code == 1
    assert "inconclusive" in refused.output
    assert "--promote or --keep" in refused.output
    before = testing.ledger.timeline(MODEL)
    for arguments in (("--promote",), ("--keep",), ("--keep", "--promote", "--reason", "both")):
        assert run("experiment", "conclude", MODEL, *arguments).exit_code == 2
    assert testing.ledger.timeline(MODEL) == before
    kept = run("experiment", "conclude", MODEL, "--keep", "--reason", "the season is over")
    assert kept.exit_code == 0, kept.output
    entry = testing.ledger.timeline(MODEL)[-1]
    assert entry.event == "abort"
    assert entry.reason.startswith("the season is over (decided by hand; the experiment said: go on")


def test_an_invalid_experiment_promotes_nothing_by_itself(testing: ReleaseControl) -> None:
    file = answer(testing, 2_000, gain=5.0)
    run("deliver", "outcomes", MODEL, str(file))
    release = testing.current()
    assert release is not None
    extra = log_rows(600, candidate=[False] * 600, began=BEGAN, generation=release.generation, release=release.id)
    write_rows(testing.settings, extra.assign(routing_key=[f"extra{n}" for n in range(600)]))
    told = run("experiment", "status", MODEL)
    assert "do not trust this experiment" in told.output
    assert run("experiment", "conclude", MODEL).exit_code == 1
    current = testing.current()
    assert current is not None
    assert not current.promote_now


def test_without_an_experiment_it_says_so(here: Settings) -> None:
    for verb in ("status", "conclude"):
        result = run("experiment", verb, MODEL)
        assert result.exit_code == 1
        assert "no experiment that has begun" in result.output
    plain = here.specs / f"{MODEL}.yaml"
    document = yaml.safe_load(plain.read_text())
    del document["experiment"]
    document["rollout"]["plan"] = "canary"
    plain.write_text(yaml.safe_dump(document))
    result = run("experiment", "plan", MODEL, "--baseline-mean", "1", "--baseline-sd", "1")
    assert result.exit_code == 1
    assert "declare its primary outcome" in result.output


def test_a_plan_is_made_of_what_is_given(here: Settings) -> None:
    arguments = ("experiment", "plan", MODEL, "--baseline-mean", "10", "--baseline-sd", "5", "--units-per-day", "1000")
    found = json.loads(run(*arguments, "--json").stdout)
    assert found["outcomes"][0]["units_once"] == 3140  # 126 for a fifth of the effect, 25 times as many
    assert found["days"] == pytest.approx(found["units"] / 1_000)
    assert "3,140 for one look" in run(*arguments).output
    fewer = json.loads(run(*arguments, "--correlation", "0.6", "--json").stdout)
    assert fewer["units"] == pytest.approx(found["units"] * 0.64, abs=2)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 1, "give its mean"),
        (("--baseline-mean", "10"), 2, "not a proportion"),
        (("--baseline-sd", "1"), 2, "goes with"),
        (("--baseline-mean", "0.7"), 1, "minimum_effect"),
        (("--baseline-mean", "nan", "--baseline-sd", "1"), 1, "mean of nan"),
        (("--baseline-mean", "1", "--baseline-sd", "0"), 1, "standard deviation of 0.0"),
        (("--baseline-mean", "1", "--baseline-sd", "1", "--units-per-day", "0"), 1, "units a day"),
    ],
)
def test_a_plan_of_nonsense_is_refused(here: Settings, arguments: tuple[str, ...], code: int, said: str) -> None:
    result = run("experiment", "plan", MODEL, *arguments)
    assert result.exit_code == code, result.output
    assert said in result.output


def test_labels_are_handed_in(here: Settings, tmp_path: Path) -> None:
    times = ["2026-03-01T06:00:00Z", "2026-03-01T06:00:00+02:00"]
    frame = pd.DataFrame({"visit": ["007", "8"], "bought": [1, 0], "known_at": times, "other": ["a", "b"]})
    frame.to_csv(tmp_path / "labels.csv", index=False)
    assert run("deliver", "labels", MODEL, str(tmp_path / "labels.csv")).exit_code == 0
    frame.assign(known_at=pd.to_datetime(times, utc=True)).to_parquet(tmp_path / "labels.parquet")
    files = sorted(here.labels.rglob("*"))
    assert run("deliver", "labels", MODEL, str(tmp_path / "labels.parquet")).exit_code == 0
    assert sorted(here.labels.rglob("*")) == files
    kept = pd.read_parquet(here.labels / MODEL / "day=2026-03-01").sort_values("key")
    assert kept["key"].tolist() == ["007", "8"]
    assert kept["label_time"].iloc[1] == pd.Timestamp("2026-03-01T04:00:00Z")
    assert labels.deliver(SPEC, here, frame.assign(known_at=pd.to_datetime(times, utc=True))) == 2


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "key,name,value,time\na,spent,1,2026-03-01 06:00\n", "no time zone"),
        ("a.csv", "key,name,value,time\na,spent,1,soonZ\n", "ISO 8601"),
        ("a.csv", "key,name,value,time\na,spent,much,2026-03-01T06:00:00Z\n", "not a number"),
        ("a.csv", "key,name,value,time\na,spent,,2026-03-01T06:00:00Z\n", "1 of 1"),
        ("a.csv", "key,name,value\na,spent,1\n", "lack the columns"),
        ("a.csv", "", "cannot be read"),
        ("a.parquet", "no parquet", "cannot be read"),
        ("a.xlsx", "", "neither .parquet nor .csv"),
    ],
)
def test_files_that_cannot_be_used_are_refused_whole(
    here: Settings, tmp_path: Path, name: str, text: str, said: str
) -> None:
    (tmp_path / name).write_text(text)
    result = run("deliver", "outcomes", MODEL, str(tmp_path / name))
    assert result.exit_code == 1, result.output
    assert said in result.output
    assert not here.outcomes.exists()
    assert run("deliver", "outcomes", MODEL, str(tmp_path / "missing.csv")).exit_code == 2
