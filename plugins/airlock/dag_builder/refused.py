"""A spec that cannot be used, shown where Airflow shows files that cannot be imported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NoReturn

from airflow.sdk import DAG

from airlock.core.errors import SpecError


class RefusedSpec(DAG):
    """Stands in for the DAGs of a broken spec.

    Raising while the loader is imported would take every model's DAGs down, and an import error
    against the loader's name makes Airflow mark all of its DAGs stale. Airflow serialises DAG by
    DAG and files a failure there under the DAG's own relative path, which is the spec's here.
    """

    def __init__(self, path: Path, error: SpecError) -> None:
        super().__init__(
            dag_id=f"{re.sub(r'[^A-Za-z0-9_.-]', '_', path.stem)}__refused", schedule=None, auto_register=False
        )
        self.spec_path = path
        self.error = error

    @property
    def relative_fileloc(self) -> str:
        """The spec's path below the DAG folder, whatever file Airflow says it was found in."""
        return f"{self.spec_path.parent.name}/{self.spec_path.name}"

    @relative_fileloc.setter
    def relative_fileloc(self, _: object) -> None:
        return

    def get_serialized_fields(self) -> NoReturn:  # type: ignore[override]
        raise self.error
