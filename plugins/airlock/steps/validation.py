"""Validation of a snapshot with Great Expectations, by the rules of the spec.

A snapshot starts unusable: nothing is trained on one without a passing verdict beside its tables.
One that breaks a rule is moved to quarantine, where its owner can look at it and no step will.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airlock.core.bundle import sha256
from airlock.core.errors import DataInvalid
from airlock.core.refs import SnapshotRef
from airlock.core.spec import Column, ColumnType, ModelSpec, Table, Task
from airlock.core.verdict import Status, Verdict
from airlock.settings import Settings
from airlock.steps.snapshot import VERDICT, read_table, verify_snapshot

if TYPE_CHECKING:
    import pandas as pd

_INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
_FLOATS = ["float32", "float64"]
_TYPES = {
    ColumnType.FLOAT: [*_FLOATS, *_INTEGERS],
    ColumnType.INT: _INTEGERS,
    ColumnType.STRING: ["str"],
    ColumnType.BOOL: ["bool"],
    ColumnType.TIMESTAMP: ["datetime64[us]"],
}
_SHOWN = 5


@dataclass(frozen=True)
class _Rule:
    """One expectation, and how to say it: ``name`` is the spec's word for the rule."""

    name: str
    table: str
    column: str
    expected: str
    expectation: Any


def validate(spec: ModelSpec, settings: Settings, snapshot: SnapshotRef) -> Verdict:
    """Judge a snapshot by ``data.tables`` and by what training cannot do without.

    A passing verdict is kept with the snapshot. A failing one moves the snapshot to quarantine.

    Returns:
        The verdict; ``details["failures"]`` has rule, table.column, what was expected, and how
        many of how many rows broke it. No value of any row is in it.

    Raises:
        ArtifactCorrupt: the snapshot is not what its ref says.
    """
    manifest = verify_snapshot(snapshot)
    if (known := recorded(spec, snapshot)) is not None:
        return known
    failures: list[dict[str, Any]] = []
    checked = 0
    for name, table in _tables(spec).items():
        if name not in manifest.tables:
            failures.append({"rule": "table", "where": name, "expected": "the table", "rows": 0, "failing": 0})
            checked += 1
            continue
        frame = _plain(read_table(snapshot, name))
        rules = list(_rules(name, table, frame))
        checked += len(rules)
        failures += _broken(name, rules, frame)
    verdict = _verdict(spec, snapshot, failures, checked)
    if verdict.passed:
        _record(Path(snapshot.path), verdict)
        return verdict
    place = _quarantine(spec, settings, snapshot, verdict)
    return verdict.model_copy(update={"reason": f"{verdict.reason}. The snapshot is in quarantine: {place}"})


def require_valid(verdict: Verdict) -> None:
    """Stop here unless the verdict passed.

    Raises:
        DataInvalid: says which rule, which table and column, and how many rows.
    """
    if not verdict.passed:
        raise DataInvalid(verdict.reason)


def recorded(spec: ModelSpec, snapshot: SnapshotRef) -> Verdict | None:
    """The verdict that was kept with a snapshot, if it was validated by the rules that the spec has now."""
    path = Path(snapshot.path) / VERDICT
    if not path.is_file():
        return None
    verdict = Verdict.model_validate_json(path.read_bytes())
    return verdict if verdict.details.get("rules") == _digest(spec) else None


def _digest(spec: ModelSpec) -> str:
    rules = {name: table.model_dump(mode="json") for name, table in _tables(spec).items()}
    return sha256(json.dumps(rules, sort_keys=True).encode())


