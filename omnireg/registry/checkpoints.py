"""Finding checkpoints in a session, and turning their rows into values."""

from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter

from sqlalchemy import Select, select
from sqlalchemy.orm import Session, selectinload

from omnireg.errors import RegistryError, did_you_mean
from omnireg.registry import rules
from omnireg.registry.records import Checkpoint, Kind, Parent
from omnireg.registry.tables import AliasRow, CheckpointRow, ModalityRow, ParentRow


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
    known = [*session.scalars(select(CheckpointRow.name)), *session.scalars(select(AliasRow.alias))]
    raise RegistryError(
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
        query = query.where(CheckpointRow.modalities.any(ModalityRow.modality == modality))
    if strategy is not None:
        query = query.where(CheckpointRow.strategy == strategy)
    if parent is not None:
        query = query.where(
            CheckpointRow.parents.any(ParentRow.parent_id == find(session, parent).id)
        )
    return [to_checkpoint(row) for row in session.scalars(query)]


def to_checkpoint(row: CheckpointRow) -> Checkpoint:
    """Return the frozen value of a row."""
    return Checkpoint(
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
    return Parent(row.name, edge.role, edge.weight, row.fingerprint, row.source, row.kind)
