"""The picture of a family: everything is in it, nothing overlaps, nothing breaks out."""

import re
import xml.etree.ElementTree as ET
from itertools import combinations

import pytest

from omnireg.registry import Drawing, Edge, Kind, Lineage, Node, Registry, Role, render

SVG = "{http://www.w3.org/2000/svg}"


def drawn(lineage: Lineage) -> tuple[dict[str, tuple[float, ...]], list[list[tuple[float, ...]]]]:
    """Return boxes by name as (left, top, width, height), and the points of every line."""
    top = ET.fromstring(render(lineage, Drawing.SVG))
    boxes, lines, elements = {}, [], list(top)
    for number, element in enumerate(elements):
        if element.tag == f"{SVG}rect":
            caption = elements[number + 1]
            box = tuple(float(element.attrib[k]) for k in ("x", "y", "width", "height"))
            boxes[str(caption.text)] = box
        if element.tag == f"{SVG}path":
            lines.append(along(element.attrib["d"]))
    return boxes, lines


def along(path: str) -> list[tuple[float, ...]]:
    """Return points on a path of curves and verticals."""
    points: list[tuple[float, ...]] = []
    for command, said in re.findall(r"([MCV])([^MCV]*)", path):
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", said)]
        match command:
            case "M":
                points.append(tuple(numbers))
            case "V":
                points.append((points[-1][0], numbers[0]))
            case _:
                ends = [points[-1], *zip(numbers[::2], numbers[1::2], strict=True)]
                for step in range(1, 21):
                    t = step / 20
                    share = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
                    points.append(
                        tuple(sum(w * e[axis] for w, e in zip(share, ends, strict=True))
                              for axis in (0, 1))
                    )  # fmt: skip
    return points


def family_of(*edges: tuple[str, str]) -> Lineage:
    """Return a family from (child, parent)."""
    names = dict.fromkeys(name for edge in edges for name in reversed(edge))
    return Lineage(
        edges[-1][0],
        tuple(Node(name, Kind.MERGED, None) for name in names),
        tuple(Edge(child, parent, Role.MODEL, None) for child, parent in edges),
    )


def test_everybody_is_in_the_picture(family: Registry) -> None:
    """Names, kinds and fingerprints in boxes, relations on lines."""
    text = render(family.lineage("merged"), Drawing.SVG)
    said = [element.text for element in ET.fromstring(text).iter(f"{SVG}text")]
    assert {"base", "vision", "merged", "packed", "package", "aaaaaaaa"} <= set(said)
    assert said.count("model ×0.25") == said.count("model ×0.75") == 1
    assert said.count("finetuned_from") == 2
    assert "Lineage of merged" in text


DIAMOND = [("a", "o"), ("b", "o"), ("c", "o"), ("m", "a"), ("m", "b"), ("m", "c"), ("m", "o")]


@pytest.mark.parametrize(
    "edges",
    [
        DIAMOND,
        [*DIAMOND, ("z", "m"), ("z", "o"), ("z", "a"), ("y", "o"), ("y", "b"), ("z", "y")],
        [(f"n{i}", f"n{j}") for i in range(1, 7) for j in range(i)],
    ],
)
def test_parents_stand_above_and_lines_go_around(edges: list[tuple[str, str]]) -> None:
    """Boxes do not overlap; a line touches the boxes at its ends alone."""
    boxes, lines = drawn(family_of(*edges))
    for child, parent in edges:
        assert boxes[parent][1] + boxes[parent][3] < boxes[child][1]
    for (left, top, width, _), (left2, top2, width2, _) in combinations(boxes.values(), 2):
        assert top != top2 or left + width <= left2 or left2 + width2 <= left
    assert len(lines) == len(edges)
    for points in lines:
        for left, top, width, height in boxes.values():
            inside = [p for p in points if left < p[0] < left + width and top < p[1] < top + height]
            assert not inside


def test_several_relations_share_a_line() -> None:
    """A model that is also the host has one line that says both."""
    nodes = (Node("image", Kind.FINETUNED, None), Node("m", Kind.MERGED, None))
    edges = (Edge("m", "image", Role.MODEL, 1.0), Edge("m", "image", Role.HOST, None))
    text = render(Lineage("m", nodes, edges), Drawing.SVG)
    assert text.count("<path") == 1
    assert "model ×1, host" in text


def test_names_stay_text_and_knots_are_drawn() -> None:
    """A name is no markup; a cycle that another program made is survived."""
    name = 'a<script>"&'
    (text,) = drawn(Lineage(name, (Node(name, Kind.BASE, None),), ()))[0]
    assert text == name
    boxes, lines = drawn(family_of(("a", "b"), ("b", "a")))
    assert (len(boxes), len(lines)) == (2, 2)
