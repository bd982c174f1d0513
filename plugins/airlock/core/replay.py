"""A policy run over traffic that was, or might have been: what it decides, when, how wrong; long as it is one machine.

A simulated release moves through the spec's plan while requests come in. Whatever the gateway counts of the candidate
is counted here in the same order, in the same counters, and held against the limits as often
(:func:`~airlock.core.guards.breach`); the control plane's part (:func:`~airlock.core.decide.decide`,
:func:`~airlock.core.decide.decide_late`) is the real one too, at its own rhythm. Only traffic and time are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from airlock.core.counters import Counters
from airlock.core.decide import Decision, Evidence, decide, decide_late
from airlock.core.guards import breach, judge, limits_of, may_pass, slow_limits
from airlock.core.limits import answers_apart
from airlock.core.release import Phase, PlannedStep, Release, plan
from airlock.core.replay_report import By, Decided, Ending, ReplayReport
from airlock.core.replay_traffic import Glance, Observation, Rhythm, Traffic
from airlock.core.route import Bundle
from airlock.core.spec import ModelSpec
from airlock.core.tally import Ejection, GatewayStatus, LateEvidence, Role, Tally, within
from airlock.core.units import Units

CANDIDATE, CHAMPION = "candidate", "champion"
GLANCE_EVERY = 100
"""Requests from one picture of a replay to the next."""
_ID = "replay"
_NEVER = math.inf
_EPOCH = datetime.fromtimestamp(0, UTC)


def replay(
    spec: ModelSpec,
    traffic: Traffic,
    watch: Callable[[Glance], None] | None = None,
    *,
    rhythm: Rhythm = Rhythm(),  # noqa: B008 - immutable
) -> ReplayReport:
    """Run the spec's policy over the traffic.

    The first step begins with the first observation; each step's bake and deadline count from its own beginning, as if
    the gateway had watched all the time. Labels go on coming after the last request, and control goes on looking until
    the last of them could have been judged. ``watch`` gets a picture every :data:`GLANCE_EVERY` requests.
    """
    run = _Run(spec, traffic, rhythm, watch)
    for observation in traffic.observations:
        run.time_goes_on(observation.at)
        run.take(observation)
    if not run.begun:
        return ReplayReport(
            ending="unfinished",
            reason="there was no traffic",
            decisions=(),
            requests=0,
            looks=0,
            hindsight=(),
            unknown=traffic.unknown,
        )
    run.traffic_ended()
    return run.report()


class _Run:
    """The state of one run. Times are seconds since the traffic began."""

    def __init__(
        self, spec: ModelSpec, traffic: Traffic, rhythm: Rhythm, watch: Callable[[Glance], None] | None
    ) -> None:
        self.spec, self.traffic, self.rhythm, self.watch = spec, traffic, rhythm, watch
        self.limits, self.steps = limits_of(spec), plan(spec)[1:]
        self.names = {step.name: place for place, step in enumerate(self.steps)}
        self.live = tuple(limit for limit in self.limits if not limit.late)
        self.slow = slow_limits(self.limits)
        self.apart = answers_apart(self.limits)
        self.counters = Counters()
        self.units = Units(self.limits, self.counters, salt=traffic.salt)
        self.by_minute = any(limit.by == "minute" for limit in self.live)
        self.start_us = (traffic.start - _EPOCH) // timedelta(microseconds=1)
        self.earlier: dict[Role, Tally] = {}
        self.current: dict[Role, Tally] = {}
        self.tallies: dict[Role, tuple[Tally, ...]] = {}
        self.decisions: list[Decided] = []
        self.ending: Ending | None = None
        self.looks, self.begun = 0, False
        self.now, self.since, self.place = 0.0, 0.0, 0
        self.followed = traffic.followed
        # Control looks next at ``next_look``: not before ``earliest``, and only once something is ``fresh`` or due.
        self.earliest, self.next_look, self.next_labels = 0.0, _NEVER, 0.0
        self.fresh = False
        self.release = Release(
            id=_ID,
            model=spec.model,
            version=CANDIDATE,
            champion=CHAMPION,
            bundle=Bundle(path=_ID, digest="sha256:" + "0" * 64),
            phase=Phase.WARM,
            generation=0,
            entered_at=traffic.start,
        )
        self._enter(0, 0.0)

    @property
    def step(self) -> PlannedStep:
        return self.steps[self.place]

    @property
    def requests(self) -> int:
        return self.counters.all.sums.requests

    # What the gateway does.

    def take(self, seen: Observation) -> None:
        """Count, and look at the limits as often as the gateway does."""
        self.now = seen.at
        if self.followed and seen.step != self.step.name and seen.step in self.names and self.ending is None:
            self._follow(self.names[seen.step])
        self.begun = True
        if not self.fresh:
            self.fresh = True
            self.next_look = min(self.next_look, self._on_grid(max(self.earliest, seen.at)))
        role = seen.role or self._by_hash(seen.place)
        counted = self._tallies(role)
        if seen.asked:
            self._count(seen, role, counted)
            if self.watch is not None and self.requests % GLANCE_EVERY == 0:
                self._show(self.watch)
        if seen.stood_in and role == "served":
            for tally in counted:
                tally.fallbacks += 1
            self.units.until(self._clock(seen.at))
            self._guard()
        if seen.differences:
            differences = within(seen.differences, self.apart)
            for tally in counted:
                tally.compared(differences, seen.flips)
            self.units.compared(seen.key, differences, seen.flips, at=self._clock(seen.at))
            self._guard()

    def _count(self, seen: Observation, role: Role, counted: tuple[Tally, ...]) -> None:
        self.units.answered(role, seen.key, seen.latency_ms, failed=seen.failed, at=self._clock(seen.at))
        if not seen.failed:
            for tally in counted:
                tally.answered(seen.latency_ms, self.slow)
            if role == "served":  # in shadow the limits are looked at when the answer was compared
                self._guard()
            return
        for tally in counted:
            tally.failed(seen.latency_ms, self.slow, timeout=seen.timed_out)
            tally.fallbacks += role == "shadow"  # nobody had to stand in; but somebody would have had to
        self._guard()

    def _clock(self, seconds: float) -> float:
        """Seconds since 1970, from whole microseconds as in the log: by these the gateway cuts minutes."""
        return (self.start_us + round(seconds * 1e6)) / 1e6

    def _minute_ends(self) -> float:
        """When the minute ends that is open now, if a limit counts minutes."""
        if not self.by_minute:
            return _NEVER
        return ((int(self._clock(self.now) // 60) + 1) * 60_000_000 - self.start_us) / 1e6

    def _by_hash(self, place: float) -> Role:
        return "served" if place < self.step.weight else "shadow"

    def _tallies(self, role: Role) -> tuple[Tally, ...]:
        found = self.tallies.get(role)
        if found is None:
            own = self.current.setdefault(role, Tally())
            found = self.tallies[role] = (own, *self.counters.tallies(role))
        return found

    def _guard(self) -> None:
        self.looks += 1
        if self.ending is not None or self.release.phase is Phase.PROVISIONAL:
            return
        reason = breach(self.live, self.counters)
        if reason is None:
            self.counters.restart_if_due()
        else:
            decision = self._decide(self._status(reason), self._late(self.now))
            decision = decision.model_copy(update={"reason": f"the gateway ejected it: {reason}"})
            self._end("rolled_back", decision, by="gateway")

    # What the control plane does.

    def time_goes_on(self, to: float) -> None:
        """All looks of the control plane before an observation that comes then."""
        while self.next_look <= to:
            self.now = self.next_look
            self._look()

    def traffic_ended(self) -> None:
        """Look once more, and go on looking for as long as labels may come."""
        late = self.traffic.late
        last = max(self.now, late.until if late is not None else 0.0)
        if self.followed and self.ending is None:
            # The log ends where its last step was left.
            self.followed = False
            self._look()
        self.time_goes_on(last + self.rhythm.poll_s)
        self.now = max(self.now, last)
        if self.watch is not None:
            self._show(self.watch)

    def _look(self) -> None:
        """One look of the control plane. Where the log says when steps were left, it goes on from none by itself."""
        if self.release.phase is Phase.PROVISIONAL:
            self._settle()
            return
        self.units.until(self._clock(self.now))
        labels, over = self.now >= self._labels_due(), self.now - self.since >= self.step.deadline.total_seconds()
        # A minute that is over is an observation, also before the next request has the gateway look at it.
        broken = self.by_minute and not self.followed and breach(self.live, self.counters) is not None
        if not (labels or over or broken or self._may_leave()):
            self._plan_look(self.rhythm.poll_s)
            return
        status = self._status()
        decision = self._decide(status, None)
        decisive = decision.action != "wait"
        if labels or (self.traffic.late is not None and decisive and not self.followed):
            # The trigger that looks every second knows no labels: the task that it wakes up reads them.
            decision = self._decide(status, self._late(self.now))
            self.next_labels = self.now + self.rhythm.labels_s
        self._plan_look(self.rhythm.decisive_s if decisive and decision.action == "wait" else self.rhythm.poll_s)
        if decision.action == "roll_back":
            self._end("rolled_back", decision, by="control")
        elif decision.action == "hold":
            self._end("held", decision, by="control")
        elif decision.action == "advance" and not self.followed:
            self._record(decision, by="control")
            self._go_on()

    def _may_leave(self) -> bool:
        """Whether the gateway's figures may let the step end: where they cannot, nothing needs to be decided."""
        if self.followed or self.waits_for_labels or self.step.until_concluded:
            return False
        asked = sum(tally.requests for role, tally in self.current.items() if role == self.step.role)
        return asked >= self.step.min_requests and may_pass(self.live, self.counters)

    @property
    def waits_for_labels(self) -> bool:
        """Whether nothing but labels can let the step end; looks at the gateway's figures alone cannot."""
        return bool(self.spec.late_guards) and not self.spec.rollout.provisional and self.step.role != "shadow"

    def _plan_look(self, after: float) -> None:
        """When to look again, at the earliest and if nothing comes in meanwhile."""
        baked, over = (self.since + time.total_seconds() for time in (self.step.bake, self.step.deadline))
        self.fresh = False
        # Before the bake is over only labels can decide anything, and a minute that ends.
        minute = self._minute_ends()
        self.earliest = max(self.now + after, min(baked, self._labels_due(), minute))
        by_time = [time for time in (baked, over, self._labels_due(), minute) if time > self.now]
        self.next_look = self._on_grid(max(self.earliest, min(by_time, default=_NEVER)))

    def _on_grid(self, time: float) -> float:
        """The first look of the control plane then or later: it looks at whole intervals since the step's beginning."""
        if time == _NEVER or self.ending is not None:
            return _NEVER
        return self.since + math.ceil((time - self.since) / self.rhythm.poll_s - 1e-9) * self.rhythm.poll_s

    def _labels_due(self) -> float:
        return self.next_labels if self.traffic.late is not None else _NEVER

    def _decide(self, status: GatewayStatus, late: LateEvidence | None) -> Decision:
        return decide(self.spec, self.release, Evidence(gateway=status, late=late), self._at(self.now))

    def _settle(self) -> None:
        """A look at the labels of a provisional version."""
        decision = decide_late(self.spec, self.release, self._late(self.now), self._at(self.now))
        self.next_labels = self.now + self.rhythm.labels_s
        self.earliest = self.next_look = self._on_grid(self.next_labels)
        if self.watch is not None:
            self._show(self.watch)
        if decision.action == "roll_back":
            self._end("rolled_back", decision, by="control")
        elif decision.action == "advance":
            self._end("confirmed", decision, by="control")

    def _follow(self, to: int) -> None:
        """The log goes on to another step: so did the release, whatever the policy says of it."""
        if self.begun:
            by: By = "control"
            decision = self._decide(self._status(), self._late(self.now))
            if decision.action != "advance":
                would = decision.action.replace("_", " ")
                reason = f"the log goes on to {self.steps[to].name}; the policy would {would}: {decision.reason}"
                by = "log"
                decision = Decision(action="advance", reason=reason, verdicts=decision.verdicts)
            self._record(decision, by=by)
        self._enter(to, self.now)

    def _go_on(self) -> None:
        if self.place + 1 < len(self.steps):
            self._enter(self.place + 1, self.now)
        elif self.spec.rollout.plan == "shadow_only":
            self.ending = "completed"
        elif self.spec.late_guards and self.spec.rollout.provisional:
            self._become(Phase.PROVISIONAL, self.release.step)
            self.since, self.next_labels = self.now, self.now
            self.earliest = self.next_look = self.now + self.rhythm.poll_s
        else:
            self.ending = "promoted"
        if self.ending is not None:
            self.next_look = _NEVER

    def _enter(self, place: int, now: float) -> None:
        if self.release.generation:
            self.units.end_minute()
            self.counters.begin_step()
        for role, tally in self.current.items():
            self.earlier[role] = self.earlier.get(role, Tally()) + tally
        self.current, self.tallies = {}, {}
        self.place, self.now, self.since, self.next_labels = place, now, now, now
        self._become(Phase.SHADOW if self.step.role == "shadow" else Phase.CANARY, self.step.name)
        self._plan_look(self.rhythm.poll_s)

    def _become(self, phase: Phase, step: str | None) -> None:
        update = {"phase": phase, "step": step, "entered_at": self._at(self.now)}
        self.release = self.release.model_copy(update={**update, "generation": self.release.generation + 1})

    def _end(self, ending: Ending, decision: Decision, *, by: By) -> None:
        self._record(decision, by=by)
        self.ending, self.next_look = ending, _NEVER

    def _record(self, decision: Decision, *, by: By) -> None:
        self.decisions.append(
            Decided(
                request=self.requests,
                at=self._at(self.now),
                step="provisional" if self.release.phase is Phase.PROVISIONAL else self.step.name,
                action=decision.action,
                by=by,
                reason=decision.reason,
                verdicts=decision.verdicts,
            )
        )

    # What there is to see.

    def _at(self, seconds: float) -> datetime:
        return self.traffic.start + timedelta(seconds=seconds)

    def _late(self, seconds: float) -> LateEvidence | None:
        return self.traffic.late.by(seconds) if self.traffic.late is not None else None

    def _total(self) -> dict[Role, Tally]:
        roles = dict.fromkeys((*self.earlier, *self.current))
        return {role: self.earlier.get(role, Tally()) + self.current.get(role, Tally()) for role in roles}

    def _status(self, ejected_for: str | None = None) -> GatewayStatus:
        observed = self.now - self.since
        ejection = ejected_for and Ejection(
            model=self.spec.model,
            version=CANDIDATE,
            release=_ID,
            generation=self.release.generation,
            at=self._at(self.now),
            reason=ejected_for,
            requests=self.requests,
            seconds=self.now,
        )
        return GatewayStatus(
            model=self.spec.model,
            generation=self.release.generation,
            checksum="",
            release=_ID,
            rollout_step=self.release.step,
            champion=CHAMPION,
            candidate=CANDIDATE,
            share=self.step.weight,
            loaded=(CANDIDATE, CHAMPION),
            since=self._at(self.since),
            observed_s=observed,
            ejection=ejection or None,
            step={CANDIDATE: {str(role): tally for role, tally in self.current.items()}},
            total={
                CANDIDATE: {str(role): tally for role, tally in self._total().items()},
                CHAMPION: {"served": self.traffic.champion_by(self.now)},
            },
            checkpoints=self.counters.checkpoints,
            units=self.counters.units,
        )

    def _show(self, watch: Callable[[Glance], None]) -> None:
        step = "provisional" if self.release.phase is Phase.PROVISIONAL else self.step.name
        tally = self.counters.all.sums
        watch(Glance(self.requests, self._at(self.now), self.ending or step, tally, self._late(self.now)))

    def report(self) -> ReplayReport:
        """What came of it."""
        if self.ending is not None:
            ending, reason = self.ending, self.decisions[-1].reason
        elif self.release.phase is Phase.PROVISIONAL:
            ending = "promoted"
            reason = "promoted provisionally; its labels had not settled it when the traffic ended"
        else:
            ending, reason = "unfinished", f"the traffic ended in {self.step.name}"
        everything = Counters({str(role): tally for role, tally in self._total().items()}, units=self.counters.units)
        hindsight = judge(
            self.limits, everything, champion=self.traffic.champion_by(self.now), late=self._late(self.now)
        )
        return ReplayReport(
            ending=ending,
            reason=reason,
            decisions=tuple(self.decisions),
            requests=self.requests,
            looks=self.looks,
            hindsight=hindsight,
            unknown=self.traffic.unknown,
        )
