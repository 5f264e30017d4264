"""The family of a checkpoint, walked inside the database."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import CTE, Connection, Select, literal, select

from omnireg.registry.records import Kind, Role, whole
from omnireg.registry.tables import CheckpointRow, ParentRow

_nodes, _links = CheckpointRow.__table__, ParentRow.__table__
#: so many members are named one by one; a query finds more of them
_NAMED = 10_000


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
    connection: Connection,
    root: int,
    direction: Direction,
    depth: int | None,
    limit: int | None = None,
    offset: int = 0,
) -> Lineage:
    """Return the relatives of a checkpoint up to `depth` generations away, nearest first.

    In each direction at most `limit` of them, after the first `offset`; the root is always there.
    """
    members, truncated = _members(connection, root, direction, depth, limit, offset)
    rows = connection.execute(
        select(_nodes.c.name, _nodes.c.kind, _nodes.c.fingerprint)
        .where(_nodes.c.id.in_(members))
        .order_by(_nodes.c.id)
    )
    nodes = tuple(whole(Node(*row)) for row in rows)
    name = connection.execute(select(_nodes.c.name).where(_nodes.c.id == root)).scalar_one()
    return Lineage(name, nodes, _edges(connection, members), truncated)


def _members(
    connection: Connection,
    root: int,
    direction: Direction,
    depth: int | None,
    limit: int | None,
    offset: int,
) -> tuple[list[int] | Select[int], bool]:
    """Return the ids of a family, or a query for them where they are too many to be named."""
    found, truncated = {root}, False
    for up in (True, False):
        if direction in (Direction.BOTH, Direction.UP if up else Direction.DOWN):
            walked = _walk(root, up, depth)
            ids_of = select(walked.c.id) if depth is None else select(walked.c.id).distinct()
            # one more than wanted says whether there is more
            more = _NAMED if limit is None else limit
            ids = list(
                connection.scalars(ids_of.where(walked.c.id != root).offset(offset).limit(more + 1))
            )
            if limit is None and len(ids) > more and not offset:
                return relatives(root, direction, depth), False
            truncated = truncated or len(ids) > more
            found.update(ids[:more])
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
    here, there = _links.c.child_id, _links.c.parent_id
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


def _edges(connection: Connection, members: list[int] | Select[int]) -> tuple[Edge, ...]:
    child, parent = _nodes.alias(), _nodes.alias()
    query = (
        select(child.c.name, parent.c.name, _links.c.role, _links.c.weight, _links.c.parent_id)
        .join(child, child.c.id == _links.c.child_id)
        .join(parent, parent.c.id == _links.c.parent_id)
        .where(_links.c.child_id.in_(members))
        .order_by(_links.c.child_id, _links.c.position, _links.c.parent_id, _links.c.role)
    )
    # A child has few parents, a parent may have a hundred thousand children: so look up by child
    # alone, and leave out here what leads outside.
    inside = members if isinstance(members, list) else connection.scalars(members)
    known = set(inside)
    return tuple(whole(Edge(*row[:4])) for row in connection.execute(query) if row[4] in known)
