"""A release goes by the spec that it was opened with, whatever becomes of the file meanwhile."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from airlock.control import ReleaseControl
from airlock.control.reconcile import reconcile
from airlock.core.decide import Evidence
from airlock.core.errors import ArtifactCorrupt, NotFound, SpecError
from airlock.core.release import Phase
from airlock.core.segment import Condition, Pin
from airlock.core.spec import KEPT, ModelSpec
from airlock.core.verdict import Status, Verdict
from airlock.ledger import Ledger
from airlock.settings import Settings
from tests.support.control import (
    ERRORS,
    FINITE,
    Clock,
    FakeAliases,
    bento,
    held,
    in_step,
    on_disk,
    promoted,
    seen,
    spec_of,
)

MakeControl = Callable[..., ReleaseControl]
LATENCY = {"kind": "latency", "max_p99_ms": 20, "min_requests": 20}


@pytest.fixture
def file(settings: Settings) -> Path:
    """The project's spec of ``m``, as ``spec_of()`` has it."""
    settings.specs.mkdir(parents=True)
    path = settings.specs / "m.yaml"
    written(path, spec_of())
    return path


def written(path: Path, spec: ModelSpec) -> None:
    path.write_text(yaml.safe_dump(json.loads(spec.model_dump_json(exclude_defaults=True))))


@pytest.fixture
def named(settings: Settings, aliases: FakeAliases, clock: Clock) -> Callable[[], ReleaseControl]:
    """A controller that knows the model's name alone, as the command line makes one."""
    return lambda: ReleaseControl(
        "m", settings, Ledger(settings.ledger_url), aliases=aliases, clock=clock, patience=Clock.patience
    )


def test_the_ledger_keeps_the_spec_that_a_release_was_opened_with(control: ReleaseControl) -> None:
    release = promoted(control, "1")
    assert release.spec == control.spec.digest
    assert control.ledger.spec(str(release.spec)) == control.spec
    assert in_step(control, "2").spec == release.spec, "the same spec is kept once"


def test_a_spec_that_was_changed_in_the_ledger_is_not_used(control: ReleaseControl, settings: Settings) -> None:
    release = promoted(control, "1")
    with sqlite3.connect(settings.home / "ledger.db") as database:
        database.execute("UPDATE specs SET document = replace(document, '0.05', '0.5')")
    with pytest.raises(ArtifactCorrupt, match="was changed since it was written"):
        control.ledger.spec(str(release.spec))
    with pytest.raises(NotFound, match="no spec sha256:0"):
        control.ledger.spec("sha256:0")


def test_a_spec_that_this_version_cannot_read_is_told_with_what_to_do(
    control: ReleaseControl, settings: Settings
) -> None:
    promoted(control, "1")
    with sqlite3.connect(settings.home / "ledger.db") as database:
        database.execute("INSERT INTO specs VALUES ('sha256:' || ?, '{}', '2013-04-01')", (_sha("{}"),))
    with pytest.raises(SpecError, match="another version of Airlock"):
        control.ledger.spec(f"sha256:{_sha('{}')}")


def test_a_kept_spec_whose_parts_would_be_refused_together_by_now_stays_readable(control: ReleaseControl) -> None:
    promoted(control, "1")
    shifts = [{"kind": "prediction_shift", "max_mean": 0.1, "min_requests": 50, "range": [0, top]} for top in (1, 2)]
    former = {**json.loads(spec_of().model_dump_json()), "task": "regression", "guards": shifts}
    with pytest.raises(ValidationError, match="share one range"):
        ModelSpec.model_validate(former)
    document = ModelSpec.model_validate(former, context=KEPT).model_dump_json()
    digest = f"sha256:{_sha(document)}"
    with sqlite3.connect(control.settings.home / "ledger.db") as database:
        database.execute("INSERT INTO specs VALUES (?, ?, '2013-04-01')", (digest, document))
    assert [guard.kind for guard in control.ledger.spec(digest).guards] == ["prediction_shift"] * 2
    assert control.ledger.spec(digest).digest == digest