def _tables(spec: ModelSpec) -> dict[str, Table]:
    """The spec's rules, with those added that hold for every events table."""
    events = spec.data.tables.get(spec.data.table, Table())
    columns = dict(events.columns)
    columns.setdefault(spec.data.key, Column(type=ColumnType.STRING, unique=True))
    columns.setdefault(spec.data.event_time, Column(type=ColumnType.TIMESTAMP))
    if spec.label.time:
        columns.setdefault(spec.label.time, Column(type=ColumnType.TIMESTAMP))
    label = (
        Column(type=ColumnType.INT, min=0, max=1) if spec.task is Task.CLASSIFICATION else Column(type=ColumnType.FLOAT)
    )
    columns.setdefault(spec.label.name, label)
    complete = events.model_copy(update={"columns": columns, "key": events.key or (spec.data.key,)})
    return {**spec.data.tables, spec.data.table: complete}


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Instants without their zone (UTC, see ``snapshot``): Great Expectations knows no type with one."""
    zoned = frame.select_dtypes("datetimetz").columns
    return frame.assign(**{str(name): frame[name].dt.tz_localize(None) for name in zoned})


def _rules(name: str, table: Table, frame: pd.DataFrame) -> Iterator[_Rule]:
    gxe = _great_expectations().expectations

    yield _Rule(
        "min_rows",
        name,
        "",
        f"at least {table.min_rows:,} rows",
        gxe.ExpectTableRowCountToBeBetween(min_value=table.min_rows),
    )
    for column in table.columns:
        yield _Rule("column", name, column, "the column", gxe.ExpectColumnToExist(column=column))
    present = {column: rule for column, rule in table.columns.items() if column in frame.columns}
    for column, rule in present.items():
        for word, expected, expectation in _column_rules(column, rule):
            yield _Rule(word, name, column, expected, expectation)
    if len(table.key) > 1 and set(table.key) <= set(frame.columns):
        columns = ", ".join(table.key)
        expectation = gxe.ExpectCompoundColumnsToBeUnique(column_list=list(table.key))
        yield _Rule("key", name, columns, "no key twice", expectation)
    elif len(table.key) == 1 and set(table.key) <= set(frame.columns):
        key = table.key[0]
        if not present.get(key, Column(type=ColumnType.STRING)).unique:
            yield _Rule("key", name, key, "no key twice", gxe.ExpectColumnValuesToBeUnique(column=key))


def _column_rules(column: str, rule: Column) -> Iterator[tuple[str, str, Any]]:
    gxe = _great_expectations().expectations

    # Whole numbers with gaps become floats in pandas.
    types = _TYPES[rule.type] + (_FLOATS if rule.type is ColumnType.INT and rule.max_missing else [])
    yield "type", rule.type.value, gxe.ExpectColumnValuesToBeInTypeList(column=column, type_list=types)
    share = f"at most {rule.max_missing:.1%} missing" if rule.max_missing else "no missing value"
    yield "max_missing", share, gxe.ExpectColumnValuesToNotBeNull(column=column, mostly=1 - rule.max_missing)
    if rule.min is not None or rule.max is not None:
        bounds = " and ".join(
            f"{word} {bound:g}" for word, bound in (("at least", rule.min), ("at most", rule.max)) if bound is not None
        )
        yield (
            "range",
            bounds,
            gxe.ExpectColumnValuesToBeBetween(column=column, min_value=rule.min, max_value=rule.max),
        )
    if rule.values is not None:
        known = gxe.ExpectColumnValuesToBeInSet(column=column, value_set=list(rule.values))
        yield "values", f"one of {', '.join(rule.values)}", known
    if rule.unique:
        yield "unique", "no value twice", gxe.ExpectColumnValuesToBeUnique(column=column)


def _broken(name: str, rules: list[_Rule], frame: pd.DataFrame) -> list[dict[str, Any]]:
    """What Great Expectations found, in the spec's words; the first cause of a column only."""
    results = _run(name, rules, frame)
    failures = []
    spoiled = set()
    for rule, result in zip(rules, results, strict=True):
        if result.success or rule.column in spoiled:
            continue
        raised = _exception(result)
        if rule.name in {"column", "type"}:
            spoiled.add(rule.column)
        failing = result.result.get("unexpected_count", len(frame)) if not raised else len(frame)
        failures.append(
            {
                "rule": rule.name,
                "where": f"{name}.{rule.column}" if rule.column else name,
                "expected": rule.expected,
                "rows": len(frame),
                "failing": int(failing),
                **({"error": raised} if raised else {}),
            }
        )
    return failures


def _run(name: str, rules: list[_Rule], frame: pd.DataFrame) -> list[Any]:
    """Results in the order of the rules. Nothing is stored or sent anywhere, and no row's value is kept."""
    gx = _great_expectations()
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("snapshot").add_dataframe_asset(name)
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch(batch_parameters={"dataframe": frame})
    for number, rule in enumerate(rules):
        rule.expectation.meta = {"rule": number}
    suite = gx.ExpectationSuite(name=name, expectations=[rule.expectation for rule in rules])
    found = batch.validate(suite, result_format={"result_format": "SUMMARY", "partial_unexpected_count": 0})
    return sorted(found.results, key=lambda result: result.expectation_config.meta["rule"])


def _great_expectations() -> Any:
    """The library, told to keep quiet and to phone nobody before it is imported."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    import great_expectations

    # This module gives its own logger a level when it is imported.
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    return great_expectations


def _exception(result: Any) -> str | None:
    """The message of an expectation that could not be evaluated."""
    info = result.exception_info or {}
    for part in [info, *(value for value in info.values() if isinstance(value, dict))]:
        if part.get("raised_exception"):
            return str(part.get("exception_message"))
    return None


def _verdict(spec: ModelSpec, snapshot: SnapshotRef, failures: list[dict[str, Any]], checked: int) -> Verdict:
    rows = sum(snapshot.tables.values())
    if not failures:
        reason = f"{checked} rules hold on {rows:,} rows of {len(snapshot.tables)} tables"
    else:
        said = "; ".join(_say(failure) for failure in failures[:_SHOWN])
        more = f"; and {len(failures) - _SHOWN} more" if len(failures) > _SHOWN else ""
        reason = f"{spec.model}: the data breaks {len(failures)} of {checked} rules: {said}{more}"
    return Verdict(
        name="data",
        status=Status.FAIL if failures else Status.PASS,
        reason=reason,
        metric="broken_rules",
        estimate=float(len(failures)),
        threshold=0.0,
        n=rows,
        details={"checked": checked, "failures": failures, "snapshot": snapshot.digest, "rules": _digest(spec)},
    )


def _say(failure: dict[str, Any]) -> str:
    where, rule, expected = failure["where"], failure["rule"], failure["expected"]
    if "error" in failure:
        return f"{where} ({rule}: {expected}) could not be judged: {failure['error']}"
    if rule in {"table", "column"}:
        return f"{where} ({rule}) is missing from {failure['rows']:,} rows"
    if rule == "min_rows":
        return f"{where} ({rule}) has {failure['rows']:,} rows, expected {expected}"
    return f"{where} ({rule}: {expected}) fails in {failure['failing']:,} of {failure['rows']:,} rows"


def _record(folder: Path, verdict: Verdict) -> None:
    making = folder / f".{VERDICT}"
    making.write_text(verdict.model_dump_json(indent=1))
    making.replace(folder / VERDICT)


def _quarantine(spec: ModelSpec, settings: Settings, snapshot: SnapshotRef, verdict: Verdict) -> Path:
    place = settings.quarantine / spec.model / Path(snapshot.path).name
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(place, ignore_errors=True)
    Path(snapshot.path).rename(place)
    _record(place, verdict)
    return place
