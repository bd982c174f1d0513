"""One version as a service of its own: ``bentoml serve <model>:<tag>``.

Packaging puts this file beside the version's ``bundle/``, the runtime that the gateway has too and Airlock's core, so
that a Bento answers alone exactly as the gateway does with the same bundle.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from pathlib import Path
from typing import Any

import bentoml
from bentoml.exceptions import BentoMLException, ServiceUnavailable

HERE = Path(__file__).parent
FACTS = json.loads((HERE / "version.json").read_text())


@bentoml.service(
    name=FACTS["model"],
    workers=1,
    traffic={"timeout": 10},
    logging={"access": {"enabled": False}},
    labels={"airlock-version": FACTS["version"], "airlock-bundle": FACTS["digest"]},
)
class Version:
    """Answers with the one bundle that lies beside it, after checking every byte of it."""

    def __init__(self) -> None:
        from airlock.core.route import Bundle
        from runtime.schema import Feeds, Schema
        from runtime.versions import Version as Loaded

        self._loaded = Loaded(FACTS["version"], Bundle(path=str(HERE / "bundle"), digest=FACTS["digest"]))
        self._schema = Schema(self._loaded.manifest.inputs)
        self._feeds = Feeds(self._loaded.manifest.inputs, self._schema)

    @bentoml.api  # type: ignore[untyped-decorator]
    def predict(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """One prediction for each row of features by name."""
        from runtime.refusals import Refused
        from runtime.schema import list_of
        from runtime.versions import VersionFailed, predictions

        manifest = self._loaded.manifest
        try:
            given = list_of({"rows": rows}, "rows", manifest.serving.max_rows)
            checked = [self._schema.row(row, index) for index, row in enumerate(given)]
            answers = self._loaded.answer(self._feeds, checked)
        except Refused as refused:
            raise BentoMLException(str(refused), error_code=HTTPStatus(refused.status)) from refused
        except VersionFailed as failure:
            raise ServiceUnavailable(f"version {FACTS['version']} did not answer: {failure}") from failure
        return {
            "model": manifest.model,
            "version": FACTS["version"],
            "predictions": predictions(manifest, answers),
        }
