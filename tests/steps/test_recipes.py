from __future__ import annotations

from pathlib import Path

import pytest

from airlock.core.errors import SpecError
from airlock.steps.recipes import definition_digest, load_recipe
from tests.support.tiny_data import tiny_project, tiny_spec


def test_a_recipe_is_imported_from_the_project(tmp_path: Path) -> None:
    recipe = load_recipe(tiny_spec(), tiny_project(tmp_path))
    assert recipe.load(None) == {}


def test_two_projects_do_not_get_each_others_recipe(tmp_path: Path) -> None:
    spec = tiny_spec()
    first = load_recipe(spec, tiny_project(tmp_path / "first"))
    second = load_recipe(spec, tiny_project(tmp_path / "second"))
    assert str(tmp_path / "first") in str(first.load.__code__.co_filename)  # type: ignore[attr-defined]
    assert str(tmp_path / "second") in str(second.load.__code__.co_filename)  # type: ignore[attr-defined]


def test_a_missing_recipe_says_where_it_was_looked_for(tmp_path: Path) -> None:
    settings = tiny_project(tmp_path)
    with pytest.raises(SpecError, match=r"include\.other\.recipe cannot be imported from .*recipe\.module"):
        load_recipe(tiny_spec(recipe={"module": "include.other.recipe"}), settings)


def test_a_recipe_that_does_not_import_says_why(tmp_path: Path) -> None:
    settings = tiny_project(tmp_path)
    (tmp_path / "include/tiny/recipe.py").write_text("import no_such_library\n")
    with pytest.raises(SpecError, match="no_such_library"):
        load_recipe(tiny_spec(), settings)


def test_a_recipe_without_a_function_names_it(tmp_path: Path) -> None:
    settings = tiny_project(tmp_path)
    (tmp_path / "include/tiny/recipe.py").write_text("def load(until):\n    return {}\n")
    with pytest.raises(SpecError, match="does not define pipeline, search_space"):
        load_recipe(tiny_spec(), settings)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("include/tiny/recipe.py", "\n# changed\n"),
        ("include/tiny/helper.py", ""),
        ("feature_repo/definitions.py", "\n# x\n"),
    ],
)
def test_code_and_features_are_part_of_the_definition(tmp_path: Path, file: str, change: str) -> None:
    settings = tiny_project(tmp_path)
    before = definition_digest(tiny_spec(), settings)
    assert definition_digest(tiny_spec(), settings) == before
    with (tmp_path / file).open("a") as text:
        text.write(change)
    assert definition_digest(tiny_spec(), settings) != before


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"description": "another"}, True),
        ({"recipe": {"seed": 9, "params": {"depth": 3}}}, True),
        ({"gates": [{"kind": "finite"}, {"kind": "schema"}]}, True),
        ({"label": {"name": "bought", "time": "known_at", "positive": "buys"}}, True),
        ({"label": {"name": "bought"}}, False),
        ({"data": {"key": "visit", "event_time": "at", "history": "9d"}}, False),
        ({"features": {"service": "tiny", "entities": ["shop"], "request": {"age": {"type": "int"}}}}, False),
    ],
)
def test_what_of_a_spec_is_part_of_the_definition(tmp_path: Path, changes: dict[str, object], same: bool) -> None:
    settings = tiny_project(tmp_path)
    before = definition_digest(tiny_spec(), settings)
    assert (definition_digest(tiny_spec(**changes), settings) == before) is same
