"""Recording what is said about a checkpoint: new facts are added, contradictions are refused."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from omnireg.errors import RegistryError
from omnireg.registry import rules
from omnireg.registry.checkpoints import by_fingerprint, by_name, find, named
from omnireg.registry.lineage import Direction, relatives
from omnireg.registry.records import Kind, Parent, Role
from omnireg.registry.tables import AliasRow, CheckpointRow, ModalityRow, ParentRow

_IMPLIED_KINDS = {Role.BASE: Kind.BASE, Role.PACKAGE: Kind.PACKAGE}


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that one call says about a checkpoint, already checked."""

    name: str
    kind: Kind
    fingerprint: str | None = None
    source: str | None = None
    modalities: frozenset[str] = frozenset()
    parents: tuple[Parent, ...] = ()
    strategy: str | None = None
    notes: str | None = None
    files: Mapping[str, str] | None = None


def facts(
    name: str,
    kind: str,
    fingerprint: str | None = None,
    source: str | None = None,
    modalities: Iterable[str] = (),
    parents: Iterable[Parent] = (),
    strategy: str | None = None,
    notes: str | None = None,
    files: Mapping[str, str] | None = None,
) -> Facts:
    """Check what a caller says about a checkpoint."""
    return Facts(
        rules.name(name),
        rules.state(Kind, kind, "kind"),
        rules.fingerprint(fingerprint),
        rules.optional_text(source, "source"),
        frozenset(rules.name(modality, "modality", 100) for modality in modalities),
        tuple(_checked(parent) for parent in parents),
        rules.optional_text(strategy, "strategy"),
        rules.optional_text(notes, "notes"),
        rules.files(files),
    )


def record(session: Session, said: Facts, *, create_parents: bool) -> CheckpointRow:
    """Add a checkpoint, or what was missing about a known one."""
    if not create_parents and said.name in [parent.name for parent in said.parents]:
        raise _no_parent(said.name, said.name)
    row = by_name(session, said.name)
    if row is None:
        refuse_alias(session, said.name)
        row = CheckpointRow(name=said.name, kind=said.kind)
        session.add(row)
    _agree(row, said)
    known = {modality.modality for modality in row.modalities}
    row.modalities += [ModalityRow(modality=word) for word in sorted(said.modalities - known)]
    session.flush()
    _link(session, row, said.parents, create_parents)
    session.flush()
    session.expire(row)
    return row


def add_alias(session: Session, row: CheckpointRow, alias: str) -> None:
    """Give a checkpoint another name, which nothing else may have."""
    if by_name(session, alias):
        raise RegistryError(f"alias {alias!r} is a checkpoint's name: choose another alias")
    taken = session.get(AliasRow, alias)
    if taken is None:
        session.add(AliasRow(alias=alias, checkpoint=row))
    elif taken.checkpoint_id != row.id:
        raise RegistryError(
            f"alias {alias!r} already means {taken.checkpoint.name!r}: choose another alias"
        )


def refuse_alias(session: Session, name: str) -> None:
    """Refuse a name that already stands for another checkpoint."""
    if taken := session.get(AliasRow, name):
        raise RegistryError(
            f"{name!r} is an alias of {taken.checkpoint.name!r}: choose another name"
        )


def _agree(row: CheckpointRow, said: Facts) -> None:
    if row.implied:
        row.kind, row.implied = said.kind, False
    if row.kind != said.kind:
        raise _conflict(row, "kind", row.kind, said.kind)
    same_bytes = said.fingerprint is not None and row.fingerprint == said.fingerprint
    row.fingerprint = _filled(row, "fingerprint", row.fingerprint, said.fingerprint)
    # The same bytes may have moved; without a fingerprint the source is all that tells two apart.
    known_source = None if same_bytes and said.source else row.source
    row.source = _filled(row, "source", known_source, said.source)
    row.strategy = _filled(row, "strategy", row.strategy, said.strategy)
    row.notes = said.notes or row.notes
    # of the same weights: what lies beside them may have been changed on purpose
    row.files = row.files if said.files is None else dict(said.files)


