"""Two modules know the folders that the gateway shares with the control plane, since neither imports the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from airlock import settings
from gateway import paths


@pytest.mark.parametrize("home", ["elsewhere", None])
def test_the_gateway_and_the_control_plane_agree_on_their_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    monkeypatch.setenv("AIRLOCK_PROJECT", str(tmp_path))
    monkeypatch.delenv("AIRLOCK_HOME", raising=False)
    if home is not None:
        monkeypatch.setenv("AIRLOCK_HOME", str(tmp_path / home))
    theirs, ours = paths.from_environment(), settings.load()
    assert (theirs.home, theirs.project) == (ours.home, ours.project)
    assert (theirs.routes, theirs.ejections, theirs.predictions) == (ours.routes, ours.ejections, ours.predictions)
    assert theirs.feature_store.parent == ours.feature_repo
