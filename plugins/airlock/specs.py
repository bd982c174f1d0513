"""Model specs on disk: reading, checking and the editors' schema. Needs no Airflow.

A spec lies in ``<folder>/<model>.yaml`` and is named after its model. Whatever is wrong with it is told
with file, line, an excerpt and the closest name, all problems of all files at once.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import ErrorDetails

from airlock.core.errors import NotFound, SpecError
from airlock.core.spec import ModelSpec, written
from airlock.settings import Settings

SUFFIXES = (".yaml", ".yml")
"""What is taken for a spec. The second is told to be renamed, rather than passed over in silence."""

Location = tuple[int | str, ...]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a spec. ``line`` and ``column`` count from 1; ``where`` is a dotted path."""

    path: Path
    line: int
    column: int
    where: str
    message: str
    excerpt: str

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        head = f"{self.path}:{self.line}:{self.column}: {place}{self.message}"
        return f"{head}\n{self.excerpt}" if self.excerpt else head


def load_spec(path: Path) -> ModelSpec:
    """Read one spec.

    Raises:
        SpecError: the file cannot be read, is not YAML or is not a spec; every problem is in the message.
    """
    spec, problems = check(path)
    if spec is None:
        raise _spec_error(problems)
    return spec


def load_all(folder: Path) -> dict[str, ModelSpec]:
    """Every spec of a folder by model, sorted.

    Raises:
        SpecError: at least one cannot be used; every problem of every file is in the message.
    """
    checked = [check(path) for path in spec_files(folder)]
    if problems := [problem for _, found in checked for problem in found]:
        raise _spec_error(problems)
    return {spec.model: spec for spec, _ in checked if spec is not None}


def find(settings: Settings, model: str) -> ModelSpec:
    """The spec of a model in the project.

    Raises:
        NotFound: there is none; names the closest.
        SpecError: it cannot be used.
    """
    path = settings.specs / f"{model}.yaml"
    files = spec_files(settings.specs)
    if path not in files:
        models = [file.stem for file in files]
        known = ", ".join(models) or "none"
        raise NotFound(f"no model {model!r} in {settings.specs}{_closest(model, models)}; models there: {known}")
    return load_spec(path)


def spec_files(folder: Path) -> list[Path]:
    """The files of a folder that are taken for specs, sorted."""
    return sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES and path.is_file())


def lint(paths: Iterable[Path]) -> list[Problem]:
    """Every problem of every file."""
    return [problem for path in paths for problem in check(path)[1]]


def schema() -> dict[str, Any]:
    """JSON schema of a spec, for editors; ``docs/spec.schema.json`` is a copy."""
    return {"$schema": _Schema.schema_dialect, **ModelSpec.model_json_schema(schema_generator=_Schema)}


def schema_text() -> str:
    """The schema as it is written to a file."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


class _Schema(GenerateJsonSchema):
    """Writes the defaults of durations as a spec would."""

    def encode_default(self, dft: Any) -> Any:
        return written(dft) if isinstance(dft, timedelta) else super().encode_default(dft)


def check(path: Path) -> tuple[ModelSpec | None, list[Problem]]:
    """The spec, or ``None`` and everything that is wrong with it."""
    try:
        source = _Source(path, _read(path))
        root, values = source.parse()
    except _Unusable as unusable:
        return None, [unusable.problem]
    if doubled := list(source.doubled(root)):
        return None, doubled
    try:
        spec = ModelSpec.model_validate(values)
    except ValidationError as error:
        problems = [source.explain(root, details) for details in error.errors(include_url=False)]
        return None, sorted(problems, key=lambda problem: (problem.line, problem.column))
    if path.name != (name := f"{spec.model}.yaml"):
        node = _Place(root).walk(("model",)).node
        return None, [source.problem(node, "model", f"a spec is named after its model: rename {path.name} to {name}")]
    return spec, []


class _Unusable(Exception):
    """A file that is not even a mapping in YAML."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        message = f"cannot be read ({error.strerror or type(error).__name__}); a spec is a YAML file"
    except UnicodeDecodeError as error:
        message = f"is not UTF-8 (byte {error.start}); save it as UTF-8"
    raise _Unusable(Problem(path, 1, 1, "", message, ""))


def _spec_error(problems: Sequence[Problem]) -> SpecError:
    files = len({problem.path for problem in problems})
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in {files} spec{'s' if files > 1 else ''}"
    return SpecError("\n\n".join([f"{count}:", *map(str, problems)]))


