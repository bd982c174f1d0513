"""What a model may be asked (B1 to B6, B10): each refusal names the row, the field, what was expected and sent."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock.core.spec import Input
from gateway.http import parse
from runtime.refusals import Refused
from runtime.schema import EXACT_INT, FLOAT_MAX, Feeds, Schema, list_of

INPUTS = {
    "distance": Input(type="float", min=0, max=10_000),
    "seats": Input(type="int"),
    "delay": Input(type="float", nullable=True),
    "carrier": Input(type="string", values=("UA", "AA")),
    "note": Input(type="string", nullable=True),
}
ROW: dict[str, Any] = {"distance": 1000.5, "seats": 180, "delay": None, "carrier": "UA", "note": None}
SCHEMA = Schema(INPUTS)


def refusal(row: object, index: int = 0, schema: Schema = SCHEMA) -> dict[str, Any]:
    with pytest.raises(Refused) as caught:
        schema.row(row, index)
    assert caught.value.status == 422
    error: dict[str, Any] = orjson.loads(caught.value.body)["error"]
    return error


def test_values_come_in_the_order_of_the_inputs() -> None:
    assert SCHEMA.row(dict(reversed(ROW.items())), 0) == [1000.5, 180, None, "UA", None]


@pytest.mark.parametrize("value", [0, 10_000, 3, 0.0, 1e-300, -0.0])
def test_a_float_takes_whole_numbers_within_its_bounds(value: float) -> None:
    assert SCHEMA.row(ROW | {"distance": value}, 0)[0] == value


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("distance", True, "wrong_type"),
        ("distance", "12", "wrong_type"),
        ("distance", "", "wrong_type"),
        ("distance", [1.0], "wrong_type"),
        ("distance", None, "missing_feature"),
        ("distance", -0.1, "out_of_bounds"),
        ("distance", 10_000.1, "out_of_bounds"),
        ("distance", math.nan, "not_finite"),
        ("delay", math.inf, "not_finite"),
        ("delay", math.nan, "not_finite"),
        ("delay", 1e39, "loses_precision"),
        ("delay", 10**400, "loses_precision"),
        ("seats", 10**400, "loses_precision"),
        ("delay", False, "wrong_type"),
        ("seats", 180.0, "wrong_type"),
        ("seats", True, "wrong_type"),
        ("seats", "180", "wrong_type"),
        ("seats", EXACT_INT + 1, "loses_precision"),
        ("seats", -(EXACT_INT + 1), "loses_precision"),
        ("seats", 2**64, "loses_precision"),
        ("seats", float(2**64), "loses_precision"),
        ("carrier", "ZZ", "unknown_category"),
        ("carrier", 7, "wrong_type"),
        ("carrier", "", "missing_feature"),
        ("carrier", None, "missing_feature"),
        ("note", 7, "wrong_type"),
    ],
)
def test_what_does_not_fit_is_refused(field: str, value: object, code: str) -> None:
    error = refusal(ROW | {field: value}, index=4)
    assert (error["code"], error["row"], error["field"]) == (code, 4, field)
    assert error["expected"]
    assert field in error["message"]
    assert error["expected"] in error["message"]


def test_a_whole_number_that_float32_holds_exactly_is_taken() -> None:
    assert SCHEMA.row(ROW | {"seats": 2**40}, 0)[1] == 2**40


@pytest.mark.parametrize("field", list(INPUTS))
def test_a_missing_feature_is_named_even_where_null_is_allowed(field: str) -> None:
    error = refusal({name: value for name, value in ROW.items() if name != field}, index=2)
    assert (error["code"], error["row"], error["field"]) == ("missing_feature", 2, field)


def test_an_unknown_feature_is_refused() -> None:
    error = refusal(ROW | {"dep_delay": 20.0})
    assert (error["code"], error["field"], error["got"]) == ("unknown_feature", "dep_delay", "20.0")
    assert "distance" in error["expected"]


@pytest.mark.parametrize("row", [None, 1, "row", [], [1.0]])
def test_a_row_is_an_object(row: object) -> None:
    assert refusal(row)["code"] == "not_an_object"


def test_only_a_candidate_s_inputs_may_be_left_out() -> None:
    schema = Schema({"a": Input(type="float")}, {"b": Input(type="float", nullable=True)})
    assert schema.row({"a": 1.0}, 0) == [1.0, None]
    assert schema.row({"a": 1.0, "b": 2.0}, 0) == [1.0, 2.0]
    assert refusal({"b": 2.0}, schema=schema)["field"] == "a"
    assert refusal({"a": 1.0, "c": 2.0}, schema=schema)["field"] == "c"


@pytest.mark.parametrize("text", [b'{"key": "\\ud800"}', b'{"key": "\\ud800", "x": NaN}'])
def test_half_of_a_surrogate_pair_is_malformed(text: bytes) -> None:
    with pytest.raises(Refused) as caught:
        parse(text)
    assert caught.value.status == 400


def test_a_long_value_is_shortened_in_the_answer() -> None:
    assert len(refusal(ROW | {"distance": "x" * 10_000})["got"]) == 80


@given(st.dictionaries(st.sampled_from([*INPUTS, "other"]), st.none() | st.booleans() | st.integers() | st.floats()
                       | st.text(max_size=5)))  # fmt: skip
def test_nothing_but_good_values_gets_through(row: dict[str, object]) -> None:
    try:
        values = SCHEMA.row(row, 0)
    except Refused as refused:
        orjson.loads(refused.body)
        return
    assert set(row) == set(INPUTS)
    feeds = Feeds(INPUTS, SCHEMA)([values])
    assert np.isfinite(feeds["distance"]).all()
    assert feeds["seats"].item() == row["seats"]


def test_feeds_are_a_column_for_each_input() -> None:
    feeds = Feeds(INPUTS, SCHEMA)([[1.0, 2, None, "UA", None], [3.0, 4, 5.0, "AA", "x"]])
    assert set(feeds) == set(INPUTS)
    assert all(value.shape == (2, 1) for value in feeds.values())
    assert feeds["distance"].dtype == np.float32
    assert np.isnan(feeds["delay"][0, 0])
    assert feeds["note"].tolist() == [[""], ["x"]]


def test_a_version_says_which_input_it_needs_and_a_row_lacks() -> None:
    theirs = {"a": Input(type="float")}
    feeds = Feeds(theirs | {"b": Input(type="float")}, Schema(theirs, {"b": Input(type="float", nullable=True)}))
    assert feeds.lacks([[1.0, 2.0]]) is None
    assert feeds.lacks([[1.0, 2.0], [1.0, None]]) == "b"


def test_the_largest_float_is_taken_and_the_next_is_not() -> None:
    assert SCHEMA.row(ROW | {"delay": FLOAT_MAX}, 0)[2] == FLOAT_MAX
    assert refusal(ROW | {"delay": FLOAT_MAX * 1.001})["code"] == "loses_precision"


@pytest.mark.parametrize(("rows", "status"), [([], 422), ([1] * 4, 413), ({}, 422), (None, 422)])
def test_a_batch_has_at_least_one_and_at_most_so_many_rows(rows: object, status: int) -> None:
    with pytest.raises(Refused) as caught:
        list_of({"rows": rows}, "rows", 3)
    assert caught.value.status == status
