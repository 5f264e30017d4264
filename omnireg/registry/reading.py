"""A door for SQL that can only read."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from omnireg.errors import RegistryError
from omnireg.registry.views import VIEWS

_READING = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows of a query; `truncated` if there were more than asked for."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    truncated: bool = False

    def to_json(self) -> list[dict[str, Any]]:
        """Return one JSON object per row."""
        return [dict(zip(self.columns, map(_plain, row), strict=True)) for row in self.rows]


def ask(connection: Connection, query: str, limit: int | None) -> Answer:
    """Return what a query selects.

    The views whose names begin with ``v_`` are the documented ones; tables may change.

    Raises:
        RegistryError: the query is no SQL, writes, or is more than one statement.
    """
    if connection.dialect.name == "sqlite":
        return _ask_sqlite(connection, query, limit)
    connection.execute(text("SET TRANSACTION READ ONLY"))
    driver: Any = connection.connection.dbapi_connection
    cursor = driver.cursor()
    try:
        # prepared, because the server then takes one statement only
        cursor.execute(query, prepare=True)
        return _answer(cursor, limit)
    except driver_errors(driver) as exc:
        raise _refused(exc) from exc
    finally:
        cursor.close()


def _ask_sqlite(connection: Connection, query: str, limit: int | None) -> Answer:
    driver: Any = connection.connection.dbapi_connection
    driver.set_authorizer(
        lambda action, *_: sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY
    )
    try:
        return _answer(driver.execute(query), limit)
    except (sqlite3.Error, sqlite3.Warning) as exc:
        raise _refused(exc) from exc
    finally:
        driver.set_authorizer(None)


def _answer(cursor: Any, limit: int | None) -> Answer:
    if cursor.description is None:
        raise RegistryError("the query returns no rows: begin it with SELECT or WITH")
    columns = tuple(column[0] for column in cursor.description)
    rows: Sequence[Any] = cursor.fetchall() if limit is None else cursor.fetchmany(limit + 1)
    kept = rows if limit is None else rows[:limit]
    return Answer(columns, tuple(tuple(row) for row in kept), len(rows) > len(kept))


def driver_errors(driver: Any) -> type[Exception]:
    """Return what a PostgreSQL driver raises."""
    import psycopg

    return psycopg.Error


def _refused(exc: Exception) -> RegistryError:
    said = " ".join(str(exc).split())
    if "not authorized" in said or "prohibited" in said or "read-only" in said:
        return RegistryError("this door only reads: begin the query with SELECT or WITH")
    views = ", ".join(VIEWS)
    return RegistryError(f"the query cannot be answered: {said}: the views are {views}")


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str | dict | list):
        return value
    return str(value)
