"""What an experiment has shown so far: units from the prediction log, joined to their outcomes.

A unit is a routing key: the request's own, or the request's id where it carried none. A request belongs to the
candidate if the candidate was asked first, also when something else had to stand in for it: who was meant to answer
decides, not who did. Answers that a pin chose, that no version was asked for, and shadow scoring do not count. An
outcome belongs to the answer whose row key it has, or whose routing key where the row has none; a covariate belongs to
the unit, by its routing key, or by the row's where the request carried none, and counts only if it was known before
the first answer.

A unit's value is the mean of what has come of its answers so far. It may still change after a look, which the theory of
the intervals does not know: that they hold at all times is exact where a unit has one outcome, and near where it has
several.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from airlock import prediction_log
from airlock.core.errors import DataInvalid
from airlock.core.experiment import Evidence
from airlock.core.experiment_plan import Baseline, baseline
from airlock.core.experiment_statistics import Measured
from airlock.core.spec import Experiment
from airlock.settings import Settings
from airlock.steps import outcomes

if TYPE_CHECKING:
    import duckdb


class Gathered(NamedTuple):
    """Evidence, and for each outcome the moments at which its values became known, in the order of ``Measured``.

    ``started`` is the first unit's time as outcomes have it (its event's, where requests name one). ``values`` has
    ``candidate``, ``value``, ``before`` and ``known`` of each unit, by outcome, in the order in which they came.
    """

    evidence: Evidence
    started: datetime
    values: Mapping[str, pd.DataFrame]


def names_of(experiment: Experiment) -> tuple[str, ...]:
    """The outcomes that an experiment measures, the primary first."""
    return tuple(dict.fromkeys(outcome.name for outcome in (experiment.primary, *experiment.guards)))


def gather(
    settings: Settings,
    model: str,
    experiment: Experiment,
    *,
    candidate: str,
    generations: Collection[int],
    until: datetime,
) -> Gathered | None:
    """The units that were assigned under these generations of the route; ``None`` while there are none.

    ``until`` bounds what is known of outcomes and of the log, by the clock.

    Raises:
        DataInvalid: the log was written by a gateway that did not keep what an experiment needs.
    """
    where = f'generation IN ({", ".join(str(int(g)) for g in generations)}) AND "at" < ?' if generations else "false"
    values: list[Any] = [until.astimezone(UTC)] if generations else []
    with _asked(settings, model, where, values) as connection:
        units = _assigned(connection, candidate)
        if units.empty:
            return None
        together = units[~units["crossed"]]
        started = units["first_time"].min().to_pydatetime()
        found = {
            name: _measured(connection, settings, model, experiment, together, name, (started, until))
            for name in names_of(experiment)
        }
    to_candidate = int(together["candidate"].sum())
    evidence = Evidence(
        candidate=to_candidate,
        champion=len(together) - to_candidate,
        crossed=len(units) - len(together),
        outcomes={name: measured(frame, covariate=experiment.covariate is not None) for name, frame in found.items()},
        elapsed=until - units["first_at"].min().to_pydatetime(),
    )
    return Gathered(evidence, started, found)


def measured(frame: pd.DataFrame, *, covariate: bool) -> Measured:
    """The two groups of a table of :class:`Gathered`."""
    groups = frame[~frame["candidate"]], frame[frame["candidate"]]
    champion, candidate = (group["value"].to_numpy(dtype=float) for group in groups)
    if not covariate:
        return Measured(champion, candidate)
    before = (group["before"].to_numpy(dtype=float) for group in groups)
    return Measured(champion, candidate, *before)


def baselines(
    settings: Settings, model: str, experiment: Experiment, *, until: datetime, known_by: datetime | None = None
) -> dict[str, Baseline]:
    """What the champion's answers in the experiment's duration before ``until`` came to, by outcome, where it is known.

    Times are the events' where requests name them. ``known_by`` bounds the outcomes; unset: ``until`` does. A covariate
    counts as far as it was known before those answers: values known later hold part of the outcome itself.
    """
    where, values = _before(experiment, until)
    where += " AND variant = 'champion' AND fallback IS NULL AND error IS NULL"
    known: dict[str, Baseline] = {}
    with _asked(settings, model, where, values) as connection:
        units = _assigned(connection, None)
        if units.empty:
            return known
        first = units["first_time"].min().to_pydatetime()
        for name in names_of(experiment):
            frame = _measured(connection, settings, model, experiment, units, name, (first, known_by or until))
            try:
                before = frame["before"].to_numpy(dtype=float) if experiment.covariate else None
                known[name] = baseline(frame["value"].to_numpy(dtype=float), before)
            except DataInvalid:
                continue  # its variance is not known
    return known


def units_per_day(settings: Settings, model: str, experiment: Experiment, *, until: datetime) -> float | None:
    """How many units came a day in the experiment's duration before ``until``, by the clock; ``None`` if none did.

    Days are the gateway's, also where a replay gives its events other times.
    """
    with _asked(settings, model, *_before(experiment, until)) as connection:
        units = _assigned(connection, None)
    if units.empty:
        return None
    days = (units["last_at"].max() - units["first_at"].min()) / timedelta(days=1)
    return len(units) / days if days > 0 else None


def _before(experiment: Experiment, until: datetime) -> tuple[str, list[Any]]:
    """A condition on the log, and its values: the experiment's duration before ``until``."""
    when = prediction_log.WHEN
    return f"{when} >= ? AND {when} < ?", [(until - experiment.duration).astimezone(UTC), until.astimezone(UTC)]


