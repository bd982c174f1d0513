"""Segments: what a condition holds for, value by value, and what it never holds for."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from airlock.core.segment import Condition, Pin, met

SCALARS = st.one_of(
    st.text(max_size=5), st.booleans(), st.integers(-5, 5), st.floats(-5, 5), st.none(), st.just(math.nan)
)
ATTRIBUTES = st.dictionaries(st.sampled_from("abcd"), SCALARS)


@pytest.mark.parametrize(
    ("condition", "value", "holds"),
    [
        ({"values": ("NL", "BE")}, "NL", True),
        ({"values": ("NL", "BE")}, "nl", False),
        ({"values": ("NL",)}, None, False),
        ({"values": (1,)}, 1, True),
        ({"values": (1,)}, 1.0, True),
        ({"values": (1,)}, True, False),
        ({"values": (True,)}, True, True),
        ({"values": (True,)}, 1, False),
        ({"values": (False,)}, 0, False),
        ({"values": (False,)}, False, True),
        ({"values": ("1",)}, 1, False),
        ({"values": ("",)}, "", True),
        ({"min": 18}, 18, True),
        ({"min": 18}, 17.999, False),
        ({"max": 65}, 65, True),
        ({"max": 65}, 65.001, False),
        ({"min": 18, "max": 65}, 40, True),
        ({"min": 18, "max": 65}, 66, False),
        ({"min": 0}, True, False),
        ({"max": 1}, False, False),
        ({"min": 0}, "1", False),
        ({"min": 0}, math.nan, False),
        ({"max": 0}, math.nan, False),
        ({"min": 0}, math.inf, True),
        ({"min": 0, "max": 0}, 0, True),
    ],
)
def test_what_a_condition_holds_for(condition: dict[str, Any], value: object, holds: bool) -> None:
    made = Condition(attribute="a", **condition)
    assert made.met({"a": value}) is holds
    assert made.met({"b": value}) is False, "an attribute that is not carried meets nothing"
    assert Condition.model_validate_json(made.model_dump_json()).met({"a": value}) is holds, "through a document"


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ({}, "either values, or min, max or both"),
        ({"values": ("a",), "min": 1}, "either values, or min, max or both"),
        ({"values": ()}, "never met"),
        ({"min": 2, "max": 1}, "min 2 is above max 1"),
        ({"min": math.nan}, "finite"),
        ({"attribute": "", "min": 1}, "at least 1 character"),
        ({"attribute": "a" * 65, "min": 1}, "at most 64 characters"),
        ({"expression": "a > 1", "min": 1}, "Extra inputs"),
    ],
)
def test_what_says_nothing_is_refused(condition: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Condition(**{"attribute": "a", **condition})


def test_a_pin_needs_a_condition_and_a_plain_name() -> None:
    when = (Condition(attribute="a", min=1),)
    with pytest.raises(ValidationError, match="at least 1 item"):
        Pin(name="staff", when=(), version="1")
    for name in ("", "Staff", "1st", "a b", "a" * 49, "../x"):
        with pytest.raises(ValidationError, match="pattern"):
            Pin(name=name, when=when, version="1")


@given(ATTRIBUTES, st.floats(-5, 5), st.floats(-5, 5))
def test_a_segment_holds_when_all_of_its_conditions_do(attributes: dict[str, Any], low: float, high: float) -> None:
    conditions = [Condition(attribute="a", min=low), Condition(attribute="b", max=high)]
    assert met(conditions, attributes) is all(condition.met(attributes) for condition in conditions)
    assert met([], attributes) is True
    if met(conditions, attributes):
        assert attributes["a"] >= low
        assert attributes["b"] <= high


@given(ATTRIBUTES, st.one_of(st.text(max_size=5), st.booleans(), st.integers(-5, 5), st.floats(-5, 5)))
def test_a_value_holds_for_itself_and_for_no_other(attributes: dict[str, Any], value: str | bool | float) -> None:
    condition = Condition(attribute="a", values=(value,))
    assert condition.met({**attributes, "a": value})
    got = attributes.get("a")
    equal = got is not None and got == value and isinstance(got, bool) is isinstance(value, bool)
    assert condition.met(attributes) is equal