def _closest(word: object, names: Iterable[str]) -> str:
    found = difflib.get_close_matches(str(word), list(names), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


@dataclass
class _Place:
    """A node, and the key that leads to it if it is in a mapping."""

    node: yaml.Node
    key: yaml.Node | None = None

    def walk(self, location: Location) -> _Place:
        """As far down as the document goes; tags of unions and keys that are not there are passed over."""
        place = self
        for part in location:
            place = place.child(part) or place
        return place

    def child(self, part: int | str) -> _Place | None:
        if isinstance(self.node, yaml.SequenceNode) and isinstance(part, int):
            return _Place(self.node.value[part]) if part < len(self.node.value) else None
        if isinstance(self.node, yaml.MappingNode):
            # The last of doubled keys is the one that counts, as in a merge.
            for key, value in reversed(self.node.value):
                if isinstance(key, yaml.ScalarNode) and key.value == str(part):
                    return _Place(value, key)
        return None


def _schema_at(location: Location) -> dict[str, Any]:
    """The part of the schema that rules a place."""
    whole = ModelSpec.model_json_schema()
    here = _resolved(whole, whole)
    for part in location:
        here = _resolved(whole, _descend(here, part))
    return here


def _names_at(location: Location) -> list[str]:
    return list(_schema_at(location).get("properties", {}))


def _resolved(whole: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """A schema without references and without alternatives to an object."""
    while True:
        if "$ref" in part:
            part = whole["$defs"][part["$ref"].rpartition("/")[2]]
        elif "anyOf" in part:
            part = next((option for option in part["anyOf"] if "$ref" in option), {})
        else:
            return part


def _descend(here: dict[str, Any], part: int | str) -> dict[str, Any]:
    if "discriminator" in here:
        reference = here["discriminator"]["mapping"].get(part)
        return {"$ref": reference} if reference else {}
    if isinstance(part, int):
        return dict(here.get("items", {}))
    return dict(here.get("properties", {}).get(part) or here.get("additionalProperties") or {})


@dataclass(frozen=True)
class _Source:
    """One file: its text, and how to point into it."""

    path: Path
    text: str

    def parse(self) -> tuple[yaml.MappingNode, dict[Any, Any]]:
        """The document's nodes, which know their lines, and its values.

        Raises:
            _Unusable: it is not one mapping in YAML.
        """
        try:
            loader = yaml.SafeLoader(self.text)
            root = loader.get_single_node()
            values = None if root is None else loader.construct_document(root)
        except yaml.MarkedYAMLError as error:
            raise _Unusable(self.not_yaml(error)) from error
        except yaml.YAMLError as error:
            raise _Unusable(Problem(self.path, 1, 1, "", f"is not YAML: {error}", "")) from error
        if not isinstance(root, yaml.MappingNode) or not isinstance(values, dict):
            found = "is empty" if root is None else "does not"
            message = f"a spec is a mapping that starts with 'model: <name>'; this file {found}"
            raise _Unusable(self.problem(root, "", message))
        return root, values

    def excerpt(self, line: int, column: int, width: int) -> str:
        """The line before, the line, and carets below; all count from 0."""
        lines = self.text.splitlines()
        if line >= len(lines):
            return ""
        shown = [number for number in (line - 1, line) if number >= 0]
        gutter = len(str(line + 1))
        rows = [f"  {number + 1:>{gutter}} | {lines[number]}".rstrip() for number in shown]
        width = max(1, min(width, len(lines[line]) - column))
        return "\n".join([*rows, f"  {'':>{gutter}} | {' ' * column}{'^' * width}"])

    def problem(self, node: yaml.Node | None, where: str, message: str) -> Problem:
        if node is None:
            return Problem(self.path, 1, 1, where, message, "")
        start, end = node.start_mark, node.end_mark
        width = end.column - start.column if end.line == start.line else len(self.text)
        excerpt = self.excerpt(start.line, start.column, width)
        return Problem(self.path, start.line + 1, start.column + 1, where, message, excerpt)

    def not_yaml(self, error: yaml.MarkedYAMLError) -> Problem:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line, mark.column) if mark else (0, 0)
        message = ", ".join(part for part in (error.context, error.problem) if part)
        if "'\\t'" in message:
            message += "; indent with spaces, YAML knows no tabs"
        return Problem(self.path, line + 1, column + 1, "", f"is not YAML: {message}", self.excerpt(line, column, 1))

    def doubled(self, root: yaml.Node) -> Iterator[Problem]:
        """Keys that are there twice: YAML would silently take the last."""
        seen: set[int] = set()
        waiting: list[tuple[yaml.Node, str]] = [(root, "")]
        while waiting:
            node, where = waiting.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            if isinstance(node, yaml.SequenceNode):
                waiting += [(child, _join(where, index)) for index, child in enumerate(node.value)]
            if isinstance(node, yaml.MappingNode):
                names: dict[str, yaml.Node] = {}
                for key, value in node.value:
                    if key.value in names:
                        first = names[key.value].start_mark.line + 1
                        yield self.problem(key, where, f"key {key.value!r} is already there in line {first}")
                    names.setdefault(key.value, key)
                    waiting.append((value, _join(where, key.value)))

    def explain(self, root: yaml.Node, details: ErrorDetails) -> Problem:
        """One of pydantic's findings in the words and at the line of the file."""
        place, where = _Place(root), ""
        location = details["loc"]
        for index, part in enumerate(location):
            child = place.child(part)
            place = child or place
            # Tags of unions are in the location but not in the file; a missing key is not there either.
            if child or (details["type"] == "missing" and index == len(location) - 1):
                where = _join(where, part)
        finding = _EXPLAIN.get(details["type"], _anything)(place, details)
        if finding.at is not None:
            at: Location = tuple(int(part) if part.isdigit() else part for part in finding.at.split("."))
            place, where = _Place(root).walk(at), finding.at
        target = finding.target or place.key or place.node
        return self.problem(target, where, finding.message)


@dataclass(frozen=True)
class _Finding:
    """A message and what it points at: a node, or a dotted path, or (neither) the key of the place."""

    message: str
    target: yaml.Node | None = None
    at: str | None = None


def _unknown_key(place: _Place, details: ErrorDetails) -> _Finding:
    *above, word = details["loc"]
    names = _names_at(tuple(above))
    return _Finding(f"unknown key{_closest(word, names)}{_listed('known keys', names)}", place.key)


def _missing(place: _Place, details: ErrorDetails) -> _Finding:
    return _Finding(f"key {details['loc'][-1]!r} is missing", place.key)


def _unknown_kind(place: _Place, details: ErrorDetails) -> _Finding:
    context = details["ctx"]
    kind, tag = context["discriminator"].strip("'"), context["tag"]
    names = _quoted(context["expected_tags"])
    written = place.child(kind)
    message = f"unknown {kind} {tag!r}{_closest(tag, names)}{_listed('known', names)}"
    return _Finding(message, written.node if written else place.node)


def _no_kind(place: _Place, details: ErrorDetails) -> _Finding:
    kind = details["ctx"]["discriminator"].strip("'")
    tags = _resolved_tags(details["loc"])
    return _Finding(f"key {kind!r} is missing{_listed('known', tags)}", place.node)


def _not_among(place: _Place, details: ErrorDetails) -> _Finding:
    names, got = _quoted(details["ctx"]["expected"]), details["input"]
    return _Finding(f"{_short(got)} is unknown{_closest(got, names)}{_listed('known', names)}", place.node)


def _refused(_place: _Place, details: ErrorDetails) -> _Finding:
    return _Finding(details["msg"], at=details["ctx"]["at"])


def _rule(place: _Place, details: ErrorDetails) -> _Finding:
    target = place.node if isinstance(place.node, yaml.ScalarNode) else place.key
    return _Finding(str(details["ctx"]["error"]), target or place.node)


def _not_text(place: _Place, details: ErrorDetails) -> _Finding:
    got = details["input"]
    if got is None or isinstance(got, dict | list):
        return _Finding(f"expected text, got {_short(got)}", place.node)
    written = getattr(place.node, "value", str(got))
    return _Finding(f"expected text; YAML reads {written} as {_short(got)}, put it in quotes: '{written}'", place.node)


def _anything(place: _Place, details: ErrorDetails) -> _Finding:
    message = details["msg"]
    return _Finding(f"{message[0].lower()}{message[1:]}, got {_short(details['input'])}", place.node)


def _not_list(place: _Place, details: ErrorDetails) -> _Finding:
    return _Finding(f"expected a list, got {_short(details['input'])}", place.node)


def _not_mapping(place: _Place, details: ErrorDetails) -> _Finding:
    return _Finding(f"expected a mapping, got {_short(details['input'])}", place.node)


_EXPLAIN: dict[str, Callable[[_Place, ErrorDetails], _Finding]] = {
    "extra_forbidden": _unknown_key,
    "missing": _missing,
    "union_tag_invalid": _unknown_kind,
    "union_tag_not_found": _no_kind,
    "literal_error": _not_among,
    "enum": _not_among,
    "refused": _refused,
    "value_error": _rule,
    "string_type": _not_text,
    "tuple_type": _not_list,
    "dict_type": _not_mapping,
    "model_type": _not_mapping,
    "model_attributes_type": _not_mapping,
}


def _resolved_tags(location: Location) -> list[str]:
    return list(_schema_at(location).get("discriminator", {}).get("mapping", {}))


def _quoted(names: str) -> list[str]:
    """The names in pydantic's "'a', 'b' or 'c'"."""
    return re.findall(r"'([^']*)'", names)


def _listed(what: str, names: Sequence[str]) -> str:
    return f"; {what}: {', '.join(names)}" if names else ""


def _join(where: str, part: int | str) -> str:
    return f"{where}.{part}" if where else str(part)


def _short(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case dict():
            return "a mapping"
        case list():
            return "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
