"""``<model>__score``: batch scoring with the champion, one mapped task a partition."""

from __future__ import annotations

from airflow.sdk import DAG, Param

from airlock import assets
from airlock.core.spec import ModelSpec
from airlock.dag_builder.common import model_dag, run_param
from airlock.operators.scoring import ListPartitionsOperator, ScorePartitionOperator


def score_dag(spec: ModelSpec) -> DAG:
    model = spec.model
    dag = model_dag(
        spec,
        "score",
        description="Score files with the champion, one mapped task a file.",
        schedule=None,
        params={
            "partitions": Param(
                [],
                type="array",
                items={"type": "string"},
                title="Partitions",
                description="Parquet files with the model's inputs and its key, as paths or glob patterns.",
            ),
        },
    )
    with dag:
        partitions = ListPartitionsOperator(
            task_id="list_partitions", model=model, partitions=run_param(dag, "partitions")
        )
        ScorePartitionOperator.partial(task_id="score_partition", model=model, outlets=[assets.scores(model)]).expand(
            partition=partitions.output
        )
    return dag
