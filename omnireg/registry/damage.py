"""Rows that a foreign hand wrote: which value, of which row, is none that omnireg would record."""

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from datetime import datetime
from typing import Any

from sqlalchemy import Boolean, Column, Connection, Enum, Integer, Table, TypeDecorator
from sqlalchemy.types import TypeEngine

from omnireg.boundary.text import one_line, quoted
from omnireg.errors import RegistryError
from omnireg.registry import rules
from omnireg.registry.columns import Document, Line, Prose, Real, UtcDateTime, Whole
from omnireg.registry.scores import Conditions
from omnireg.registry.tables import LONGEST_NAME, Base

#: raises where a stored value is none
Check = Callable[[Any], object]
_BATCH = 1000
_NAMES = {
    ("checkpoints", "name"), ("aliases", "alias"), ("checkpoint_modalities", "modality"),
    ("runs", "name"), ("benchmarks", "name"), ("scores", "metric"), ("analyses", "kind"),
    ("publications", "repo"), ("publications", "commit"),
}  # fmt: skip
#: what a value should be, in words
_WORDS: tuple[tuple[type[TypeEngine[Any]], str], ...] = (
    (UtcDateTime, "time"),
    (Document, "JSON object of valid text and finite numbers"),
    (Real, "finite number"),
    (Whole, "whole number"),
    (Boolean, "truth value"),
    (Integer, "whole number"),
)
#: of what is asked for as text where a driver makes values itself
_PARSERS: tuple[tuple[type[TypeEngine[Any]], Callable[[Any], Any]], ...] = (
    (UtcDateTime, datetime.fromisoformat),
    (Document, json.loads),
)
_READ = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def first(connection: Connection) -> str | None:
    """Return where the first damaged value stands, and what is wrong with it."""
    with closing(of(connection, Base.metadata.sorted_tables)) as found:
        return next(found, None) or next(dangling(connection), None)


def dangling(connection: Connection) -> Iterator[str]:
    """Yield one line per row of a SQLite file that points at nothing; a server has none."""
    if connection.dialect.name != "sqlite":
        return
    for table, row, other, number in connection.exec_driver_sql("PRAGMA foreign_key_check").all():
        keys = connection.exec_driver_sql(f'PRAGMA foreign_key_list("{table}")').all()
        column = next((key[3] for key in keys if key[0] == number), "?")
        yield f"{table}, row {row}, {column}: points at nothing in {other}"


def of(connection: Connection, tables: Sequence[Table]) -> Generator[str, None, None]:
    """Yield one line per damaged value: table, row, column, what is wrong."""
    for table in tables:
        columns = list(table.columns)
        checks = [_check(column, connection) for column in columns]
        keys = [columns.index(key) for key in table.primary_key]
        for row in _rows(connection, table):
            where = f"{table.name}, row {'/'.join(_shown(row[key]) for key in keys)}"
            wrong = False
            for column, check, value in zip(columns, checks, row, strict=True):
                said = _wrong(column, check, value)
                if said:
                    wrong = True
                    yield f"{where}, {column.name}: {said}"
            if not wrong:
                fields = {column.name: value for column, value in zip(columns, row, strict=True)}
                yield from (f"{where}, {said}" for said in _contradictions(table.name, fields))


def _shown(key: Any) -> str:
    return one_line(str(key) if isinstance(key, int | str) else quoted(key))


def _rows(connection: Connection, table: Table) -> Iterator[Sequence[Any]]:
    """Yield rows as the driver has them; what is no UTF-8 keeps its bytes as lone surrogates."""
    if connection.dialect.name == "sqlite":
        names = ", ".join(f'"{column.name}"' for column in table.columns)
        driver: Any = connection.connection.dbapi_connection
        cursor = driver.execute(f'SELECT {names} FROM "{table.name}"')
        while batch := _undecoded(driver, cursor):
            yield from batch
        return
    # what the driver would make a value of may be none, and it would not say of which row
    names = ", ".join(
        f'"{c.name}"' + ("::text" if isinstance(c.type, UtcDateTime | Document) else "")
        for c in table.columns
    )
    query = f'SELECT {names} FROM "{table.name}"'
    streamed = {"stream_results": True}
    with closing(connection.exec_driver_sql(query, execution_options=streamed)) as found:
        yield from found


