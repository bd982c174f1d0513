"""F7, F14 and the clock of F20: a bake that nobody watches, figures that do not come, and clocks that jump.

The gateways are real; the scheduler is absent because nothing here is one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from airlock.core.decide import Evidence, decide
from airlock.core.errors import NotPossible
from airlock.core.polls import Polls
from airlock.core.release import Event, Phase
from airlock.core.tally import GatewayStatus
from tests.faults.conftest import ON_SQLITE_FIRST, Injected
from tests.support.clients import Client
from tests.support.fault_world import World, clock_ahead
from tests.support.gateway_process import GatewayProcess
from tests.support.tiny_models import GOOD_ROW
from tests.support.waiting import wait_until

pytestmark = pytest.mark.integration

HOUR = timedelta(hours=1)
BAKE = {"steps": [{"weight": 50, "bake": "1h", "min_requests": 5}, {"weight": 100, "min_requests": 5}]}
LONG = {"shadow": None, "deadline": "2h", **BAKE}


@ON_SQLITE_FIRST
def test_f7_nobody_is_in_control_of_a_bake(
    make_world: Callable[..., World], tmp_path: Path, injected: Injected
) -> None:
    """No scheduler for three hours by its clock, the gateway killed in between; then the candidate goes bad."""
    gateway = GatewayProcess(tmp_path)
    try:
        gateway.wait_until_up()
        world = make_world(on=gateway, rollout=LONG)
        world.promoted("1")
        release = world.in_step("2", "canary_50", carriers=("UA",))
        world.followed()
        late = world.control(clock=clock_ahead(3 * HOUR))
        with Client(gateway.url, world.model) as client:
            before = world.followed(lambda status: sum(t.requests for t in status.step.get("2", {}).values()) > 50)
            assert late.observe(release.id, before).action == "wait", "three hours on the wall, seconds observed"
            known = written(gateway, world)
            wait_until(lambda: written(gateway, world) != known, "the gateway to write down what it counted")
        assert client.errors == []
        gateway.kill()
        asked = written(gateway, world)
        assert late.observe(release.id, None).action == "wait", "one poll in vain is not three hours of silence"
        time.sleep(3)  # sleeps because: this is the downtime, of which nothing may be observed
        up = time.monotonic()
        gateway = GatewayProcess(tmp_path, port=int(gateway.url.rsplit(":", 1)[1]))
        gateway.wait_until_up()
        after = world.followed()
        assert after.share == 50
        assert asked <= after.observed_s <= asked + (time.monotonic() - up), "downtime is not observed"
        assert world.control(clock=clock_ahead(timedelta(0))).observe(release.id, after).action == "wait"
        with Client(gateway.url, world.model) as client:
            client.more(20)
            client.row = GOOD_ROW | {"carrier": "EV"}
            status = world.followed(lambda status: status.ejection is not None)
            seen = len(client.answers)
            client.more(20)
        assert client.errors == []
        assert {answer["version"] for answer in client.answers[seen + 2 :]} == {"1"}
        assert status.share == 0
        assert world.ledger.release(release.id).phase is Phase.CANARY, "the ledger knows nothing of it yet"
        with pytest.raises(NotPossible, match="is rolled back: the gateway ejected version 2"):
            world.control().enter(release.id, "canary_100")
        assert {repair.kind for repair in world.reconciled()} <= {"aliases"}
        assert world.require_sound().weights == {"1": 100.0}
        assert world.happened(Event.ROLL_BACK) == [release.id]
        injected("F7", "no scheduler for 3 h, gateway killed for 3 s, candidate bad")
    finally:
        gateway.kill()


def written(gateway: GatewayProcess, world: World) -> float:
    """How many seconds of the step the gateway has noted on its disk as observed."""
    path = gateway.home / "gateway" / "evidence" / f"{world.model}.json"
    return float(json.loads(path.read_text())["observed_s"]) if path.exists() else 0.0


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_f20_a_clock_that_jumps_neither_ends_a_bake_nor_stops_a_turn(
    make_world: Callable[..., World], injected: Injected, jump: timedelta
) -> None:
    world = make_world(rollout={**LONG, "deadline": "61m"})
    world.promoted("1")
    release = world.in_step("2", "canary_50")
    world.followed()
    # A controller was killed in its turn just before, by the clock as it was.
    world.ledger.lease(world.model, "killed", ttl=timedelta(seconds=1), now=datetime.now(UTC) - timedelta(seconds=1))
    control = world.control(clock=clock_ahead(jump))
    with Client(world.settings.gateway_url, world.model) as client:
        client.more(50)
        status = world.followed(lambda status: sum(t.requests for t in status.step.get("2", {}).values()) > 20)
        decision = control.observe(release.id, status)
        assert (decision.action, decision.reason[:6]) == ("wait", "baking"), decision
        again = world.followed(lambda later: later.observed_s > status.observed_s)
        assert again.observed_s < status.observed_s + HOUR.total_seconds()
        control.pause(release.id, actor="ann", reason="look")
        control.resume(release.id, actor="ann", reason="go on")
        assert control.ledger.release(release.id).extended < timedelta(minutes=1)
        assert control.roll_back(release.id, reason="enough").phase is Phase.ROLLED_BACK
        world.followed()
        client.more(3)
    assert client.errors == []
    assert world.require_sound().weights == {"1": 100.0}
    injected("F20", "controller's clock jumps by an hour")


@contextmanager
def broken(answer: Callable[[dict[str, Any]], str | None], real: World) -> Iterator[str]:
    """A gateway whose figures are not what they should be: what the real one says, changed; ``None`` hangs up."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = real.status()
            assert status is not None
            said = answer(status.model_dump(mode="json"))
            if said is None:
                self.close_connection = True
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(said.encode())

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def changed(path: tuple[str, ...], value: Any) -> Callable[[dict[str, Any]], str]:
    """Put ``value`` at a place of both tallies, or of the status itself."""

    def change(status: dict[str, Any]) -> str:
        tallies = [status["step"]["2"]["served"], status["total"]["2"]["served"]]
        for place in tallies if path[0] == "tally" else [status]:
            for name in path[1:-1]:
                place = place[name]  # noqa: PLW2901
            place[path[-1]] = value
        return json.dumps(status)  # NaN and Infinity as JavaScript writes them

    return change


