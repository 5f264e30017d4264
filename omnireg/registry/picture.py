"""A family as an SVG picture: parents above children, lines that go around boxes."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from statistics import fmean

from omnireg.registry.lineage import Edge, Lineage

#: sizes in pixels; a letter's width is a generous guess, since no font is at hand
_LETTER, _LINE, _PAD, _GAP, _FALL = 8.2, 17, 10, 28, 64
_FILLS = {"base": "#e8e8e8", "finetuned": "#dbe9f6", "merged": "#dff0d8", "package": "#fdebd0"}
#: passes over the generations that put relatives near each other
_SWEEPS = 4
#: a place in a generation: a checkpoint, or where a line passes through (from, to, generation)
_Place = str | tuple[str, str, int]


def relation(edge: Edge) -> str:
    """Return what a parent is to its child, in a few words."""
    return str(edge.role) if edge.weight is None else f"{edge.role} ×{edge.weight:g}"


def picture(lineage: Lineage, captions: Mapping[str, Sequence[str]]) -> str:
    """Return the picture.

    Args:
        lineage: the family.
        captions: checkpoint → lines of its box.
    """
    labels: dict[tuple[str, str], list[str]] = defaultdict(list)
    for edge in lineage.edges:
        labels[edge.parent, edge.child].append(relation(edge))
    level = _generations(list(captions), list(labels))
    chains = {pair: _chain(pair, level) for pair in labels}
    placed = _place(_rows(level, list(chains.values())), captions)
    leaving, arriving = (Counter(pair[end] for pair in labels) for end in (0, 1))
    lines = [  # what a line is called stands where fewer lines meet
        placed.line(chain, labels[pair], near_parent=leaving[pair[0]] <= arriving[pair[1]])
        for pair, chain in chains.items()
    ]
    boxes = [
        placed.box(node.name, captions[node.name], _FILLS[node.kind], node.name == lineage.root)
        for node in lineage.nodes
    ]
    size = f"{placed.size[0]:.0f}", f"{placed.size[1]:.0f}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}"'
        f' viewBox="0 0 {size[0]} {size[1]}" font-family="sans-serif" font-size="13"'
        f' text-anchor="middle">\n<title>Lineage of {escape(lineage.root)}</title>\n'
        + "\n".join([*lines, *boxes])
        + "\n</svg>"
    )


def _generations(names: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Return how far below the oldest each is: one more than the lowest of its parents."""
    children, unplaced = defaultdict(list), dict.fromkeys(names, 0)
    for parent, child in pairs:
        children[parent].append(child)
        unplaced[child] += 1
    level = dict.fromkeys(names, 0)
    ready = [name for name in names if not unplaced[name]]
    while ready:
        name = ready.pop()
        for child in children[name]:
            level[child] = max(level[child], level[name] + 1)
            unplaced[child] -= 1
            if not unplaced[child]:
                ready.append(child)
    return level


def _chain(pair: tuple[str, str], level: Mapping[str, int]) -> list[_Place]:
    """Return the places that a line goes through, one in each generation."""
    parent, child = pair
    between = range(level[parent] + 1, level[child])
    return [parent, *((parent, child, generation) for generation in between), child]


def _rows(level: Mapping[str, int], chains: Sequence[Sequence[_Place]]) -> list[list[_Place]]:
    """Return the places of each generation, sorted so that relatives stand near each other."""
    rows: list[list[_Place]] = [[] for _ in range(max(level.values(), default=0) + 1)]
    near: dict[_Place, list[_Place]] = defaultdict(list)
    for name, generation in level.items():
        rows[generation].append(name)
    for chain in chains:
        for place in chain[1:-1]:
            rows[int(place[2])].append(place)
        for one, other in pairwise(chain):
            near[one].append(other)
            near[other].append(one)
    at = {place: (i + 0.5) / len(row) for row in rows for i, place in enumerate(row)}
    for turn in range(_SWEEPS):
        for row in rows if turn % 2 == 0 else reversed(rows):
            row.sort(key=lambda place: fmean([at[n] for n in near[place]] or [at[place]]))
            at.update({place: (i + 0.5) / len(row) for i, place in enumerate(row)})
    return rows


def _place(rows: Sequence[Sequence[_Place]], captions: Mapping[str, Sequence[str]]) -> "_Placed":
    """Give every place its pixels; generations are centred."""
    height = 2 * _PAD + _LINE * max((len(lines) for lines in captions.values()), default=0)
    width: dict[_Place, float] = {
        name: 2 * _PAD + _LETTER * max(map(len, said)) for name, said in captions.items()
    }
    spans = [sum(width.get(p, 0.0) for p in row) + _GAP * max(len(row) - 1, 0) for row in rows]
    broad = max(spans, default=0.0)
    at: dict[_Place, tuple[float, float]] = {}
    for number, (row, span) in enumerate(zip(rows, spans, strict=True)):
        left = _PAD + (broad - span) / 2
        for place in row:
            own = width.get(place, 0.0)
            at[place] = left + own / 2, _PAD + number * (height + _FALL)
            left += own + _GAP
    size = 2 * _PAD + broad, 2 * _PAD + len(rows) * (height + _FALL) - _FALL
    return _Placed(at, width, height, size)


@dataclass(frozen=True)
class _Placed:
    """Where everything is.

    Attributes:
        at: the middle of a place's upper edge.
        width: of boxes.
        height: of all boxes.
        size: of the picture.
    """

    at: Mapping[_Place, tuple[float, float]]
    width: Mapping[_Place, float]
    height: float
    size: tuple[float, float]

    def line(self, chain: Sequence[_Place], labels: Sequence[str], *, near_parent: bool) -> str:
        """Draw from the lower edge of the first box to the upper edge of the last."""
        x, y = self.at[chain[0]]
        path = f"M{x:.1f},{y + self.height:.1f}"
        for before, place in pairwise(chain):
            (from_x, from_y), (x, y) = self.at[before], self.at[place]
            middle = (from_y + self.height + y) / 2
            path += f" C{from_x:.1f},{middle:.1f} {x:.1f},{middle:.1f} {x:.1f},{y:.1f}"
            if place != chain[-1]:
                path += f" V{y + self.height:.1f}"
        start, end = (self.at[place] for place in (chain[:2] if near_parent else chain[-2:]))
        along = 0.156 if near_parent else 0.844
        text_x = start[0] + along * (end[0] - start[0])
        text_y = end[1] - (0.297 if not near_parent else 0.703) * _FALL
        return (
            f'<path d="{path}" fill="none" stroke="#888"/>'
            f'<text x="{text_x:.1f}" y="{text_y:.1f}" font-size="10" fill="#555" stroke="white"'
            f' stroke-width="3" paint-order="stroke">{escape(", ".join(labels))}</text>'
        )

    def box(self, name: str, lines: Sequence[str], fill: str, is_root: bool) -> str:
        """Draw a box with its text, the first line bold."""
        x, y = self.at[name]
        width, edge = self.width[name], "black" if is_root else "#888"
        weights = ["bold", *["normal"] * len(lines)]
        text = "".join(
            f'<text x="{x:.1f}" y="{y + _PAD + _LINE * (number + 0.75):.1f}"'
            f' font-weight="{weights[number]}">{escape(line)}</text>'
            for number, line in enumerate(lines)
        )
        return (
            f'<rect x="{x - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}"'
            f' height="{self.height:.1f}" rx="6" fill="{fill}" stroke="{edge}"/>{text}'
        )
