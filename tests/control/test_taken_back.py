"""A version that the gateway ejects, or whose guards fail, after it was let on: whoever comes next takes it back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

from airlock.control import ReleaseControl
from airlock.core.decide import EJECTED, Evidence
from airlock.core.errors import NotPossible, NotYet, Unavailable
from airlock.core.release import Phase, Release
from airlock.core.segment import Condition, Pin
from airlock.core.verdict import Status
from airlock.settings import Settings
from tests.support.control import (
    ERRORS,
    FINITE,
    LABELS,
    bento,
    ejection,
    held,
    in_step,
    labels,
    on_disk,
    promoted,
    seen,
)


def eject(settings: Settings, release: Release) -> None:
    """Write down what a gateway does that has just ejected the release."""
    settings.ejections.mkdir(exist_ok=True)
    (settings.ejections / "m.json").write_text(ejection(release).model_dump_json())


Act = Callable[[ReleaseControl, str, Evidence], object]
GOES_ON: dict[str, tuple[str, Act]] = {
    "enters": ("canary_5", lambda control, release, evidence: control.enter(release, "canary_100", evidence)),
    "enters once more": ("canary_5", lambda control, release, evidence: control.enter(release, "canary_5", evidence)),
    "promotes": ("canary_100", lambda control, release, evidence: control.promote(release, evidence)),
    "completes": ("shadow", lambda control, release, evidence: control.complete(release, evidence)),
}


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("how", ["written down", "told", "a guard failed", "labels"])
@pytest.mark.parametrize("act", sorted(GOES_ON))
def test_whoever_would_go_on_takes_a_failed_version_back_instead(
    make_control: Callable[..., ReleaseControl], settings: Settings, act: str, how: str, paused: bool
) -> None:
    """Its step was passed before: what counts is what is known when it would go on."""
    control = make_control(guards=(ERRORS, LABELS))
    promoted(control, "1")
    step, goes_on = GOES_ON[act]
    release = in_step(control, "2", step)
    held(control, release)
    if paused:
        control.pause(release.id, actor="ann", reason="look")
    evidence = {
        "written down": Evidence(gateway=None),
        "told": Evidence(gateway=seen(on_disk(settings), ejection=ejection(release))),
        "a guard failed": Evidence(gateway=seen(on_disk(settings), good=150, failed=60)),
        "labels": Evidence(gateway=seen(on_disk(settings)), late=labels(0.9)),
    }[how]
    if how == "written down":
        eject(settings, release)
    with pytest.raises(NotPossible, match="of version 2 is rolled back: ") as refused:
        goes_on(control, release.id, evidence)
    assert not isinstance(refused.value, NotYet), "nothing is waited for"
    ended = control.ledger.release(release.id)
    assert ended.phase is Phase.ROLLED_BACK
    assert on_disk(settings).weights == {"1": 100.0}
    last = [entry for entry in control.ledger.timeline("m") if entry.release == release.id][-1]
    assert (last.event, last.step) == ("roll_back", None)
    assert last.reason == ended.reason
    assert ended.reason in str(refused.value)
    assert Status.FAIL in {verdict.status for at, verdict in control.ledger.verdicts(release.id) if at == step}


def test_whoever_comes_to_the_ledger_first_writes_an_ejection_down(control: ReleaseControl, settings: Settings) -> None:
    """Steering, a vote, the next candidate: each takes a turn, and that ends what was ejected."""
    promoted(control, "1")
    acts: list[Callable[[Release], object]] = [
        lambda release: control.resume(release.id, actor="ann", reason="go on"),
        lambda release: control.promote_now(release.id, actor="ann", reason="go on"),
        lambda release: control.pin(
            Pin(name="beta", when=(Condition(attribute="a", values=(1,)),), version="1"), actor="ann", reason="try"
        ),
        lambda _: control.open("9", bento("9"), actor="ann", key="nine", verdicts=(FINITE,)),
    ]
    for version, act in enumerate(acts, start=2):
        release = in_step(control, str(version))
        eject(settings, release)
        with suppress(NotPossible):
            act(release)
        ended = control.ledger.release(release.id)
        assert (ended.phase, ended.reason) == (
            Phase.ROLLED_BACK, f"the gateway ejected version {version}: 9 of 50 requests failed",
        )  # fmt: skip


def test_a_promotion_that_crossed_an_ejection_is_taken_back_by_the_next_turn(
    control: ReleaseControl, settings: Settings
) -> None:
    promoted(control, "1")
    release = promoted(control, "2")
    eject(settings, release)
    control.restore(release.id)
    assert control.ledger.release(release.id).phase is Phase.ROLLED_BACK
    assert on_disk(settings).weights == {"1": 100.0}


def test_an_ejected_first_version_has_nowhere_to_go_back_to(control: ReleaseControl, settings: Settings) -> None:
    release = promoted(control, "1")
    eject(settings, release)
    for _ in "abc":
        assert control.restore(release.id).phase is Phase.PROMOTED
    found = [verdict.status for _, verdict in control.ledger.verdicts(release.id) if verdict.name == EJECTED]
    assert found == [Status.FAIL], "one cause is kept once"


@pytest.mark.parametrize("how", ["abort", "reject", "expire", "confirm"])
def test_who_is_too_late_to_end_a_release_is_told_why_it_has_ended(
    control: ReleaseControl, settings: Settings, how: str
) -> None:
    promoted(control, "1")
    release = in_step(control, "2", "canary_5")
    eject(settings, release)
    actor = {"abort": {"actor": "ann"}, "reject": {"actor": "ann"}}.get(how, {})
    with pytest.raises(NotPossible, match="version 2 is rolled back: the gateway ejected version 2: 9 of 50 requests"):
        getattr(control, how)(release.id, reason="enough", **actor)


def test_what_is_looked_at_writes_nothing_while_nothing_failed(control: ReleaseControl, settings: Settings) -> None:
    promoted(control, "1")
    release = in_step(control, "2")
    eject(settings, release.model_copy(update={"id": "another"}))
    told = len(control.ledger.timeline("m"))
    assert control.guard(Evidence(gateway=seen(on_disk(settings)))) is None
    assert control.guard(Evidence(gateway=None)) is None
    assert (control.ledger.release(release.id), len(control.ledger.timeline("m"))) == (release, told)


def test_who_cannot_know_whether_it_was_ejected_puts_nothing_on_traffic(
    control: ReleaseControl, settings: Settings
) -> None:
    promoted(control, "1")
    release = in_step(control, "2", "canary_5")
    settings.ejections.mkdir()
    written = settings.ejections / "m.json"
    written.write_text("{ torn")
    with pytest.raises(NotPossible, match="does not say what the gateway ejected"):
        control.enter(release.id, "canary_100")
    written.unlink()
    written.mkdir()
    with pytest.raises(Unavailable, match="cannot be read"):
        control.enter(release.id, "canary_100")
    assert control.roll_back(release.id, reason="back").phase is Phase.ROLLED_BACK, "no way back depends on it"
