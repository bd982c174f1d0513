"""Requests a second of the gateway against a bare ASGI echo under uvicorn, in turn, in the same run.

    python tests/benchmarks/gateway_throughput.py [--rounds 3] [--seconds 2] [--connections 8]

One worker process each, keep-alive, one JSON row of 20 floats a request, a model of StandardScaler and
GradientBoosting with 100 trees. The gateway checks, routes, answers, counts and logs every request; with a
canary it also asks two versions and pairs their answers. ``ratio`` is to the echo in the same round;
``cpu_ratio`` compares the processor time of a request, which a busy machine disturbs less. Needs wrk
(Debian: apt-get install wrk).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

import httpx  # noqa: E402
import numpy as np  # noqa: E402
import psutil  # noqa: E402

from airlock.core.bundle import ONNX  # noqa: E402
from airlock.core.route import Bundle, Route  # noqa: E402
from airlock.core.spec import Input, Task  # noqa: E402
from airlock.steps.conversion import to_onnx  # noqa: E402
from tests.support.gateway_process import running_gateway  # noqa: E402
from tests.support.ports import free_port  # noqa: E402
from tests.support.tiny_models import bundle, publish, route  # noqa: E402
from tests.support.waiting import wait_until  # noqa: E402

FEATURES = [f"f{n:02d}" for n in range(20)]
INPUTS = {name: Input(type="float") for name in FEATURES}
ECHO_CASE = "bare ASGI echo, uvicorn"
ECHO = """
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    message = await receive()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(message["body"]))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": message["body"]})
"""

BARE_CASE = "bare ASGI, orjson, ONNX Runtime, uvicorn"
BARE = """
import numpy, onnxruntime, orjson
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession("bare.onnx", options)
name, output = session.get_inputs()[0].name, session.get_outputs()[1].name

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    row = orjson.loads((await receive())["body"])["rows"][0]
    answer = session.run([output], {name: numpy.array([list(row.values())], numpy.float32)})
    content = orjson.dumps({"probability": float(answer[0][0, 1])})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})
"""


def fitted(seed: int) -> tuple[Any, Any]:
    """A pipeline and the rows it was fitted on."""
    from pandas import DataFrame
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    random = np.random.default_rng(seed)
    rows = random.normal(size=(2000, len(FEATURES))).astype(np.float32)
    labels = (rows[:, :5].sum(axis=1) + random.normal(size=2000) > 0).astype(int)
    pipeline = make_pipeline(StandardScaler(), GradientBoostingClassifier(n_estimators=100, random_state=seed))
    frame = DataFrame(rows, columns=FEATURES)
    return pipeline.fit(frame, labels), frame


def model_bundle(folder: Path, seed: int) -> Bundle:
    onnx = to_onnx(fitted(seed)[0], INPUTS, Task.CLASSIFICATION)
    return bundle(folder, inputs=INPUTS, content=onnx.SerializeToString())


def bare_model(path: Path) -> None:
    """The same model as its simplest server would have it: one tensor of 20 floats."""
    import skl2onnx

    pipeline, frame = fitted(1)
    options = {"zipmap": False}
    onnx = skl2onnx.to_onnx(pipeline, frame.to_numpy()[:1], options=options, target_opset=17)
    path.write_bytes(onnx.SerializeToString())


@contextmanager
def uvicorn(folder: Path, name: str, source: str) -> Iterator[tuple[str, psutil.Process]]:
    """One plain ASGI application under uvicorn: its URL and its process."""
    (folder / f"{name}.py").write_text(source)
    port = free_port()
    command = [
        *(sys.executable, "-m", "uvicorn", f"{name}:app", "--port", str(port), "--log-level", "warning"),
        *("--no-access-log", "--lifespan", "off", "--loop", "uvloop", "--http", "httptools"),
    ]
    server = subprocess.Popen(command, cwd=folder)
    try:
        url = f"http://127.0.0.1:{port}/"
        wait_until(lambda: _answers(url), f"{name} to answer")
        yield url, psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait(10)


class Run(NamedTuple):
    """What one round saw. ``cpu_us`` is the server process's processor time for each request, in microseconds."""

    rate: float
    p99_ms: float
    cpu_us: float


@contextmanager
def timed(started: float) -> Iterator[float]:
    """Seconds since ``started``, when the block is entered."""
    yield time.monotonic() - started


