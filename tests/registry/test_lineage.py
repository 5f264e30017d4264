"""Families: walking them and drawing them."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from omnireg.errors import RegistryError
from omnireg.registry import Drawing, Edge, Kind, Lineage, Node, Parent, Registry, Role, render

TREE = """\
merged  [merged dddddddd]
├── model ×0.25: vision  [finetuned bbbbbbbb]
│   └── finetuned_from: base  [base aaaaaaaa]
└── model ×0.75: audio  [finetuned cccccccc]
    └── finetuned_from: base  [base aaaaaaaa]

used in
└── package: packed  [package]"""

MERMAID = """\
flowchart TD
    n0["base<br/>base<br/>aaaaaaaa"]
    n1["vision<br/>finetuned<br/>bbbbbbbb"]
    n2["audio<br/>finetuned<br/>cccccccc"]
    n3["merged<br/>merged<br/>dddddddd"]
    n4["packed<br/>package"]
    n0 -->|"finetuned_from"| n1
    n0 -->|"finetuned_from"| n2
    n1 -->|"model ×0.25"| n3
    n2 -->|"model ×0.75"| n3
    n3 -->|"package"| n4"""

DOT = """\
digraph lineage {
    node [shape=box];
    n0 [label="base\\nbase\\naaaaaaaa"];
    n1 [label="vision\\nfinetuned\\nbbbbbbbb"];
    n2 [label="audio\\nfinetuned\\ncccccccc"];
    n3 [label="merged\\nmerged\\ndddddddd"];
    n4 [label="packed\\npackage"];
    n0 -> n1 [label="finetuned_from"];
    n0 -> n2 [label="finetuned_from"];
    n1 -> n3 [label="model ×0.25"];
    n2 -> n3 [label="model ×0.75"];
    n3 -> n4 [label="package"];
}"""


def _members(lineage: Lineage) -> list[str]:
    return [node.name for node in lineage.nodes]


@pytest.mark.parametrize(
    ("name", "direction", "depth", "expected"),
    [
        ("merged", "both", None, ["base", "vision", "audio", "merged", "packed"]),
        ("merged", "up", None, ["base", "vision", "audio", "merged"]),
        ("merged", "up", 1, ["vision", "audio", "merged"]),
        ("merged", "down", None, ["merged", "packed"]),
        ("merged", "both", 0, ["merged"]),
        ("packed", "up", 2, ["vision", "audio", "merged", "packed"]),
        ("base", "down", 1, ["base", "vision", "audio"]),
        ("base", "down", None, ["base", "vision", "audio", "merged", "packed"]),
        ("base", "up", None, ["base"]),
        ("vision", "both", None, ["base", "vision", "merged", "packed"]),
        ("vision", "both", 1, ["base", "vision", "merged"]),
    ],
)
def test_the_family_is_walked_as_far_as_asked(
    family: Registry, name: str, direction: str, depth: int | None, expected: list[str]
) -> None:
    """Ancestors, descendants or both, without siblings, up to a number of generations."""
    assert _members(family.lineage(name, direction=direction, depth=depth)) == expected


def test_a_diamond_has_every_node_once(family: Registry) -> None:
    """Two ways to one ancestor give one node and all four edges."""
    lineage = family.lineage("merged", direction="up")
    assert [(edge.child, edge.parent, edge.weight) for edge in lineage.edges] == [
        ("vision", "base", None),
        ("audio", "base", None),
        ("merged", "vision", 0.25),
        ("merged", "audio", 0.75),
    ]


def test_the_json_is_the_contract(family: Registry) -> None:
    """Nodes and edges carry exactly the documented keys."""
    assert family.lineage("packed", depth=1).to_json() == {
        "nodes": [
            {"name": "merged", "kind": "merged", "fingerprint": "d" * 64},
            {"name": "packed", "kind": "package", "fingerprint": None},
        ],
        "edges": [{"child": "packed", "parent": "merged", "role": "package", "weight": None}],
        "truncated": False,
    }


def test_a_large_family_is_shown_page_by_page(registry: Registry) -> None:
    """The nearest come first; together the pages are the whole family, and the last one says so."""
    registry.add_checkpoint("root", kind="base")
    for number in range(7):
        parent = "root" if number < 5 else "m0"
        registry.add_checkpoint(f"m{number}", kind="finetuned", parents=[Parent(parent, "base")])
    whole = registry.lineage("root", direction="down")
    assert not whole.truncated
    pages = [
        registry.lineage("root", direction="down", limit=3, offset=start) for start in (0, 3, 6)
    ]
    assert [page.truncated for page in pages] == [True, True, False]
    names = [node.name for page in pages for node in page.nodes if node.name != "root"]
    assert sorted(names) == [f"m{number}" for number in range(7)]
    assert names[:5] == [f"m{number}" for number in range(5)]
    assert all(page.root == "root" and page.nodes[0].name == "root" for page in pages)
    assert len(whole.edges) == 7


@pytest.mark.parametrize(
    ("drawing", "expected"), [("tree", TREE), ("mermaid", MERMAID), ("dot", DOT)]
)
def test_drawings(family: Registry, drawing: str, expected: str) -> None:
    """Each drawing of the same family looks as it always did."""
    assert render(family.lineage("merged"), Drawing(drawing)) == expected


def test_what_was_drawn_once_is_not_drawn_again(family: Registry) -> None:
    """The tree opens a checkpoint where it first appears and points back with dots after that."""
    assert render(family.lineage("base"), Drawing.TREE).splitlines()[3:] == [
        "├── finetuned_from: vision  [finetuned bbbbbbbb]",
        "│   └── model ×0.25: merged  [merged dddddddd]",
        "│       └── package: packed  [package]",
        "└── finetuned_from: audio  [finetuned cccccccc]",
        "    └── model ×0.75: merged  [merged dddddddd] …",
    ]


def test_names_cannot_break_out_of_a_drawing() -> None:
    """Quotes, brackets and backslashes in a name stay inside its label."""
    name = 'a"]; x --> y <b>`\\'
    lineage = Lineage(name, (Node(name, Kind.BASE, None),), ())
    assert render(lineage, Drawing.MERMAID).splitlines()[1:] == [
        '    n0["a#34;]#59; x --#62; y #60;b#62;#96;#92;<br/>base"]'
    ]
    assert '[label="a\\"]; x --> y <b>`\\\\\\nbase"];' in render(lineage, Drawing.DOT)


def test_a_thousand_generations_are_walked_and_drawn(tmp_path: Path) -> None:
    """Depth is bounded by nothing but the data."""
    nodes = tuple(Node(f"m{index}", Kind.FINETUNED, None) for index in range(2000))
    edges = tuple(
        Edge(f"m{index}", f"m{index + 1}", Role.FINETUNED_FROM, None) for index in range(1999)
    )
    assert len(render(Lineage("m0", nodes, edges), Drawing.TREE).splitlines()) == 2000


def test_a_cycle_made_by_another_program_is_survived_and_reported(
    family: Registry, path: Path
) -> None:
    """Walking and drawing end even on a knot, and the check names it."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("INSERT INTO parents (child_id, parent_id, role) VALUES (1, 5, 'model')")
    assert len(family.lineage("merged").nodes) == 5
    assert len(family.lineage("merged", depth=50).nodes) == 5
    assert render(family.lineage("merged"), Drawing.TREE)
    (problem,) = family.check()
    assert problem.startswith("checkpoints are their own ancestors: ")
    assert set(problem.split(": ")[1].split(" -> ")) >= {"base", "merged", "packed"}


