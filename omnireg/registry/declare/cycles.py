"""Knots in a graph of millions of edges."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def find(edges: Iterable[tuple[int, int]]) -> list[int]:
    """Return the nodes along one cycle of (child, parent) edges, none if there is no cycle.

    Nodes without parents are peeled off, generation by generation; what is left has a cycle above
    it, and walking from parent to parent runs into it.
    """
    import numpy as np

    pairs = np.fromiter((number for edge in edges for number in edge), np.int64).reshape(-1, 2)
    left = _peeled(pairs)
    if not len(left):
        return []
    parent_of = dict(left.tolist())
    path: dict[int, int] = {}
    node = next(iter(parent_of))
    while node not in path:
        path[node] = len(path)
        node = parent_of[node]
    return list(path)[path[node] :]


def _peeled(pairs: "NDArray[Any]") -> "NDArray[Any]":
    import numpy as np

    while len(pairs):
        kept = pairs[np.isin(pairs[:, 1], pairs[:, 0])]
        if len(kept) == len(pairs):
            break
        pairs = kept
    return pairs
