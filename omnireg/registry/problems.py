"""What is wrong with stored data, whoever stored it."""

from collections.abc import Iterator
from itertools import chain, islice

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from omnireg.registry import checkpoints, damage, structure
from omnireg.registry.tables import AliasRow, Base, CheckpointRow

#: so many are told
_MOST = 1000


def of(session: Session, *, in_a_file: bool) -> list[str]:
    """Return one line per problem, at most the first thousand."""
    connection = session.connection()
    tables = structure.present(connection)
    found = [
        *islice(
            chain(
                _of_file(session) if in_a_file else (),
                structure.of(connection),
                damage.dangling(connection),
                damage.of(connection, tables),
            ),
            _MOST,
        )
    ]
    if len(tables) == len(Base.metadata.sorted_tables):
        found += islice(chain(_of_families(session), _of_aliases(session)), _MOST)
    return found[:_MOST]


def _of_file(session: Session) -> Iterator[str]:
    for (said,) in session.execute(text("PRAGMA integrity_check")):
        if said != "ok":
            yield f"damaged file: {said}"


def _of_families(session: Session) -> Iterator[str]:
    if knot := checkpoints.cycle(session):
        yield f"checkpoints are their own ancestors: {' -> '.join(knot)}"


def _of_aliases(session: Session) -> Iterator[str]:
    shadowed = select(AliasRow.alias).join(CheckpointRow, CheckpointRow.name == AliasRow.alias)
    for alias in session.scalars(shadowed):
        yield f"alias {alias!r} is also a checkpoint's name"
