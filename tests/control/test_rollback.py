"""Ways back: they need the ledger and one file, and leave nothing of what was taken back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from airlock.control import ReleaseControl
from airlock.core.errors import NotFound, NotPossible
from airlock.core.release import Phase
from airlock.settings import Settings
from tests.support.control import (
    CANARY,
    ERRORS,
    LABELS,
    FakeAliases,
    ejection,
    in_step,
    on_disk,
    opened,
    promoted,
)

MakeControl = Callable[..., ReleaseControl]


@pytest.mark.parametrize("step", CANARY)
@pytest.mark.parametrize("way", ["roll_back", "abort", "reject", "expire", "restore"])
def test_every_way_out_gives_all_traffic_to_the_champion(
    control: ReleaseControl, settings: Settings, step: str, way: str
) -> None:
    promoted(control, "1")
    release = in_step(control, "2", step)
    ways: dict[str, tuple[Callable[[], object], Phase]] = {
        "roll_back": (lambda: control.roll_back(release.id, reason="errors"), Phase.ROLLED_BACK),
        "abort": (lambda: control.abort(release.id, actor="ann", reason="errors"), Phase.ABORTED),
        "reject": (lambda: control.reject(release.id, actor="ann", reason="errors"), Phase.REJECTED),
        "expire": (lambda: control.expire(release.id, reason="errors"), Phase.REJECTED),
        "restore": (lambda: control.restore(release.id), Phase.ROLLED_BACK),
    }
    act, phase = ways[way]
    if way in {"reject", "expire"} and not step.startswith("canary"):
        with pytest.raises(NotPossible, match=f"cannot {way}"):
            act()
        return
    act()
    route = on_disk(settings)
    assert (route.weights, route.candidate, route.release, route.shadow) == ({"1": 100.0}, None, None, ())
    assert set(route.versions) == {"1"}
    ended = control.ledger.release(release.id)
    assert ended.phase is phase
    act()
    assert control.ledger.release(release.id) == ended
    assert on_disk(settings) == route
    assert [effect.release for effect in control.pending("record")][-1] == release.id


@pytest.mark.parametrize("way", ["roll_back", "abort", "reject", "expire"])
def test_what_has_no_traffic_yet_ends_without_a_new_route(
    control: ReleaseControl, settings: Settings, way: str
) -> None:
    promoted(control, "1")
    before = on_disk(settings)
    release = opened(control, "2")
    if way == "expire":
        control.expire(release.id, reason="nobody came")
    else:
        getattr(control, way)(release.id, actor="ann", reason="no")
    assert on_disk(settings) == before


def test_a_promoted_release_is_not_rolled_back_from_under_its_traffic(
    control: ReleaseControl, settings: Settings
) -> None:
    release = promoted(control, "1")
    with pytest.raises(NotPossible, match="airlock rollback m"):
        control.roll_back(release.id, reason="a late trigger")
    with pytest.raises(NotPossible, match="promoted cannot abort"):
        control.abort(release.id, actor="ann", reason="no")
    champion = control.ledger.champion("m")
    assert champion is not None
    assert champion.version == on_disk(settings).champion == "1"


def test_teardown_leaves_what_was_promoted(make_control: MakeControl) -> None:
    control = make_control(guards=[ERRORS, LABELS])
    release = promoted(control, "1")
    assert control.restore(release.id).phase is Phase.PROVISIONAL


def test_a_model_goes_one_step_back_by_hand_and_takes_a_canary_with_it(
    control: ReleaseControl, settings: Settings, aliases: FakeAliases
) -> None:
    promoted(control, "1")
    promoted(control, "2")
    release = in_step(control, "3", "warm_up")
    waiting = opened(control, "4")
    assert control.version_before() == "1"
    control.roll_back_model(None, actor="ann", reason="complaints")
    assert on_disk(settings).champion == "1"
    assert on_disk(settings).candidate is None
    assert set(on_disk(settings).versions) == {"1"}, "what was taken back is not kept warm"
    for each in (release, waiting):
        assert control.ledger.release(each.id).phase is Phase.ROLLED_BACK
    assert aliases.names == {"champion": "1"}
    with pytest.raises(NotFound, match="good ones: none"):
        control.roll_back_model(None, actor="ann", reason="again")


def test_a_model_goes_back_further_where_it_is_told_to(control: ReleaseControl, settings: Settings) -> None:
    for version in ("1", "2", "3"):
        promoted(control, version)
    with pytest.raises(NotFound, match=r"version 9 .* good ones: 2, 1"):
        control.roll_back_model("9", actor="ann", reason="typo")
    control.roll_back_model("1", actor="ann", reason="both are bad")
    assert on_disk(settings).champion == "1"


@pytest.mark.parametrize("to", [None, "2"])
def test_an_ejected_champion_is_the_one_step_that_is_gone_back(
    control: ReleaseControl, settings: Settings, to: str | None
) -> None:
    for version in ("1", "2"):
        promoted(control, version)
    bad = promoted(control, "3")
    settings.ejections.mkdir()
    (settings.ejections / "m.json").write_text(ejection(bad).model_dump_json())
    assert control.roll_back_model(to, actor="ann", reason="errors").champion == "2"
    assert on_disk(settings).champion == "2"
    assert control.roll_back_model(None, actor="ann", reason="again").champion == "1", "the next step is another one"


def test_the_last_good_version_is_always_loaded(control: ReleaseControl, settings: Settings) -> None:
    for version in ("1", "2"):
        promoted(control, version)
    release = opened(control, "3")
    for step in CANARY:
        control.enter(release.id, step)
        assert set(on_disk(settings).versions) == {"1", "2", "3"}
    control.abort(release.id, actor="ann", reason="no")
    assert set(on_disk(settings).versions) == {"1", "2"}


def test_a_provisional_champion_goes_back_to_the_last_good_version(
    make_control: MakeControl, settings: Settings
) -> None:
    promoted(make_control(), "1")
    control = make_control(guards=[ERRORS, LABELS])
    release = promoted(control, "2")
    later = in_step(control, "3")
    assert control.roll_back(release.id, reason="labels").phase is Phase.ROLLED_BACK
    assert on_disk(settings).weights == {"1": 100.0}
    assert control.ledger.release(later.id).phase is Phase.ROLLED_BACK, "it was compared with a bad version"
    assert [effect.release for effect in control.pending("champion_asset")][-1] == release.id


def test_by_hand_a_model_leaves_a_provisional_champion_too(make_control: MakeControl, settings: Settings) -> None:
    control = make_control(guards=[ERRORS, LABELS])
    promoted(control, "1")
    promoted(control, "2")
    control.roll_back_model(None, actor="ann", reason="complaints")
    assert on_disk(settings).champion == "1"


def test_a_first_version_has_nothing_to_go_back_to(make_control: MakeControl, settings: Settings) -> None:
    control = make_control(guards=[ERRORS, LABELS])
    release = promoted(control, "1")
    with pytest.raises(NotFound, match="good ones: none"):
        control.roll_back(release.id, reason="labels")
    assert on_disk(settings).champion == "1"


def test_a_provisional_version_that_was_succeeded_goes_without_touching_who_answers(
    make_control: MakeControl, settings: Settings
) -> None:
    control = make_control(guards=[ERRORS, LABELS])
    for version in ("1", "2", "3"):
        promoted(control, version)
    candidate = in_step(control, "4")
    second = next(release for release in control.ledger.releases("m") if release.version == "2")
    assert control.roll_back(second.id, reason="its labels came, and were bad").phase is Phase.ROLLED_BACK
    route = on_disk(settings)
    assert route.weights == {"3": 95.0, "4": 5.0}
    assert "2" not in route.versions
    assert control.ledger.release(candidate.id).generation == route.generation, "its gateway is still believed"


def test_rollback_completes_while_mlflow_is_down_and_the_alias_follows(
    control: ReleaseControl, settings: Settings, aliases: FakeAliases
) -> None:
    promoted(control, "1")
    promoted(control, "2")
    aliases.down = True
    control.roll_back_model(None, actor="ann", reason="errors")
    assert on_disk(settings).champion == "1"
    assert aliases.names["champion"] == "2"
    assert control.pending("aliases")
    aliases.down = False
    control.catch_up()
    assert aliases.names["champion"] == "1"
    assert not control.pending("aliases")
