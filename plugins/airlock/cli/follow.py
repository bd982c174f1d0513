"""Following a DAG run from the terminal: one line a task that changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from airlock.airflow_api import AirflowApi, Run, TaskRun


def changes(api: AirflowApi, run: Run, *, every: float = 1.0) -> Iterator[tuple[Run, TaskRun | None]]:
    """Each task whose state changed, as it changes; at last the finished run with ``None``."""
    seen: dict[tuple[str, int], str | None] = {}
    while True:
        current = api.run(run.dag_id, run.dag_run_id)
        for task in api.tasks(run.dag_id, run.dag_run_id):
            place = (task.task_id, task.map_index)
            if task.state is not None and seen.get(place) != task.state:
                seen[place] = task.state
                yield current, task
        if current.finished:
            yield current, None
            return
        time.sleep(every)


def follow(api: AirflowApi, run: Run, say: Callable[[str], None]) -> Run:
    """Wait for a run and tell what happens. Answers the finished run."""
    asked: set[str] = set()
    for current, task in changes(api, run):
        if task is None:
            return current
        took = f" {task.duration:.1f} s" if task.duration and task.state in {"success", "failed"} else ""
        name = task.task_id if task.map_index < 0 else f"{task.task_id}[{task.map_index}]"
        say(f"  {name:<28} {task.state}{took}")
        for approval in api.approvals(run.dag_id, run.dag_run_id):
            if approval.task_id not in asked:
                asked.add(approval.task_id)
                model = run.dag_id.split("__")[0]
                say(f"  waits for an answer: {approval.subject}")
                say(f"  answer it in the Airflow UI, or with: airlock approve {model}")
    return run
