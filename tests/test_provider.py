"""The package as Airflow finds it: entry points, provider info, connection types, plugin."""

from __future__ import annotations

import importlib
import json
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import airflow
import jsonschema
import pytest
from airflow.sdk import BaseHook, BaseOperator, BaseOperatorLink, BaseSensorOperator
from airflow.sdk.module_loading import import_string
from airflow.triggers.base import BaseTrigger

from airlock.get_provider_info import get_provider_info

INFO = get_provider_info()


def modules(kind: str) -> list[str]:
    return [module for entry in INFO[kind] for module in entry["python-modules"]]


def defined(module: str) -> list[Any]:
    found = importlib.import_module(module)
    return [each for each in vars(found).values() if getattr(each, "__module__", None) == module]


def test_provider_info_follows_the_schema() -> None:
    schema = Path(airflow.__file__).with_name("provider_info.schema.json")
    jsonschema.validate(INFO, json.loads(schema.read_text()))


def test_entry_points_lead_here() -> None:
    dist = distribution(INFO["package-name"])
    entries = {(entry.group, entry.name): entry.value for entry in dist.entry_points}
    assert import_string(entries["apache_airflow_provider", "provider_info"].replace(":", ".")) is get_provider_info
    plugin = import_string(entries["airflow.plugins", "airlock"].replace(":", "."))
    assert plugin.name == "airlock"


@pytest.mark.parametrize(
    ("kind", "base", "folder"),
    [
        ("operators", BaseOperator, "operators"),
        ("sensors", BaseSensorOperator, "sensors"),
        ("hooks", BaseHook, "hooks"),
        ("triggers", BaseTrigger, "triggers"),
    ],
)
def test_every_listed_module_holds_its_kind_and_none_is_forgotten(kind: str, base: type, folder: str) -> None:
    listed = set(modules(kind))
    for module in listed:
        assert any(isinstance(each, type) and issubclass(each, base) for each in defined(module)), module
    package = importlib.import_module(f"airlock.{folder}")
    for path in Path(next(iter(package.__path__))).glob("[!_]*.py"):
        name = f"airlock.{folder}.{path.stem}"
        public = [
            c
            for c in defined(name)
            if isinstance(c, type)
            and issubclass(c, base)
            and c.__name__.endswith(("Operator", "Sensor", "Hook", "Trigger"))
        ]
        helpers = {"airlock.operators.base", "airlock.hooks.url"}
        assert (name in listed) is bool(public and name not in helpers), name


def test_connection_types_belong_to_their_hooks() -> None:
    for entry in INFO["connection-types"]:
        hook = import_string(entry["hook-class-name"])
        assert hook.conn_type == entry["connection-type"]
        assert hook.hook_name == entry["hook-name"]
        assert hook.default_conn_name == hook.conn_type
        assert hook.conn_name_attr in hook.__init__.__code__.co_varnames


def test_extra_links_are_those_of_the_operators() -> None:
    listed = {import_string(path) for path in INFO["extra-links"]}
    used = {
        type(link)
        for module in modules("operators")
        for each in defined(module)
        if isinstance(each, type) and issubclass(each, BaseOperator)
        for link in each.operator_extra_links
    }
    assert listed == used
    assert all(issubclass(link, BaseOperatorLink) for link in listed)


@pytest.mark.integration
def test_airflow_lists_the_provider_and_its_connection_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    from airflow.providers_manager import ProvidersManager
    from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

    manager = ProvidersManager()
    assert manager.providers["airflow-provider-airlock"].version == distribution("airflow-provider-airlock").version
    assert {"airlock_gateway", "airlock_ledger", "airlock_mlflow"} <= set(ProvidersManagerTaskRuntime().hooks)
    assert "airlock.operators.links.MlflowRunLink" in manager.extra_links_class_names
