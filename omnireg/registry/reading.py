"""A door for SQL that can only read, and that always ends."""

import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from omnireg.boundary.text import one_line
from omnireg.errors import RegistryError
from omnireg.registry import rules
from omnireg.registry.views import VIEWS

TIMEOUT = 30.0
_READING = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}
#: bytes; a query can make up values that no registry holds
_LARGEST_VALUE = 64 << 20
_LARGEST_ANSWER = 512 << 20
#: steps of SQLite between two looks at the clock
_STEPS = 20_000


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows of a query; `truncated` if there were more than asked for."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    truncated: bool = False

    def to_json(self) -> list[dict[str, Any]]:
        """Return one JSON object per row; of two columns of one name the second is ``name_2``."""
        names = _told_apart(self.columns)
        return [dict(zip(names, map(_plain, row), strict=True)) for row in self.rows]


def ask(
    connection: Connection, query: str, limit: int | None, timeout: float | None = TIMEOUT
) -> Answer:
    """Return what a query selects, after at most `timeout` seconds.

    The views whose names begin with ``v_`` are the documented ones; tables may change.

    Raises:
        RegistryError: the query is no SQL, writes, is more than one statement, takes too long, or
            has too large an answer.
    """
    query = rules.text(query, "query")
    seconds = None if timeout is None else rules.seconds(timeout, "timeout")
    if connection.dialect.name == "sqlite":
        return _ask_sqlite(connection, query, limit, seconds)
    return _ask_postgresql(connection, query, limit, seconds)


def _ask_postgresql(
    connection: Connection, query: str, limit: int | None, timeout: float | None
) -> Answer:
    connection.execute(text("SET TRANSACTION READ ONLY"))
    milliseconds = 0 if timeout is None else max(1, int(timeout * 1000))
    connection.execute(text(f"SET LOCAL statement_timeout = {milliseconds}"))
    driver: Any = connection.connection.dbapi_connection
    cursor = driver.cursor()
    try:
        # a row at a time, which takes one statement only
        with closing(cursor.stream(query)) as rows:
            found, truncated = _read(rows, limit)
        # of no rows at all, a stream does not tell the columns
        columns = _names(cursor) if found else _described(driver.pgconn, query)
        return Answer(columns, found, truncated)
    except driver_errors(driver) as exc:
        raise _refused(exc, timeout) from exc
    finally:
        cursor.close()


def _ask_sqlite(
    connection: Connection, query: str, limit: int | None, timeout: float | None
) -> Answer:
    driver: Any = connection.connection.dbapi_connection
    began = time.monotonic()
    late = began + timeout if timeout is not None else float("inf")
    with _guarded(driver, late):
        try:
            cursor = driver.execute(query)
            found, truncated = _read(cursor, limit)
            if cursor.description is None:
                raise _no_rows()
            return Answer(_names(cursor), found, truncated)
        except (sqlite3.Error, sqlite3.Warning) as exc:
            if "interrupted" in str(exc) and time.monotonic() < late:
                # the handler that looks at the clock cannot pass it on
                raise KeyboardInterrupt from exc
            raise _refused(exc, timeout) from exc
        except MemoryError as exc:
            raise _too_large() from exc


@contextmanager
def _guarded(driver: Any, late: float) -> Iterator[None]:
    """Let a connection read alone, up to a time, and make no huge values."""
    before = driver.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST_VALUE)
    driver.set_authorizer(
        lambda action, _, name, *__: (
            # `regexp` runs in Python, where nothing can stop it
            sqlite3.SQLITE_OK if action in _READING and name != "regexp" else sqlite3.SQLITE_DENY
        )
    )
    driver.set_progress_handler(lambda: time.monotonic() >= late, _STEPS)
    try:
        yield
    finally:
        driver.set_progress_handler(None, 0)
        driver.set_authorizer(None)
        driver.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, before)


def _read(rows: Iterable[Any], limit: int | None) -> tuple[tuple[tuple[Any, ...], ...], bool]:
    """Return rows, and whether there are more."""
    found: list[tuple[Any, ...]] = []
    size, truncated = 0, False
    for row in rows:
        if limit is not None and len(found) == limit:
            truncated = True
            break
        found.append(tuple(row))
        size += sum(len(value) if isinstance(value, str | bytes) else 8 for value in row)
        if size > _LARGEST_ANSWER:
            raise _too_large()
    return tuple(found), truncated


def _names(cursor: Any) -> tuple[str, ...]:
    return tuple(column[0] for column in cursor.description)


def _described(connection: Any, query: str) -> tuple[str, ...]:
    """Return the columns that a PostgreSQL server says a query has."""
    connection.prepare(b"", query.encode())
    found = connection.describe_prepared(b"")
    return tuple(found.fname(number).decode() for number in range(found.nfields))


def _no_rows() -> RegistryError:
    return RegistryError("the query returns no rows: begin it with SELECT or WITH")


def _too_large() -> RegistryError:
    return RegistryError(
        f"the answer is larger than {_LARGEST_ANSWER >> 20} MB: select fewer columns or rows"
    )


def driver_errors(driver: Any) -> type[Exception]:
    """Return what a PostgreSQL driver raises."""
    import psycopg

    return psycopg.Error


def _refused(exc: Exception, timeout: float | None) -> RegistryError:
    said = one_line(" ".join(str(exc).split()))
    if "use function" in said:
        return RegistryError("the query cannot use regexp; compare with LIKE or GLOB")
    if "not authorized" in said or "prohibited" in said or "read-only" in said:
        return RegistryError("this door only reads: begin the query with SELECT or WITH")
    if "EMPTY_QUERY" in said or "didn't produce a result" in said:
        return _no_rows()
    if said == "interrupted" or "statement timeout" in said:
        return RegistryError(
            f"the query took longer than {timeout:g} seconds: ask for less, or raise the timeout"
            " (--timeout)"
        )
    if "too big" in said:
        return RegistryError(
            f"the query makes a value of more than {_LARGEST_VALUE >> 20} MB: ask for less"
        )
    if "Could not decode" in said:
        return RegistryError(f"the registry is damaged: {said}: run `omnireg db check`")
    views = ", ".join(VIEWS)
    return RegistryError(f"the query cannot be answered: {said}: the views are {views}")


def _told_apart(columns: Iterable[str]) -> list[str]:
    """Return names of columns, each once."""
    wanted = list(columns)
    taken, found = set(wanted), list[str]()
    for column in wanted:
        name, number = column, 1
        while name in found or (number > 1 and name in taken):
            number += 1
            name = f"{column}_{number}"
        found.append(name)
    return found


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    return str(value)