def _undecoded(driver: Any, cursor: Any) -> list[tuple[Any, ...]]:
    driver.text_factory = lambda raw: raw.decode(errors="surrogateescape")
    try:
        batch: list[tuple[Any, ...]] = cursor.fetchmany(_BATCH)
        return batch
    finally:
        driver.text_factory = str


def _wrong(column: Column[Any], check: Check, value: Any) -> str | None:
    if value is None:
        return None if column.nullable else "is missing"
    try:
        check(value)
    except RegistryError as exc:
        return str(exc)
    except _READ:
        return f"{quoted(value)} is no {_word(column.type)}"
    return None


def _word(kind: TypeEngine[Any]) -> str:
    if isinstance(kind, Enum):
        return f"state: one of {', '.join(kind.enums)}"
    return next((word for known, word in _WORDS if isinstance(kind, known)), "text")


def _check(column: Column[Any], connection: Connection) -> Check:
    """Return what reads a stored value as a query would, then looks at it as a write would."""
    kind, table = column.type, column.table.name
    read = _reader(kind, connection)
    if isinstance(kind, Line | Prose):
        return _text(table, column, read)
    if isinstance(kind, UtcDateTime):
        return lambda value: rules.moment(read(value))
    if column.name == "files":
        return lambda value: rules.files(read(value))
    if isinstance(kind, Document) and table != "events":
        most = rules.LARGEST_RESULT if column.name == "result" else rules.LARGEST_DOCUMENT
        return lambda value: rules.document(read(value), column.name, most)
    return read


def _reader(kind: TypeEngine[Any], connection: Connection) -> Callable[[Any], Any]:
    if isinstance(kind, Boolean):
        return _truth
    if isinstance(kind, Integer):
        return _number
    dialect = connection.dialect
    if dialect.name != "sqlite" and isinstance(kind, TypeDecorator):
        parse = next((made for known, made in _PARSERS if isinstance(kind, known)), lambda v: v)
        return lambda value: kind.process_result_value(parse(value), dialect)
    return kind.dialect_impl(dialect).result_processor(dialect, None) or (lambda value: value)


def _truth(value: Any) -> None:
    if value not in (0, 1):
        raise ValueError


def _number(value: Any) -> None:
    if not isinstance(value, int):
        raise ValueError


def _text(table: str, column: Column[Any], read: Callable[[Any], Any]) -> Check:
    name = str(column.name)
    longest = getattr(column.type, "length", None) or rules.LONGEST_TEXT
    if (table, name) in _NAMES:
        return lambda value: rules.name(read(value), name, min(longest, LONGEST_NAME))
    if name == "fingerprint":
        return lambda value: _lower(read(value))
    return lambda value: rules.text(read(value), name, longest)


def _lower(value: str) -> None:
    if rules.fingerprint(value) != value:
        raise RegistryError(f"fingerprint {value} is not in lower case")


def _contradictions(table: str, row: dict[str, Any]) -> Iterator[str]:
    """Yield what the values of a row, each fine by itself, cannot be together."""
    if table == "runs" and (row["status"] == "done") != (row["checkpoint_id"] is not None):
        yield "checkpoint_id: a run is done if it made a checkpoint, and only then"
    if table == "scores":
        fields = {name: row[name] for name in Conditions.__slots__}
        setup = fields["setup"]
        fields["setup"] = json.loads(setup) if isinstance(setup, str) else setup
        if Conditions(**fields).digest != row["conditions"]:
            yield "conditions: is not the digest of what the score was measured under"
