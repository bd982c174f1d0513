"""What Airflow adds to a training: the same steps as a DAG run and as a script, in turn, on one stack.

    python tests/benchmarks/train_overhead.py [--rounds 3]

The script is one fresh process that imports what it needs; the DAG run is started as a user starts it.
Both train on the flights up to 31 March with the same number of trials and log to the same MLflow server.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

UNTIL = "2013-03-31T00:00:00+00:00"
TRIALS = 10

SCRIPT = """
import sys
from datetime import datetime
from airlock import settings, specs
from airlock.stack import settings_of
from airlock.steps import evaluation, export, features, registry, snapshot, training, validation

here, key = settings_of(settings.load()), sys.argv[1]
spec = specs.find(here, "flight_delay")
frozen = snapshot.freeze(spec, here, until=datetime.fromisoformat(sys.argv[2]), options={})
validation.require_valid(validation.validate(spec, here, frozen))
rows = features.training_set(spec, here, frozen)
trained = training.train(spec, here, rows, run_key=key, params=None, trials=int(sys.argv[3]), origin={"script": key})
judged = evaluation.evaluate(spec, here, export.export(spec, here, trained), champion=None, champion_version=None)
registry.Registry(here.mlflow_url).register(spec, judged, key=key)
"""


def airlock(*arguments: str) -> None:
    command = [str(Path(sys.executable).with_name("airlock")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def as_script(round_: int) -> float:
    started = time.monotonic()
    command = [sys.executable, "-c", SCRIPT, f"script-{round_}", UNTIL, str(TRIALS)]
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - started


def in_airflow(_: int) -> float:
    started = time.monotonic()
    airlock("train", "flight_delay", "--until", UNTIL, "--trials", str(TRIALS), "--json")
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port-base", type=int, default=8700)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="airlock-bench-") as home:
        os.environ["AIRLOCK_HOME"] = home
        airlock("up", "--port-base", str(arguments.port_base))
        try:
            as_script(0)  # parses the example's data once, for both
            pairs = [(in_airflow(n), as_script(n)) for n in range(1, arguments.rounds + 1)]
        finally:
            airlock("down")
    ratios = [dag / script for dag, script in pairs]
    result = {
        "airflow_s": [round(dag, 1) for dag, _ in pairs],
        "script_s": [round(script, 1) for _, script in pairs],
        "ratio_median": round(statistics.median(ratios), 2),
    }
    print(json.dumps(result, indent=2))  # noqa: T201 - its output


if __name__ == "__main__":
    main()