BROKEN: dict[str, Callable[[dict[str, Any]], str | None]] = {
    "no connection": lambda _: None,
    "no JSON": lambda _: "<html>502",
    "no fields": lambda _: "{}",
    "no tallies": lambda status: json.dumps({**status, "step": {}, "total": {}}),
    "NaN shift": changed(("tally", "difference", "total"), math.nan),
    "infinite shift": changed(("tally", "difference", "squares"), math.inf),
    "no pairs": changed(("tally", "difference", "n"), 0),
    "observed for NaN": changed(("status", "observed_s"), math.nan),
    "another release": changed(("status", "release"), "r0"),
    "not loaded": changed(("status", "loaded"), ["1"]),
}
GUARDS = [
    {"kind": "error_rate", "max": 0.05, "min_requests": 5},
    {"kind": "prediction_shift", "max_mean": 0.9, "min_requests": 5},
]
ROLLOUT = {
    "shadow": None,
    "steps": [{"weight": 50, "bake": "0s", "min_requests": 5}, {"weight": 100, "min_requests": 5}],
    "deadline": "2h",
}


POLLED = Polls(unanswered_s=3 * HOUR.total_seconds())


def enough(status: GatewayStatus) -> bool:
    asked = status.step.get("2", {})
    return asked.keys() >= {"served", "shadow"} and all(tally.requests > 300 for tally in asked.values())


@ON_SQLITE_FIRST
@pytest.mark.parametrize("on_deadline", ["rollback", "hold"])
def test_f14_figures_that_are_missing_or_no_numbers(
    make_world: Callable[..., World], injected: Injected, on_deadline: str
) -> None:
    """Nothing goes on by them; at the deadline it is rolled back, or held, as the spec says."""
    world = make_world(guards=GUARDS, rollout={**ROLLOUT, "on_deadline": on_deadline})
    world.promoted("1")
    release = world.in_step("2", "canary_50")
    world.followed()
    with Client(world.settings.gateway_url, world.model, pause_s=0.005) as client:
        status = world.followed(enough)
        assert world.control().observe(release.id, status).action == "advance", "without the fault it goes on"
        soon, late = world.control(), world.control(clock=clock_ahead(3 * HOUR))
        for name, answer in BROKEN.items():
            with broken(answer, world) as url:
                seen = replace(world, settings=replace(world.settings, gateway_url=url)).status()
            decision = soon.observe(release.id, seen)
            assert decision.action == "wait", f"{name}: {decision}"
            shifts = [verdict for verdict in decision.verdicts if verdict.name == "prediction_shift"]
            assert "shift" not in name or not any(verdict.passed for verdict in shifts)
            overdue = seen and seen.model_copy(update={"observed_s": max(seen.observed_s, 3 * HOUR.total_seconds())})
            evidence = Evidence(gateway=overdue, polls=POLLED, limits=soon.limits_of(release))
            decision = decide(world.spec, release, evidence, late.clock())
            assert decision.action == {"rollback": "roll_back", "hold": "hold"}[on_deadline], f"{name}: {decision}"
            assert decision.reason.startswith("no decision within 7200 s")
            injected("F14", name)
        assert world.followed().share == 50
        if on_deadline == "hold":
            assert late.observe(release.id, None, polls=POLLED).action == "hold"
            assert world.ledger.release(release.id).paused
            assert world.require_sound().weights == {"1": 50.0, "2": 50.0}
        else:
            assert late.observe(release.id, None, polls=POLLED).action == "roll_back"
            assert world.require_sound().weights == {"1": 100.0}
        world.followed()
        client.more(3)
    assert client.errors == []