def test_a_wrong_walk_is_refused(family: Registry) -> None:
    """A misspelt direction and a negative depth are errors."""
    with pytest.raises(RegistryError, match="unknown direction 'sideways': use both, up, down"):
        family.lineage("merged", direction="sideways")
    with pytest.raises(RegistryError, match="depth -1 is out of range"):
        family.lineage("merged", depth=-1)


def test_a_sound_registry_has_no_problems(family: Registry) -> None:
    """The check of a registry that nobody meddled with finds nothing."""
    family.add_alias("merged", "best")
    assert family.check() == []


def test_the_check_finds_what_others_broke(family: Registry, path: Path) -> None:
    """Rows that point at nothing and shadowed names are reported."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("INSERT INTO aliases VALUES ('merged', 99)")
    assert family.check() == [
        "aliases, row 1, checkpoint_id: points at nothing in checkpoints",
        "alias 'merged' is also a checkpoint's name",
    ]


def test_parents_keep_the_order_of_the_recipe(family: Registry) -> None:
    """The first model of a recipe stays the first parent, whenever it was recorded."""
    added = family.add_checkpoint(
        "m", kind="merged", parents=[Parent("audio"), Parent("base"), Parent("vision")]
    )
    assert [parent.name for parent in added.parents] == ["audio", "base", "vision"]
    edges = family.lineage("m", direction="up", depth=1).edges
    assert [edge.parent for edge in edges if edge.child == "m"] == ["audio", "base", "vision"]
