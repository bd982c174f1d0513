from __future__ import annotations

from pathlib import Path

import pytest

from airlock.core.errors import SpecError
from airlock.steps.recipes import load_recipe
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
