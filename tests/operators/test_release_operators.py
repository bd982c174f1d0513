"""Opening, promoting, restoring and rolling back, against a real ledger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, TaskDeferred

from airlock import assets
from airlock.control import ReleaseControl
from airlock.core.errors import Unavailable
from airlock.core.release import Phase, Release
from airlock.ledger import Ledger
from airlock.operators import receipts
from airlock.operators.release import (
    CompleteReleaseOperator,
    PackageBentoOperator,
    PromoteOperator,
    RestoreTrafficOperator,
)
from airlock.operators.rollback import RollbackOperator
from airlock.triggers.release import ReleaseStepTrigger
from tests.support.operator_world import FINITE, GATE, HELD, Versions, opened, promoted, shares, waiting

Make = Callable[..., dict[str, Any]]


@pytest.mark.usefixtures("gateway", "versions")
class TestPackage:
    def run(self, dag: DAG, context: dict[str, Any], **kwargs: Any) -> Release:
        operator = PackageBentoOperator(task_id="package", dag=DAG(dag.dag_id, schedule=None), model="toy", **kwargs)
        return Release.model_validate(operator.execute(context))  # type: ignore[arg-type]

    def test_opens_a_release_of_the_newest_version(self, dag: DAG, make_context: Make, ledger: Ledger) -> None:
        release = self.run(dag, make_context())
        assert (release.version, release.phase) == ("9", Phase.OPENED)
        assert ledger.timeline("toy")[0].actor == "ada"

    def test_done_again_in_the_same_run_is_the_same_release(self, dag: DAG, make_context: Make) -> None:
        first = self.run(dag, make_context())
        assert self.run(dag, make_context()).id == first.id
        assert self.run(dag, make_context("manual__2")).id != first.id

    def test_takes_the_version_from_the_event(self, dag: DAG, make_context: Make) -> None:
        context = make_context(events={assets.candidate("toy"): {"version": "4", "skip_shadow": False}})
        assert self.run(dag, context).version == "4"

    def test_a_parameter_beats_the_event(self, dag: DAG, make_context: Make) -> None:
        context = make_context(events={assets.candidate("toy"): {"version": "4"}})
        assert self.run(dag, context, version="2").version == "2"

    def test_a_doubled_event_releases_once(self, dag: DAG, make_context: Make, control: ReleaseControl) -> None:
        event = {assets.candidate("toy"): {"version": "4"}}
        first = self.run(dag, make_context("asset__1", events=event))
        control.roll_back(first.id, reason="it was slow")
        with pytest.raises(AirflowSkipException, match=r"rolled_back.*it was slow.*by hand"):
            self.run(dag, make_context("asset__2", events=event))

    def test_an_event_for_the_champion_is_skipped(self, dag: DAG, make_context: Make, champion: Release) -> None:
        with pytest.raises(AirflowSkipException, match="champion already"):
            self.run(dag, make_context(events={assets.candidate("toy"): {"version": "1"}}))

    def test_the_champion_by_hand_fails_without_retry(self, dag: DAG, make_context: Make, champion: Release) -> None:
        with pytest.raises(AirflowFailException, match="champion already"):
            self.run(dag, make_context(), version="1")

    @pytest.mark.parametrize("judged_against", ["0", "baseline", None])
    def test_evidence_against_another_champion_is_refused(
        self, dag: DAG, make_context: Make, champion: Release, versions: Versions, judged_against: str | None
    ) -> None:
        versions.judged_against = judged_against
        with pytest.raises(AirflowFailException, match="but the champion is version 1 by now; train again"):
            self.run(dag, make_context(), version="2")

    def test_the_release_knows_its_author_its_run_and_its_evidence(
        self, dag: DAG, make_context: Make, ledger: Ledger
    ) -> None:
        release = self.run(dag, make_context())
        assert (release.author, release.run) == ("mary", "toy__test/manual__1")
        assert ledger.verdicts(release.id) == [("gates", GATE), ("gates", FINITE)]

    def test_a_doubled_event_is_not_carried_by_two_runs(self, dag: DAG, make_context: Make) -> None:
        event = {assets.candidate("toy"): {"version": "4"}}
        first = self.run(dag, make_context("asset__1", events=event))
        with pytest.raises(AirflowSkipException, match="toy__test/asset__1 carries the release"):
            self.run(dag, make_context("asset__2", events=event))
        assert self.run(dag, make_context("asset__1", events=event)).id == first.id

    def test_a_newer_candidate_ends_what_waits_but_not_what_has_traffic(
        self, dag: DAG, make_context: Make, champion: Release, control: ReleaseControl, ledger: Ledger
    ) -> None:
        live, unanswered = opened(control, "2"), waiting(control, "3")
        control.enter(live.id, "warm_up")
        newer = self.run(dag, make_context(), version="4")
        ended = ledger.release(unanswered.id)
        assert ended.phase is Phase.ABORTED
        assert "version 4 came while this release had no traffic yet" in ended.reason
        assert ledger.release(live.id).phase is Phase.WARM
        assert ledger.release(newer.id).phase is Phase.OPENED

    def test_an_older_run_that_is_tried_again_ends_nothing_newer(
        self, dag: DAG, make_context: Make, ledger: Ledger
    ) -> None:
        self.run(dag, make_context("manual__1"), version="2")
        newer = self.run(dag, make_context("manual__2"), version="3")
        self.run(dag, make_context("manual__1"), version="2")
        assert ledger.release(newer.id).phase is Phase.OPENED

    @pytest.mark.parametrize(
        ("approvals", "phase"),
        [("{required: 0}", Phase.APPROVED), ("{before: promotion}", Phase.APPROVED), ("{}", Phase.OPENED)],
    )
    def test_who_is_asked_before_traffic(
        self, dag: DAG, make_context: Make, approvals: str, phase: Phase, respec: Callable[[str], None]
    ) -> None:
        respec(f"approvals: {approvals}")
        assert self.run(dag, make_context()).phase is phase

    @pytest.mark.parametrize("approvals", ["{required: 0}", "{required: 1, before: promotion}"])
    def test_cleared_with_a_later_task_it_approves_nothing_and_opens_nothing(
        self,
        dag: DAG,
        make_context: Make,
        champion: Release,
        approvals: str,
        respec: Callable[[str], None],
        control: ReleaseControl,
        versions: Versions,
    ) -> None:
        respec(f"approvals: {approvals}")
        event = {assets.candidate("toy"): {"version": "2"}}
        release = self.run(dag, make_context(events=event))
        assert self.run(dag, make_context(events=event)) == release
        for step in ("warm_up", "shadow", "canary_5", "canary_100"):
            control.enter(release.id, step)
        standing = control.ledger.release(release.id)
        assert self.run(dag, make_context(events=event)) == standing
        assert control.ledger.votes(release.id) == []
        control.ledger.record(standing, [HELD], step="canary_100", now=standing.entered_at)
        if control.spec.approvals.required:
            control.vote(release.id, actor="ada", yes=True, reason="fine", evidence=control.evidence(release.id))
        control.promote(release.id)
        assert self.run(dag, make_context(events=event)).phase is Phase.PROMOTED

    def test_a_version_without_verdicts_is_not_released(
        self, dag: DAG, make_context: Make, versions: Versions, ledger: Ledger
    ) -> None:
        versions.bundle = "sha256:" + "b" * 64
        with pytest.raises(AirflowFailException, match="no gate verdicts for its bundle"):
            self.run(dag, make_context())
        assert ledger.releases("toy") == []

    def test_a_version_that_does_not_exist_fails_without_retry(self, dag: DAG, make_context: Make) -> None:
        with pytest.raises(AirflowFailException, match="no version nine; the newest is 9"):
            self.run(dag, make_context(), version="nine")


@pytest.mark.usefixtures("versions")
class TestPromoteAndBack:
    def test_promotion_announces_the_champion(
        self, control: ReleaseControl, make_context: Make, dag: DAG, versions: Versions, home: Path
    ) -> None:
        release = opened(control, "1")
        outlet = assets.champion("toy")
        context = make_context()
        promote = PromoteOperator(
            task_id="promote", dag=dag, model="toy", release=release.model_dump(mode="json"), outlets=[outlet]
        )
        promote.execute(context)  # type: ignore[arg-type]
        assert context["outlet_events"][outlet].extra == {"version": "1", "release": release.id, "generation": 1}
        assert versions.aliases == {"champion": "1"}
        assert shares(home) == {"1": 100}

    def test_promotion_before_the_last_step_is_refused(
        self, control: ReleaseControl, champion: Release, make_context: Make, dag: DAG
    ) -> None:
        release = opened(control, "2")
        control.enter(release.id, "warm_up")
        with pytest.raises(AirflowFailException, match="after canary_100 only"):
            PromoteOperator(task_id="promote", dag=dag, model="toy", release=release.id).execute(make_context())  # type: ignore[arg-type]

    def test_teardown_takes_an_unfinished_release_off_traffic(
        self, control: ReleaseControl, champion: Release, make_context: Make, dag: DAG, home: Path
    ) -> None:
        release = opened(control, "2")
        control.enter(release.id, "warm_up")
        control.enter(release.id, "canary_5")
        restore = RestoreTrafficOperator(task_id="restore", dag=dag, model="toy", release=release.id)
        for _ in "ab":
            assert restore.execute(make_context())["phase"] == "rolled_back"  # type: ignore[arg-type]
        assert shares(home) == {"1": 100}

    def test_teardown_leaves_a_promoted_version_alone(
        self, champion: Release, make_context: Make, dag: DAG, home: Path
    ) -> None:
        restore = RestoreTrafficOperator(task_id="restore", dag=dag, model="toy", release=champion.id)
        assert restore.execute(make_context())["phase"] == "promoted"  # type: ignore[arg-type]
        assert shares(home) == {"1": 100}

    def test_rollback_names_who_and_why(
        self, control: ReleaseControl, champion: Release, make_context: Make, dag: DAG, home: Path, ledger: Ledger
    ) -> None:
        promoted(control, "2")
        outlet = assets.champion("toy")
        context = make_context()
        back = RollbackOperator(task_id="back", dag=dag, model="toy", reason="complaints", outlets=[outlet])
        assert back.execute(context)["champion"] == "1"  # type: ignore[arg-type]
        assert shares(home) == {"1": 100}
        last = ledger.timeline("toy")[-1]
        assert last.actor == "ada"
        assert "complaints" in last.reason
        assert context["outlet_events"][outlet].extra["version"] == "1"

    def test_a_rollback_that_is_tried_again_is_one_step_back(
        self, control: ReleaseControl, champion: Release, make_context: Make, dag: DAG, home: Path
    ) -> None:
        promoted(control, "2")
        promoted(control, "3")
        back = RollbackOperator(task_id="back", dag=dag, model="toy")
        for _ in "ab":
            assert back.execute(make_context("manual__1"))["champion"] == "2"  # type: ignore[arg-type]
        assert shares(home) == {"2": 100}
        assert back.execute(make_context("manual__2"))["champion"] == "1"  # type: ignore[arg-type]

    def test_rollback_to_the_champion_finishes_what_was_cut_off(
        self, control: ReleaseControl, champion: Release, make_context: Make, dag: DAG, home: Path, ledger: Ledger
    ) -> None:
        (home / "routes" / "toy.json").unlink()
        before = ledger.timeline("toy")
        said = RollbackOperator(task_id="back", dag=dag, model="toy", to="1").execute(make_context())  # type: ignore[arg-type]
        assert said["champion"] == "1"
        assert shares(home) == {"1": 100}
        assert ledger.timeline("toy") == before

    def test_what_has_ended_is_not_promoted(
        self, champion: Release, control: ReleaseControl, make_context: Make, dag: DAG
    ) -> None:
        release = opened(control, "2")
        control.abort(release.id, actor="ada", reason="not today")
        with pytest.raises(AirflowFailException, match="is aborted by ada: not today"):
            PromoteOperator(task_id="promote", dag=dag, model="toy", release=release.id).execute(make_context())  # type: ignore[arg-type]

    def test_a_paused_release_is_promoted_when_it_goes_on_and_not_before(
        self, control: ReleaseControl, champion: Release, make_context: Make, dag: DAG
    ) -> None:
        release = opened(control, "2")
        control.enter(release.id, "warm_up")
        control.pause(release.id, actor="ada", reason="wait for me")
        promote = PromoteOperator(task_id="promote", dag=dag, model="toy", release=release.id)
        with pytest.raises(TaskDeferred) as waits:
            promote.execute(make_context())  # type: ignore[arg-type]
        assert (waits.value.method_name, waits.value.timeout) == ("resume", None)
        assert isinstance(waits.value.trigger, ReleaseStepTrigger)
        assert waits.value.trigger.guards_only, "its traffic is watched meanwhile"
        control.abort(release.id, actor="ada", reason="not today")
        with pytest.raises(AirflowFailException, match="not today"):
            promote.resume(make_context(), {"reason": "the ledger moved"})  # type: ignore[arg-type]

    def test_a_champion_counts_as_announced_when_airflow_has_sent_it_and_not_before(
        self, control: ReleaseControl, make_context: Make, dag: DAG, announced: list[dict[str, Any]]
    ) -> None:
        """The task may be killed after its last line, before Airflow sends what it has left there."""
        release, outlet = opened(control, "1"), assets.champion("toy")
        promote = PromoteOperator(task_id="promote", dag=dag, model="toy", release=release.id, outlets=[outlet])
        for _ in range(6):
            context = make_context()
            promote.execute(context)  # type: ignore[arg-type]
            promote.confirm_announced()
            assert [effect.release for effect in control.pending("champion_asset")] == [release.id]
        announced.append(context["outlet_events"][outlet].extra)
        promote.confirm_announced()
        assert control.pending("champion_asset") == []

    def test_an_earlier_event_does_not_stand_for_a_later_champion(
        self, control: ReleaseControl, champion: Release, make_context: Make, dag: DAG, announced: list[dict[str, Any]]
    ) -> None:
        promoted(control, "2")
        operator = RollbackOperator(task_id="back", dag=dag, model="toy")
        announced.append({"version": "1", "generation": 1})
        operator.confirm_announced()
        assert len(control.pending("champion_asset")) == 1
        announced.append({"version": "2", "generation": control.ledger.release(champion.id).generation + 9})
        operator.confirm_announced()
        assert control.pending("champion_asset") == []

    def test_what_airflow_does_not_say_leaves_the_event_due(
        self, control: ReleaseControl, champion: Release, dag: DAG, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def silent(*_: object) -> int:
            raise Unavailable("Airflow does not tell")

        monkeypatch.setattr(receipts, "announced_generation", silent)
        RollbackOperator(task_id="back", dag=dag, model="toy").confirm_announced()
        assert len(control.pending("champion_asset")) == 1

    def test_a_shadow_that_held_is_completed(
        self,
        champion: Release,
        control: ReleaseControl,
        make_context: Make,
        dag: DAG,
        home: Path,
        respec: Callable[[str], None],
    ) -> None:
        respec("rollout: {plan: shadow_only, shadow: {bake: 0s, min_requests: 5}}")
        release = opened(control, "2")
        for step in ("warm_up", "shadow"):
            control.enter(release.id, step)
        complete = CompleteReleaseOperator(task_id="complete", dag=dag, model="toy", release=release.id)
        with pytest.raises(AirflowFailException, match="was not let through shadow"):
            complete.execute(make_context())  # type: ignore[arg-type]
        standing = control.ledger.release(release.id)
        control.ledger.record(standing, [HELD], step="shadow", now=standing.entered_at)
        assert complete.execute(make_context())["phase"] == "completed"  # type: ignore[arg-type]
        assert shares(home) == {"1": 100}

    def test_rollback_to_nowhere_fails_without_retry(self, champion: Release, make_context: Make, dag: DAG) -> None:
        with pytest.raises(AirflowFailException, match=r"version 7 was never promoted.*good ones: none"):
            RollbackOperator(task_id="back", dag=dag, model="toy", to="7").execute(make_context())  # type: ignore[arg-type]


def test_a_release_can_be_handed_over_whole_or_by_id(dag: DAG) -> None:
    whole = PromoteOperator(task_id="whole", dag=dag, model="toy", release={"id": "r1"})
    assert whole.release_id == PromoteOperator(task_id="id", dag=dag, model="toy", release="r1").release_id == "r1"
