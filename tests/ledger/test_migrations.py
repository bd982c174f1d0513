"""Every database ends with the same tables: a new one, one of version 0.1.0 with its rows, one half-way."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, event, inspect, text
from sqlalchemy.exc import DatabaseError

from airlock.core.errors import Unavailable
from airlock.core.release import Event, Phase
from airlock.core.route import parse_route
from airlock.ledger import Ledger, engine, schema
from airlock.ledger.tables import Base

REPOSITORY = Path(__file__).parents[2]
OLD = Path(__file__).parent / "version_0_1_0"


@pytest.fixture
def old_url(ledger_url: str) -> str:
    """A ledger as version 0.1.0 left it: version 1 promoted, version 2 in canary."""
    own = create_engine(ledger_url)
    script = (OLD / f"{own.dialect.name}.sql").read_text()
    with own.begin() as connection:
        for line in script.splitlines():
            connection.exec_driver_sql(line.replace("%", "%%") if own.dialect.name == "postgresql" else line)
    own.dispose()
    return ledger_url


def _shape(url: str) -> dict[str, object]:
    """Columns, keys and indexes of every table, without the names that the database gave."""
    own = create_engine(url)
    found = inspect(own)
    shape: dict[str, object] = {}
    for table in sorted(found.get_table_names()):
        columns = {
            column["name"]: (str(column["type"]), column["nullable"], str(column["default"]))
            for column in found.get_columns(table)
        }
        unique = sorted(sorted(key["column_names"]) for key in found.get_unique_constraints(table))
        foreign = sorted(str(key["constrained_columns"]) for key in found.get_foreign_keys(table))
        indexes = sorted(str(index["column_names"]) for index in found.get_indexes(table))
        shape[table] = columns, unique, foreign, indexes
    own.dispose()
    return shape


def test_the_newest_revision_is_the_one_that_is_asked_for() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD]


def test_the_migrations_lead_to_the_tables(ledger_url: str) -> None:
    Ledger(ledger_url)
    own = create_engine(ledger_url)
    with own.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
    own.dispose()


def test_a_ledger_of_0_1_0_keeps_its_rows(old_url: str) -> None:
    ledger = Ledger(old_url)
    assert schema.current(engine.engine_of(old_url)) == schema.HEAD
    newest, oldest = ledger.releases("flights")
    assert (oldest.id, oldest.phase, oldest.entered_at) == (
        "a1",
        Phase.PROMOTED,
        datetime(2013, 4, 1, 12, 3, tzinfo=UTC),
    )
    assert (newest.id, newest.phase, newest.step, newest.generation) == ("b2", Phase.CANARY, "canary_5", 3)
    assert (newest.author, newest.run, newest.paused, newest.extended) == (None, None, False, timedelta(0))
    champion = ledger.champion("flights")
    assert champion is not None
    assert champion.version == "1"
    assert len(ledger.timeline("flights")) == 9
    assert ledger.verdicts("b2")[0][1].passed
    assert ledger.pending_effects("flights") == []


def test_a_release_of_0_1_0_goes_on_within_its_limits(old_url: str) -> None:
    ledger = Ledger(old_url)
    routes = ledger.routes("flights")
    assert [route.generation for route in routes] == [1, 2, 3]
    limits = {limit.name: limit for limit in routes[-1].limits}
    assert sorted(limits) == ["error_rate", "latency_p99", "prediction_shift"]
    assert (limits["error_rate"].bound, limits["error_rate"].minimum) == (0.02, 50)
    assert (limits["latency_p99"].bound, limits["latency_p99"].over_ms) == (0.01, 80)
    assert (limits["prediction_shift"].bound, limits["prediction_shift"].minimum) == (0.1, 30)
    assert sum(limit.alpha for limit in limits.values()) == pytest.approx(0.01)
    before = ledger.release("b2")
    document = routes[-1].model_copy(update={"generation": 4})
    moved = ledger.transition(
        before, Event.PAUSE, actor="ann", reason="", now=datetime.now(UTC), route=document, changes={"paused": True}
    )
    assert (moved.paused, moved.generation) == (True, 4)
    assert parse_route(document.to_json()).limits == routes[-1].limits


def test_old_and_new_databases_are_alike(old_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    Ledger(old_url)
    if old_url.startswith("sqlite"):
        Ledger(fresh := f"sqlite:///{tmp_path / 'fresh.db'}")
        assert _shape(old_url) == _shape(fresh)
        return
    with request.getfixturevalue("postgres_server").database() as fresh:
        Ledger(fresh)
        assert _shape(old_url) == _shape(fresh)


def test_history_of_0_1_0_only_grows_too(old_url: str) -> None:
    Ledger(old_url)
    own = create_engine(old_url)
    with pytest.raises(DatabaseError, match="only adds to journal"), own.begin() as connection:
        connection.execute(text("DELETE FROM journal WHERE id = 1"))
    own.dispose()


def test_an_upgrade_that_fails_leaves_what_was_there(old_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = create_engine(old_url)
    with own.begin() as connection:
        connection.execute(text("UPDATE routes SET document = 'torn' WHERE generation = 3"))
    before = _shape(old_url)
    with pytest.raises(ValueError, match="Expecting value"):
        Ledger(old_url)
    assert _shape(old_url) == before
    with own.begin() as connection:
        connection.execute(text("DELETE FROM routes WHERE generation = 3"))
    own.dispose()
    assert len(Ledger(old_url).routes("flights")) == 2


def test_a_ledger_of_a_newer_airlock_is_left_alone(ledger_url: str) -> None:
    Ledger(ledger_url)
    own = create_engine(ledger_url)
    with own.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9000'"))
    with pytest.raises(Unavailable, match=r"is at revision 9000, this Airlock knows revisions up to .* newer Airlock"):
        Ledger(ledger_url)
    own.dispose()


def test_opening_a_ledger_that_is_up_to_date_is_one_query(ledger_url: str) -> None:
    Ledger(ledger_url)
    asked: list[str] = []
    watched: Engine = engine.engine_of(ledger_url)

    def remember(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        asked.append(statement)

    event.listen(watched, "before_cursor_execute", remember)
    Ledger(ledger_url)
    assert [statement for statement in asked if not statement.startswith("BEGIN")] == [
        "SELECT version_num FROM alembic_version"
    ]


def test_opening_a_ledger_that_is_up_to_date_does_not_import_alembic(ledger_url: str) -> None:
    Ledger(ledger_url)
    program = "import sys; from airlock.ledger import Ledger; Ledger(sys.argv[1]); assert 'alembic' not in sys.modules"
    subprocess.run([sys.executable, "-c", program, ledger_url], check=True, timeout=120)


@pytest.mark.slow
def test_the_wheel_brings_its_migrations(tmp_path: Path) -> None:
    """Built and used as somebody who installs the package does, apart from the dependencies."""
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        pytest.skip("the wheel is built with uv, which make install brings")
    build = [uv, "build", "--wheel", "--quiet", "--out-dir", tmp_path / "dist", REPOSITORY]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    installed = tmp_path / "site-packages"
    zipfile.ZipFile(wheel).extractall(installed)
    program = (
        "import sys; import airlock; from airlock.ledger import Ledger; "
        "Ledger(sys.argv[1]).timeline('m'); print(airlock.__file__)"
    )
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    path = f"sys.path[:0] = [{str(installed)!r}, {sysconfig.get_path('purelib')!r}]"
    found = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; {path}; {program}", url],
        check=True,
        timeout=300,
        capture_output=True,
        text=True,
    )
    assert Path(found.stdout.strip()).is_relative_to(installed)
