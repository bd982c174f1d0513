"""Gates on two things that must be the same."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from airlock.core.gates import FeatureValues
from airlock.core.spec import (
    FeatureParityGate,
    Input,
    SchemaGate,
)
from airlock.core.verdict import Status, Verdict
from tests.support.gate_evidence import (
    ALL,
    FEATURES,
    INPUTS,
    only,
)


class TestFeatureParity:
    def changed(self, name: str, values: Any, gate: FeatureParityGate | None = None) -> Verdict:
        features = dataclasses.replace(FEATURES, online={**FEATURES.online, name: np.array(values, dtype=object)})
        return only(gate or ALL["feature_parity"], features=features)

    def test_all_the_same(self) -> None:
        verdict = only(ALL["feature_parity"])
        assert verdict.passed
        assert (verdict.estimate, verdict.n, verdict.details["values"]) == (0, 200, 400)
        assert verdict.high is not None
        assert 0.01 < verdict.high < 0.02, "200 rows show less than 400 values would, were they not of the same rows"

    def test_one_value_that_differs_fails_and_is_shown(self) -> None:
        waiting = list(np.linspace(0, 1, 200))
        waiting[7] = 0.5
        verdict = self.changed("waiting", waiting)
        assert verdict.status is Status.FAIL
        assert "waiting in 1 rows; such as waiting of origin 7: 0.5 online" in verdict.reason
        assert verdict.details["differing"] == {"waiting": 1, "kind": 0}
        allowed = FeatureParityGate(kind="feature_parity", max_mismatch=0.0025)
        assert self.changed("waiting", waiting, allowed).passed
        assert self.changed("waiting", [*waiting[:9], 0.9, *waiting[10:]], allowed).status is Status.FAIL

    @pytest.mark.parametrize(("factor", "same"), [(1 + 9e-7, True), (1 + 2e-6, False), (math.inf, False), (-1, False)])
    def test_the_tolerance_is_relative(self, factor: float, same: bool) -> None:
        values = np.linspace(0.1, 1, 200)
        features = dataclasses.replace(FEATURES, online={"x": values}, offline={"x": values * factor})
        assert only(ALL["feature_parity"], features=features).passed is same

    @pytest.mark.parametrize(
        ("online", "offline", "same"), [(None, math.nan, True), (None, 0.0, False), ("a", "b", False)]
    )
    def test_missing_is_the_same_as_missing_only(self, online: Any, offline: Any, same: bool) -> None:
        features = FeatureValues(
            online={"x": np.array([online, 1], dtype=object)},
            offline={"x": np.array([offline, 1], dtype=object)},
            rows=("a", "b"),
        )
        assert only(ALL["feature_parity"], features=features).passed is same

    def test_nothing_there_shows_nothing(self) -> None:
        nothing = np.array([None, math.nan], dtype=object)
        features = FeatureValues(online={"x": nothing}, offline={"x": nothing}, rows=("a", "b"))
        verdict = only(ALL["feature_parity"], features=features)
        assert verdict.status is Status.INCONCLUSIVE
        assert "nothing was shown" in verdict.reason

    def test_a_feature_that_is_nowhere_is_told(self) -> None:
        nothing = np.full(200, math.nan)
        features = dataclasses.replace(
            FEATURES, online={**FEATURES.online, "gone": nothing}, offline={**FEATURES.offline, "gone": nothing}
        )
        verdict = only(ALL["feature_parity"], features=features)
        assert "no row has a value of gone" in verdict.reason

    @pytest.mark.parametrize(
        ("changes", "status"),
        [
            ({"online": {}}, Status.ERROR),
            ({"online": {**FEATURES.online, "other": np.zeros(200)}}, Status.ERROR),
            ({"online": {**FEATURES.online, "waiting": np.zeros(199)}}, Status.ERROR),
            ({"rows": ()}, Status.INCONCLUSIVE),
        ],
    )
    def test_sides_that_do_not_fit_together(self, changes: dict[str, Any], status: Status) -> None:
        verdict = only(ALL["feature_parity"], features=dataclasses.replace(FEATURES, **changes))
        assert verdict.status is status


class TestParity:
    @pytest.mark.parametrize(
        ("status", "difference", "flips", "expected"),
        [
            (Status.PASS, 1e-3, 0, Status.PASS),
            (Status.PASS, 1.1e-3, 0, Status.FAIL),
            (Status.PASS, 0.0, 1, Status.FAIL),
            (Status.FAIL, 0.0, 0, Status.FAIL),
            (Status.INCONCLUSIVE, 0.0, 0, Status.INCONCLUSIVE),
            (Status.INCONCLUSIVE, 1.0, 0, Status.FAIL),
            (Status.ERROR, 0.0, 0, Status.ERROR),
            (Status.PASS, math.nan, 0, Status.ERROR),
            (Status.PASS, 0.0, -1, Status.ERROR),
            (Status.PASS, "small", 0, Status.ERROR),
        ],
    )
    def test_a_pass_is_checked_again_and_nothing_else_becomes_one(
        self, status: Status, difference: Any, flips: int, expected: Status
    ) -> None:
        parity = Verdict(name="p", status=status, reason="so", details={"max_difference": difference, "flips": flips})
        assert only(ALL["onnx_parity"], parity=parity).status is expected


class TestSchema:
    def test_the_order_of_the_inputs_does_not_matter(self) -> None:
        assert only(ALL["schema"], inputs=dict(reversed(INPUTS.items()))).passed

    def test_every_change_is_told(self) -> None:
        inputs = {"distance": Input(type="int", min=1), "dest": Input(type="string")}
        verdict = only(ALL["schema"], inputs=inputs)
        assert verdict.status is Status.FAIL
        assert verdict.details["changes"] == [
            "dest is new",
            "carrier is gone",
            "distance: min 0.0 -> 1.0, type float -> int",
        ]
        allowed = only(SchemaGate(kind="schema", allow_changes=True), inputs=inputs)
        assert allowed.passed
        assert "dest is new" in allowed.reason
