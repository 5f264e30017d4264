"""What the steps of an apply share: the tables, refusals with file and line, and events."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    Table,
    Text,
    cast,
    exists,
    func,
    insert,
    literal,
    select,
)
from sqlalchemy.orm import Session

from omnireg.errors import RegistryError, did_you_mean
from omnireg.registry.columns import Document
from omnireg.registry.declare.reading import Place
from omnireg.registry.events import actor
from omnireg.registry.records import Action, SubjectType
from omnireg.registry.tables import (
    AliasRow,
    Base,
    BenchmarkRow,
    CheckpointRow,
    EventRow,
    ModalityRow,
    ParentRow,
    RunRow,
    ScoreRow,
    now,
)


def _table(row: type[Base]) -> Table:
    table = row.__table__
    assert isinstance(table, Table)
    return table


RECORDED = _table(CheckpointRow)
ALIAS = _table(AliasRow)
MODALITY = _table(ModalityRow)
EDGE = _table(ParentRow)
SCORE = _table(ScoreRow)
BENCHMARK = _table(BenchmarkRow)
RUN = _table(RunRow)
_EVENT = _table(EventRow)


class Step:
    """One step of an apply, inside its transaction."""

    def __init__(self, session: Session) -> None:
        """Work on the session's connection."""
        self._session = session
        self._connection = session.connection()
        self._at, self._actor = now(), actor()
        self._is_sqlite = self._connection.dialect.name == "sqlite"

    @property
    def _now(self) -> ColumnElement[datetime]:
        return literal(self._at, EventRow.at.type)

    def _do(self, statement: Any) -> int:
        return int(self._connection.execute(statement).rowcount)

    def _refuse(self, query: Select[Any], said: str, *, suggest: bool = False) -> None:
        """Refuse the first row of a query for (file, line, …), which ``said`` puts into words."""
        row = self._connection.execute(query.limit(1)).first()
        if row:
            file, line, *names = row
            known = self._session.scalars(select(RECORDED.c.name).limit(2000)).all()
            hint = did_you_mean(names[0], known) if suggest else ""
            raise RegistryError(f"{Place(file, line)}: {said.format(*names, hint=hint)}")

    def _object(self, **values: Any) -> ColumnElement[Any]:
        """Return an expression for a JSON object."""
        make = func.json_object if self._is_sqlite else func.json_build_object
        pairs = (part for name, value in values.items() for part in (literal(name), value))
        return make(*pairs)

    def _pair(self, old: Any, new: Any) -> ColumnElement[Any]:
        make = func.json_array if self._is_sqlite else func.json_build_array
        return make(old, new)

    def _note(
        self, action: Action, kind: SubjectType, subject: Any, details: Any, *where: Any
    ) -> None:
        """Insert an event for every row that fulfils a condition."""
        chosen = select(
            self._now, literal(self._actor), literal(str(action)),
            literal(str(kind)), subject, details,
        ).where(*where)  # fmt: skip
        into = ["at", "actor", "action", "subject_type", "subject", "details"]
        self._do(insert(_EVENT).from_select(into, chosen))


def any_of(table: Any, *conditions: Any) -> ColumnElement[bool]:
    """Return whether a row of the table fulfils conditions that may name outer tables."""
    return exists().where(*conditions).correlate_except(table)


def id_of(name: Any) -> ColumnElement[Any]:
    """Return an expression for the id of the checkpoint of a name or an alias."""
    named = select(RECORDED.c.id).where(RECORDED.c.name == name)
    aliased = select(ALIAS.c.checkpoint_id).where(ALIAS.c.alias == name)
    return func.coalesce(
        named.correlate_except(RECORDED).scalar_subquery(),
        aliased.correlate_except(ALIAS).scalar_subquery(),
    )


def name_of(number: Any) -> ColumnElement[Any]:
    """Return an expression for the name of the checkpoint with an id."""
    named = select(RECORDED.c.name).where(RECORDED.c.id == number)
    return named.correlate_except(RECORDED).scalar_subquery()


def comparable(column: Any) -> Any:
    """Return what can be compared: JSON has no equality on PostgreSQL."""
    return cast(column, Text) if isinstance(column.type, Document) else column
