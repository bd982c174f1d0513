"""Each method of measuring drift has its own bound, and one that cannot be meant is refused in words."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from airlock.core.drift_policy import Drift, Measure, Method


@pytest.mark.parametrize(
    ("policy", "numbers", "strings"),
    [
        ({}, Measure("psi", 0.2, False), Measure("psi", 0.2, False)),
        ({"threshold": 0.3}, Measure("psi", 0.3, False), Measure("psi", 0.3, False)),
        ({"category_threshold": 0.4}, Measure("psi", 0.2, False), Measure("psi", 0.4, False)),
        ({"method": "jensenshannon"}, Measure("jensenshannon", 0.16, False), Measure("jensenshannon", 0.16, False)),
        ({"method": "wasserstein"}, Measure("wasserstein", 0.45, False), Measure("jensenshannon", 0.16, False)),
        (
            {"method": "wasserstein", "threshold": 2, "category_threshold": 0.3},
            Measure("wasserstein", 2, False),
            Measure("jensenshannon", 0.3, False),
        ),
        ({"method": "ks"}, Measure("ks", 0.01, True), Measure("chisquare", 0.01, True)),
        ({"method": "ks", "alpha": 0.001}, Measure("ks", 0.001, True), Measure("chisquare", 0.001, True)),
    ],
)
def test_every_method_has_a_bound_of_its_own(policy: dict[str, Any], numbers: Measure, strings: Measure) -> None:
    found = Drift.model_validate(policy)
    assert (found.numbers, found.strings) == (numbers, strings)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"method": "ks", "threshold": 0.2}, "smaller is drift, and no distance: write alpha"),
        ({"method": "ks", "threshold": 0.01}, "write alpha"),
        ({"method": "ks", "category_threshold": 0.1}, "write alpha"),
        ({"method": "ks", "alpha": 0.2}, "less than or equal to 0.05"),
        ({"method": "psi", "alpha": 0.05}, "psi is a distance, where larger is drift.*write threshold, such as 0.2"),
        ({"method": "jensenshannon", "threshold": 0.9}, "at most 0.833: 0.9 is never reached"),
        ({"method": "wasserstein", "category_threshold": 1}, "a jensenshannon distance is at most 0.833"),
        ({"threshold": 0}, "greater than 0"),
        ({"share": 1}, "less than 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(policy: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Drift.model_validate(policy)


@pytest.mark.parametrize("method", get_args(Method))
def test_only_one_side_of_the_bound_is_drift(method: Any) -> None:
    for measure in (Drift(method=method).numbers, Drift(method=method).strings):
        more, less = measure.bound * 1.5, measure.bound / 1.5
        assert measure.drifted(more) is not measure.p_value
        assert measure.drifted(less) is measure.p_value
        assert measure.drifted(measure.bound)
        assert (measure.nearness(more) > 1) is not measure.p_value
        assert measure.in_words(more) != measure.in_words(less)
    assert Measure("ks", 0.01, True).nearness(0) == math.inf
