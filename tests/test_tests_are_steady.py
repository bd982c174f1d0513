"""What the tests must keep themselves, so that a busy machine makes them slower and never red.

They wait for events (tests/support/waiting.py) instead of sleeping, and hold no time that they measured to a number:
figures belong to tests/benchmarks. A wait that has to be fixed says why in a comment ``# sleeps because: ...``.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
WAITS = TESTS / "support" / "waiting.py"
REASON = "# sleeps because: "
CLOCKS = {
    *("time.time", "time.monotonic", "time.perf_counter", "time.process_time", "time.thread_time", "os.times"),
    *("time.time_ns", "time.monotonic_ns", "time.perf_counter_ns", "time.process_time_ns", "time.thread_time_ns"),
    *("timeit.timeit", "timeit.repeat", "timeit.default_timer", "resource.getrusage"),
}
SLEEPS = {"time.sleep", "asyncio.sleep"}
SLEPT = (
    "a fixed sleep: wait for what is looked at next with wait_until(condition, what) of "
    f"tests/support/waiting.py, or say why it has to be fixed in a comment: {REASON}..."
)
HELD = (
    "a time that was measured is held to a number, so a busy machine fails it: assert an event, an order "
    "or a number of calls, and give the figure to tests/benchmarks"
)
KEEPING = {"append", "add", "extend", "insert"}


def files() -> list[Path]:
    return sorted(path for path in TESTS.rglob("*.py") if path != WAITS)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_fixed_wait_and_no_time_held_to_a_number(path: Path) -> None:
    found = list(faults(path.read_text(), figures="benchmarks" not in path.parts or path.name.startswith("test_")))
    assert not found, "\n".join(f"{path.relative_to(TESTS.parent)}:{line}: {what}" for line, what in found)


def faults(source: str, *, figures: bool = True) -> Iterator[tuple[int, str]]:
    """Lines that break a rule, and what to do. ``figures``: whether times may not be held to numbers either."""
    tree, lines = ast.parse(source), source.splitlines()
    names = _imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node, names) in SLEEPS and not _explained(node, lines):
            yield node.lineno, SLEPT
    if figures:
        for body in _functions(tree):
            yield from _held(body, names)


def _explained(node: ast.Call, lines: list[str]) -> bool:
    """It yields to other tasks alone, or a comment beside or just above says why."""
    if node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0:
        return True
    near = lines[max(0, node.lineno - 2) : node.end_lineno]
    return any(line.partition(REASON)[2].strip() for line in near)


def _held(function: ast.AST, names: dict[str, str]) -> Iterator[tuple[int, str]]:
    """Comparisons of something that a clock said with a number, within one function."""
    measured = _measured(function, names)
    for node in ast.walk(function):
        if not isinstance(node, ast.Compare) or not any(_is_number(part) for part in ast.walk(node)):
            continue
        if _reads(node, measured, names):
            yield node.lineno, HELD


def _measured(function: ast.AST, names: dict[str, str]) -> set[str]:
    """Names that hold what a clock said, or something made of it."""
    measured: set[str] = set()
    while True:
        before = len(measured)
        for node in ast.walk(function):
            match node:
                case ast.Assign(targets=targets, value=value) if _reads(value, measured, names):
                    measured |= {name for target in targets for name in _names(target)}
                case ast.AnnAssign(target=target, value=ast.expr() as value) if _reads(value, measured, names):
                    measured |= set(_names(target))
                case ast.AugAssign(target=target, value=value) if _reads(value, measured, names):
                    measured |= set(_names(target))
                case ast.NamedExpr(target=target, value=value) if _reads(value, measured, names):
                    measured |= set(_names(target))
                case ast.For(target=target, iter=value) | ast.comprehension(target=target, iter=value) if _reads(
                    value, measured, names
                ):
                    measured |= set(_names(target))
                case ast.Call(func=ast.Attribute(value=kept, attr=attr), args=args) if attr in KEEPING and any(
                    _reads(argument, measured, names) for argument in args
                ):
                    measured |= set(_names(kept))
        if len(measured) == before:
            return measured


def _reads(node: ast.AST, measured: set[str], names: dict[str, str]) -> bool:
    if isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node) in measured:
        return True
    if isinstance(node, ast.Call):
        called = _called(node, names)
        if called in CLOCKS or called.endswith("loop().time"):
            return True
        if called == "len":
            return False  # how many there are is no time
    return any(_reads(child, measured, names) for child in ast.iter_child_nodes(node))


def _names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Tuple | ast.List):
        for part in node.elts:
            yield from _names(part)
    elif isinstance(node, ast.Name | ast.Attribute):
        yield ast.unparse(node)
    elif isinstance(node, ast.Subscript | ast.Starred):
        yield from _names(node.value)


def _is_number(node: ast.AST) -> bool:
    """A number but nought, or a constant by the way it is written."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float) and not isinstance(node.value, bool) and node.value != 0
    return isinstance(node, ast.Name) and node.id.isupper()


