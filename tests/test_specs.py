"""Specs on disk: what is read, and how well a person is told what is wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock import settings, specs
from airlock.core.errors import NotFound, SpecError
from airlock.core.spec import ModelSpec
from airlock.specs import Problem, find, lint, load_all, load_spec

PROJECT = Path(__file__).parents[1]
GOOD = dedent("""\
    model: house
    task: regression
    data:
      key: id
      event_time: sold
      evaluation: 30d
    label: {name: price}
    inputs:
      rooms: int
      area: {type: float, min: 10}
    gates:
      - {kind: threshold, metric: rmse, max: 50}
      - kind: size
        max_mb: 5
    guards:
      - {kind: error_rate, max: 0.02}
""")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "house.yaml").write_text(GOOD)
    return tmp_path


def changed(folder: Path, old: str, new: str) -> list[Problem]:
    """The problems of the good spec with one thing changed."""
    assert GOOD.count(old) == 1, f"{old!r} must be in the spec once"
    path = folder / "house.yaml"
    path.write_text(GOOD.replace(old, new))
    return lint([path])


def test_a_good_spec_is_read(folder: Path) -> None:
    spec = load_spec(folder / "house.yaml")
    assert spec.data.evaluation == timedelta(days=30)
    assert spec.inputs["rooms"].type == "int"
    assert lint([folder / "house.yaml"]) == []
    assert load_all(folder) == {"house": spec}


@pytest.mark.parametrize(
    ("old", "new", "where", "at", "words"),
    [
        ("  key: id", "  kye: id", "data.key", (3, 1), "key 'key' is missing"),
        ("evaluation:", "evalaution:", "data.evalaution", (6, 3), "unknown key; did you mean 'evaluation'?"),
        ("evaluation:", "zzz:", "data.zzz", (6, 3), "unknown key; known keys: key, event_time, table"),
        ("30d", "30 days", "data.evaluation", (6, 15), "such as 90s, 15m, 6h or 14d, got '30 days'"),
        ("regression", "regresion", "task", (2, 7), "'regresion' is unknown; did you mean 'regression'?"),
        ("task: regression", "task: regression\nserving: {timeout: 0s}", "serving.timeout", (3, 11), "more than 0s"),
        ("kind: size", "kind: sise", "gates.1", (13, 11), "unknown kind 'sise'; did you mean 'size'?"),
        ("kind: size\n    ", "", "gates.1", (13, 5), "key 'kind' is missing; known: calibration"),
        ("metric: rmse", "metric: rsme", "gates.0.metric", (12, 31), "did you mean 'rmse'?"),
        ("metric: rmse", "metric: roc_auc", "gates.0.metric", (12, 23), "roc_auc does not fit a regression"),
        ("max: 50", "max: 50, min: 3", "gates.0", (12, 5), "exactly one of min and max"),
        ("max: 50", "max: .nan", "gates.0.max", (12, 42), "finite number"),
        ("max: 50", "max: many", "gates.0.max", (12, 42), "valid number, unable to parse string as a number"),
        ("min: 10", "mn: 10", "inputs.area.mn", (10, 23), "did you mean 'min'?"),
        ("min: 10", "min: 10, max: 5", "inputs.area", (10, 3), "min 10 is above max 5"),
        ("rooms: int", "rooms: integer", "inputs.rooms", (9, 10), "'integer' is unknown; did you mean 'int'?"),
        ("rooms: int", "price: int", "inputs.price", (9, 3), "the model would be told the answer"),
        ("rooms: int", "rooms: {type: string, values: [NO]}", "inputs.rooms.values.0", (9, 34), "quotes: 'NO'"),
        ("{name: price}", "[price]", "label", (7, 8), "expected a mapping, got a list"),
        ("{name: price}", "{name: }", "label.name", (7, 14), "expected text, got nothing"),
        ("- {kind: error_rate, max: 0.02}", "{}", "guards", (16, 3), "expected a list, got a mapping"),
        ("- {kind: error_rate, max: 0.02}", "[]", "guards", (15, 1), "no alarm configured"),
        ("model: house", "model: House", "model", (1, 8), "should match pattern"),
        ("model: house", "model: home", "model", (1, 8), "rename house.yaml to home.yaml"),
        ("model: house", "model: house\nmodel: house", "", (2, 1), "'model' is already there in line 1"),
        ("    max_mb: 5", "    max_mb: 5\n    kind: size", "gates.1", (15, 5), "'kind' is already there in line 13"),
        ("\n  key: id", "\n\tkey: id", "", (4, 1), "indent with spaces"),
        ("label: {name", "label: {name: [", "", (7, 16), "is not YAML"),
    ],
)  # fmt: skip
def test_one_mistake_is_one_problem_at_its_place(
    folder: Path, old: str, new: str, where: str, at: tuple[int, int], words: str
) -> None:
    problems = changed(folder, old, new)
    told = [problem for problem in problems if words in problem.message]
    assert told, [str(problem) for problem in problems]
    assert len(problems) == 1 + (new == "  kye: id")
    assert (told[0].where, told[0].line, told[0].column) == (where, *at)


def test_the_excerpt_points_with_carets(folder: Path) -> None:
    (problem,) = changed(folder, "evaluation:", "evalaution:")
    assert str(problem) == (
        f"{folder}/house.yaml:6:3: data.evalaution: unknown key; did you mean 'evaluation'?; known keys: key, "
        "event_time, table, tables, evaluation, history\n"
        "  5 |   event_time: sold\n"
        "  6 |   evalaution: 30d\n"
        "    |   ^^^^^^^^^^"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "this file is empty"),
        (b"# only a comment\n", "this file is empty"),
        (b"- a\n- b\n", "this file does not"),
        (b"house\n", "this file does not"),
        (b"\xff\xfe", "is not UTF-8 (byte 0)"),
        (b"a: \x01\n", "is not YAML"),
        (b"a: 1\n---\nb: 2\n", "single document"),
        (b"a: !!python/object/apply:os.system [id]\n", "could not determine a constructor"),
        (b"? [a]\n: 2\n", "unhashable key"),
        (b"a: *nowhere\n", "undefined alias"),
    ],
)
def test_files_that_are_no_spec(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "house.yaml"
    path.write_bytes(content)
    (problem,) = lint([path])
    assert words in problem.message
    assert problem.path == path


@given(st.text(max_size=80))
def test_whatever_the_file_holds_it_is_told_and_never_raised(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("any") / "house.yaml"
    path.write_text(text, encoding="utf-8", errors="ignore")
    assert lint([path])


@given(
    st.sampled_from(GOOD.splitlines()), st.sampled_from(["", "x: 1", "- 3", "{}", "  null: 2", "&a [*a]", "on: off"])
)
def test_a_line_replaced_is_read_or_told_with_its_line(
    tmp_path_factory: pytest.TempPathFactory, line: str, other: str
) -> None:
    path = tmp_path_factory.mktemp("any") / "house.yaml"
    path.write_text(GOOD.replace(line, other))
    for problem in lint([path]):
        assert 1 <= problem.line <= len(GOOD.splitlines()) + 1
        assert problem.message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"house.yaml:1:1: cannot be read \(No such file or directory\)"):
        load_spec(tmp_path / "house.yaml")


def test_yml_is_told_to_be_renamed(folder: Path) -> None:
    (folder / "house.yml").write_text(GOOD)
    with pytest.raises(SpecError, match=r"rename house\.yml to house\.yaml"):
        load_all(folder)


def test_every_problem_of_every_file_is_told_at_once_in_the_order_of_the_lines(folder: Path) -> None:
    (folder / "house.yaml").write_text(
        GOOD.replace("30d", "soon").replace("rmse", "mse").replace("error_rate", "errors")
    )
    (folder / "boat.yaml").write_text(GOOD.replace("model: house", "model: boat").replace("task", "tsak"))
    with pytest.raises(SpecError) as caught:
        load_all(folder)
    text = str(caught.value)
    assert text.startswith("5 problems in 2 specs:")
    lines = [problem.line for problem in lint([folder / "house.yaml"])]
    assert lines == sorted(lines) == [6, 12, 16]
    assert text.index("boat.yaml") < text.index("house.yaml")


def test_anchors_merges_and_aliases_are_read(folder: Path) -> None:
    path = folder / "house.yaml"
    path.write_text(
        GOOD.replace(
            "  rooms: int\n", "  rooms: &n {type: float, nullable: true}\n  doors: *n\n  age: {<<: *n, min: 0}\n"
        )
    )
    spec = load_spec(path)
    assert spec.inputs["doors"] == spec.inputs["rooms"]
    assert spec.inputs["age"].nullable
    assert spec.inputs["age"].min == 0


class TestFind:
    def test_by_name(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AIRLOCK_PROJECT", str(folder))
        here = settings.load()
        here.specs.mkdir(parents=True)
        (here.specs / "house.yaml").write_text(GOOD)
        assert find(here, "house").model == "house"
        with pytest.raises(NotFound, match=r"no model 'hose' in .*; did you mean 'house'\?; models there: house"):
            find(here, "hose")
        with pytest.raises(NotFound):
            find(here, "../models/house")

    def test_in_an_empty_project(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match="models there: none"):
            find(replace(settings.load(), project=tmp_path), "house")


class TestSchema:
    def test_the_copy_for_editors_is_current(self) -> None:
        assert (PROJECT / "docs" / "spec.schema.json").read_text() == specs.schema_text(), (
            "write it again: airlock spec schema --out docs/spec.schema.json"
        )

    def test_it_knows_short_inputs_and_readable_durations(self) -> None:
        text = specs.schema_text()
        schema = json.loads(text)
        options = schema["properties"]["inputs"]["additionalProperties"]["anyOf"]
        assert {"enum": ["float", "int", "string"], "type": "string"} in options
        assert schema["$defs"]["Data"]["properties"]["evaluation"]["default"] == "14d"
        assert schema["additionalProperties"] is False
        assert not re.search(r'"default": "P', text), "ISO 8601 is not how a spec writes durations"

    def test_every_spec_of_the_project_is_clean(self) -> None:
        assert [str(problem) for problem in lint(specs.spec_files(PROJECT / "dags" / "models"))] == []


def test_a_spec_survives_being_written_as_json(folder: Path) -> None:
    spec = load_spec(folder / "house.yaml")
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec


def test_reading_specs_needs_nothing_heavy() -> None:
    script = "import sys, airlock.specs; print([name for name in sys.modules if '.' not in name])"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=PROJECT)
    heavy = {"airflow", "mlflow", "feast", "evidently", "great_expectations", "bentoml", "sklearn", "pandas", "numpy"}
    assert not heavy & set(json.loads(loaded.stdout.replace("'", '"')))
