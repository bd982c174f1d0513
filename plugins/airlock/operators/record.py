"""Write what became of a release."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Context

from airlock.control import records
from airlock.operators.base import refusals_are_final
from airlock.operators.release import ReleaseOperator


class WriteRecordOperator(ReleaseOperator):
    """Write and sign the records that are due, this release's among them if it has ended, and file them in MLflow.

    A release that is only provisionally promoted has not ended: its record follows when it is confirmed or taken back.

    :return: the records' paths and digests
    """

    @refusals_are_final
    def execute(self, context: Context) -> list[dict[str, Any]]:  # noqa: ARG002
        self.confirm_announced()
        written = records.write_pending(self.control, self.registry_hook.get_conn())
        for record in written:
            self.log.info("Record %s (%s)", record.path, record.digest)
        return [record.model_dump(mode="json") for record in written]
