"""Routes: whole or refused, the same for every reader, and a raised share moves no key back."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from airlock.core.errors import RouteError
from airlock.core.route import Bundle, Limit, Route, choose, parse_route, place
from airlock.core.segment import Condition, Pin

BUNDLE = Bundle(path="/bundles/1", digest="sha256:" + "0" * 64)
STAFF = (Condition(attribute="group", values=("staff",)),)
ERRORS: dict[str, Any] = {"name": "error_rate", "signal": "errors", "bound": 0.02, "alpha": 0.001}


def route(**changes: Any) -> Route:
    fields: dict[str, Any] = {
        "model": "flight_delay",
        "generation": 4,
        "release": "r1",
        "champion": "1",
        "candidate": "2",
        "weights": {"1": 75, "2": 25},
        "versions": {"1": BUNDLE, "2": BUNDLE},
        "salt": "pepper",
        "reason": "canary_25",
        "written_at": datetime(2013, 4, 1, 12, tzinfo=UTC),
    }
    return Route(**{**fields, **changes})


class TestWhole:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"weights": {"1": 60, "2": 25}}, "they add up to 85"),
            ({"weights": {"1": 100, "2": 25}}, "they add up to 125"),
            ({"weights": {"1": 125, "2": -25}}, "at least 0, got {'2': -25.0}"),
            ({"weights": {"1": math.nan, "2": 25}}, "finite"),
            ({"weights": {"1": math.inf, "2": 25}}, "finite"),
            ({"weights": {}}, "they add up to 0"),
            ({"weights": {"1": 75, "3": 25}}, r"versions \['3'\] have traffic but no bundle"),
            ({"versions": {"1": BUNDLE}}, r"versions \['2'\] have traffic but no bundle; bundles: \['1'\]"),
            ({"shadow": ("9",)}, r"versions \['9'\]"),
            ({"candidate": "1", "weights": {"1": 100}}, "champion and candidate at once"),
            (
                {"weights": {"1": 75, "3": 25}, "versions": dict.fromkeys("123", BUNDLE)},
                r"only champion and candidate may have a share, not \['3'\]",
            ),
            ({"candidate": None, "weights": {"1": 75, "2": 25}}, r"only champion and candidate"),
            ({"generation": 0}, "greater than or equal to 1"),
            ({"versions": {"1": BUNDLE, "2": {"path": "/x", "digest": "md5:1"}}}, "sha256"),
            ({"timeout_ms": 0}, "greater than 0"),
            ({"surprise": 1}, "Extra inputs"),
            ({"pins": (Pin(name="staff", when=STAFF, version="9"),)}, r"versions \['9'\] have traffic but no bundle"),
            (
                {"pins": (Pin(name="staff", when=STAFF, version="1"), Pin(name="staff", when=STAFF, version="2"))},
                r"every pin has a name of its own, got \['staff', 'staff'\]",
            ),
        ],
    )
    def test_what_may_not_go_out(self, changes: dict[str, Any], words: str) -> None:
        with pytest.raises(ValidationError, match=words):
            route(**changes)

    @given(st.lists(st.floats(), min_size=2, max_size=2))
    def test_any_pair_of_shares_is_refused_unless_it_adds_up(self, shares: list[float]) -> None:
        fine = all(math.isfinite(share) and share >= 0 for share in shares) and abs(sum(shares) - 100) <= 1e-6
        weights = dict(zip("12", shares, strict=True))
        if fine:
            assert route(weights=weights).share == shares[1]
        else:
            with pytest.raises(ValidationError, match="weights must"):
                route(weights=weights)

    @pytest.mark.parametrize(
        "changes",
        [
            *({"alpha": 0}, {"alpha": 0.5}, {"bound": math.nan}, {"bound": math.inf}, {"signal": "mood"}),
            *({"steps": 0}, {"minimum": 0}, {"reach": 0}, {"over_ms": math.nan}, {"more": 1}),
        ],
    )
    def test_a_limit_that_could_not_be_held(self, changes: dict[str, Any]) -> None:
        assert not Limit(**ERRORS).late
        with pytest.raises(ValidationError):
            Limit(**{**ERRORS, **changes})


class TestDocument:
    def test_there_and_back(self) -> None:
        assert parse_route(route().to_json()) == route().sealed()

    def test_without_its_checksum(self) -> None:
        with pytest.raises(RouteError, match="generation 4: checksum missing does not match"):
            parse_route(route().model_dump_json())

    @pytest.mark.parametrize("field", sorted(set(Route.model_fields) - {"checksum"}))
    def test_every_field_is_covered_by_the_checksum(self, field: str) -> None:
        other: dict[str, Any] = {
            "model": "house",
            "generation": 5,
            "release": "r2",
            "champion": "2",
            "candidate": None,
            "weights": {"1": 74.5, "2": 25.5},
            "shadow": ["2"],
            "versions": {"1": BUNDLE.model_dump(), "2": {**BUNDLE.model_dump(), "path": "/elsewhere"}},
            "step": "canary_50",
            "pins": [Pin(name="staff", when=STAFF, version="2").model_dump(mode="json")],
            "limits": [Limit(**ERRORS).model_dump(mode="json")],
            "timeout_ms": 9,
            "salt": "salt",
            "reason": "because",
            "written_at": "2013-04-01T12:00:01Z",
        }
        document = json.loads(route().to_json())
        assert document[field] != other[field]
        with pytest.raises(RouteError):
            parse_route(json.dumps({**document, field: other[field]}))

    @given(st.data())
    def test_a_torn_or_overwritten_document_is_refused(self, data: st.DataObject) -> None:
        text = route().to_json()
        cut = data.draw(st.integers(0, len(text) - 1))
        torn = text[:cut] + data.draw(st.text(max_size=20))
        if torn.strip() != text:
            with pytest.raises(RouteError):
                parse_route(torn)

    def test_the_checksum_does_not_depend_on_the_order_of_the_fields(self) -> None:
        document = json.loads(route().to_json())
        assert parse_route(json.dumps(dict(reversed(document.items())))) == route().sealed()


class TestChoice:
    def test_the_shares_are_met(self) -> None:
        """20,000 keys at 25 %: a binomial test at a thousandth."""
        chosen = Counter(choose(route(), f"flight-{number}") for number in range(20_000))
        assert stats.binomtest(chosen["2"], 20_000, 0.25).pvalue > 0.001

    @given(st.text(max_size=50), st.floats(0, 100))
    def test_the_candidates_share_begins_at_0(self, key: str, share: float) -> None:
        chosen = choose(route(weights={"1": 100 - share, "2": share}), key)
        assert chosen == ("2" if place("pepper", key) < share else "1")

    def test_places_are_uniform(self) -> None:
        places = [place("pepper", str(number)) for number in range(5000)]
        assert stats.kstest(places, stats.uniform(0, 100).cdf).pvalue > 0.001

    def test_a_place_is_the_same_for_ever(self) -> None:
        assert place("pepper", "flight-1") == pytest.approx(0.114598715773, abs=1e-9)
        assert place("", "") == pytest.approx(89.316751609, abs=1e-9)

    def test_no_place_is_out_of_reach_of_all_the_traffic(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Last:
            def digest(self) -> bytes:
                return b"\xff" * 8

        monkeypatch.setattr(hashlib, "blake2b", lambda *_args, **_keywords: Last())
        assert 99.999 < place("pepper", "any") < 100

    @given(st.text(max_size=100), st.text(max_size=100), st.floats(0, 100), st.floats(0, 100))
    def test_a_raised_share_moves_no_key_back(self, salt: str, key: str, one: float, two: float) -> None:
        low, high = sorted((one, two))
        assert 0 <= place(salt, key) < 100
        at_low, at_high = (
            choose(route(salt=salt, weights={"1": 100 - share, "2": share}), key) for share in (low, high)
        )
        assert (at_low, at_high) != ("2", "1")

    @given(st.text(max_size=50))
    def test_the_ends(self, key: str) -> None:
        assert choose(route(weights={"1": 100, "2": 0}), key) == "1"
        assert choose(route(weights={"1": 0, "2": 100}), key) == "2"
        assert choose(route(candidate=None, weights={"1": 100}), key) == "1"

    def test_another_salt_deals_anew(self) -> None:
        """Keys that are always among the first canaries would be asked too much."""
        keys = [str(number) for number in range(4000)]
        first, second = ({key for key in keys if place(salt, key) < 25} for salt in ("a", "b"))
        assert stats.binomtest(len(first & second), len(first), 0.25).pvalue > 0.001