def newest_answer(settings: Settings, model: str) -> datetime | None:
    """The time of the newest answer, its event's where the request named one; ``None`` without a log."""
    with _asked(settings, model, "true", []) as connection:
        row = connection.execute("SELECT max(time) FROM asked").fetchone()
    return None if row is None else row[0]


def _asked(settings: Settings, model: str, where: str, values: list[Any]) -> duckdb.DuckDBPyConnection:
    """A connection with the table ``asked``: what was served by the shares, a row for each version asked."""
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    source = prediction_log.files(settings, model)
    if source is None:
        connection.execute(
            "CREATE TABLE asked (unit TEXT, request_id TEXT, outcome_key TEXT, unit_key TEXT, version TEXT, "
            'fallback TEXT, "at" TIMESTAMPTZ, time TIMESTAMPTZ)'
        )
        return connection
    log = connection.read_parquet(source, union_by_name=True, hive_partitioning=True)
    if missing := [name for name in ("routing_key", "pin") if name not in log.columns]:
        connection.close()
        raise DataInvalid(
            f"the prediction log of {model} in {source} has no {' and no '.join(missing)}: an older gateway wrote it, "
            "and nobody can tell which units it assigned; run the experiment with this one"
        )
    # The conditions are this module's own and bind their values.
    connection.execute(
        f"""
        CREATE TABLE asked AS
        SELECT coalesce(routing_key, request_id) AS unit, request_id, coalesce(key, routing_key) AS outcome_key,
            coalesce(routing_key, key) AS unit_key, version, fallback, "at", {prediction_log.WHEN} AS time
        FROM log WHERE role = 'served' AND pin IS NULL AND {where}""",  # noqa: S608
        values,
    )
    return connection


def _assigned(connection: duckdb.DuckDBPyConnection, candidate: str | None) -> pd.DataFrame:
    """``unit``, ``candidate``, ``crossed``, ``first_at``, ``last_at``, ``first_time`` of each unit; kept as a table."""
    connection.execute(
        """
        CREATE TABLE units AS
        WITH requests AS (
            SELECT unit, bool_or(coalesce(version = ?, false)) AS candidate, min("at") AS first_at, min(time) AS time
            FROM asked GROUP BY unit, request_id HAVING bool_or(fallback IS NULL))
        SELECT unit, bool_or(candidate) AS candidate, bool_or(candidate) AND NOT bool_and(candidate) AS crossed,
            min(first_at) AS first_at, max(first_at) AS last_at, min(time) AS first_time
        FROM requests GROUP BY unit ORDER BY unit""",
        [candidate],
    )
    frame: pd.DataFrame = connection.table("units").df()
    return frame


def _measured(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    model: str,
    experiment: Experiment,
    units: pd.DataFrame,
    name: str,
    span: tuple[datetime, datetime],
) -> pd.DataFrame:
    """``candidate``, ``value``, ``before`` and ``known`` of the units whose outcome came, by when it did."""
    started, until = span
    came = _of_units(connection, outcomes.read(settings, model, name, until), "outcome_key", after=True)
    frame = units.merge(came, on="unit").rename(columns={"time": "known"})
    frame["known"] = frame["known"].fillna(frame["first_at"])
    frame["before"] = float("nan")
    if experiment.covariate is not None:
        earlier = outcomes.read(settings, model, experiment.covariate, started)
        before = _of_units(connection, earlier, "unit_key", after=False).set_index("unit")["value"]
        frame["before"] = frame["unit"].map(before).astype(float)
    ordered = frame.sort_values(["known", "unit"], kind="stable", ignore_index=True)
    return ordered[["candidate", "value", "before", "known"]]


def _of_units(connection: duckdb.DuckDBPyConnection, delivered: pd.DataFrame, key: str, *, after: bool) -> pd.DataFrame:
    """``unit``, the mean ``value`` of its keys and the ``time`` of the newest; ``after``: known since it was asked."""
    connection.register("delivered", delivered)
    try:
        frame: pd.DataFrame = connection.execute(
            f"""
            SELECT unit, avg(value) AS value, max(delivered.time) AS time
            FROM (SELECT DISTINCT unit, {key} AS key, first_time FROM asked JOIN units USING (unit))
            JOIN delivered USING (key)
            WHERE NOT ? OR delivered.time IS NULL OR delivered.time >= first_time
            GROUP BY unit""",  # noqa: S608 - the key is one of two columns of ours
            [after],
        ).df()
    finally:
        connection.unregister("delivered")
    return frame
