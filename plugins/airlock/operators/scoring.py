"""Score a batch, partition by partition."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from typing import Any

from airflow.sdk import Context

from airlock.core.errors import NotFound
from airlock.operators.base import ModelOperator, refusals_are_final


class ListPartitionsOperator(ModelOperator):
    """Name the files to score, so that each gets a task of its own.

    :param partitions: paths or glob patterns of parquet files
    :return: the files, sorted
    """

    template_fields = ("partitions",)

    def __init__(self, *, partitions: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.partitions = partitions

    @refusals_are_final
    def execute(self, context: Context) -> list[str]:  # noqa: ARG002
        found = sorted({path for pattern in self.partitions for path in glob.glob(pattern, recursive=True)})  # noqa: PTH207 - patterns may be absolute
        if not found:
            raise NotFound(f"{self.model}: no file matches {list(self.partitions)}; give paths of parquet files")
        return found


class ScorePartitionOperator(ModelOperator):
    """Score one parquet file with the champion and write the scores beside each other, whole or not at all.

    :param partition: path of a parquet file with the model's inputs and its key
    :return: ``{"partition", "path", "rows", "version"}``
    """

    template_fields = ("partition",)
    map_index_template = "{{ task.partition }}"

    def __init__(self, *, partition: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.partition = partition

    @refusals_are_final
    def execute(self, context: Context) -> dict[str, Any]:
        from airlock.steps import scoring

        scored = scoring.score(self.spec, self.settings, self.ledger_hook.get_conn(), self.partition)
        for outlet in self.outlets:
            context["outlet_events"][outlet].extra = scored
        return scored