def _filled(row: CheckpointRow, fact: str, known: str | None, said: str | None) -> str | None:
    if known is not None and said is not None and known != said:
        raise _conflict(row, fact, known, said)
    return known if known is not None else said


def _conflict(row: CheckpointRow, fact: str, known: object, said: object) -> RegistryError:
    return RegistryError(
        f"checkpoint {row.name!r} is recorded with {fact} {known}, not {said}: use another name, or"
        " change the record with `omnireg apply`"
    )


def _checked(parent: Parent) -> Parent:
    return Parent(
        rules.name(parent.name, "parent"),
        rules.state(Role, parent.role, "role"),
        rules.optional_finite(parent.weight, "weight"),
        rules.fingerprint(parent.fingerprint),
        rules.optional_text(parent.source, "source"),
        parent.kind and rules.state(Kind, parent.kind, "kind"),
    )


def _sum(one: float | None, other: float | None) -> float | None:
    return other if one is None else one + (other or 0.0)


def _link(session: Session, child: CheckpointRow, parents: Sequence[Parent], create: bool) -> None:
    if not parents:
        return
    below = set(session.scalars(relatives(child.id, Direction.DOWN)))
    edges = {(edge.parent_id, edge.role): edge for edge in child.parents}
    # A recipe may list one model twice; what it contributed is the sum.
    said: dict[tuple[int, Role], float | None] = {}
    for parent in parents:
        row = _parent(session, parent, below, create)
        if row.id in below:
            raise _no_parent(row.name, child.name)
        key = (row.id, Role(parent.role))
        said[key] = _sum(said[key], parent.weight) if key in said else parent.weight
    for (parent_id, role), weight in said.items():
        if edge := edges.get((parent_id, role)):
            edge.weight = _same_weight(child, edge, weight)
        else:
            position = len(edges)
            edge = ParentRow(parent_id=parent_id, role=role, weight=weight, position=position)
            edges[parent_id, role] = edge
            child.parents.append(edge)


def _no_parent(parent: str, child: str) -> RegistryError:
    return RegistryError(
        f"{parent!r} cannot be a parent of {child!r}: it is the same checkpoint or was made from it"
    )


def _same_weight(child: CheckpointRow, edge: ParentRow, weight: float | None) -> float | None:
    if edge.weight is not None and weight is not None and edge.weight != weight:
        raise _conflict(child, f"the weight of {edge.parent.name!r} as", edge.weight, weight)
    return weight if edge.weight is None else edge.weight


def _parent(session: Session, said: Parent, below: set[int], create: bool) -> CheckpointRow:
    if not create:
        return _known_parent(session, said)
    return _matching(session, said, below) or _implied(session, said)


def _known_parent(session: Session, said: Parent) -> CheckpointRow:
    row = find(session, said.name)
    row.fingerprint = _filled(row, "fingerprint", row.fingerprint, said.fingerprint)
    return row


def _matching(session: Session, said: Parent, below: set[int]) -> CheckpointRow | None:
    # Bytes before names: a folder may hold something else than when its name was recorded.
    row = named(session, said.name)
    if said.fingerprint is None:
        return row
    if row and row.id not in below and row.fingerprint in (None, said.fingerprint):
        row.fingerprint, row.source = said.fingerprint, row.source or said.source
        return row
    same = by_fingerprint(session, said.fingerprint)
    return next((row for row in same if row.id not in below), None)


def _implied(session: Session, said: Parent) -> CheckpointRow:
    kind = said.kind or _IMPLIED_KINDS.get(Role(said.role), Kind.FINETUNED)
    row = CheckpointRow(
        name=_free_name(session, said),
        kind=Kind(kind),
        implied=said.kind is None,
        fingerprint=said.fingerprint,
        source=said.source,
    )
    session.add(row)
    session.flush()
    return row


def _free_name(session: Session, said: Parent) -> str:
    taken = named(session, said.name)
    return f"{said.name}#{said.fingerprint[:8]}" if taken and said.fingerprint else said.name