def test_a_release_whose_kept_spec_is_unusable_stops_no_repair_and_is_not_let_on(
    named: Callable[[], ReleaseControl], file: Path, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    promoted(named(), "1")
    release = in_step(named(), "2")
    with sqlite3.connect(settings.home / "ledger.db") as database:
        database.execute("UPDATE specs SET document = replace(document, '0.05', '0.5')")
    (settings.routes / "m.json").unlink()
    repairs = reconcile(named(), status=lambda: None, run_state=lambda _: "running", now=release.entered_at)
    found = {repair.kind: repair for repair in repairs}
    assert (found["spec"].done, found["spec"].release, found["route"].done) == (False, release.id, True)
    assert "cannot be judged" in found["spec"].what
    assert named().guard(Evidence(gateway=None)) is None
    assert f"release {release.id} cannot be judged" in caplog.text
    with pytest.raises(ArtifactCorrupt, match="airlock abort MODEL"):
        named().enter(release.id, "canary_100")
    assert named().abort(release.id, actor="ann", reason="no spec").phase is Phase.ABORTED
    assert on_disk(settings).weights == {"1": 100.0}


def _sha(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


def test_a_release_is_judged_by_what_it_was_opened_with(make_control: MakeControl, settings: Settings) -> None:
    promoted(make_control(), "1")
    release = in_step(make_control(), "2")
    stricter = make_control(guards=[ERRORS, LATENCY], approvals={"required": 2, "before": "promotion"})
    assert stricter.observe(release.id, seen(on_disk(settings))).action == "advance"
    stricter.enter(release.id, "canary_100")
    assert [limit.name for limit in on_disk(settings).limits] == ["error_rate"]
    held(make_control(), release)
    assert stricter.promote(release.id).phase is Phase.PROMOTED, "nor are people asked who were not to be asked"
    assert stricter.ledger.champion("m").version == "2"  # type: ignore[union-attr]
    third = in_step(make_control(), "3")
    lenient = make_control(guards=[{**ERRORS, "max": 0.5}], rollout={"deadline": "9h"})
    decision = lenient.observe(third.id, seen(on_disk(settings), good=150, failed=50))
    assert decision.action == "roll_back", "a bound that was loosened meanwhile is for the next release"


def test_a_gate_that_is_declared_while_a_release_is_open_is_for_the_next_one(make_control: MakeControl) -> None:
    promoted(make_control(), "1")
    release = in_step(make_control(), "2", "warm_up")
    more = make_control(gates=[{"kind": "finite"}, {"kind": "onnx_parity"}])
    assert more.enter(release.id, "shadow").phase is Phase.SHADOW


def test_steps_are_those_of_the_release(make_control: MakeControl) -> None:
    promoted(make_control(), "1")
    release = in_step(make_control(), "2", "shadow")
    step = {"bake": "5s", "min_requests": 30}
    other = make_control(rollout={"steps": [{"weight": 10, **step}, {"weight": 100, **step}]})
    with pytest.raises(NotFound, match="it has the steps warm_up, shadow, canary_5, canary_100; this task"):
        other.enter(release.id, "canary_10")
    assert other.enter(release.id, "canary_5").step == "canary_5"


@pytest.mark.parametrize("damage", ["broken", "gone"])
def test_everything_about_an_open_release_works_without_its_file(
    named: Callable[[], ReleaseControl], file: Path, settings: Settings, damage: str
) -> None:
    promoted(named(), "1")
    promoted(named(), "2")
    release = in_step(named(), "3")
    if damage == "broken":
        file.write_text("model: m\n\tgates: [")
    else:
        file.unlink()
    control = named()
    who = {"actor": "ann", "reason": "because"}
    assert control.pause(release.id, **who).paused
    assert not control.resume(release.id, **who).paused
    assert control.extend(release.id, timedelta(minutes=1), **who).extended >= timedelta(minutes=1)
    pin = Pin(name="p", when=(Condition(attribute="x", values=(1,)),), version="1")
    assert control.pin(pin, **who).pins == (pin,)
    assert not control.unpin("p", **who).pins
    assert control.observe(release.id, seen(on_disk(settings))).action == "advance"
    assert control.enter(release.id, "canary_100").step == "canary_100"
    assert control.abort(release.id, **who).phase is Phase.ABORTED
    assert control.roll_back_model(None, **who).champion == "1"
    assert on_disk(settings).champion == "1"
    with pytest.raises((SpecError, NotFound)):
        control.open("4", bento("4"), actor="ann", key="4", verdicts=(FINITE,))


def test_a_broken_file_stops_no_repair(named: Callable[[], ReleaseControl], file: Path, settings: Settings) -> None:
    promoted(named(), "1")
    release = in_step(named(), "2")
    file.write_text("[")
    (settings.routes / "m.json").unlink()
    repairs = reconcile(
        named(), status=lambda: None, run_state=lambda _: "running", now=release.entered_at, dry_run=False
    )
    found = {repair.kind: repair for repair in repairs}
    assert found["route"].done
    assert "m.yaml" in found["spec"].what
    assert on_disk(settings).candidate == "2"


def test_a_file_that_differs_from_what_a_release_is_held_to_is_told(
    named: Callable[[], ReleaseControl], file: Path
) -> None:
    promoted(named(), "1")
    release = in_step(named(), "2")
    assert named().spec_note(release) is None
    file.write_text(f"# a comment\n{file.read_text()}")
    assert named().spec_note(release) is None
    written(file, spec_of(guards=[ERRORS, LATENCY], owner="somebody else"))
    note = named().spec_note(release)
    assert note is not None
    assert "owner, guards in the file changed since" in note
    assert "for the next release" in note
    file.write_text("[")
    assert "cannot be compared" in str(named().spec_note(release))


def test_a_release_from_before_specs_were_kept_goes_by_the_file(
    named: Callable[[], ReleaseControl], file: Path, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    promoted(named(), "1")
    release = in_step(named(), "2")
    with sqlite3.connect(settings.home / "ledger.db") as database:
        database.execute("UPDATE releases SET spec = NULL")
    written(file, spec_of(guards=[{**ERRORS, "max": 0.5}, LATENCY]))
    old = named().ledger.release(release.id)
    assert named().spec_of(old).guards[0].max == 0.5  # type: ignore[union-attr]
    assert "held to the file as it is now" in caplog.text
    assert "before the ledger kept specs" in str(named().spec_note(old))
    entered = named().enter(release.id, "canary_100")
    assert [limit.bound for limit in on_disk(settings).limits] == [0.05], "its route keeps the limits that it has"
    file.write_text("[")
    verdict = Verdict(name="error_rate", status=Status.PASS, reason="0 of 100")
    named().ledger.record(entered, [verdict], step="canary_100", now=entered.entered_at)
    with pytest.raises(SpecError):
        named().promote(release.id)
    assert named().abort(release.id, actor="ann", reason="no").phase is Phase.ABORTED
    assert on_disk(settings).champion == "1"


def test_a_release_is_compared_with_the_champion_of_its_own_route(make_control: MakeControl) -> None:
    """It was opened under version 1, and let on under version 3 by people who were told."""
    asked = make_control(approvals={"required": 1})
    promoted(make_control(), "1")
    release = asked.open("2", bento("2"), actor="ann", key="2", verdicts=(FINITE,))
    assert asked.opponent_of(release) == "1"
    promoted(make_control(), "3")
    asked.vote(release.id, actor="bob", yes=True, reason="seen", evidence=asked.evidence(release.id))
    entered = asked.enter(release.id, "warm_up")
    assert entered.champion == "1"
    assert asked.opponent_of(entered) == "3"
    for step in ("shadow", "canary_5", "canary_100"):
        asked.enter(release.id, step)
    held(asked, release)
    after = asked.promote(release.id)
    assert asked.opponent_of(after) == "3", "also when its route is not the one in effect any more"
    assert asked.opponent_of(make_control().ledger.releases("m")[-1]) is None


def test_the_limits_are_those_of_the_release_s_route(make_control: MakeControl, settings: Settings) -> None:
    promoted(make_control(), "1")
    release = in_step(make_control(), "2")
    control = make_control()
    assert control.limits_of(release) == on_disk(settings).limits
    opened_later = control.open("3", bento("3"), actor="ann", key="3", verdicts=(FINITE,))
    assert control.limits_of(opened_later) is None
