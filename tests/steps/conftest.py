"""A real MLflow server for the steps' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import mlflow_server as servers


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its URL."""
    with servers.running(tmp_path_factory.mktemp("mlflow")) as server:
        yield server.url
