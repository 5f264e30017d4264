"""Who changed what, when: a change through a session leaves an event in its transaction."""

import getpass
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from sqlalchemy import event, inspect, select
from sqlalchemy.orm import Session

from omnireg.boundary.text import one_line
from omnireg.checkpoints.digests import combine_digests
from omnireg.registry import rules
from omnireg.registry.records import Action, Event, SubjectType, whole
from omnireg.registry.tables import (
    AliasRow,
    AnalysisRow,
    BenchmarkRow,
    CheckpointRow,
    EventRow,
    ParentRow,
    PublicationRow,
    RunRow,
    ScoreRow,
)

ACTOR = "OMNIREG_ACTOR"
_TYPES: dict[type, SubjectType] = {
    CheckpointRow: SubjectType.CHECKPOINT,
    AliasRow: SubjectType.ALIAS,
    ParentRow: SubjectType.PARENT,
    BenchmarkRow: SubjectType.BENCHMARK,
    ScoreRow: SubjectType.SCORE,
    RunRow: SubjectType.RUN,
    PublicationRow: SubjectType.PUBLICATION,
    AnalysisRow: SubjectType.ANALYSIS,
}
#: what says which score, alias, parent or run of the subject it is
_TELLING = {
    AliasRow: ("alias",),
    ParentRow: ("role", "weight"),
    ScoreRow: ("metric", "value"),
    RunRow: ("out", "status"),
    PublicationRow: ("repo", "commit"),
    AnalysisRow: ("kind",),
}


def actor() -> str:
    """Return who is at work: ``$OMNIREG_ACTOR``, else user and machine."""
    named = os.environ.get(ACTOR)
    if named:
        return one_line(named)
    user = "unknown"
    with suppress(OSError, KeyError):
        user = getpass.getuser()
    return one_line(f"{user}@{platform.node() or 'unknown'}")


def watch(session: Session) -> None:
    """Record an event for everything that the session will flush."""
    event.listen(session, "before_flush", _before_flush)


def search(session: Session, subject: str | None, limit: int | None) -> list[Event]:
    """Return events, newest first."""
    query = select(EventRow).order_by(EventRow.id.desc()).limit(rules.limit(limit))
    if subject is not None:
        query = query.where(EventRow.subject == rules.asked(subject, "subject"))
    return [to_event(row) for row in session.scalars(query)]


def to_event(row: EventRow) -> Event:
    """Return the frozen value of a row."""
    return whole(
        Event(row.id, row.at, row.actor, row.action, row.subject_type, row.subject, row.details)
    )


def _before_flush(session: Session, *_: object) -> None:
    session.add_all(list(_events(session)))


def _events(session: Session) -> Iterator[EventRow]:
    who = actor()
    for action, rows in (
        (Action.CREATE, session.new),
        (Action.UPDATE, session.dirty),
        (Action.DELETE, session.deleted),
    ):
        for row in list(rows):
            if type(row) not in _TYPES:
                continue
            changes = _changes(row) if action is Action.UPDATE else {}
            if action is Action.UPDATE and not changes:
                continue
            yield EventRow(
                actor=who,
                action=action,
                subject_type=_TYPES[type(row)],
                subject=_subject(row, session),
                details={**_telling(row, session), **({"changes": changes} if changes else {})}
                or None,
            )


def _changes(row: Any) -> dict[str, list[Any]]:
    """Return what a flush will change in a row, as old and new value."""
    state = inspect(row)
    found = {}
    for column in state.mapper.column_attrs:
        history = state.attrs[column.key].history
        if history.has_changes():
            both = (v[0] if v else None for v in (history.deleted, history.added))
            # a folder has many files: its digest says that they changed
            told = _contents if column.key == "files" else _plain
            found[column.key] = [told(value) for value in both]
    if isinstance(row, CheckpointRow):
        history = state.attrs.modalities.history
        if history.has_changes():
            before = (*history.unchanged, *history.deleted)
            found["modalities"] = [
                sorted(word.modality for word in words) for words in (before, row.modalities)
            ]
    return found


def _contents(files: dict[str, str] | None) -> str | None:
    return combine_digests(files.items()) if files else None


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | dict):
        return value
    return str(value)


def _subject(row: Any, session: Session) -> str:
    if isinstance(row, ParentRow):
        return _name(row.child, row.child_id, session)
    if isinstance(row, AliasRow | ScoreRow | PublicationRow | AnalysisRow):
        return _name(row.checkpoint, row.checkpoint_id, session)
    return str(row.name)


def _name(row: CheckpointRow | None, number: int, session: Session) -> str:
    found = row or session.get(CheckpointRow, number)
    return found.name if found else ""


def _telling(row: Any, session: Session) -> dict[str, Any]:
    said = {field: _plain(getattr(row, field)) for field in _TELLING.get(type(row), ())}
    if isinstance(row, ParentRow):
        said["parent"] = _name(row.parent, row.parent_id, session)
    if isinstance(row, ScoreRow):
        said["benchmark"] = row.benchmark.name
    return said
