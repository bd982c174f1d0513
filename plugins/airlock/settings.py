"""The one place that knows a path, a port or a URL.

Everything comes from the environment, so that a worker, the command line and a test agree:
``AIRLOCK_HOME`` (state), ``AIRLOCK_PROJECT`` (the user's repository) and one URL for each part.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

PORT_BASE = 8500
"""First port of the embedded stack: Airflow; then MLflow (+1) and the gateway (+2)."""


@dataclass(frozen=True)
class Settings:
    """Where things are. Paths are absolute."""

    project: Path
    home: Path
    mlflow_url: str
    gateway_url: str
    airflow_url: str
    ledger_url: str = field(repr=False)

    @property
    def specs(self) -> Path:
        return self.project / "dags" / "models"

    @property
    def feature_repo(self) -> Path:
        return self.project / "feature_repo"

    @property
    def bentos(self) -> Path:
        """Source of the gateway and of a version's Bento: the project's own, or what the package came with."""
        package = Path(__file__).parent
        places = (self.project / "bentos", package / "_bentos", package.parents[1] / "bentos")
        return next((place for place in places if place.is_dir()), places[0])

    @property
    def airflow_home(self) -> Path:
        return self.home / "airflow"

    @property
    def mlflow_home(self) -> Path:
        return self.home / "mlflow"

    @property
    def bentoml_home(self) -> Path:
        return self.home / "bentoml"

    @property
    def feast_home(self) -> Path:
        """Online registry, online store and the offline tables that feed it."""
        return self.home / "feast"

    @property
    def snapshots(self) -> Path:
        return self.home / "snapshots"

    @property
    def quarantine(self) -> Path:
        """Snapshots that broke a rule, with the verdict that says which."""
        return self.home / "quarantine"

    @property
    def runs(self) -> Path:
        """Scratch of each training run; safe to delete when no run is going."""
        return self.home / "runs"

    @property
    def bundles(self) -> Path:
        """Verified bundles of registered versions, by model and digest."""
        return self.home / "bundles"

    @property
    def predictions(self) -> Path:
        return self.home / "predictions"

    @property
    def labels(self) -> Path:
        return self.home / "labels"

    @property
    def outcomes(self) -> Path:
        """What came of answers, by model and name: steps/outcomes.py."""
        return self.home / "outcomes"

    @property
    def scores(self) -> Path:
        """Scored batches, by model and version."""
        return self.home / "scores"

    @property
    def reports(self) -> Path:
        return self.home / "reports"

    @property
    def routes(self) -> Path:
        return self.home / "routes"

    @property
    def ejections(self) -> Path:
        """What the gateway ejected by itself; it outlives the gateway."""
        return self.home / "ejections"

    @property
    def keys(self) -> Path:
        """What release records are signed with."""
        return self.home / "keys"

    @property
    def records(self) -> Path:
        """Signed release records and model cards, by model and release."""
        return self.home / "records"

    @property
    def stack(self) -> Path:
        """Process table, logs and secrets of the embedded stack."""
        return self.home / "stack"


def load() -> Settings:
    """Settings from the environment, with the embedded profile's defaults."""
    project = Path(os.environ.get("AIRLOCK_PROJECT") or Path.cwd()).resolve()
    home = Path(os.environ.get("AIRLOCK_HOME") or project / ".airlock").resolve()
    return Settings(
        project=project,
        home=home,
        mlflow_url=os.environ.get("AIRLOCK_MLFLOW_URL", f"http://127.0.0.1:{PORT_BASE + 1}"),
        gateway_url=os.environ.get("AIRLOCK_GATEWAY_URL", f"http://127.0.0.1:{PORT_BASE + 2}"),
        airflow_url=os.environ.get("AIRLOCK_AIRFLOW_URL", f"http://127.0.0.1:{PORT_BASE}"),
        ledger_url=os.environ.get("AIRLOCK_LEDGER_URL", f"sqlite:///{home / 'ledger.db'}"),
    )
