from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from airlock import specs
from airlock.core.errors import DataInvalid, SpecError
from airlock.core.refs import SnapshotRef, TrainingSetRef
from airlock.core.spec import ModelSpec
from airlock.settings import Settings
from airlock.steps import feature_repo, features, leaks, snapshot, validation
from airlock.steps.recipes import load_recipe
from tests.support.tiny_data import tiny_project, tiny_spec, tiny_tables

pytestmark = pytest.mark.integration
UNTIL = datetime(2026, 1, 20, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return tiny_project(tmp_path)


def load_into(settings: Settings, tables: dict[str, pd.DataFrame], spec: ModelSpec) -> None:
    recipe: Any = load_recipe(spec, settings)
    recipe.tables = tables


def frozen(settings: Settings, tables: dict[str, pd.DataFrame], spec: ModelSpec) -> SnapshotRef:
    load_into(settings, tables, spec)
    ref = snapshot.freeze(spec, settings, until=UNTIL)
    validation.require_valid(validation.validate(spec, settings, ref))
    return ref


def made(settings: Settings, tables: dict[str, pd.DataFrame], spec: ModelSpec | None = None) -> TrainingSetRef:
    spec = spec or tiny_spec()
    return features.training_set(spec, settings, frozen(settings, tables, spec))


def newest(table: pd.DataFrame, keys: dict[str, Any], at: pd.Timestamp, ttl: timedelta) -> pd.Series | None:
    """Brute force: the newest row of an entity that is not newer than ``at`` and not expired."""
    rows = table[table["event_timestamp"] <= at]
    if ttl:
        rows = rows[rows["event_timestamp"] + ttl >= at]
    for key, value in keys.items():
        rows = rows[rows[key] == value]
    return None if rows.empty else rows.sort_values("event_timestamp").iloc[-1]


def test_every_event_gets_what_was_known_at_its_time(settings: Settings) -> None:
    tables = tiny_tables()
    # A shop's sales stop for a day: what is older than the view's six hours has expired.
    quiet = tables["sales"]["event_timestamp"].between("2026-01-03", "2026-01-04") & (
        tables["sales"]["shop"] == "north"
    )
    tables["sales"] = tables["sales"][~quiet]
    tables["events"].loc[7, "shop"] = "south"
    ref = made(settings, tables)
    frame = pd.read_parquet(ref.path)
    assert ref.rows == len(frame) == len(tables["events"])
    assert list(frame) == ["visit", "at", "bought", "known_at", "shop", "age", "sold"]
    assert frame["at"].is_monotonic_increasing
    assert frame["sold"].dtype == frame["age"].dtype == np.float32
    assert 0 < frame["sold"].isna().sum() < 60
    for row in frame.itertuples():
        known = newest(tables["sales"], {"shop": row.shop}, row.at, timedelta(hours=6))
        assert (known is None and np.isnan(row.sold)) or known["sold"] == row.sold


def test_events_of_an_unknown_entity_and_doubled_events_are_kept(settings: Settings) -> None:
    tables = tiny_tables()
    tables["sales"] = tables["sales"][tables["sales"]["shop"] == "south"]
    tables["events"].loc[20:29, ["at", "shop"]] = [tables["events"]["at"][20], "south"]
    frame = pd.read_parquet(made(settings, tables).path)
    assert len(frame) == len(tables["events"])
    assert frame.loc[frame["shop"] == "north", "sold"].isna().all()
    assert sorted(frame["visit"]) == sorted(tables["events"]["visit"])


def test_a_training_set_is_made_once_and_leaves_the_online_registry_alone(settings: Settings) -> None:
    tables = tiny_tables()
    first = made(settings, tables)
    written = Path(first.path).stat().st_mtime_ns
    assert made(settings, tables) == first
    assert Path(first.path).stat().st_mtime_ns == written
    assert not settings.feast_home.exists()
    fewer = tiny_spec(inputs={"sold": {"type": "float", "nullable": True}})
    assert made(settings, tables, fewer).path != first.path


def test_without_features_the_inputs_are_columns_of_the_events(settings: Settings) -> None:
    spec = tiny_spec(features=None, inputs={"age": {"type": "float"}, "shop": {"type": "string"}})
    frame = pd.read_parquet(made(settings, tiny_tables(), spec).path)
    assert list(frame) == ["visit", "at", "bought", "known_at", "age", "shop"]


def test_an_input_that_nobody_has_is_named(settings: Settings) -> None:
    spec = tiny_spec(inputs={"price": {"type": "float"}})
    with pytest.raises(SpecError, match="input 'price' is not a column of events nor in feature service tiny"):
        made(settings, tiny_tables(), spec)


def test_a_feature_service_that_does_not_exist_is_named(settings: Settings) -> None:
    spec = tiny_spec(features={"service": "other", "entities": ["shop"], "request": {}})
    with pytest.raises(SpecError, match=r"no feature service 'other' .* it has \['tiny'\]"):
        made(settings, tiny_tables(), spec)


def test_a_lost_entity_row_is_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from airlock.steps import asof

    whole = asof._Job._to_arrow_internal
    monkeypatch.setattr(asof._Job, "_to_arrow_internal", lambda job, timeout=None: whole(job).slice(1))
    with pytest.raises(DataInvalid, match="returned 399 rows for 400 events"):
        made(settings, tiny_tables())


def test_a_join_that_reads_the_future_is_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from airlock.steps import asof

    whole = asof._Job._to_arrow_internal

    def an_hour_ahead(job: Any, timeout: int | None = None) -> Any:
        honest = pa.array(job._rows["event_timestamp"])
        job._rows["event_timestamp"] = (job._rows["event_timestamp"] + pd.Timedelta(hours=1)).dt.as_unit("us")
        table = whole(job)
        return table.set_column(table.column_names.index("event_timestamp"), "event_timestamp", honest)

    monkeypatch.setattr(asof._Job, "_to_arrow_internal", an_hour_ahead)
    with pytest.raises(DataInvalid, match="audited rows got values of feature view sales that are not those"):
        made(settings, tiny_tables())


def test_two_rows_of_one_entity_and_time_are_caught(settings: Settings) -> None:
    tables = tiny_tables()
    again = tables["sales"].assign(sold=tables["sales"]["sold"] + 1)
    tables["sales"] = pd.concat([tables["sales"], again], ignore_index=True)
    data = tiny_spec().data.model_dump(mode="json", exclude_none=True)
    del data["tables"]["sales"]
    with pytest.raises(DataInvalid, match="two rows of one entity with the same event_timestamp"):
        made(settings, tables, tiny_spec(data=data))


def test_a_planted_leak_is_caught(settings: Settings) -> None:
    """The sales table is told an hour early who is going to buy, with some noise."""
    tables = tiny_tables()
    events = tables["events"]
    told = events[["shop", "at", "bought"]].rename(columns={"at": "event_timestamp", "bought": "sold"})
    noise = np.random.default_rng(1).normal(0, 0.25, len(told))
    told = told.assign(sold=(told["sold"] + noise).astype("float32"))
    tables["sales"] = told.drop_duplicates(["shop", "event_timestamp"])
    with pytest.raises(
        DataInvalid, match=r"input 'sold' alone predicts 'bought' with ROC AUC 0\.99\d+ .*knows the answer"
    ):
        made(settings, tables)
    assert not list(settings.runs.rglob("*.parquet"))


@pytest.mark.parametrize("how", ["missing", "category", "inverted"])
def test_every_way_to_tell_the_answer_is_caught(how: str) -> None:
    events = tiny_tables(600)["events"]
    told = {
        "missing": events["age"].where(events["bought"] == 1),
        "category": events["bought"].map({0: "left", 1: "paid"}),
        "inverted": 5.0 - events["bought"],
    }[how]
    kind = "string" if how == "category" else "float"
    spec = tiny_spec(features=None, inputs={"hint": {"type": kind, "nullable": True}})
    with pytest.raises(DataInvalid, match="input 'hint' alone predicts"):
        leaks.check_leaks(spec, events.assign(hint=told))
    leaks.check_leaks(spec, events.assign(hint=events["visit"] if how == "category" else events["age"]))


def test_a_regression_that_is_told_its_target_is_caught() -> None:
    events = tiny_tables(600)["events"]
    target = pd.Series(np.random.default_rng(2).normal(size=len(events)))
    spec = tiny_spec(task="regression", features=None, inputs={"hint": {"type": "float"}})
    frame = events.assign(bought=target, hint=target**3)
    with pytest.raises(DataInvalid, match=r"rank correlation 1\.0000"):
        leaks.check_leaks(spec, frame)
    leaks.check_leaks(spec, frame.assign(hint=target + np.random.default_rng(3).normal(size=len(events))))


def test_a_label_known_before_its_event_is_caught(settings: Settings) -> None:
    tables = tiny_tables()
    tables["events"].loc[3:5, "known_at"] = tables["events"]["at"] - pd.Timedelta(minutes=1)
    with pytest.raises(DataInvalid, match="3 of 400 labels have a known_at before their at"):
        made(settings, tables)


class TestOnline:
    """The online store: what is written, what is refused, and what another process sees."""

    @pytest.fixture
    def online(self, settings: Settings) -> Settings:
        load_into(settings, tiny_tables(), tiny_spec())
        assert features.apply_online(tiny_spec(), settings) is True
        return settings

    def read(self, settings: Settings, shop: str) -> float | None:
        return float_or_none(online_features(settings, "tiny", {"shop": shop})["sold"][0])

    def test_applying_twice_does_it_once(self, online: Settings) -> None:
        registry = online.feast_home / "registry.db"
        before = registry.read_bytes()
        assert features.apply_online(tiny_spec(), online) is False
        assert registry.read_bytes() == before
        definitions = online.feature_repo / "definitions.py"
        definitions.write_text(definitions.read_text().replace("hours=6", "hours=5"))
        assert features.apply_online(tiny_spec(), online) is True
        assert sorted(path.name for path in online.feast_home.glob("*.making")) == []

    def test_materialised_rows_are_the_newest_at_that_time(self, online: Settings) -> None:
        at = datetime(2026, 1, 2, 9, 30, tzinfo=UTC)
        features.materialize(tiny_spec(), online, at)
        for shop in ("north", "south"):
            known = newest(tiny_tables()["sales"], {"shop": shop}, pd.Timestamp(at), timedelta(hours=6))
            assert known is not None
            assert self.read(online, shop) == known["sold"]

    def test_materialising_does_not_take_newer_rows_back(self, online: Settings) -> None:
        stamp = pd.Timestamp("2026-01-02 12:00", tz="UTC")
        frame = pd.DataFrame({"shop": ["north"], "event_timestamp": [stamp], "sold": np.float32([7])})
        features.push(tiny_spec(), online, "sales", frame)
        assert features.materialize(tiny_spec(), online, stamp.to_pydatetime() - timedelta(hours=1)) == {}
        assert self.read(online, "north") == 7
        assert list(features.materialize(tiny_spec(), online, stamp.to_pydatetime() + timedelta(hours=2))) == ["sales"]
        assert self.read(online, "north") != 7

    def test_materialising_the_future_is_refused(self, online: Settings) -> None:
        with pytest.raises(DataInvalid, match=r"materialising up to 2126-01-01.* is refused"):
            features.materialize(tiny_spec(), online, datetime(2126, 1, 1, tzinfo=UTC))
        simulated = datetime(2026, 1, 2, tzinfo=UTC)
        with pytest.raises(DataInvalid, match="it is 2026-01-02"):
            features.materialize(tiny_spec(), online, simulated + timedelta(hours=1), now=simulated)
        with pytest.raises(DataInvalid, match="has no time zone"):
            features.materialize(tiny_spec(), online, datetime(2026, 1, 2))  # noqa: DTZ001 - the point

    def test_pushed_values_are_read_by_another_process_at_once(self, online: Settings) -> None:
        reader = self.reader(online)
        try:
            for sold in (3.0, 4.0, None):
                row = {"shop": "north", "event_timestamp": pd.Timestamp("2026-01-02", tz="UTC"), "sold": sold}
                assert features.push(tiny_spec(), online, "sales", pd.DataFrame([row]).astype({"sold": "float32"})) == 1
                assert self.ask(reader) == str(sold)
        finally:
            reader.terminate()
            reader.wait()

    def reader(self, settings: Settings) -> subprocess.Popen[str]:
        program = f"""
            import sys, warnings
            warnings.simplefilter("ignore")
            from feast import FeatureStore
            store = FeatureStore(repo_path={str(settings.feature_repo)!r})
            for _ in sys.stdin:
                service = store.get_feature_service("tiny")
                answer = store.get_online_features(service, [{{"shop": "north"}}]).to_dict()
                print(answer["sold"][0], flush=True)
        """
        environment = {"AIRLOCK_HOME": str(settings.home), "AIRLOCK_FEATURE_TABLES": "/", "PATH": "/usr/bin:/bin"}
        command = [sys.executable, "-c", textwrap.dedent(program)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def ask(self, reader: subprocess.Popen[str]) -> str:
        assert reader.stdin is not None
        assert reader.stdout is not None
        reader.stdin.write("?\n")
        reader.stdin.flush()
        return reader.stdout.readline().strip()

    @pytest.mark.parametrize(
        ("stamp", "said"),
        [
            (pd.Timestamp("2026-01-02"), "expected timestamps with a time zone"),
            (pd.NaT, "1 missing of 2"),
        ],
    )
    def test_naive_and_missing_timestamps_are_refused(self, online: Settings, stamp: Any, said: str) -> None:
        good = stamp if stamp.__class__ is pd.Timestamp else pd.Timestamp("2026-01-02", tz="UTC")
        frame = pd.DataFrame({"shop": ["north", "south"], "event_timestamp": [good, stamp], "sold": [1.0, 2.0]})
        with pytest.raises(DataInvalid, match=said):
            features.push(tiny_spec(), online, "sales", frame)
        assert self.read(online, "north") is None

    def test_a_view_or_a_column_that_does_not_exist_is_named(self, online: Settings) -> None:
        frame = tiny_tables()["sales"].head(1)
        with pytest.raises(SpecError, match=r"no feature view 'rent' in tiny; it has \['sales'\]"):
            features.push(tiny_spec(), online, "rent", frame)
        with pytest.raises(DataInvalid, match=r"rows for sales lack \['sold'\]"):
            features.push(tiny_spec(), online, "sales", frame.drop(columns="sold"))

    def test_a_model_without_features_has_nothing_online(self, settings: Settings) -> None:
        spec = tiny_spec(features=None, inputs={"age": {"type": "float"}})
        with pytest.raises(SpecError, match="no features"):
            features.apply_online(spec, settings)


def float_or_none(value: Any) -> float | None:
    return None if value is None else float(value)


_stores: dict[str, Any] = {}


def online_features(settings: Settings, service: str, entity: dict[str, Any]) -> dict[str, list[Any]]:
    """What a gateway reads, with the repository's own configuration."""
    from feast import FeatureStore

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setenv("AIRLOCK_HOME", str(settings.home))
        key = str(settings.home)
        if key not in _stores:
            _stores[key] = FeatureStore(repo_path=str(settings.feature_repo))
        store = _stores[key]
        answer: dict[str, list[Any]] = store.get_online_features(
            store.get_feature_service(service, allow_cache=True), [entity]
        ).to_dict()
        return answer


class TestFlights:
    """The worked example on three weeks of real flights."""

    UNTIL = datetime(2013, 1, 22, 5, tzinfo=UTC)

    @pytest.fixture
    def spec(self, flights_home: Settings) -> ModelSpec:
        return specs.find(flights_home, "flight_delay")

    @pytest.fixture
    def flights(self, flights_home: Settings, spec: ModelSpec) -> tuple[SnapshotRef, pd.DataFrame]:
        ref = snapshot.freeze(spec, flights_home, until=self.UNTIL)
        validation.require_valid(validation.validate(spec, flights_home, ref))
        return ref, pd.read_parquet(features.training_set(spec, flights_home, ref).path)

    def test_random_rows_hold_what_brute_force_finds(
        self, flights: tuple[SnapshotRef, pd.DataFrame], flights_home: Settings, spec: ModelSpec
    ) -> None:
        ref, frame = flights
        assert len(frame) == ref.tables["events"]
        assert set(spec.inputs) <= set(frame)
        assert spec.features is not None
        repo = feature_repo.open_repo(flights_home, spec.features.service, tables=Path(ref.path))
        tables = {name: snapshot.read_table(ref, name) for name in repo.views}
        for row in frame.sample(40, random_state=11).to_dict("records"):
            for view in repo.views.values():
                keys = {key: row[key] for key in view.keys}
                known = newest(tables[view.name], keys, row["sched_dep"], view.ttl)
                for name in view.features:
                    expected = np.nan if known is None else known[name]
                    np.testing.assert_equal(row[name], np.float32(expected), err_msg=f"{name} of {row['flight_id']}")

    def test_the_fast_join_answers_as_feasts_own(
        self, flights: tuple[SnapshotRef, pd.DataFrame], flights_home: Settings, spec: ModelSpec, monkeypatch: Any
    ) -> None:
        from airlock.steps import asof

        ref, frame = flights
        Path(features.training_set(spec, flights_home, ref).path).unlink()
        monkeypatch.setattr(asof, "_covered", lambda view: False)
        pd.testing.assert_frame_equal(pd.read_parquet(features.training_set(spec, flights_home, ref).path), frame)

    def test_asked_online_a_flight_gets_the_inputs_it_was_learned_with(
        self, flights: tuple[SnapshotRef, pd.DataFrame], flights_home: Settings, spec: ModelSpec
    ) -> None:
        """The store is filled as the clock goes; each flight is asked at its scheduled departure."""
        _, frame = flights
        recipe: Any = load_recipe(spec, flights_home)
        assert spec.features is not None
        asked = frame[frame["sched_dep"].between("2013-01-18 15:00+00", "2013-01-18 18:00+00")].iloc[::12]
        asked_names = [*spec.features.entities, *spec.features.request]
        since = None
        for row in asked.to_dict("records"):
            for view, rows in recipe.online_frames(since, row["sched_dep"]).items():
                features.push(spec, flights_home, view, rows)
            since = row["sched_dep"]
            answer = online_features(flights_home, "flight_delay", {name: row[name] for name in asked_names})
            for name in set(spec.inputs) & set(answer):
                got, learned = answer[name][0], row[name]
                if isinstance(learned, str):
                    assert got == learned
                else:
                    np.testing.assert_equal(np.float32(np.nan if got is None else got), np.float32(learned), name)

    def test_an_hour_pushes_what_is_new_and_a_read_is_one_statement_a_view(
        self, flights_home: Settings, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe: Any = load_recipe(spec, flights_home)
        start = datetime(2013, 1, 18, 15, tzinfo=UTC)
        all_rows = sum(
            features.push(spec, flights_home, view, rows) for view, rows in recipe.online_frames(None, start).items()
        )
        for hour in range(1, 6):
            frames = recipe.online_frames(start + timedelta(hours=hour - 1), start + timedelta(hours=hour))
            pushed = sum(features.push(spec, flights_home, view, rows) for view, rows in frames.items())
            assert 0 < pushed < all_rows / 10
        assert spec.features is not None
        entity = {"carrier": "UA", "origin": "EWR", "dest": "IAH", "route": "EWR-IAH", "tailnum": "N14228"}
        entity |= {"minute": 600, "weekday": 4, "distance": 1400.0, "scheduled_minutes": 240.0}  # type: ignore[dict-item]
        assert online_features(flights_home, "flight_delay", entity)["block_speed"] == [350.0]
        from feast.infra.online_stores.sqlite import SqliteOnlineStore

        views = feature_repo.open_repo(flights_home, spec.features.service, tables=flights_home.home).views
        statements: list[str] = []
        connected = SqliteOnlineStore._get_conn

        def traced(store: Any, config: Any) -> Any:
            connection = connected(store, config)
            connection.set_trace_callback(statements.append)
            return connection

        monkeypatch.setattr(SqliteOnlineStore, "_get_conn", traced)
        monkeypatch.setattr("feast.FeatureStore.__init__", lambda *_, **__: pytest.fail("the store is opened again"))
        assert online_features(flights_home, "flight_delay", entity)["block_speed"] == [350.0]
        assert len(statements) == len(views), statements

    def test_a_repeated_snapshot_is_the_same_snapshot(self, flights_home: Settings, spec: ModelSpec) -> None:
        refs = {snapshot.freeze(spec, flights_home, until=self.UNTIL).digest for _ in range(2)}
        assert len(refs) == 1
        metric = snapshot.freeze(spec, flights_home, until=self.UNTIL, options={"weather_units": "metric"})
        assert metric.digest not in refs
        imperial = snapshot.freeze(spec, flights_home, until=self.UNTIL)
        said = snapshot.changes(snapshot.read_manifest(imperial), snapshot.read_manifest(metric))
        assert said[0] == "loaded with options {'weather_units': 'metric'} instead of {}"
        assert [line.split(" ")[0] for line in said[1:]] == ["weather"]


def test_the_repositorys_files_are_part_of_a_training_sets_identity(settings: Settings) -> None:
    first = made(settings, tiny_tables())
    definitions = settings.feature_repo / "definitions.py"
    definitions.write_text(definitions.read_text().replace("hours=6", "hours=1"))
    second = made(settings, tiny_tables())
    assert Path(first.path) != Path(second.path)
