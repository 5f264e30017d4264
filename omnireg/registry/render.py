"""Drawings of a family: a tree for the terminal, Mermaid, Graphviz and SVG for documents."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

from omnireg.boundary.text import one_line
from omnireg.registry.lineage import Edge, Lineage, Node
from omnireg.registry.picture import picture, relation

#: names that were entered here are shorter
_LONGEST = 400
_MERMAID_ESCAPES = str.maketrans(
    {mark: f"#{ord(mark)};" for mark in '#"&<>`;\\'},
)
_DOT_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"'})


class Drawing(StrEnum):
    """A text format for a family."""

    TREE = "tree"
    MERMAID = "mermaid"
    DOT = "dot"
    SVG = "svg"


def render(lineage: Lineage, drawing: Drawing) -> str:
    """Return the drawing of a family, without a newline at its end."""
    drawings = {Drawing.TREE: tree, Drawing.MERMAID: mermaid, Drawing.DOT: dot, Drawing.SVG: svg}
    return drawings[drawing](lineage)


def tree(lineage: Lineage) -> str:
    """Return what the root was made of, then what it was used in, as indented text."""
    nodes = {node.name: node for node in lineage.nodes}
    parents, children = defaultdict(list), defaultdict(list)
    for edge in lineage.edges:
        parents[edge.child].append(edge)
        children[edge.parent].append(edge)
    lines = [_describe(nodes[lineage.root])]
    lines += _branches(nodes, parents, lambda edge: edge.parent, lineage.root)
    if used := _branches(nodes, children, lambda edge: edge.child, lineage.root):
        lines += ["", "used in", *used]
    return "\n".join(lines)


def mermaid(lineage: Lineage) -> str:
    """Return a Mermaid flowchart in which parents point at their children."""
    ids = {node.name: f"n{index}" for index, node in enumerate(lineage.nodes)}
    lines = ["flowchart TD"]
    for node in lineage.nodes:
        caption = "<br/>".join(part.translate(_MERMAID_ESCAPES) for part in _caption(node))
        lines.append(f'    {ids[node.name]}["{caption}"]')
    lines += [
        f'    {ids[edge.parent]} -->|"{relation(edge)}"| {ids[edge.child]}'
        for edge in lineage.edges
    ]
    return "\n".join(lines)


def dot(lineage: Lineage) -> str:
    """Return a Graphviz graph in which parents point at their children."""
    ids = {node.name: f"n{index}" for index, node in enumerate(lineage.nodes)}
    lines = ["digraph lineage {", "    node [shape=box];"]
    for node in lineage.nodes:
        caption = "\\n".join(part.translate(_DOT_ESCAPES) for part in _caption(node))
        lines.append(f'    {ids[node.name]} [label="{caption}"];')
    lines += [
        f'    {ids[edge.parent]} -> {ids[edge.child]} [label="{relation(edge)}"];'
        for edge in lineage.edges
    ]
    return "\n".join([*lines, "}"])


def svg(lineage: Lineage) -> str:
    """Return a picture, parents above their children."""
    return picture(lineage, {node.name: _caption(node) for node in lineage.nodes})


def _branches(
    nodes: Mapping[str, Node],
    edges: Mapping[str, Sequence[Edge]],
    end: Callable[[Edge], str],
    root: str,
) -> list[str]:
    lines, opened = [], {root}
    # A list of what is still to draw instead of recursion: a family may be a thousand deep.
    pending = _below(edges.get(root, ()), "")
    while pending:
        edge, fork, indent = pending.pop()
        name = end(edge)
        again = name in opened and name in edges
        lines.append(f"{fork}{relation(edge)}: {_describe(nodes[name])}{' …' * again}")
        if not again:
            opened.add(name)
            pending += _below(edges.get(name, ()), indent)
    return lines


def _below(edges: Sequence[Edge], indent: str) -> list[tuple[Edge, str, str]]:
    # Last first, since the caller takes from the end.
    return [
        (edge, indent + ("├── " if rest else "└── "), indent + ("│   " if rest else "    "))
        for rest, edge in enumerate(reversed(edges))
    ]


def _describe(node: Node) -> str:
    name, *facts = _caption(node)
    return f"{name}  [{' '.join(facts)}]"


def _caption(node: Node) -> list[str]:
    return [
        one_line(node.name, _LONGEST),
        str(node.kind),
        *([node.fingerprint[:8]] if node.fingerprint else []),
    ]
