"""Features of entities, read from Feast's online store as of the question's own time.

Feast is imported in the background, and only where there is a feature repository. All reads happen
on one thread. The registry is a copy of our own: the last one that could be read stays in use,
whatever becomes of the file. A row that is older than its view's TTL counts as missing, which
Feast's own online reads do not see to but its training sets do.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from airlock.core.errors import AirlockError, Unavailable
from gateway.paths import Paths

logger = logging.getLogger("airlock.gateway")

RETRY_SECONDS = 0.2
READ_SECONDS = 2.0

Columns = dict[str, list[Any]]


class OnlineFeatures:
    """The online store. Without :meth:`require` it costs nothing."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._copy = paths.last_good / "feast_registry.db"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="airlock-feast")
        self._store: Any = None
        self._services: dict[str, Any] = {}
        self._integer_keys: frozenset[str] = frozenset()
        self._digest = b""
        self._now = datetime.now(UTC)
        self._errors: dict[str, str] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}

    def prepare(self) -> None:
        """Import Feast in the background where a model may need it."""
        if self._paths.feature_store.exists():
            self._thread.submit(_import_feast)

    def require(self, service: str) -> None:
        """Have a feature service ready, or brought up to the registry as it is now."""
        if service not in self._loading:
            task = asyncio.create_task(self._until_loaded(service))
            self._loading[service] = task
            task.add_done_callback(lambda _: self._loading.pop(service, None))

    def missing(self, service: str) -> str | None:
        """Why a feature service cannot be read yet; ``None`` when it can."""
        if service in self._services:
            return None
        return self._errors.get(service, f"feature service {service} is still being loaded")

    def is_integer(self, entity: str) -> bool:
        """Whether a join key is a whole number rather than a string."""
        return entity in self._integer_keys

    def close(self) -> None:
        for task in self._loading.values():
            task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def read(self, services: Sequence[str], rows: Mapping[str, Sequence[Any]], now: datetime) -> Columns:
        """Feature values by name, one a row; ``None`` where there is none or it is past its TTL.

        Args:
            rows: join keys and request values by name.
            now: what the TTLs are held against.

        Raises:
            Unavailable: a service is not loaded, or the store does not answer.
        """
        for service in services:
            task = self._loading.get(service)
            if self.missing(service) and task:
                # It may be a moment away: a question that comes too early waits as long as a slow read would.
                await asyncio.wait({task}, timeout=READ_SECONDS)
            if why := self.missing(service):
                raise Unavailable(why)
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._thread, self._read, services, rows, now)
        try:
            return await asyncio.wait_for(work, READ_SECONDS)
        except TimeoutError:
            raise Unavailable(f"the online store did not answer within {READ_SECONDS:g} s") from None
        except AirlockError:
            raise
        except Exception as error:  # Feast and its stores raise whatever their drivers do
            raise Unavailable(f"the online store cannot be read: {error}") from error

    async def _until_loaded(self, service: str) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                await loop.run_in_executor(self._thread, self._load, service)
            except Exception as error:  # noqa: BLE001 - as above; it is told, and tried again
                reason = f"feature service {service} cannot be loaded: {error}"
                if self._errors.get(service) != reason:
                    logger.warning(reason)
                self._errors[service] = reason
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._errors.pop(service, None)
                return

    def _load(self, service: str) -> None:
        """On the thread: take the registry over if it can be read and is another one."""
        content = (self._paths.home / "feast" / "registry.db").read_bytes()
        digest = hashlib.sha256(content).digest()
        if digest != self._digest or self._store is None:
            self._open(content)
            self._digest = digest
            self._services = {name: self._store.get_feature_service(name) for name in self._services}
        if service not in self._services:
            self._services[service] = self._store.get_feature_service(service)

    def _open(self, content: bytes) -> None:
        import yaml
        from feast import FeatureStore, RepoConfig, ValueType
        from feast.protos.feast.core.Registry_pb2 import Registry

        Registry.FromString(content)  # a torn file raises here, before it replaces the good one
        temporary = self._copy.with_suffix(".tmp")
        temporary.write_bytes(content)
        temporary.replace(self._copy)
        text = self._paths.feature_store.read_text().replace("${AIRLOCK_HOME}", str(self._paths.home))
        config = yaml.safe_load(os.path.expandvars(text))
        config["registry"] = {"path": str(self._copy), "cache_ttl_seconds": 0, "cache_mode": "thread"}
        store = FeatureStore(config=RepoConfig(**config, repo_path=self._paths.feature_store.parent))
        online = store.provider.online_store
        stored_read = online.online_read

        def fresh_read(config: Any, table: Any, *args: Any, **kwargs: Any) -> Any:
            """The store's own read, less the rows that are past their TTL: on-demand views see what training saw."""
            rows = stored_read(config, table, *args, **kwargs)
            if not table.ttl:
                return rows
            oldest = self._now - table.ttl
            return [(None, None) if at is not None and at < oldest else (at, values) for at, values in rows]

        online.online_read = fresh_read
        entities = store.list_entities()
        self._integer_keys = frozenset(
            entity.join_key for entity in entities if entity.value_type in (ValueType.INT32, ValueType.INT64)
        )
        self._store = store

    def _read(self, services: Sequence[str], rows: Mapping[str, Sequence[Any]], now: datetime) -> Columns:
        self._now = now
        found: Columns = {}
        for service in services:
            answer = self._store.get_online_features(features=self._services[service], entity_rows=rows)
            found.update(answer.to_dict())
        return found


def _import_feast() -> None:
    import feast  # noqa: F401 - takes seconds, which nobody should wait for later
