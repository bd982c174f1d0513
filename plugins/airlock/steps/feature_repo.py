"""The user's feature repository: the part of it that one feature service needs, and a Feast store to use it with."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from airlock.core.errors import SpecError
from airlock.settings import Settings

_TABLES = "AIRLOCK_FEATURE_TABLES"
_environment_lock = threading.Lock()


@dataclass(frozen=True)
class View:
    """A Feast feature view, in plain values. No ``ttl`` (zero) means that a row holds for ever."""

    name: str
    keys: tuple[str, ...]
    features: tuple[str, ...]
    ttl: timedelta


@dataclass(frozen=True)
class Repo:
    """The part of the feature repository that one feature service needs, and a store to use it with."""

    store: Any
    service: Any
    objects: list[Any]
    views: dict[str, View]
    stored: dict[str, Any]

    @property
    def provider(self) -> Any:
        from feast.infra.provider import get_provider

        return get_provider(self.store.config)


def open_repo(
    settings: Settings, service: str, *, tables: Path, private: Path | None = None, registry: Path | None = None
) -> Repo:
    """Read ``feature_repo``. ``private`` keeps registry and online store away from those in use."""
    import yaml
    from feast import FeatureStore, FeatureView, RepoConfig

    with _environment(settings, tables):
        text = os.path.expandvars((settings.feature_repo / "feature_store.yaml").read_text())
        found = _definitions(settings.feature_repo)
    config = yaml.safe_load(text)
    if private is not None:
        config["registry"] = {"path": str(private / "registry.db")}
        config["offline_store"] = {"type": "airlock.steps.asof.AsofOfflineStore"}
        config["online_store"] = {"type": "sqlite", "path": str(private / "online.db")}
    elif registry is not None:
        config["registry"]["path"] = str(registry)
    store = FeatureStore(config=RepoConfig(**config, repo_path=settings.feature_repo))
    chosen, objects = _needed(found, service)
    stored = {item.name: item for item in objects if isinstance(item, FeatureView)}
    views = {name: _view(item, objects) for name, item in stored.items()}
    return Repo(store, chosen, objects, views, stored)


def _view(view: Any, objects: Sequence[Any]) -> View:
    from feast import Entity

    keys = {item.name: item.join_key for item in objects if isinstance(item, Entity)}
    return View(
        name=view.name,
        keys=tuple(keys[entity] for entity in view.entities),
        features=tuple(field.name for field in view.features),
        ttl=view.ttl or timedelta(0),
    )


def _needed(found: Sequence[Any], service: str) -> tuple[Any, list[Any]]:
    """The named service with the views, on-demand views and entities it needs."""
    from feast import Entity, FeatureService, FeatureView, OnDemandFeatureView

    services = {item.name: item for item in found if isinstance(item, FeatureService)}
    if service not in services:
        raise SpecError(f"there is no feature service {service!r} in feature_repo; it has {sorted(services)}")
    names = {projection.name for projection in services[service].feature_view_projections}
    on_demand = [item for item in found if isinstance(item, OnDemandFeatureView) and item.name in names]
    for item in on_demand:
        names |= set(item.source_feature_view_projections)
    views = [item for item in found if isinstance(item, FeatureView) and item.name in names]
    used = {entity for view in views for entity in view.entities}
    entities = [item for item in found if isinstance(item, Entity) and item.name in used]
    return services[service], [*entities, *views, *on_demand, services[service]]


def _definitions(repo: Path) -> list[Any]:
    found: list[Any] = []
    for path in sorted(repo.glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"_airlock_feature_repo_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise SpecError(f"{path} is not a Python module")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found += [item for item in vars(module).values() if not any(item is known for known in found)]
    return found


@contextlib.contextmanager
def _environment(settings: Settings, tables: Path) -> Iterator[None]:
    """What the repository's files read from the environment; one reader at a time."""
    wanted = {"AIRLOCK_HOME": str(settings.home), _TABLES: str(tables)}
    with _environment_lock:
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def repo_digest(settings: Settings) -> str:
    """Changes when a definition or the store's configuration does."""
    digest = hashlib.sha256()
    for path in sorted(settings.feature_repo.glob("*")):
        if path.suffix in {".py", ".yaml"}:
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Feast's own progress bars and warnings about its experimental parts, kept out of the logs."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
