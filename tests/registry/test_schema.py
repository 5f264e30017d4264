"""The tables, the migrations that make them, and registries older or newer than this code."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from omnireg.errors import RegistryError
from omnireg.registry import Kind, Registry, Role, RunStatus, schema
from omnireg.registry.tables import Base

DATA = Path(__file__).with_name("data")
TABLES = {
    "aliases",
    "alembic_version",
    "analyses",
    "benchmarks",
    "checkpoint_modalities",
    "checkpoints",
    "events",
    "parents",
    "publications",
    "runs",
    "scores",
}


def _definitions(path: Path) -> dict[str, list[str]]:
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute(
            "SELECT name, sql FROM sqlite_master"
            " WHERE sql IS NOT NULL AND type IN ('table', 'index')"
        )
        return {name: _parts(sql) for name, sql in rows}


def _parts(statement: str) -> list[str]:
    """Return columns and constraints by themselves, since their order may differ."""
    flat = " ".join(statement.split()).replace("( ", "(").replace(" )", ")")
    head, _, body = flat.partition("(")
    # SQLite quotes the name of a table that was rebuilt
    return [head.replace('"', ""), *sorted(re.split(r",\s*", body.removesuffix(")")))]


def test_the_first_write_creates_every_table(registry: Registry, path: Path) -> None:
    """The tables exist after one write, and the schema has this code's revision."""
    registry.add_checkpoint("m", kind="base")
    with closing(sqlite3.connect(path)) as database:
        found = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        assert {name for (name,) in found} == TABLES
    assert registry.current() == schema.HEAD


def test_the_migrations_end_at_the_revision_the_code_expects() -> None:
    """There is one newest revision, and it is the one written down in the code."""
    assert ScriptDirectory(schema.MIGRATIONS).get_heads() == [schema.HEAD]


def test_migrations_and_tables_agree(registry: Registry, path: Path) -> None:
    """Alembic finds nothing to migrate."""
    registry.upgrade()
    with create_engine(f"sqlite:///{path}").connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_migrations_and_tables_agree_to_the_last_constraint(
    registry: Registry, path: Path, tmp_path: Path
) -> None:
    """Also the CHECKs that Alembic does not compare are the same in both."""
    registry.upgrade()
    Base.metadata.create_all(create_engine(f"sqlite:///{tmp_path}/declared.db"))
    migrated = _definitions(path)
    migrated.pop("alembic_version")
    assert migrated == _definitions(tmp_path / "declared.db")


def test_a_migration_can_be_taken_back(registry: Registry, path: Path) -> None:
    """Downgrading to nothing leaves only the record of the revision."""
    registry.upgrade()
    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS))
    with create_engine(f"sqlite:///{path}").begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    assert set(_definitions(path)) == {"alembic_version"}
    assert registry.current() is None


def test_an_upgrade_can_be_repeated(registry: Registry) -> None:
    """Upgrading what is up to date changes nothing and keeps the data."""
    registry.add_checkpoint("m", kind="base")
    assert registry.upgrade() == registry.upgrade() == schema.HEAD
    assert registry.get("m")


def test_a_newer_schema_is_refused(registry: Registry, path: Path) -> None:
    """A registry from the future is neither read nor written."""
    registry.add_checkpoint("m", kind="base")
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    before = path.read_bytes()
    later = Registry(path)
    for action in (
        later.checkpoints,
        later.upgrade,
        lambda: later.add_checkpoint("n", kind="base"),
    ):
        with pytest.raises(RegistryError, match=r"newer omnireg \(schema 9999.*upgrade omnireg"):
            action()
    assert path.read_bytes() == before


