"""Finding checkpoints in a session, and turning their rows into values."""

from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter

from sqlalchemy import Select, literal, select, union_all
from sqlalchemy.orm import Session, selectinload

from omnireg.errors import RegistryError, did_you_mean
from omnireg.registry import rules
from omnireg.registry.records import Checkpoint, Kind, Parent, whole
from omnireg.registry.tables import AliasRow, CheckpointRow, ModalityRow, ParentRow

_table, _aliases = CheckpointRow.__table__, AliasRow.__table__
_modalities, _edges = ModalityRow.__table__, ParentRow.__table__
_SUGGESTED = 2000


def by_name(session: Session, name: str) -> CheckpointRow | None:
    """Return the checkpoint of exactly this name."""
    return session.scalars(select(CheckpointRow).where(CheckpointRow.name == name)).one_or_none()


def named(session: Session, name: str) -> CheckpointRow | None:
    """Return the checkpoint of this name or alias."""
    alias = session.get(AliasRow, name)
    return alias.checkpoint if alias else by_name(session, name)


def by_fingerprint(session: Session, prefix: str) -> Sequence[CheckpointRow]:
    """Return every checkpoint whose fingerprint begins so, oldest first."""
    # A range, because LIKE cannot use the index; "g" follows every hexadecimal digit.
    return session.scalars(
        _complete()
        .where(CheckpointRow.fingerprint >= prefix, CheckpointRow.fingerprint < prefix + "g")
        .order_by(CheckpointRow.id)
    ).all()


def lookup(session: Session, ref: str) -> CheckpointRow | None:
    """Return the checkpoint that a name, an alias or a fingerprint prefix means."""
    rules.name(ref)
    if row := named(session, ref):
        return row
    found = by_fingerprint(session, ref.lower()) if rules.is_fingerprint(ref) else ()
    if len(found) > 1:
        names = ", ".join(repr(row.name) for row in found)
        raise RegistryError(f"fingerprint {ref!r} means any of {names}: use a name")
    return found[0] if found else None


def find(session: Session, ref: str) -> CheckpointRow:
    """Return what `lookup` finds, or name the closest known checkpoint."""
    if row := lookup(session, ref):
        return row
    raise _unknown(session, ref)


def locate(session: Session, ref: str) -> int:
    """Return the number of what `find` finds, in one query where it is a name or an alias."""
    rules.name(ref)
    named = select(_table.c.id).where(_table.c.name == ref)
    aliased = select(_aliases.c.checkpoint_id).where(_aliases.c.alias == ref)
    number = session.connection().scalar(named.union_all(aliased).limit(1))
    return int(number) if number is not None else find(session, ref).id


def read(session: Session, number: int) -> Checkpoint:
    """Return the frozen value of one checkpoint, in three queries below the mapper."""
    connection = session.connection()
    row = connection.execute(select(_table).where(_table.c.id == number)).one()
    words = union_all(
        select(literal("modality"), _modalities.c.modality).where(
            _modalities.c.checkpoint_id == number
        ),
        select(literal("alias"), _aliases.c.alias).where(_aliases.c.checkpoint_id == number),
    )
    found: dict[str, list[str]] = {"modality": [], "alias": []}
    for kind, word in connection.execute(words):
        found[kind].append(word)
    edges = connection.execute(
        select(
            _table.c.name, _edges.c.role, _edges.c.weight, _table.c.fingerprint, _table.c.source,
            _table.c.kind,
        )
        .join(_edges, _edges.c.parent_id == _table.c.id)
        .where(_edges.c.child_id == number)
        .order_by(_edges.c.position, _edges.c.parent_id)
    )  # fmt: skip
    return whole(
        Checkpoint(
            name=row.name,
            kind=row.kind,
            fingerprint=row.fingerprint,
            source=row.source,
            modalities=tuple(sorted(found["modality"])),
            strategy=row.strategy,
            created_at=row.created_at,
            notes=row.notes,
            aliases=tuple(sorted(found["alias"])),
            parents=tuple(whole(Parent(*edge)) for edge in edges),
            details=row.details,
            files=row.files,
        )
    )


def _unknown(session: Session, ref: str) -> RegistryError:
    # Among millions of names, those that begin alike are enough to suggest one.
    names = select(CheckpointRow.name).limit(_SUGGESTED)
    alike = names.where(CheckpointRow.name >= ref[:3], CheckpointRow.name < ref[:3] + "\U0010ffff")
    aliases = select(AliasRow.alias).limit(_SUGGESTED)
    known = [found for query in (names, alike, aliases) for found in session.scalars(query)]
    return RegistryError(
        f"no checkpoint {ref!r}{did_you_mean(ref, known)}: see `omnireg list`,"
        " or record it with `omnireg add`"
    )


def search(
    session: Session,
    kind: str | None,
    modality: str | None,
    strategy: str | None,
    parent: str | None,
    limit: int | None,
) -> list[Checkpoint]:
    """Return the checkpoints that match every given condition, newest first."""
    query = _complete().order_by(CheckpointRow.id.desc()).limit(rules.limit(limit))
    if kind is not None:
        query = query.where(CheckpointRow.kind == rules.state(Kind, kind, "kind"))
    if modality is not None:
        word = rules.asked(modality, "modality")
        query = query.where(CheckpointRow.modalities.any(ModalityRow.modality == word))
    if strategy is not None:
        query = query.where(CheckpointRow.strategy == rules.asked(strategy, "strategy"))
    if parent is not None:
        query = query.where(
            CheckpointRow.parents.any(ParentRow.parent_id == find(session, parent).id)
        )
    return [to_checkpoint(row) for row in session.scalars(query)]


def to_checkpoint(row: CheckpointRow) -> Checkpoint:
    """Return the frozen value of a row."""
    return whole(
        Checkpoint(
            name=row.name,
            kind=row.kind,
            fingerprint=row.fingerprint,
            source=row.source,
            modalities=tuple(modality.modality for modality in row.modalities),
            strategy=row.strategy,
            created_at=row.created_at,
            notes=row.notes,
            aliases=tuple(alias.alias for alias in row.aliases),
            parents=tuple(_to_parent(edge) for edge in row.parents),
            details=row.details,
            files=row.files,
        )
    )


def cycle(session: Session) -> list[str]:
    """Return the names along a cycle of parents, which only a foreign hand can have made."""
    graph: dict[int, set[int]] = {}
    for child, parent in session.execute(select(ParentRow.child_id, ParentRow.parent_id)):
        graph.setdefault(child, set()).add(parent)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        rows = [session.get(CheckpointRow, number) for number in error.args[1]]
        return [row.name for row in rows if row]
    return []


def _complete() -> Select[CheckpointRow]:
    return select(CheckpointRow).options(
        selectinload(CheckpointRow.aliases),
        selectinload(CheckpointRow.modalities),
        selectinload(CheckpointRow.parents).joinedload(ParentRow.parent),
    )


def _to_parent(edge: ParentRow) -> Parent:
    row = edge.parent
    return whole(Parent(row.name, edge.role, edge.weight, row.fingerprint, row.source, row.kind))
