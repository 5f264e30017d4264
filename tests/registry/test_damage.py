"""Rows and tables that somebody changed by hand: told where they stand, found by the check."""

import contextlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from omnireg.errors import RegistryError
from omnireg.registry import Parent, Registry
from tests_support import Run

CREATED = "UPDATE checkpoints SET created_at = '2001-99-99' WHERE name = 'base'"
COMMANDS = (
    ("list",), ("list", "--json"), ("show", "base"), ("show", "merged", "--json"),
    ("scores", "base", "--json"), ("lineage", "base"), ("export",), ("export", "--json"),
    ("leaderboard", "B"), ("report", "base"), ("events",), ("events", "--json"),
    ("sql", "SELECT * FROM v_checkpoints"), ("check", "base"),
)  # fmt: skip


@pytest.fixture
def scored(family: Registry) -> Registry:
    """Return the diamond with scores, an analysis and a run."""
    for name in ("base", "vision"):
        family.add_score(name, "B", 0.5, details={"a": 1})
    family.add_analysis("merged", "mine", {"x": 1})
    family.add_publication("merged", "o/r", "c" * 40, url="u")
    family.start_run(
        "later", out="o", recipe_text="", recipe_digest="d", strategy="s", engine="stream"
    )
    return family


def edit(path: Path, *statements: str) -> None:
    """Change a registry as a person with a SQL prompt does."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA ignore_check_constraints = ON")
        for statement in statements:
            database.execute(statement)


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        (CREATED, "checkpoints, row 1, created_at: '2001-99-99' is no time"),
        ("UPDATE checkpoints SET created_at = '0001-01-01 00:00:00.000000' WHERE id = 1",
         "checkpoints, row 1, created_at: time 1-01-01 is out of range: use the years"),
        ("UPDATE scores SET details = '{' WHERE id = 1", "scores, row 1, details: '{' is no JSON"),
        ("UPDATE scores SET details = '[1]' WHERE id = 1", "scores, row 1, details: '[1]'"),
        ("""UPDATE scores SET details = '{"d": "\\ud800"}' WHERE id = 1""", "row 1, details: "),
        ("""UPDATE scores SET details = '{"d": NaN}' WHERE id = 1""", "scores, row 1, details: "),
        ("UPDATE scores SET details = 5 WHERE id = 1", "scores, row 1, details: 5 is no JSON"),
        ("UPDATE checkpoints SET name = x'6261' WHERE id = 2",
         "checkpoints, row 2, name: b'ba' is no text"),
        ("UPDATE checkpoints SET notes = cast(x'ff' AS TEXT) WHERE id = 2",
         "checkpoints, row 2, notes: notes is not valid Unicode"),
        ("UPDATE checkpoints SET source = x'00' WHERE id = 2",
         "checkpoints, row 2, source: b'\\x00' is no text"),
        ("UPDATE checkpoints SET name = 'a' || char(10) WHERE id = 2",
         "checkpoints, row 2, name: name 'a\\n' holds a control character"),
        ("UPDATE checkpoints SET name = ' ' WHERE id = 2", "checkpoints, row 2, name: a name"),
        ("UPDATE checkpoints SET fingerprint = 'xyz' WHERE id = 2",
         "checkpoints, row 2, fingerprint: fingerprint 'xyz' is not 8 to 64"),
        ("UPDATE checkpoints SET fingerprint = upper(fingerprint) WHERE id = 2", "is not in lower"),
        ("UPDATE checkpoints SET kind = 'base-ish' WHERE id = 2",
         "checkpoints, row 2, kind: 'base-ish' is no state: one of base, finetuned, merged"),
        ("UPDATE parents SET role = 'uncle' WHERE child_id = 2",
         "parents, row 2/1/uncle, role: 'uncle' is no state: one of base, model"),
        ("UPDATE parents SET weight = 9e999 WHERE child_id = 4", "weight: inf is no finite number"),
        ("UPDATE parents SET position = 'first' WHERE child_id = 2", "position: 'first' is no"),
        ("UPDATE scores SET value = 'high' WHERE id = 1", "row 1, value: 'high' is no finite"),
        ("UPDATE scores SET n = 'many' WHERE id = 1", "row 1, n: 'many' is no whole number"),
        ("UPDATE scores SET partial = 'yes' WHERE id = 1", "row 1, partial: 'yes' is no truth"),
        ("UPDATE scores SET source = 'x' WHERE id = 1",
         "scores, row 1, conditions: is not the digest of what the score was measured under"),
        ("UPDATE runs SET status = 'paused' WHERE id = 1", "row 1, status: 'paused' is no state"),
        ("UPDATE runs SET status = 'done' WHERE id = 1", "row 1, checkpoint_id: a run is done"),
        ("UPDATE runs SET parameters = 'null' WHERE id = 1", "runs, row 1, parameters: "),
        ("UPDATE analyses SET result = '1' WHERE id = 1", "analyses, row 1, result: 1 is no JSON"),
        ("UPDATE publications SET published_at = 5 WHERE id = 1",
         "publications, row 1, published_at: 5 is no time"),
        ("DELETE FROM checkpoints WHERE id = 4", "parent_id: points at nothing in checkpoints"),
        ("DROP TABLE scores", "table scores is missing"),
        ("DROP VIEW v_scores", "view v_scores is missing"),
        ("DROP TRIGGER events_no_update", "table events: trigger events_no_update is missing"),
        ("DROP INDEX ix_scores_benchmark_id_metric_value",
         "table scores: index ix_scores_benchmark_id_metric_value is missing"),
        ("ALTER TABLE scores ADD COLUMN mine TEXT", "table scores: column mine is not omnireg's"),
        ("ALTER TABLE scores RENAME COLUMN stderr TO error", "scores: column stderr is missing"),
        ("CREATE TRIGGER t AFTER INSERT ON scores BEGIN DELETE FROM scores; END",
         "table scores: trigger t is not omnireg's"),
    ],
)  # fmt: skip
def test_what_a_hand_changed_is_told_and_found(
    scored: Registry, path: Path, run: Run, statement: str, found: str
) -> None:
    """Every reading works or ends in one line that says what to do; the check names the place."""
    edit(path, statement)
    assert any(found in problem for problem in scored.check()), scored.check()
    for command in COMMANDS:
        done = run("--registry", path, *command)
        assert done.code == 0 or (done.code, done.err.count("\n")) == (1, 1), done
        assert done.code == 0 or done.err.startswith("error: ")
    checked = run("--registry", path, "db", "check", "--json")
    assert checked.code == 1
    assert any(found in problem for problem in json.loads(checked.out)["problems"])
    listed = run("--registry", path, "db", "check")
    assert any(found in line for line in listed.out.splitlines())


def test_the_row_is_named_where_it_is_read(scored: Registry, path: Path) -> None:
    """Reading says which row it is, and what is right with the rest still works."""
    edit(path, CREATED)
    with pytest.raises(RegistryError) as caught:
        scored.checkpoints()
    assert "is damaged: checkpoints, row 1, created_at: '2001-99-99' is no time" in str(
        caught.value
    )
    assert "run `omnireg db check`" in str(caught.value)
    assert scored.find("vision").name == "vision"
    with pytest.raises(RegistryError, match="is damaged: checkpoints, row 1, created_at"):
        scored.add_score("base", "B", 0.7, replace=True)


def test_what_is_missing_is_told(scored: Registry, path: Path) -> None:
    """NULL where no row has one."""
    edit(
        path,
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET sql = replace(sql, 'NOT NULL', '') WHERE name = 'checkpoints'",
        "PRAGMA writable_schema = RESET",
        "UPDATE checkpoints SET created_at = NULL WHERE name = 'base'",
    )
    problems = scored.check()
    assert "checkpoints, row 1, created_at: is missing" in problems
    assert (
        "table checkpoints, column created_at: has another nullable than omnireg gave it"
        in problems
    )
    for reading in (scored.checkpoints, lambda: scored.find("base"), lambda: list(scored.items())):
        with pytest.raises(RegistryError, match="created_at: is missing"):
            reading()


def test_a_missing_table_is_told(scored: Registry, path: Path) -> None:
    """By its name, with what to do; what does not need it works."""
    edit(path, "DROP TABLE scores")
    with pytest.raises(RegistryError, match=r"no such table: scores.*run `omnireg db check`"):
        scored.scores("base")
    assert scored.find("base").name == "base"


def test_a_table_that_lost_its_checks_is_found(scored: Registry, path: Path) -> None:
    """Also its primary key, and constraints that Alembic does not look at."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("DROP VIEW v_parents")
        database.execute("CREATE TABLE copy AS SELECT * FROM parents")
        database.execute("DROP TABLE parents")
        database.execute("ALTER TABLE copy RENAME TO parents")
    problems = "\n".join(scored.check())
    for found in ("check ck_parents_role is missing", "its primary key is not omnireg's",
                  "index ix_parents_parent_id is missing", "view v_parents is missing",
                  "foreign key fk_parents_child_id_checkpoints is missing"):  # fmt: skip
        assert found in problems