def test_an_older_schema_is_upgraded_by_a_write(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A read asks for the upgrade, a write does it and keeps what was there."""
    Registry(path).add_checkpoint("m", kind="base")
    add_revision(tmp_path, monkeypatch)
    with pytest.raises(RegistryError, match=r"older schema 0005.* run `omnireg db upgrade`"):
        Registry(path).checkpoints()
    registry = Registry(path)
    registry.add_checkpoint("n", kind="base")
    assert registry.current() == "0006"
    assert [row.name for row in registry.checkpoints()] == ["n", "m"]


def test_rebuilding_a_table_keeps_the_rows_that_point_at_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """SQLite tables are rebuilt by dropping them, which must not cascade."""
    Registry(path).add_checkpoint("m", kind="base", modalities=["text"])
    add_revision(tmp_path, monkeypatch)
    registry = Registry(path)
    registry.upgrade()
    assert registry.find("m").modalities == ("text",)


def test_a_failed_upgrade_leaves_the_old_schema(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An upgrade that breaks half-way has changed nothing."""
    Registry(path).add_checkpoint("m", kind="base")
    before = _definitions(path)
    add_revision(tmp_path, monkeypatch, "op.execute('SELECT * FROM nowhere')")
    with pytest.raises(RegistryError, match="no such table: nowhere"):
        Registry(path).upgrade()
    assert _definitions(path) == before
    assert Registry(path).current() == "0005"


def add_revision(folder: Path, monkeypatch: pytest.MonkeyPatch, last: str = "pass") -> None:
    """Give the code one more revision, which rebuilds the table everything points at."""
    migrations = folder / "100% migrations"
    (migrations / "versions").mkdir(parents=True)
    for file in schema.MIGRATIONS.rglob("*.py"):
        (migrations / file.relative_to(schema.MIGRATIONS)).write_text(file.read_text())
    (migrations / "versions" / "r0006_sixth.py").write_text(
        "import sqlalchemy as sa\n"
        "from alembic import op\n"
        "revision, down_revision = '0006', '0005'\n"
        "def upgrade():\n"
        "    with op.batch_alter_table('checkpoints', recreate='always') as table:\n"
        "        table.add_column(sa.Column('stars', sa.Integer()))\n"
        f"    {last}\n"
    )
    monkeypatch.setattr(schema, "MIGRATIONS", migrations)
    monkeypatch.setattr(schema, "HEAD", "0006")


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("UPDATE checkpoints SET kind = 'quantized'", "ck_checkpoints_kind"),
        ("UPDATE checkpoints SET name = ''", "ck_checkpoints_name_length"),
        ("UPDATE parents SET role = 'cousin'", "ck_parents_role"),
        ("UPDATE parents SET parent_id = child_id", "ck_parents_not_itself"),
        ("UPDATE runs SET status = 'lost'", "ck_runs_status"),
        ("UPDATE runs SET status = 'done'", "ck_runs_done_has_checkpoint"),
        ("UPDATE runs SET checkpoint_id = 1", "ck_runs_done_has_checkpoint"),
        ("UPDATE scores SET value = 9e999", "ck_scores_value_finite"),
        ("UPDATE scores SET stderr = -1", "ck_scores_stderr_finite"),
        ("UPDATE scores SET n = -1", "ck_scores_n_counts"),
        ("DELETE FROM checkpoints WHERE name = 'base'", "FOREIGN KEY"),
        ("INSERT INTO aliases VALUES ('x', 99)", "FOREIGN KEY"),
    ],
)
def test_the_database_itself_refuses_nonsense(
    family: Registry, path: Path, statement: str, constraint: str
) -> None:
    """Another program cannot store what the registry would not."""
    family.add_score("base", "mme", 1)
    family.start_run("m", out="o", recipe_text="", recipe_digest="d", strategy="s", engine="e")
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA foreign_keys=ON")
        with pytest.raises(sqlite3.IntegrityError, match=constraint):
            database.execute(statement)


def test_states_are_stored_as_their_words() -> None:
    """The words in the database are the ones that users type."""
    assert [*Kind] == ["base", "finetuned", "merged", "package"]
    assert [*Role] == ["base", "model", "host", "package", "finetuned_from"]
    assert [*RunStatus] == ["running", "done", "failed"]


@pytest.mark.parametrize("revision", ["0001", "0002"])
def test_a_populated_registry_of_every_revision_is_upgraded(path: Path, revision: str) -> None:
    """What an older revision held is all there, and can be asked in the new ways."""
    with closing(sqlite3.connect(path)) as database:
        database.executescript((DATA / f"revision-{revision}.sql").read_text("utf-8"))
    registry = Registry(path)
    with pytest.raises(RegistryError, match=f"older schema {revision}"):
        registry.checkpoints()
    assert registry.upgrade() == schema.HEAD
    assert registry.check() == []
    assert [c.name for c in registry.checkpoints()] == [
        "packed",
        "merged",
        "audio",
        "vision",
        "base",
    ]
    merged = registry.find("merge-alias")
    assert [(p.name, p.weight) for p in merged.parents] == [("vision", 0.25), ("audio", 0.75)]
    assert merged.fingerprint == "d" * 64
    assert registry.find("vision").modalities == ("image", "video")
    assert [(s.benchmark, s.metric, s.value, s.n) for s in registry.scores("vision")] == [
        ("MMLU", "accuracy", 66.5, 14042)
    ]
    assert [run.status for run in registry.runs()] == [RunStatus.FAILED, RunStatus.DONE]
    assert [p.name for p in registry.leaderboard("MMLU")] == ["vision", "base"]
    before = len(registry.events("base"))
    assert before == (0 if revision == "0001" else 1)
    registry.add_score("base", "MMLU", 1, metric="other")
    registry.add_publication("base", "acme/base", "a" * 40, url="https://hub/acme/base")
    assert len(registry.events("base")) == before + 2
    with closing(sqlite3.connect(path)) as database:
        for change in ("UPDATE events SET actor = 'x'", "DELETE FROM events"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                database.execute(change)


def test_every_earlier_revision_has_its_populated_registry() -> None:
    """A new revision brings a dump of the one before it."""
    revisions = {r.revision for r in ScriptDirectory(schema.MIGRATIONS).walk_revisions()}
    dumps = {file.stem.removeprefix("revision-") for file in DATA.glob("revision-*.sql")}
    assert dumps == revisions - {schema.HEAD}
