"""The family of a checkpoint, walked inside the database."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import CTE, Select, literal, select
from sqlalchemy.orm import Session, aliased

from omnireg.registry.records import Kind, Role
from omnireg.registry.tables import CheckpointRow, ParentRow


class Direction(StrEnum):
    """Which relatives: what it was made of, what was made of it, or all of them."""

    BOTH = "both"
    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Node:
    """A checkpoint in a family."""

    name: str
    kind: Kind
    fingerprint: str | None

    def to_json(self) -> dict[str, Any]:
        """Return the node as a JSON object."""
        return {"name": self.name, "kind": str(self.kind), "fingerprint": self.fingerprint}


@dataclass(frozen=True, slots=True)
class Edge:
    """One parent of one child."""

    child: str
    parent: str
    role: Role
    weight: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the edge as a JSON object."""
        return {
            "child": self.child,
            "parent": self.parent,
            "role": str(self.role),
            "weight": self.weight,
        }


@dataclass(frozen=True, slots=True)
class Lineage:
    """The family of `root`: every edge between two of its nodes is in it."""

    root: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    #: more relatives are recorded than these
    truncated: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the family as the JSON object of `lineage`."""
        return {
            "nodes": [node.to_json() for node in self.nodes],
            "edges": [edge.to_json() for edge in self.edges],
            "truncated": self.truncated,
        }


def family(
    session: Session,
    root: CheckpointRow,
    direction: Direction,
    depth: int | None,
    limit: int | None = None,
    offset: int = 0,
) -> Lineage:
    """Return the relatives of a checkpoint up to `depth` generations away, nearest first.

    In each direction at most `limit` of them, after the first `offset`; the root is always there.
    """
    members: Any = relatives(root.id, direction, depth)
    truncated = False
    if limit is not None or offset:
        members, truncated = _page(session, root.id, direction, depth, limit, offset)
    rows = session.execute(
        select(CheckpointRow.name, CheckpointRow.kind, CheckpointRow.fingerprint)
        .where(CheckpointRow.id.in_(members))
        .order_by(CheckpointRow.id)
    )
    nodes = tuple(Node(*row) for row in rows)
    return Lineage(root.name, nodes, _edges(session, members), truncated)


def _page(
    session: Session,
    root: int,
    direction: Direction,
    depth: int | None,
    limit: int | None,
    offset: int,
) -> tuple[list[int], bool]:
    found, truncated = {root}, False
    for up in (True, False):
        if direction in (Direction.BOTH, Direction.UP if up else Direction.DOWN):
            walked = _walk(root, up, depth)
            # one more than wanted says whether there is more; the root is the first
            more = None if limit is None else limit + 1
            ids_of = select(walked.c.id) if depth is None else select(walked.c.id).distinct()
            query = ids_of.offset(offset + 1).limit(more)
            ids = list(session.scalars(query))
            truncated = truncated or (limit is not None and len(ids) > limit)
            found.update(ids[:limit])
    return sorted(found), truncated


def relatives(start: int, direction: Direction, depth: int | None = None) -> Select[int]:
    """Return a query for the ids of a checkpoint and its relatives."""
    up, down = _walk(start, True, depth), _walk(start, False, depth)
    if direction is Direction.UP:
        return select(up.c.id)
    if direction is Direction.DOWN:
        return select(down.c.id)
    either = select(up.c.id).union(select(down.c.id)).subquery()
    return select(either.c.id)


def _walk(start: int, up: bool, depth: int | None) -> CTE:
    here, there = ParentRow.child_id, ParentRow.parent_id
    if not up:
        here, there = there, here
    label = "ancestors" if up else "descendants"
    # UNION drops what was seen, so even a graph that someone tied into a knot ends; with a depth
    # it is the bound that ends the walk.
    if depth is None:
        seen = select(literal(start).label("id")).cte(label, recursive=True)
        return seen.union(select(there).join(seen, here == seen.c.id))
    seen = select(literal(start).label("id"), literal(0).label("depth")).cte(label, recursive=True)
    further = select(there, seen.c.depth + 1).join(seen, here == seen.c.id)
    return seen.union(further.where(seen.c.depth < depth))


def _edges(session: Session, members: Any) -> tuple[Edge, ...]:
    child, parent = aliased(CheckpointRow), aliased(CheckpointRow)
    found = session.execute(
        select(child.name, parent.name, ParentRow.role, ParentRow.weight)
        .join(child, child.id == ParentRow.child_id)
        .join(parent, parent.id == ParentRow.parent_id)
        .where(ParentRow.child_id.in_(members), ParentRow.parent_id.in_(members))
        .order_by(ParentRow.child_id, ParentRow.position, ParentRow.parent_id, ParentRow.role)
    )
    return tuple(Edge(*row) for row in found)