def test_others_may_add_tables(scored: Registry, path: Path) -> None:
    """A table, a view or an index beside ours is nobody's business."""
    edit(path, "CREATE TABLE mine (a TEXT)", "CREATE VIEW v_mine AS SELECT 1",
         "CREATE INDEX mine_by_notes ON checkpoints (notes)")  # fmt: skip
    assert scored.check() == []


def test_a_thousand_problems_are_enough(scored: Registry, path: Path) -> None:
    """The check of a file that is damaged everywhere ends."""
    for number in range(0, 1200, 100):
        edit(path, *(
            "INSERT INTO checkpoints (name, kind, created_at)"
            f" VALUES ('n{each}', 'base', 'x')" for each in range(number, number + 100)
        ))  # fmt: skip
    assert len(scored.check()) == 1000


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE checkpoints SET created_at = 'infinity' WHERE name = 'base'", "created_at: "),
        ("UPDATE checkpoints SET created_at = '20000-01-01' WHERE name = 'base'", "created_at: "),
        ("UPDATE checkpoints SET details = '[1]' WHERE name = 'base'", "details: '[1]' is no JSON"),
        ("""UPDATE checkpoints SET details = '{"d": "\\ud800"}' WHERE id = 1""", "details: "),
        ("UPDATE checkpoints SET name = E'a\\nb' WHERE name = 'base'", "holds a control character"),
        ("UPDATE parents SET weight = 'NaN'", "weight: nan is no finite number"),
        ("DROP VIEW v_scores", "view v_scores is missing"),
        ("ALTER TABLE events DISABLE TRIGGER events_no_change", "events_no_change is disabled"),
        ("DROP TRIGGER events_no_change ON events", "events_no_change is missing"),
        ("ALTER TABLE checkpoints DROP CONSTRAINT ck_checkpoints_kind", "check ck_checkpoints_"),
        ("ALTER TABLE scores DROP COLUMN stderr CASCADE", "scores: column stderr is missing"),
        ("DROP TABLE scores CASCADE", "table scores is missing"),
    ],
)  # fmt: skip
def test_a_server_is_checked_as_well(
    database: Callable[[str], str], template: str, statement: str, found: str
) -> None:
    """What its types let through is told and found."""
    url = database(template)
    engine = create_engine(url)
    with Registry(url) as registry:
        registry.add_checkpoint("base", kind="base")
        registry.add_checkpoint("child", kind="merged", parents=[Parent("base", "model", 1.0)])
        assert registry.check() == []
        with engine.begin() as connection:
            connection.execute(text(statement.replace(":", "\\:")))
        assert any(found in problem for problem in registry.check()), registry.check()
        readings: list[Callable[[], object]] = [
            registry.checkpoints,
            lambda: registry.lineage("child"),
            lambda: list(registry.items()),
        ]
        for reading in readings:
            with contextlib.suppress(RegistryError):
                reading()
    engine.dispose()
