"""Column types that let nothing odd through: a foreign hand may have written anything into a file.

SQLite keeps a blob in a column of text, and any text in one of JSON. A value that is none raises a
ValueError where it is read; :mod:`omnireg.registry.problems` finds out which row it is.
"""

import math
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Double,
    Enum,
    String,
    Text,
    TypeDecorator,
)

from omnireg.boundary.text import quoted


def closed(states: type[StrEnum], name: str) -> Enum:
    """Return the column type of a closed set of states, with a named CHECK."""
    # A fixed length lets a later state come in by replacing one named CHECK.
    return Enum(
        states,
        name=name,
        length=32,
        native_enum=False,
        create_constraint=True,
        values_callable=lambda members: [member.value for member in members],
    )


class UtcDateTime(TypeDecorator[datetime]):
    """A time that is UTC on both sides, also where the database forgets time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert an aware time to UTC."""
        return value.astimezone(UTC) if value is not None else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Read the stored time as UTC."""
        if value is None or value.tzinfo is not None:
            return value and value.astimezone(UTC)
        return value.replace(tzinfo=UTC)


class Prose(TypeDecorator[str]):
    """Text, and no bytes."""

    impl = Text
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        """Refuse what is no text."""
        return _text(value)


class Line(TypeDecorator[str]):
    """Text of a limited length, and no bytes."""

    impl = String
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        """Refuse what is no text."""
        return _text(value)


class Whole(TypeDecorator[int]):
    """A whole number."""

    impl = BigInteger
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> int | None:
        """Refuse what is no whole number."""
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise ValueError(f"{quoted(value)} is no whole number")


class Real(TypeDecorator[float]):
    """A finite number."""

    impl = Double
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> float | None:
        """Refuse what is no finite number."""
        if value is None or (isinstance(value, float) and math.isfinite(value)):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        raise ValueError(f"{quoted(value)} is no finite number")


class Document(TypeDecorator[dict[str, Any]]):
    """A JSON object whose text is valid and whose numbers are finite."""

    impl = JSON
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> dict[str, Any] | None:
        """Refuse what is no such object."""
        if value is None:
            return None
        if not isinstance(value, dict):
            raise ValueError(f"{quoted(value)} is no JSON object")
        _refuse_odd(value)
        return value


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise ValueError(f"{quoted(value)} is no text")


def _refuse_odd(value: Any) -> None:
    if isinstance(value, str):
        if not value.isascii():
            value.encode()  # half of a surrogate pair is a ValueError
    elif isinstance(value, dict):
        for key, each in value.items():
            _refuse_odd(key)
            _refuse_odd(each)
    elif isinstance(value, list):
        for each in value:
            _refuse_odd(each)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no number of JSON")
