"""What a task learns from Airflow about the events of a champion, through Airflow's own messages."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.api.datamodels._generated import AssetEventResponse, AssetResponse
from airflow.sdk.exceptions import ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import AssetEventsResult, ErrorResponse, GetAssetEventByAsset

from airlock.core.errors import Unavailable
from airlock.operators.receipts import announced_generation as asked_of_airflow
from airlock.operators.receipts import is_candidate_announced as candidate_asked_of_airflow


def answers(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[Any]:
    """An Airflow that gives one answer; what it is asked."""
    asked: list[Any] = []
    supervisor = SimpleNamespace(send=lambda message: asked.append(message) or answer)
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", supervisor, raising=False)
    return asked


def event(number: int, extra: dict[str, Any]) -> AssetEventResponse:
    asset = AssetResponse(name="toy_champion", uri="airlock://toy/champion", group="airlock")
    return AssetEventResponse(
        id=number,
        timestamp=datetime(2026, 1, 1, tzinfo=UTC),
        extra=extra,
        asset=asset,
        created_dagruns=[],
        source_map_index=-1,
    )


def test_the_newest_generation_that_was_sent_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [event(3, {"version": "2", "generation": 7}), event(2, {"version": "1", "generation": 4}), event(1, {})]
    asked = answers(monkeypatch, AssetEventsResult(asset_events=events))
    assert asked_of_airflow("toy", 7) == 7
    (message,) = asked
    assert isinstance(message, GetAssetEventByAsset)
    assert (message.name, message.uri, message.ascending) == ("toy_champion", "airlock://toy/champion", False)


@pytest.mark.parametrize("strange", ["7", 7.5, True, None, [7], 8, 10**9])
def test_what_is_no_generation_is_told_and_is_no_receipt(
    strange: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    events = [event(2, {"version": "2", "generation": strange}), event(1, {"version": "1", "generation": 4})]
    answers(monkeypatch, AssetEventsResult(asset_events=events))
    assert asked_of_airflow("toy", 7) == 4
    assert f"airlock://toy/champion names generation {strange!r}; expected a whole number up to 7" in caplog.text


def test_a_candidate_is_looked_for_since_it_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, AssetEventsResult(asset_events=[event(1, {"version": "2"})]))
    at = datetime(2026, 1, 1, tzinfo=UTC)
    assert candidate_asked_of_airflow("toy", "2", after=at)
    assert not candidate_asked_of_airflow("toy", "3", after=at)
    assert asked[0].after == at


def test_without_an_event_nothing_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, AssetEventsResult(asset_events=[]))
    assert asked_of_airflow("toy", 7) == 0


def test_an_airflow_that_does_not_say_is_no_receipt(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, ErrorResponse(error=ErrorType.API_SERVER_ERROR))
    with pytest.raises(Unavailable, match="does not tell the events of airlock://toy/champion"):
        asked_of_airflow("toy", 7)