def load(url: str, server: psutil.Process, script: Path, seconds: int, connections: int) -> Run:
    """Keep a server busy; every answer must be a 200."""
    before = server.cpu_times()
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script), url]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in told or "Socket errors" in told:
        raise SystemExit(f"{url} did not answer everything:\n{told}")
    after = server.cpu_times()
    spent = after.user + after.system - before.user - before.system
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", told)[1])  # type: ignore[index]
    requests = int(re.search(r"(\d+) requests in", told)[1])  # type: ignore[index]
    value, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", told).groups()  # type: ignore[union-attr]
    return Run(rate, float(value) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit], 1e6 * spent / requests)


def _answers(url: str) -> bool:
    try:
        httpx.post(url, json={"rows": [dict.fromkeys(FEATURES, 0.0)]})
    except httpx.HTTPError:
        return False
    return True


def settle(url: str, generation: int) -> None:
    wait_until(
        lambda: httpx.get(f"{url}/v1/models/late/status").json()["generation"] == generation,
        f"the gateway to take generation {generation}",
    )


def measure(rounds: int, seconds: int, connections: int) -> dict[str, object]:
    folder, busy = Path(tempfile.mkdtemp(prefix="airlock-bench-")), os.getloadavg()[0]
    try:
        row = dict(zip(FEATURES, np.random.default_rng(0).normal(size=20).round(6).tolist(), strict=True))
        body = json.dumps({"rows": [row]})
        script = folder / "post.lua"
        script.write_text(
            f"wrk.method = 'POST'\nwrk.body = [[{body}]]\nwrk.headers['Content-Type'] = 'application/json'\n"
        )
        first, second = model_bundle(folder / "1", 1), model_bundle(folder / "2", 2)
        size = (folder / "1" / ONNX).stat().st_size
        bare_model(folder / "bare.onnx")
        plain = route(first)
        publish(folder, plain)
        started = time.monotonic()
        with (
            running_gateway(folder, "/readyz") as gateway,
            timed(started) as cold,
            uvicorn(folder, "echo", ECHO) as (echo, echo_process),
            uvicorn(folder, "bare", BARE) as (bare, bare_process),
        ):
            predict = f"{gateway.url}/v1/models/late/predict"
            generation = iter(range(2, 10_000))

            def put(make: Callable[[int], Route]) -> None:
                number = next(generation)
                publish(folder, make(number))
                settle(gateway.url, number)

            worker = max(psutil.Process(gateway.process.pid).children(), key=lambda p: p.memory_info().rss)
            cases: dict[str, tuple[str, psutil.Process, Callable[[int], Route] | None]] = {
                ECHO_CASE: (echo, echo_process, None),
                BARE_CASE: (bare, bare_process, None),
                "gateway, one version": (predict, worker, lambda n: route(first, generation=n)),
                "gateway, canary 50 %, answers paired": (
                    predict,
                    worker,
                    lambda n: route(first, candidate=second, share=50, generation=n),
                ),
            }
            found: dict[str, list[Run]] = {name: [] for name in cases}
            for url, process, make in cases.values():
                if make:
                    put(make)
                load(url, process, script, 1, connections)
            for _ in range(rounds):
                for name, (url, process, make) in cases.items():
                    if make:
                        put(make)
                    found[name].append(load(url, process, script, seconds, connections))
            memory = worker.memory_info().rss / 1e6
            metrics = httpx.get(f"{gateway.url}/metrics").text
            lost = re.search(r"^airlock_log_lost_total.* (\S+)$", metrics, re.MULTILINE)
            if lost is None or float(lost[1]):
                raise SystemExit(f"the prediction log did not keep up: {lost and lost[0]}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    base = found[ECHO_CASE]
    return {
        "cores": os.cpu_count(),
        "load_before": round(busy, 1),
        "onnx_bytes": size,
        "cold_start_s": round(cold, 1),
        "memory_mb": round(memory),
        "cases": {
            name: {
                "requests_per_s": round(statistics.median(run.rate for run in runs)),
                "p99_ms": round(statistics.median(run.p99_ms for run in runs), 1),
                "ratio": round(statistics.median(r.rate / b.rate for r, b in zip(runs, base, strict=True)), 2),
                "cpu_us_per_request": round(statistics.median(run.cpu_us for run in runs)),
                "cpu_ratio": round(statistics.median(b.cpu_us / r.cpu_us for r, b in zip(runs, base, strict=True)), 2),
            }
            for name, runs in found.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--connections", type=int, default=8)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing: install it (Debian: apt-get install wrk) and run this again")
    print(json.dumps(measure(options.rounds, options.seconds, options.connections), indent=2))  # noqa: T201


if __name__ == "__main__":
    main()
