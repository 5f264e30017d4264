"""Tables, views, triggers and indexes that are not what the migrations made."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import CheckConstraint, Connection, Table, inspect, text

from omnireg.registry import views
from omnireg.registry.tables import Base

_APPEND_ONLY = {
    f"events_no_{change.lower()}": f"CREATE TRIGGER events_no_{change.lower()} BEFORE {change} ON"
    " events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END"
    for change in ("UPDATE", "DELETE")
}
_THINGS = {"column": "column", "index": "index", "constraint": "constraint", "fk": "foreign key"}


def present(connection: Connection) -> list[Table]:
    """Return the tables that have every column, so that they can be read."""
    inspector = inspect(connection)
    there = set(inspector.get_table_names())
    return [
        table
        for table in Base.metadata.sorted_tables
        if table.name in there
        and {c["name"] for c in inspector.get_columns(table.name)} >= set(table.columns.keys())
    ]


def of(connection: Connection) -> Iterator[str]:
    """Yield one line per difference."""
    yield from _of_tables(connection)
    yield from _of_checks(connection)
    yield from _of_views(connection)
    if connection.dialect.name == "sqlite":
        yield from _of_sqlite_triggers(connection)
    else:
        yield from _of_postgresql_trigger(connection)


def _of_tables(connection: Connection) -> Iterator[str]:
    # takes a moment to import
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    context = MigrationContext.configure(connection, opts={"compare_type": True})
    missing = set()
    for found in compare_metadata(context, Base.metadata):
        for change in found if isinstance(found, list) else [found]:
            what, *rest = change
            if what == "add_table":
                missing.add(rest[0].name)
                yield f"table {rest[0].name} is missing"
            elif said := _difference(what, rest, missing):
                yield said


def _difference(what: str, rest: list[Any], missing: set[str]) -> str | None:
    """Return a difference in words; what others added beside ours is none."""
    action, _, thing = what.partition("_")
    if what.startswith("modify_"):
        _, table, column = rest[:3]
        return f"table {table}, column {column}: has another {thing} than omnireg gave it"
    if thing == "column":
        table, name = rest[1], rest[2].name
    else:
        table, name = getattr(getattr(rest[0], "table", None), "name", None), rest[0].name
    if table in missing or what in ("remove_table", "remove_index"):
        return None
    state = "is missing" if action == "add" else "is not omnireg's"
    return f"table {table}: {_THINGS.get(thing, thing)} {name} {state}"


def _of_checks(connection: Connection) -> Iterator[str]:
    inspector = inspect(connection)
    for table in present(connection):
        there = {check["name"] for check in inspector.get_check_constraints(table.name)}
        ours = {str(c.name) for c in table.constraints if isinstance(c, CheckConstraint)}
        for name in sorted(ours - there):
            yield f"table {table.name}: check {name} is missing"
        keys = inspector.get_pk_constraint(table.name)["constrained_columns"]
        if list(keys) != [column.name for column in table.primary_key]:
            yield f"table {table.name}: its primary key is not omnireg's"


def _of_views(connection: Connection) -> Iterator[str]:
    inspector = inspect(connection)
    there = set(inspector.get_view_names())
    for name in views.VIEWS:
        if name not in there:
            yield f"view {name} is missing"
        elif connection.dialect.name == "sqlite" and _flat(
            str(inspector.get_view_definition(name))
        ) != _flat(views.statement(name, connection)):
            yield f"view {name} is not omnireg's"


def _of_sqlite_triggers(connection: Connection) -> Iterator[str]:
    query = text("SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'trigger'")
    there = {name: (table, _flat(sql)) for name, table, sql in connection.execute(query)}
    for name, statement in _APPEND_ONLY.items():
        if name not in there:
            yield f"table events: trigger {name} is missing"
        elif there[name][1] != statement:
            yield f"table events: trigger {name} is not omnireg's"
    for name, (table, _) in there.items():
        if name not in _APPEND_ONLY and table in Base.metadata.tables:
            yield f"table {table}: trigger {name} is not omnireg's"


def _of_postgresql_trigger(connection: Connection) -> Iterator[str]:
    query = text(
        "SELECT tgenabled FROM pg_trigger WHERE tgrelid = to_regclass('events')"
        " AND tgname = 'events_no_change'"
    )
    state = connection.scalar(query)
    if state is None:
        yield "table events: trigger events_no_change is missing"
    elif str(state) == "D":
        yield "table events: trigger events_no_change is disabled"


def _flat(statement: str) -> str:
    return " ".join(statement.replace('"', "").split())