def _functions(tree: ast.Module) -> Iterator[ast.AST]:
    """The functions that lie in no other function: what a nested one measures is the outer one's too."""
    todo: list[ast.AST] = [tree]
    while todo:
        for child in ast.iter_child_nodes(todo.pop()):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield child
            else:
                todo.append(child)


def _imported(tree: ast.Module) -> dict[str, str]:
    """What is imported from modules, by the name that it has here."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.asname: alias.name for alias in node.names if alias.asname}
    return found


def _called(node: ast.Call, names: dict[str, str]) -> str:
    said = ast.unparse(node.func)
    first, dot, rest = said.partition(".")
    return names.get(first, first) + dot + rest


WAITING = [
    "import time\ntime.sleep(1)",
    "from time import sleep\nsleep(1)",
    "from time import sleep as rest\nrest(pause)",
    "import time as clock\nclock.sleep(1)",
    "import asyncio\nasync def f():\n    await asyncio.sleep(0.1)",
    "import time\ntime.sleep(1)  # sleeps because: ",
    "import time\ntime.sleep(1)  # a moment",
]
HOLDING = [
    "began = time.monotonic()\nwork()\nassert time.monotonic() - began < 5",
    "began = time.process_time()\ntook = time.process_time() - began\nassert took < 0.006",
    "began = time.perf_counter()\nslowest = max(slowest, time.perf_counter() - began)\nassert slowest < LIMIT",
    "times = []\nfor _ in range(9):\n    times.append(time.process_time() - began)\nassert np.median(times) < 0.3",
    "tries = []\ntries.append((time.monotonic() - began, said))\nassert all(1 < seconds < 9 for seconds, _ in tries)",
    "self.began = time.monotonic()\nassert 3 > now() - self.began",
    "if (took := timeit.timeit(work)) > 2:\n    pytest.fail(str(took))",
    "began = asyncio.get_running_loop().time()\nassert asyncio.get_running_loop().time() - began < 1",
    "start = time.time_ns()\nassert (time.time_ns() - start) / 1e9 <= 1.5",
]
ALLOWED = [
    "time.sleep(3)  # sleeps because: this is the downtime",
    "# sleeps because: the moment is drawn at random\ntime.sleep(chance())",
    "await asyncio.sleep(0)",
    "began = time.monotonic()\nassert answered_at > began",
    "deadline = time.monotonic() + 10\nassert time.monotonic() < deadline",
    "up = time.monotonic()\nassert after.observed_s <= asked + (time.monotonic() - up)",
    "assert len(answers) < 5",
    "began = time.monotonic()\nassert len(client.since(began)) >= 300",
]


@pytest.mark.parametrize("source", WAITING)
def test_a_fixed_sleep_is_found(source: str) -> None:
    ((_, said),) = faults(source)
    assert "wait_until(condition, what)" in said


@pytest.mark.parametrize("source", HOLDING)
def test_a_time_that_is_held_to_a_number_is_found(source: str) -> None:
    found = list(faults("async def test():\n" + textwrap.indent(source, "    ")))
    assert found
    assert all("tests/benchmarks" in said for _, said in found)
    assert not list(faults("async def test():\n" + textwrap.indent(source, "    "), figures=False))


@pytest.mark.parametrize("source", ALLOWED)
def test_events_and_reasons_are_let_through(source: str) -> None:
    assert not list(faults("async def test():\n" + textwrap.indent(source, "    ")))
