"""Labels that come late: a version is taken back or confirmed, and the champion's change is told."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from airlock import assets, steps
from airlock.control import ReleaseControl
from airlock.core.errors import SpecError
from airlock.core.release import Phase, Release
from airlock.core.spec import ModelSpec
from airlock.core.tally import LateEvidence, Sums
from airlock.core.verdict import Status, Verdict
from airlock.ledger import Ledger
from airlock.operators.labels import JudgeLabelsOperator
from tests.support.operator_world import HELD, opened, shares

Make = Callable[..., dict[str, Any]]
Respec = Callable[[str], None]
UNTIL = "2026-01-02T00:00:00+00:00"

pytestmark = pytest.mark.usefixtures("versions")


@pytest.fixture
def labels(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What has come: 2,000 labels, each of which the version missed by ``error``."""
    said: dict[str, Any] = {"error": 0.1, "labelled": 2000, "asked": []}

    def late(*given: Any, until: datetime) -> LateEvidence:
        *_, release, champion = given
        said["asked"].append((release.version, champion, until))
        n, error = said["labelled"], said["error"]
        sums = Sums(n=n, total=n * error, squares=n * error**2 * 1.01)
        return LateEvidence(until=until, answers=2400, due=2000, labelled=n, observations={"label_mae": sums})

    monkeypatch.setattr(steps, "evidence", SimpleNamespace(late_evidence=late), raising=False)
    return said


@pytest.fixture
def provisional(champion: Release, control: ReleaseControl, respec: Respec) -> Release:
    """Version 2 is the champion until its labels say otherwise."""
    respec("guards: [{kind: error_rate, max: 0.2, min_requests: 5}, {kind: label_metric, metric: mae, max: 0.5}]")
    release = opened(control, "2")
    for step in ("warm_up", "shadow", "canary_5", "canary_100"):
        control.enter(release.id, step)
    standing = control.ledger.release(release.id)
    unknown = Verdict(name="label_mae", status=Status.INCONCLUSIVE, reason="no label yet")
    control.ledger.record(standing, [HELD, unknown], step="canary_100", now=standing.entered_at)
    return control.promote(release.id)


def judged(context: dict[str, Any]) -> list[dict[str, Any]]:
    outlet = assets.champion_changes("toy")
    dag = DAG("toy__monitor", schedule=None)
    task = JudgeLabelsOperator(task_id="judge_labels", dag=dag, model="toy", until=UNTIL, outlets=[outlet])
    said = task.execute(context)  # type: ignore[arg-type]
    assert said["until"] == UNTIL
    return list(said["judged"])


def announced(context: dict[str, Any]) -> list[dict[str, Any]]:
    return [event.extra for event in context["outlet_events"][assets.champion_changes("toy")].asset_alias_events]


def test_a_provisional_champion_that_misses_is_rolled_back_late(
    provisional: Release, labels: dict[str, Any], make_context: Make, ledger: Ledger, home: Path
) -> None:
    assert provisional.phase is Phase.PROVISIONAL
    labels["error"] = 4.0
    context = make_context()
    (said,) = judged(context)
    assert (said["version"], said["action"], said["share"]) == ("2", "roll_back", 1.0)
    assert ledger.release(provisional.id).phase is Phase.ROLLED_BACK
    assert shares(home) == {"1": 100}
    (event,) = announced(context)
    assert event["version"] == "1"
    assert "absolute error is 4 in the mean" in event["reason"]
    assert labels["asked"] == [("2", "1", datetime(2026, 1, 2, tzinfo=UTC))]
    assert judged(make_context()) == [], "it is over"


def test_one_whose_labels_have_matured_is_confirmed(
    provisional: Release, labels: dict[str, Any], make_context: Make, ledger: Ledger, home: Path
) -> None:
    context = make_context()
    (said,) = judged(context)
    assert said["action"] == "advance"
    assert ledger.release(provisional.id).phase is Phase.PROMOTED
    assert shares(home) == {"2": 100}
    assert announced(context) == []


def test_too_few_labels_decide_nothing(
    provisional: Release, labels: dict[str, Any], make_context: Make, ledger: Ledger
) -> None:
    labels["labelled"] = 20
    (said,) = judged(make_context())
    assert (said["action"], said["due"], said["labelled"]) == ("wait", 2000, 20)
    assert ledger.release(provisional.id).phase is Phase.PROVISIONAL


def test_a_release_on_its_way_is_judged_too(
    provisional: Release,
    labels: dict[str, Any],
    make_context: Make,
    ledger: Ledger,
    control: ReleaseControl,
    home: Path,
) -> None:
    judged(make_context())
    release = opened(control, "3")
    control.enter(release.id, "warm_up")
    control.enter(release.id, "canary_5")
    labels["error"] = 4.0
    context = make_context()
    (said,) = judged(context)
    assert (said["version"], said["action"]) == ("3", "roll_back")
    assert shares(home) == {"2": 100}
    assert announced(context) == [], "the champion is as it was"


def test_a_release_that_cannot_be_judged_keeps_no_other_from_it(
    provisional: Release,
    labels: dict[str, Any],
    make_context: Make,
    ledger: Ledger,
    control: ReleaseControl,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = opened(control, "3")
    control.enter(release.id, "warm_up")
    spec_of = ReleaseControl.spec_of

    def unreadable(control: ReleaseControl, looked_at: Release) -> ModelSpec:
        if looked_at.id == release.id:
            raise SpecError("it cannot be read")
        return spec_of(control, looked_at)

    monkeypatch.setattr(ReleaseControl, "spec_of", unreadable)
    labels["error"] = 4.0
    with pytest.raises(AirflowFailException, match="it cannot be read"):
        judged(make_context())
    assert ledger.release(provisional.id).phase is Phase.ROLLED_BACK


def test_without_guards_on_labels_nothing_is_read(
    champion: Release, labels: dict[str, Any], make_context: Make
) -> None:
    assert judged(make_context()) == []
    assert labels["asked"] == []
