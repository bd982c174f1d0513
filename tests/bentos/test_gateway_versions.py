"""A loaded version: one row takes a shorter way than many, and the answers are the same."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import numpy as np
import pytest

from airlock.core.bundle import MANIFEST
from airlock.core.errors import ArtifactCorrupt
from airlock.core.spec import Input
from runtime.schema import Feeds, Schema
from runtime.versions import TimedOut, Version, VersionFailed
from tests.support.tiny_models import bundle

NUMBERS = {name: Input(type="float", nullable=True) for name in ("a", "b", "c")}


def loaded(folder: Path, **options: object) -> tuple[Version, Feeds]:
    version = Version("1", bundle(folder, **options))  # type: ignore[arg-type]
    return version, Feeds(version.manifest.inputs, Schema(version.manifest.inputs))


def test_one_row_is_answered_as_many_are(tmp_path: Path) -> None:
    version, feeds = loaded(tmp_path / "b", inputs=NUMBERS)
    assert version._one_row is not None
    random = np.random.default_rng(5)
    rows = [[None if random.random() < 0.2 else float(v) for v in random.normal(scale=1e4, size=3)] for _ in range(200)]
    together = version.answer(feeds, rows)
    assert [version.answer(feeds, [row])[0] for row in rows] == together
    assert len(set(together)) > 100


def test_the_numbers_are_found_where_the_request_has_them(tmp_path: Path) -> None:
    version, _ = loaded(tmp_path / "b", inputs={"b": Input(type="float")})
    wider = Feeds(version.manifest.inputs, Schema(NUMBERS | {"b": Input(type="float")}))
    assert version.answer(wider, [[9e3, 5e3, 1e3]]) == version.answer(wider, [[0.0, 5e3, None]] * 2)[:1]


def test_one_row_at_a_time_uses_the_buffers(tmp_path: Path) -> None:
    version, feeds = loaded(tmp_path / "b", inputs=NUMBERS)
    expected = {n: version.answer(feeds, [[float(n), 0.0, 0.0]] * 2)[0] for n in range(50)}
    wrong: list[int] = []

    def ask() -> None:
        asked = [*expected] * 40
        wrong.extend(n for n in asked if version.answer(feeds, [[float(n), 0.0, 0.0]]) != [expected[n]])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_strings_take_the_general_way(tmp_path: Path) -> None:
    version, feeds = loaded(tmp_path / "b", inputs=NUMBERS | {"carrier": Input(type="string")}, carriers=("", "UA"))
    assert version._one_row is None
    assert 0 < version.answer(feeds, [[1.0, 2.0, 3.0, "UA"]])[0] < 1
    with pytest.raises(VersionFailed):
        version.answer(feeds, [[1.0, 2.0, 3.0, "EV"]])


def test_an_answer_that_is_no_number_is_a_failure(tmp_path: Path) -> None:
    version, feeds = loaded(tmp_path / "b", inputs=NUMBERS, bias=math.nan)
    for rows in (1, 2):
        with pytest.raises(VersionFailed, match="finite"):
            version.answer(feeds, [[1.0, 2.0, 3.0]] * rows)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_run_that_does_not_end_is_ended(tmp_path: Path, rows: int) -> None:
    version, feeds = loaded(tmp_path / "b", inputs=NUMBERS, hangs_above=("a", 9000.0))
    assert version._one_row is not None
    fine = [[1.0, 2.0, 3.0]] * rows
    before = version.answer(feeds, fine, 10_000)
    with pytest.raises(TimedOut, match="30 ms"):
        version.answer(feeds, [[9500.0, 2.0, 3.0]] * rows, 30)
    assert version.answer(feeds, fine, 10_000) == before


def test_a_bundle_that_cannot_answer_is_not_loaded(tmp_path: Path) -> None:
    made = bundle(tmp_path / "b", inputs=NUMBERS, content=b"no model")
    with pytest.raises(ArtifactCorrupt, match="cannot open"):
        Version("1", made)
    other = bundle(tmp_path / "c", inputs=NUMBERS)
    (tmp_path / "c" / "more.bin").write_bytes(b"x")
    with pytest.raises(ArtifactCorrupt, match=r"more\.bin"):
        Version("1", other)
    (tmp_path / "c" / MANIFEST).unlink()
    with pytest.raises(ArtifactCorrupt, match=MANIFEST):
        Version("1", other)
