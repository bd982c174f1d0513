"""Release control on a real ledger and real route files: idempotent, fenced, never without a champion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from airlock.control import ReleaseControl
from airlock.control.projection import project_route
from airlock.core.errors import Conflict, NotFound, Unavailable
from airlock.core.refs import BentoRef
from airlock.core.release import Event, Phase, Release
from airlock.core.route import Route, parse_route
from airlock.core.spec import ModelSpec
from airlock.core.verdict import Status, Verdict
from airlock.ledger import Ledger
from airlock.settings import Settings


@dataclass
class Clock:
    now: datetime = datetime(2013, 4, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


@dataclass
class FakeAliases:
    names: dict[str, str] = field(default_factory=dict)
    down: bool = False

    def set_alias(self, model: str, alias: str, version: str) -> None:
        if self.down:
            raise Unavailable("MLflow does not answer")
        self.names[alias] = version

    def clear_alias(self, model: str, alias: str, version: str) -> None:
        if self.names.get(alias) == version:
            del self.names[alias]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        project=tmp_path,
        home=tmp_path,
        mlflow_url="http://127.0.0.1:1",
        gateway_url="http://127.0.0.1:1",
        airflow_url="http://127.0.0.1:1",
        ledger_url=f"sqlite:///{tmp_path / 'ledger.db'}",
    )


@pytest.fixture
def aliases() -> FakeAliases:
    return FakeAliases()


@pytest.fixture
def control(settings: Settings, aliases: FakeAliases) -> ReleaseControl:
    spec = ModelSpec.model_validate(
        {
            "model": "m",
            "task": "classification",
            "data": {"key": "id", "event_time": "t"},
            "label": {"name": "y"},
            "inputs": {"x": "float"},
            "gates": [{"kind": "finite"}],
        }
    )
    return ReleaseControl(spec, settings, Ledger(settings.ledger_url), aliases=aliases, clock=Clock())


def bento(version: str) -> BentoRef:
    return BentoRef(
        path=f"/b/{version}", digest="sha256:" + version * 64, model="m", version=version, tag=f"m:v{version}"
    )


def opened(control: ReleaseControl, version: str) -> Release:
    release = control.open(version, bento(version), actor="ann", key=f"release-{version}")
    return control.approve(release.id, actor="bob", reason="looks good")


def promoted(control: ReleaseControl, version: str) -> Release:
    release = opened(control, version)
    if control.ledger.champion("m") is not None:
        for step in ("warm_up", "shadow", "canary_5", "canary_25", "canary_50", "canary_100"):
            control.enter(release.id, step)
        held(control, release)
    return control.promote(release.id)


def held(control: ReleaseControl, release: Release, status: Status = Status.PASS) -> None:
    """Keep a verdict of the step that the release stands in."""
    standing = control.ledger.release(release.id)
    verdict = Verdict(name="errors", status=status, reason="0 of 800 requests failed")
    control.ledger.record(standing, [verdict], step=str(standing.step), now=standing.entered_at)


def on_disk(settings: Settings) -> Route:
    return parse_route((settings.routes / "m.json").read_bytes())


def test_the_first_version_is_promoted_without_a_comparison(control: ReleaseControl, settings: Settings) -> None:
    release = promoted(control, "1")
    assert release.phase is Phase.PROMOTED
    assert on_disk(settings).weights == {"1": 100.0}


def test_shares_follow_the_steps_and_always_add_up(control: ReleaseControl, settings: Settings) -> None:
    promoted(control, "1")
    release = opened(control, "2")
    seen = []
    for step in ("warm_up", "shadow", "canary_5", "canary_25", "canary_50", "canary_100"):
        control.enter(release.id, step)
        route = on_disk(settings)
        seen.append((route.weights["2"], route.shadow))
        assert sum(route.weights.values()) == 100
        assert route.champion == "1"
    assert seen == [(0, ()), (0, ("2",)), (5, ()), (25, ()), (50, ()), (100, ())]
    held(control, release)
    control.promote(release.id)
    assert on_disk(settings).champion == "2"
    assert set(on_disk(settings).versions) == {"1", "2"}, "the former champion stays loaded for the way back"


REPEATED: dict[str, Callable[[ReleaseControl, Release], object]] = {
    "open": lambda control, release: control.open("2", bento("2"), actor="ann", key="release-2"),
    "approve": lambda control, release: control.approve(release.id, actor="bob", reason="again"),
    "enter": lambda control, release: control.enter(release.id, "warm_up"),
}


@pytest.mark.parametrize("action", REPEATED)
def test_doing_it_twice_changes_nothing(control: ReleaseControl, settings: Settings, action: str) -> None:
    promoted(control, "1")
    release = opened(control, "2")
    control.enter(release.id, "warm_up")
    before = (control.ledger.release(release.id), len(control.ledger.timeline("m")), on_disk(settings))
    REPEATED[action](control, release)
    assert (control.ledger.release(release.id), len(control.ledger.timeline("m")), on_disk(settings)) == before


def test_a_lost_route_file_is_written_again_by_the_retry(control: ReleaseControl, settings: Settings) -> None:
    promoted(control, "1")
    release = opened(control, "2")
    control.enter(release.id, "warm_up")
    (settings.routes / "m.json").write_text("{ torn")
    control.enter(release.id, "warm_up")
    assert on_disk(settings) == control.ledger.route("m")


def test_an_older_document_never_replaces_a_newer_one(control: ReleaseControl, settings: Settings) -> None:
    promoted(control, "1")
    first = on_disk(settings)
    promoted(control, "2")
    newest = on_disk(settings)
    assert project_route(settings.routes, first) is False
    assert on_disk(settings) == newest


def test_promotion_before_the_last_step_is_refused(control: ReleaseControl) -> None:
    promoted(control, "1")
    release = opened(control, "2")
    control.enter(release.id, "warm_up")
    with pytest.raises(Conflict, match="after canary_100 only"):
        control.promote(release.id)


@pytest.mark.parametrize("found", [None, Status.INCONCLUSIVE, Status.ERROR, Status.FAIL])
def test_a_last_step_that_was_only_entered_promotes_nothing(
    control: ReleaseControl, settings: Settings, found: Status | None
) -> None:
    promoted(control, "1")
    release = opened(control, "2")
    control.enter(release.id, "warm_up")
    control.enter(release.id, "canary_100")
    if found is not None:
        held(control, release, found)
    with pytest.raises(Conflict, match="not let through canary_100"):
        control.promote(release.id)
    assert on_disk(settings).champion == "1"


def test_evidence_of_an_earlier_pass_through_a_step_does_not_count(control: ReleaseControl) -> None:
    promoted(control, "1")
    release = opened(control, "2")
    control.enter(release.id, "warm_up")
    control.enter(release.id, "canary_100")
    held(control, release)
    control.enter(release.id, "canary_5")
    control.enter(release.id, "canary_100")
    with pytest.raises(Conflict, match="not let through canary_100"):
        control.promote(release.id)


def test_a_promoted_release_is_not_rolled_back_from_under_its_traffic(
    control: ReleaseControl, settings: Settings
) -> None:
    release = promoted(control, "1")
    with pytest.raises(Conflict, match="airlock rollback m"):
        control.roll_back(release.id, reason="a late trigger")
    champion = control.ledger.champion("m")
    assert champion is not None
    assert champion.version == on_disk(settings).champion == "1"


def test_a_step_of_a_promoted_release_says_that_it_was_promoted(control: ReleaseControl) -> None:
    release = promoted(control, "1")
    with pytest.raises(Conflict, match="promoted cannot step"):
        control.enter(release.id, "canary_5")


def test_a_release_that_has_ended_is_not_approved(control: ReleaseControl) -> None:
    release = control.open("1", bento("1"), actor="ann", key="k")
    control.reject(release.id, actor="bob", reason="no")
    with pytest.raises(Conflict, match="rejected cannot approve"):
        control.approve(release.id, actor="eve", reason="late")


def test_a_rejected_release_gets_no_traffic(control: ReleaseControl) -> None:
    promoted(control, "1")
    release = control.open("2", bento("2"), actor="ann", key="k")
    control.reject(release.id, actor="bob", reason="no")
    with pytest.raises(Conflict, match="rejected cannot warm_up"):
        control.enter(release.id, "warm_up")


def test_two_releases_at_once_are_refused(control: ReleaseControl) -> None:
    promoted(control, "1")
    first, second = opened(control, "2"), opened(control, "3")
    control.enter(first.id, "warm_up")
    with pytest.raises(Conflict, match="on its way"):
        control.enter(second.id, "warm_up")


def test_two_controllers_that_decide_on_the_same_state_have_one_winner(control: ReleaseControl) -> None:
    release = control.open("1", bento("1"), actor="ann", key="k")
    now = datetime(2013, 4, 1, tzinfo=UTC)
    control.ledger.transition(release, Event.APPROVE, actor="bob", reason="yes", now=now)
    with pytest.raises(Conflict, match="decide again"):
        control.ledger.transition(release, Event.REJECT, actor="eve", reason="no", now=now)
    assert control.ledger.release(release.id).phase is Phase.APPROVED


@pytest.mark.parametrize("last_step", ["warm_up", "shadow", "canary_25"])
def test_rollback_gives_all_traffic_to_the_champion(
    control: ReleaseControl, settings: Settings, last_step: str
) -> None:
    promoted(control, "1")
    release = opened(control, "2")
    for step in ("warm_up", "shadow", "canary_5", "canary_25"):
        control.enter(release.id, step)
        if step == last_step:
            break
    control.roll_back(release.id, reason="errors")
    assert on_disk(settings).weights == {"1": 100.0}
    assert on_disk(settings).candidate is None
    assert control.ledger.release(release.id).phase is Phase.ROLLED_BACK
    assert control.roll_back(release.id, reason="again").reason == "errors"


def test_teardown_restores_what_was_not_promoted_and_leaves_what_was(
    control: ReleaseControl, settings: Settings
) -> None:
    first = promoted(control, "1")
    assert control.restore(first.id).phase is Phase.PROMOTED
    release = opened(control, "2")
    control.enter(release.id, "warm_up")
    control.enter(release.id, "canary_5")
    assert control.restore(release.id).phase is Phase.ROLLED_BACK
    assert on_disk(settings).weights == {"1": 100.0}


def test_a_model_goes_one_step_back_by_hand_and_takes_a_canary_with_it(
    control: ReleaseControl, settings: Settings, aliases: FakeAliases
) -> None:
    promoted(control, "1")
    promoted(control, "2")
    release = opened(control, "3")
    control.enter(release.id, "warm_up")
    control.roll_back_model(None, actor="ann", reason="complaints")
    assert on_disk(settings).champion == "1"
    assert on_disk(settings).candidate is None
    assert control.ledger.release(release.id).phase is Phase.ROLLED_BACK
    assert aliases.names == {"champion": "1"}
    with pytest.raises(NotFound, match="good ones: none"):
        control.roll_back_model(None, actor="ann", reason="again")


def test_a_version_that_was_never_good_is_refused_with_the_good_ones(control: ReleaseControl) -> None:
    promoted(control, "1")
    promoted(control, "2")
    with pytest.raises(NotFound, match=r"version 9 .* good ones: 1"):
        control.roll_back_model("9", actor="ann", reason="typo")


def test_rollback_completes_while_mlflow_is_down(
    control: ReleaseControl, settings: Settings, aliases: FakeAliases
) -> None:
    promoted(control, "1")
    release = opened(control, "2")
    control.enter(release.id, "warm_up")
    aliases.down = True
    control.roll_back(release.id, reason="errors")
    assert on_disk(settings).candidate is None
    assert "alias_pending" in [entry.event for entry in control.ledger.timeline("m")]


def test_the_timeline_tells_the_release_in_order(control: ReleaseControl) -> None:
    promoted(control, "1")
    events = [(entry.event, entry.actor) for entry in control.ledger.timeline("m")]
    assert events == [("open", "ann"), ("approve", "bob"), ("warm_up", "airlock"), ("promote", "airlock")]
