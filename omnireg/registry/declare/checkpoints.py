"""Declared checkpoints: their facts, modalities, aliases and parents."""

from typing import Any

from sqlalchemy import Table, and_, delete, false, func, insert, null, or_, select, update

from omnireg.errors import RegistryError
from omnireg.registry.declare import cycles
from omnireg.registry.declare.changing import (
    ALIAS,
    EDGE,
    MODALITY,
    RECORDED,
    RUN,
    Step,
    any_of,
    comparable,
    id_of,
    name_of,
)
from omnireg.registry.declare.reading import Place
from omnireg.registry.declare.staging import ALIASES, CHECKPOINTS, MODALITIES, PARENTS, index
from omnireg.registry.records import Action, SubjectType

_FACTS = ("kind", "fingerprint", "source", "strategy", "notes", "details", "files", "created_at")
#: a recorded parent is the declared one
_HERE = and_(
    EDGE.c.child_id == PARENTS.c.child_id,
    EDGE.c.parent_id == PARENTS.c.parent_id,
    EDGE.c.role == PARENTS.c.role,
)


class Checkpoints(Step):
    """Brings checkpoints to what is declared; :meth:`remove` comes last of all."""

    def set(self) -> None:
        """Create and change."""
        self._identify()
        self._create()
        self._update()
        self._set_modalities()
        self._set_aliases()
        self._set_parents()

    def _identify(self) -> None:
        declared = CHECKPOINTS.c
        named = select(RECORDED.c.id).where(RECORDED.c.name == declared.name)
        self._do(update(CHECKPOINTS).values(id=named.scalar_subquery()))
        self._do(update(CHECKPOINTS).values(is_new=and_(declared.id.is_(None), ~declared.absent)))
        self._refuse_twice()
        self._refuse(
            select(declared.file, declared.line, declared.name, RECORDED.c.name)
            .join(ALIAS, ALIAS.c.alias == declared.name)
            .join(RECORDED, RECORDED.c.id == ALIAS.c.checkpoint_id),
            "{0!r} is recorded as an alias of {1!r}: declare that one, or use another name",
        )
        self._refuse(
            select(declared.file, declared.line, declared.name)
            .where(declared.is_new, declared.kind.is_(None))
            .order_by(declared.item),
            "checkpoint {0!r} is new and has no kind: say base, finetuned, merged or package",
        )

    def _refuse_twice(self) -> None:
        declared, other = CHECKPOINTS, CHECKPOINTS.alias()
        twice = (
            select(declared.c.name).group_by(declared.c.name).having(func.count() > 1).subquery()
        )
        self._refuse(
            select(declared.c.file, declared.c.line, declared.c.name, other.c.file, other.c.line)
            .join(twice, twice.c.name == declared.c.name)
            .join(other, and_(other.c.name == declared.c.name, other.c.item < declared.c.item)),
            "checkpoint {0!r} is declared at {1}:{2} already: put both into one",
        )

    def _create(self) -> None:
        declared = CHECKPOINTS.c
        facts = [declared[fact] for fact in _FACTS[:-1]]
        chosen = (
            select(
                declared.name, *facts,
                func.coalesce(declared.created_at, self._now), false(),
            )
            .where(declared.is_new)
            .order_by(declared.item)
        )  # fmt: skip
        self._do(insert(RECORDED).from_select(["name", *_FACTS, "implied"], chosen))
        self._note(
            Action.CREATE, SubjectType.CHECKPOINT, declared.name,
            self._object(kind=declared.kind), declared.is_new,
        )  # fmt: skip
        named = select(RECORDED.c.id).where(RECORDED.c.name == declared.name)
        self._do(update(CHECKPOINTS).values(id=named.scalar_subquery()).where(declared.is_new))
        index(self._connection, declared.id)

    def _update(self) -> None:
        declared, known = CHECKPOINTS.c, RECORDED.c
        same = and_(known.id == declared.id, ~declared.is_new, ~declared.absent)
        for fact in _FACTS:
            said, old = declared[fact], known[fact]
            differs = and_(
                same, said.is_not(None), comparable(said).is_distinct_from(comparable(old))
            )
            self._note(
                Action.UPDATE, SubjectType.CHECKPOINT, known.name,
                self._object(changes=self._object(**{fact: self._pair(old, said)})),
                differs,
            )  # fmt: skip
            self._do(update(RECORDED).values({fact: declared[fact]}).where(differs))
        self._do(
            update(RECORDED)
            .values(implied=False)
            .where(same, declared.kind.is_not(None), known.implied)
        )

    def _drop(self, table: Table, owner: Any, surplus: Any) -> None:
        """Delete what checkpoints that were recorded before do not list any more."""
        declared = CHECKPOINTS.c
        # the owners first, so that no other rows are looked at
        owners = select(declared.id).where(~declared.is_new, ~declared.absent)
        self._do(delete(table).where(owner.in_(owners), any_of(CHECKPOINTS, surplus)))

    def _set_modalities(self) -> None:
        declared, word = CHECKPOINTS.c, MODALITIES.c
        is_known = any_of(
            MODALITY,
            MODALITY.c.checkpoint_id == declared.id,
            MODALITY.c.modality == word.modality,
        )
        wanted = and_(word.item == declared.item, ~declared.absent, ~is_known)
        self._note(
            Action.UPDATE, SubjectType.CHECKPOINT, declared.name,
            self._object(added=self._object(modality=word.modality)), wanted, ~declared.is_new,
        )  # fmt: skip
        is_said = any_of(
            MODALITIES, word.item == declared.item, word.modality == MODALITY.c.modality
        )
        surplus = and_(
            MODALITY.c.checkpoint_id == declared.id, declared.says_modalities,
            ~declared.is_new, ~declared.absent, ~is_said,
        )  # fmt: skip
        self._note(
            Action.UPDATE, SubjectType.CHECKPOINT, declared.name,
            self._object(removed=self._object(modality=MODALITY.c.modality)), surplus,
        )  # fmt: skip
        self._drop(MODALITY, MODALITY.c.checkpoint_id, surplus)
        new = select(declared.id, word.modality).where(wanted)
        self._do(insert(MODALITY).from_select(["checkpoint_id", "modality"], new))

    def _set_aliases(self) -> None:
        declared, other = CHECKPOINTS.c, ALIASES.c
        self._refuse(
            select(declared.file, declared.line, other.alias, RECORDED.c.name)
            .join(ALIASES, other.item == declared.item)
            .join(RECORDED, RECORDED.c.name == other.alias),
            "alias {0!r} is the name of a checkpoint: choose another alias",
        )
        surplus = and_(
            ALIAS.c.checkpoint_id == declared.id, declared.says_aliases, ~declared.absent,
            ~declared.is_new,
            ~any_of(ALIASES, other.item == declared.item, other.alias == ALIAS.c.alias),
        )  # fmt: skip
        self._note(
            Action.DELETE, SubjectType.ALIAS, declared.name,
            self._object(alias=ALIAS.c.alias), surplus,
        )  # fmt: skip
        self._drop(ALIAS, ALIAS.c.checkpoint_id, surplus)
        owner = CHECKPOINTS.alias()
        self._refuse(
            select(declared.file, declared.line, other.alias, RECORDED.c.name)
            .join(ALIASES, other.item == declared.item)
            .join(ALIAS, ALIAS.c.alias == other.alias)
            .join(RECORDED, RECORDED.c.id == ALIAS.c.checkpoint_id)
            .where(ALIAS.c.checkpoint_id != declared.id),
            "alias {0!r} already means {1!r}: choose another alias",
        )
        again = ALIASES.alias()
        self._refuse(
            select(declared.file, declared.line, other.alias, owner.c.name)
            .join(ALIASES, other.item == declared.item)
            .join(again, and_(again.c.alias == other.alias, again.c.item < other.item))
            .join(owner, owner.c.item == again.c.item),
            "alias {0!r} is declared for {1!r} too: choose another alias",
        )
        is_known = any_of(ALIAS, ALIAS.c.alias == other.alias)
        wanted = and_(other.item == declared.item, ~declared.absent, ~is_known)
        self._note(
            Action.CREATE, SubjectType.ALIAS, declared.name, self._object(alias=other.alias),
            wanted, ~declared.is_new,
        )  # fmt: skip
        new = select(other.alias, declared.id).where(wanted)
        self._do(insert(ALIAS).from_select(["alias", "checkpoint_id"], new))

    def _set_parents(self) -> None:
        self._resolve_parents()
        self._drop_parents()
        self._reweigh_parents()
        if self._add_parents():
            self._refuse_cycles()

    def _resolve_parents(self) -> None:
        """Find out who children and parents are; refuse what cannot be."""
        declared, edge = CHECKPOINTS.c, PARENTS.c
        child = select(declared.id).where(declared.item == edge.item, ~declared.absent)
        self._do(
            update(PARENTS).values(child_id=child.scalar_subquery(), parent_id=id_of(edge.name))
        )
        self._do(delete(PARENTS).where(edge.child_id.is_(None)))
        index(self._connection, edge.child_id, edge.parent_id, edge.role)
        self._refuse(
            select(edge.file, edge.line, edge.name)
            .where(edge.parent_id.is_(None))
            .order_by(edge.item),
            "parent {0!r} is neither declared nor recorded{hint}: declare it, or correct the name",
            suggest=True,
        )
        self._refuse(
            select(edge.file, edge.line, edge.name).where(edge.parent_id == edge.child_id),
            "{0!r} cannot be its own parent",
        )
        twin = PARENTS.alias()
        self._refuse(
            select(edge.file, edge.line, edge.name, twin.c.name).where(
                twin.c.child_id == edge.child_id, twin.c.parent_id == edge.parent_id,
                twin.c.role == edge.role, twin.c.position < edge.position,
            ),
            "{0!r} and {1!r} are one checkpoint, listed twice in one role: add up their weights",
        )  # fmt: skip

    def _drop_parents(self) -> None:
        """Drop recorded parents that are not declared, where parents are."""
        declared = CHECKPOINTS.c
        surplus = and_(
            EDGE.c.child_id == declared.id, declared.says_parents, ~declared.is_new,
            ~declared.absent, ~any_of(PARENTS, _HERE),
        )  # fmt: skip
        self._note(
            Action.DELETE, SubjectType.PARENT, declared.name,
            self._object(parent=name_of(EDGE.c.parent_id), role=EDGE.c.role), surplus,
        )  # fmt: skip
        self._drop(EDGE, EDGE.c.child_id, surplus)

    def _reweigh_parents(self) -> None:
        """Bring weights and places of recorded parents to what is declared."""
        declared, edge = CHECKPOINTS.c, PARENTS.c
        for fact in ("weight", "position"):
            differs = and_(_HERE, EDGE.c[fact].is_distinct_from(edge[fact]))
            if fact == "weight":
                self._note(
                    Action.UPDATE, SubjectType.PARENT, declared.name,
                    self._object(
                        parent=name_of(edge.parent_id), role=edge.role,
                        changes=self._object(weight=self._pair(EDGE.c.weight, edge.weight)),
                    ),
                    differs, declared.item == edge.item,
                )  # fmt: skip
            self._do(update(EDGE).values({fact: edge[fact]}).where(differs))

    def _add_parents(self) -> int:
        """Record declared parents that are not recorded, and return how many."""
        declared, edge = CHECKPOINTS.c, PARENTS.c
        is_new = ~any_of(EDGE, _HERE)
        self._note(
            Action.CREATE, SubjectType.PARENT, declared.name,
            self._object(parent=name_of(edge.parent_id), role=edge.role, weight=edge.weight),
            declared.item == edge.item, is_new, ~declared.is_new,
        )  # fmt: skip
        columns = ["child_id", "parent_id", "role", "weight", "position"]
        new = select(*(edge[column] for column in columns)).where(is_new)
        return self._do(insert(EDGE).from_select(columns, new))

    def _refuse_cycles(self) -> None:
        """Refuse knots; there can be none if every parent is older, or declared before its child.

        What was recorded before got no new parents then.
        """
        declared, edge, parent = CHECKPOINTS.c, PARENTS.c, CHECKPOINTS.alias()
        backward = (
            select(edge.item)
            .join(CHECKPOINTS, declared.item == edge.item)
            .outerjoin(parent, parent.c.id == edge.parent_id)
            .where(or_(~declared.is_new, and_(parent.c.is_new, parent.c.item >= declared.item)))
        )
        if self._connection.execute(backward.limit(1)).first() is None:
            return
        edges = self._connection.execute(select(EDGE.c.child_id, EDGE.c.parent_id))
        knot = cycles.find(((child, parent) for child, parent in edges))
        if not knot:
            return
        names = dict(
            self._connection.execute(
                select(RECORDED.c.id, RECORDED.c.name).where(RECORDED.c.id.in_(knot))
            ).all()
        )  # fmt: skip
        at = self._connection.execute(
            select(edge.file, edge.line).where(edge.child_id.in_(knot)).order_by(edge.item)
        ).first()
        where = f"{Place(*at)}: " if at else ""
        line = " -> ".join(repr(names[number]) for number in [*knot, knot[0]])
        raise RegistryError(f"{where}checkpoints would be their own ancestors: {line}")

    # scores

    def remove(self) -> None:
        """Remove what is declared absent, with its runs; refuse where others hang on it."""
        declared = CHECKPOINTS.c
        child = RECORDED.alias()
        gone = select(declared.id).where(declared.absent, declared.id.is_not(None))
        self._refuse(
            select(declared.file, declared.line, declared.name, child.c.name)
            .join(EDGE, EDGE.c.parent_id == declared.id)
            .join(child, child.c.id == EDGE.c.child_id)
            .where(declared.absent, EDGE.c.child_id.not_in(gone)),
            "{0!r} is a parent of {1!r}: remove that one too",
        )
        self._note(
            Action.DELETE, SubjectType.CHECKPOINT, declared.name, null(), declared.absent,
            declared.id.is_not(None),
        )  # fmt: skip
        self._do(delete(RUN).where(RUN.c.checkpoint_id.in_(gone)))
        self._do(delete(EDGE).where(EDGE.c.child_id.in_(gone)))
        self._do(delete(RECORDED).where(RECORDED.c.id.in_(gone)))
