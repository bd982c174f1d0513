"""A model's recipe: the Python that its owner wrote."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast

from airlock.core.errors import SpecError
from airlock.core.spec import ModelSpec
from airlock.settings import Settings
from airlock.steps.feature_repo import repo_digest

if TYPE_CHECKING:
    import optuna
    import pandas as pd

_FUNCTIONS = ("load", "pipeline", "search_space")


class RecipeModule(Protocol):
    """What a recipe module defines."""

    def load(self, until: datetime | None, **options: Any) -> dict[str, pd.DataFrame]:
        """Tables by name with what was known at ``until`` (``None``: everything)."""
        ...

    def pipeline(self, params: Mapping[str, Any]) -> Any:
        """An unfitted scikit-learn pipeline that takes the spec's inputs, in their order."""
        ...

    def search_space(self, trial: optuna.Trial) -> dict[str, Any]:
        """One trial's ``params``."""
        ...


def load_recipe(spec: ModelSpec, settings: Settings) -> RecipeModule:
    """Import the spec's recipe from the user's project.

    Raises:
        SpecError: there is no such module, it does not import, or it lacks a function.
    """
    name = spec.recipe_module
    try:
        module = _import(name, settings.project)
    except Exception as error:
        raise SpecError(
            f"{spec.model}: recipe {name} cannot be imported from {settings.project}: {type(error).__name__}: {error}; "
            "write it, or name another one under recipe.module"
        ) from error
    if missing := [function for function in _FUNCTIONS if not callable(getattr(module, function, None))]:
        raise SpecError(f"{spec.model}: recipe {name} ({module.__file__}) does not define {', '.join(missing)}")
    return cast("RecipeModule", module)


def definition_digest(spec: ModelSpec, settings: Settings) -> str:
    """Changes when what makes the training rows and the model does: the data, the features, the recipe's code.

    The recipe's code is every Python file in its package. Newer rows and other parameters change nothing here.

    Raises:
        SpecError: there is no such recipe.
    """
    module = cast("ModuleType", load_recipe(spec, settings))
    path = Path(module.__file__ or "")
    files = sorted(path.parent.glob("*.py")) if module.__package__ else [path]
    digest = hashlib.sha256(spec.model_dump_json(include={"data": True, "features": True, "label": {"time"}}).encode())
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    if spec.features is not None:
        digest.update(repo_digest(settings).encode())
    return digest.hexdigest()


def _import(name: str, project: Path) -> ModuleType:
    if str(project) not in sys.path:
        sys.path.insert(0, str(project))
    module = importlib.import_module(name)
    if Path(module.__file__ or "").resolve().is_relative_to(project):
        return module
    # Another project's module of the same name was there first: forget that package and look here.
    top = name.partition(".")[0]
    for loaded in [key for key in sys.modules if key == top or key.startswith(f"{top}.")]:
        del sys.modules[loaded]
    sys.path.remove(str(project))
    sys.path.insert(0, str(project))
    importlib.invalidate_caches()
    module = importlib.import_module(name)
    if not Path(module.__file__ or "").resolve().is_relative_to(project):
        raise ImportError(f"{name} was found at {module.__file__}, outside of the project")
    return module
