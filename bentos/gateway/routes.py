"""Watches the route documents and takes each new one, or says why it did not.

A document is taken when it is whole, not older than the one in effect, and every version it names
has been verified, opened and warmed up. Otherwise the last good one stays in effect, and the
model's status tells why. What was taken is kept on the disk as the gateway's own copy; after a restart
counting goes on where the same release was left.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from airlock.core.errors import AirlockError, RouteError
from airlock.core.route import Bundle, Route, parse_route
from airlock.core.tally import Ejection
from gateway.evidence import Kept, Lost, read_kept
from gateway.paths import Paths, write_durably
from gateway.serving import Served
from runtime.versions import Version

logger = logging.getLogger("airlock.gateway")

POLL_SECONDS = 0.05
RETRY_SECONDS = 1.0
"""How long after a refusal the same document is tried again: its files may have been repaired."""

Stamp = tuple[int, int, int]


class Loaded(NamedTuple):
    """A document that may be taken, and what there is to go with it. ``kept`` is read for a model's first one only."""

    route: Route
    versions: dict[str, Version]
    ejection: Ejection | None
    kept: Kept | Lost | None


class RouteTable:
    """Every model that is served, by name.

    ``on_change`` is called on the event loop after a route was taken.
    """

    def __init__(self, paths: Paths, on_change: Callable[[Served], None] = lambda _served: None) -> None:
        self.models: dict[str, Served] = {}
        self.errors: dict[str, str] = {}
        """Why models that are not served yet have no route."""
        self.settled = False
        """Whether every document that lay there at the start has been looked at."""
        self._paths = paths
        self._on_change = on_change
        self._seen: dict[str, Stamp] = {}
        self._retry_at: dict[str, float] = {}
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="airlock-loader")
        self._cache: dict[tuple[str, Bundle], Version] = {}

    async def start(self) -> None:
        """Take up what was in effect before, then whatever newer documents there are."""
        for folder in (self._paths.routes, self._paths.last_good):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in sorted(self._paths.last_good.glob("*.json")):
            await self._take(path.stem, path)
        await self._look()
        self.settled = True

    async def watch(self) -> None:
        """Look for new documents until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await self._look()
            except Exception:  # whatever it is, a gateway that stops looking is deaf to every rollback
                logger.exception("cannot look for routes in %s", self._paths.routes)

    def close(self) -> None:
        self._loader.shutdown(wait=False, cancel_futures=True)

    async def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        for entry in os.scandir(self._paths.routes):
            model, suffix = os.path.splitext(entry.name)  # noqa: PTH122 - many times a second
            if suffix != ".json":
                continue
            try:
                facts = entry.stat()
            except FileNotFoundError:
                continue
            stamp = (facts.st_mtime_ns, facts.st_ino, facts.st_size)
            if self._seen.get(model) == stamp and now < self._retry_at.get(model, float("inf")):
                continue
            self._seen[model] = stamp
            self._retry_at.pop(model, None)
            if not await self._take(model, Path(entry.path)):
                self._retry_at[model] = now + RETRY_SECONDS

    async def _take(self, model: str, path: Path) -> bool:
        loop = asyncio.get_running_loop()
        current = self.models.get(model)
        try:
            loaded = await loop.run_in_executor(
                self._loader, self._load, model, path, current.effect.route if current else None
            )
        except (AirlockError, OSError) as error:
            self._refuse(model, str(error))
            return False
        self.errors.pop(model, None)
        route = loaded.route
        if current is not None and route == current.effect.route:
            current.error = None
            return True
        if current is None:
            current = self.models[model] = Served(*loaded)
        else:
            current.follow(route, loaded.versions)
        self._forget()
        self._on_change(current)
        logger.info(
            "%s: generation %d in effect, champion %s, candidate %s at %g %%: %s",
            *(model, route.generation, route.champion, route.candidate, current.effect.share, route.reason),
        )
        return True

    def _refuse(self, model: str, reason: str) -> None:
        known = self.models.get(model)
        if (known.error if known else self.errors.get(model)) != reason:
            logger.warning("%s: route not taken: %s", model, reason)
        if known:
            known.error = reason
        else:
            self.errors[model] = reason

    def _load(self, model: str, path: Path, current: Route | None) -> Loaded:
        route = parse_route(path.read_bytes())
        if route.model != model:
            raise RouteError(f"{path} is a route of {route.model!r}; expected one of {model!r}")
        if current is not None:
            if route.generation < current.generation:
                raise RouteError(
                    f"route {model} generation {route.generation} is older than generation {current.generation}, "
                    "which is in effect; write the newest one from the ledger"
                )
            if route.generation == current.generation and route != current:
                raise RouteError(
                    f"two different routes of {model} call themselves generation {route.generation}; "
                    "the first one stays in effect, write the ledger's again"
                )
        versions = {name: self._version(name, bundle) for name, bundle in route.versions.items()}
        if strangers := sorted(n for n, version in versions.items() if version.manifest.model != model):
            raise RouteError(f"route {model} generation {route.generation}: versions {strangers} are of another model")
        if route != current:
            write_durably(self._paths.last_good / f"{model}.json", route.to_json())
        kept = None
        if current is None:
            before = path.parent == self._paths.last_good and route.candidate is not None
            kept = read_kept(self._paths.evidence / f"{model}.json", model, route.release if before else None)
        return Loaded(route, versions, self._ejection(model), kept)

    def _version(self, name: str, bundle: Bundle) -> Version:
        key = (name, bundle)
        if key not in self._cache:
            self._cache[key] = Version(name, bundle)
        return self._cache[key]

    def _forget(self) -> None:
        """Let go of versions that no route names any more."""
        used = {id(version) for served in self.models.values() for version in served.effect.versions.values()}
        self._cache = {key: version for key, version in self._cache.items() if id(version) in used}

    def _ejection(self, model: str) -> Ejection | None:
        path = self._paths.ejections / f"{model}.json"
        try:
            return Ejection.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise RouteError(f"{path} is not an ejection, so nobody knows who must not answer: {error}") from error
