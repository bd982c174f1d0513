"""A model whose releases are driven from several processes, and what must hold of it whatever was killed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from airlock.control import ReleaseControl
from airlock.control.projection import Aliases, read_route
from airlock.control.reconcile import Repair, reconcile
from airlock.core.bundle import MANIFEST, sha256
from airlock.core.errors import NotFound, Unavailable
from airlock.core.refs import BentoRef
from airlock.core.release import LIVE, Event, Release, plan
from airlock.core.route import Bundle, Route
from airlock.core.spec import ModelSpec
from airlock.core.tally import GatewayStatus
from airlock.core.verdict import Status, Verdict
from airlock.gateway_client import GatewayClient
from airlock.ledger import Ledger
from airlock.settings import Settings
from tests.support.control import FINITE, held
from tests.support.fault_worker import FileAliases, Points, WatchedAliases
from tests.support.tiny_models import bundle
from tests.support.waiting import wait_until

AHEAD = timedelta(seconds=6)
"""How far the clock of whoever comes after a killed worker is ahead: a lease has run out by then."""
PROMOTIONS = frozenset({Event.PROMOTE, Event.PROMOTE_PROVISIONALLY})


def clock_ahead(by: timedelta = AHEAD) -> Callable[[], datetime]:
    return lambda: datetime.now(UTC) + by


@dataclass(frozen=True)
class World:
    """One model: its ledger, its home, which is the gateway's as well, and its spec's parts that are not the usual."""

    settings: Settings
    model: str
    changes: dict[str, Any]

    @property
    def spec(self) -> ModelSpec:
        step = {"bake": "0s", "min_requests": 5}
        return ModelSpec.model_validate(
            {
                "model": self.model,
                "task": "classification",
                "data": {"key": "id", "event_time": "t"},
                "label": {"name": "y"},
                "inputs": {"x": "float"},
                "gates": [{"kind": "finite"}],
                "guards": [{"kind": "error_rate", "max": 0.05, "min_requests": 5}],
                "approvals": {"required": 0},
                "rollout": {
                    "shadow": step,
                    "steps": [{"weight": weight, **step} for weight in (5, 50, 100)],
                    "deadline": "60s",
                },
                **self.changes,
            }
        )

    @property
    def spec_file(self) -> Path:
        return self.settings.specs / f"{self.model}.yaml"

    def write_spec(self) -> None:
        """Put the spec's file where the sweep looks for it."""
        self.spec_file.parent.mkdir(parents=True, exist_ok=True)
        self.spec_file.write_text(yaml.safe_dump(json.loads(self.spec.model_dump_json(exclude_defaults=True))))

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.settings.ledger_url)

    @property
    def folder(self) -> Path:
        return self.settings.home / "models" / self.model

    @property
    def aliases(self) -> FileAliases:
        return FileAliases(self.folder / "aliases.json")

    def control(
        self,
        points: Points | None = None,
        *,
        aliases: Aliases | None = None,
        clock: Callable[[], datetime] | None = None,
        spec: ModelSpec | None = None,
    ) -> ReleaseControl:
        """A controller of the model; ``points`` watch what it does."""
        port: Aliases = aliases or self.aliases
        if points is not None:
            points.watch(self.settings.ledger_url)
            port = WatchedAliases(port, points)
        keywords = {} if clock is None else {"clock": clock}
        return ReleaseControl(spec or self.spec, self.settings, self.ledger, aliases=port, **keywords)

    def bento(self, version: str, **options: Any) -> BentoRef:
        """A version's files, made when they are first asked for. ``options`` say what is wrong with it."""
        folder = self.folder / version
        if not folder.exists():
            bundle(folder, model=self.model, bias=int(version) / 100, **options)
        digest = sha256((folder / MANIFEST).read_bytes())
        return BentoRef(
            path=str(folder), digest=digest, model=self.model, version=version, tag=f"{self.model}:v{version}"
        )

    def opened(self, version: str, **options: Any) -> Release:
        """A release that nobody has to be asked about any more."""
        control = self.control()
        bento = self.bento(version, **options)
        release = control.open(version, bento, actor="ann", key=f"{self.model}-{version}", verdicts=(FINITE,))
        return control.approve(release.id, actor="spec", reason="nobody has to be asked")

    def in_step(self, version: str, step: str, **options: Any) -> Release:
        """A release that has gone up to a step."""
        control, release = self.control(), self.opened(version, **options)
        for each in plan(self.spec):
            release = control.enter(release.id, each.name)
            if each.name == step:
                return release
        raise AssertionError(f"no step {step}")

    def let_through(self, version: str) -> Release:
        """A release that only its promotion is left of."""
        release = self.in_step(version, plan(self.spec)[-1].name)
        held(self.control(), release)
        return release

    def promoted(self, *versions: str) -> Release:
        """Versions that were promoted one after the other; the last one's release."""
        for version in versions:
            first = self.ledger.champion(self.model) is None
            release = self.opened(version) if first else self.let_through(version)
            release = self.control().promote(release.id)
        return release

    def status(self) -> GatewayStatus | None:
        """What the gateway says, if it answers."""
        try:
            with GatewayClient(self.settings.gateway_url) as gateway:
                return gateway.status(self.model)
        except (NotFound, Unavailable):
            return None

    def followed(self, reached: Callable[[GatewayStatus], bool] | None = None) -> GatewayStatus:
        """Wait until the gateway follows the ledger's route, or until what it says is as wished."""
        route = self.ledger.route(self.model)
        assert route is not None
        wished = reached or (lambda status: (status.generation, status.checksum) == (route.generation, route.checksum))

        def found() -> GatewayStatus | None:
            status = self.status()
            return status if status is not None and wished(status) else None

        return wait_until(found, f"the gateway to follow {route}", seen=self.status)

    def reconciled(self, clock: Callable[[], datetime] | None = None) -> list[Repair]:
        """What a reconciliation finds and repairs."""
        now = (clock or clock_ahead(timedelta(0)))()
        control = self.control(clock=clock)
        return reconcile(control, status=self.status, run_state=lambda _: "running", now=now)

    def require_journalled(self) -> None:
        """Nothing is in effect that the ledger does not know, at whatever moment one looks."""
        ledger = self.ledger
        lying, routes = read_route(self.settings.routes, self.model), ledger.routes(self.model)
        assert lying is None or lying in routes, f"{lying} lies before the gateway, and the ledger knows {routes}"
        champion = self.aliases.names.get("champion")
        assert champion is None or champion in self._promoted_by(None), f"alias champion names {champion}"
        if (status := self.status()) is not None:
            known = {route.generation: route.checksum for route in routes}
            assert known.get(status.generation) == status.checksum, f"the gateway follows {status}"

    def require_sound(self) -> Route:
        """Everything agrees: one champion, in ledger, file, gateway and aliases; shares of 100; nothing in secret."""
        ledger = self.ledger
        self.require_journalled()
        routes = ledger.routes(self.model)
        for route in routes:
            assert sum(route.weights.values()) == 100, route
            assert route.champion in self._promoted_by(route.generation), f"nobody promoted {route.champion}: {route}"
        generations = [route.generation for route in routes]
        assert generations == sorted(set(generations))
        newest, champion = routes[-1], ledger.champion(self.model)
        assert champion is not None
        assert champion.version == newest.champion == self.aliases.names["champion"]
        assert read_route(self.settings.routes, self.model) == newest
        live = ledger.releases(self.model, phases=LIVE)
        assert len(live) <= 1
        assert newest.candidate == (live[0].version if live else None)
        assert newest.release == (live[0].id if live else None)
        assert {effect.kind for effect in ledger.pending_effects(self.model)} <= {"record", "champion_asset"}
        assert all(Path(found.path).is_dir() for found in newest.versions.values())
        return newest

    def happened(self, event: Event) -> list[str | None]:
        """The releases that something happened to, in order."""
        return [entry.release for entry in self.ledger.timeline(self.model) if entry.event == event]

    def _promoted_by(self, generation: int | None) -> set[str | None]:
        """The versions that a journalled decision made champion, up to a generation of the route."""
        return {
            entry.version
            for entry in self.ledger.timeline(self.model)
            if entry.event in PROMOTIONS and (generation is None or (entry.generation or 0) <= generation)
        }


def passes(world: World, step: str) -> Sequence[Verdict]:
    """Verdicts that let a release through."""
    return [Verdict(name="error_rate", status=Status.PASS, reason=f"0 of 50 requests failed in {step}", n=50)]


def bundle_of(world: World, version: str) -> Bundle:
    found = world.bento(version)
    return Bundle(path=found.path, digest=found.digest)
