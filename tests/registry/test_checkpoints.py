"""Recording checkpoints and finding them again."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnireg.errors import RegistryError
from omnireg.registry import Checkpoint, Kind, Parent, Registry

A, B, C, D = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)
names = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1).filter(
    str.strip
)


def test_a_checkpoint_keeps_its_facts(registry: Registry) -> None:
    """What was recorded comes back, with a time in UTC."""
    before = datetime.now(UTC)
    registry.add_checkpoint("base", kind="base")
    added = registry.add_checkpoint(
        "m",
        kind="finetuned",
        fingerprint=A.upper(),
        source="org/m@abc",
        modalities=["vision", "text", "text"],
        parents=[Parent("base", "finetuned_from", 0.5)],
        strategy="ties",
        notes="two\nlines",
    )
    assert added == registry.get("m") == registry.find("m")
    assert before <= added.created_at <= datetime.now(UTC)
    assert added.to_json() == {
        "name": "m",
        "kind": "finetuned",
        "fingerprint": A,
        "source": "org/m@abc",
        "modalities": ["text", "vision"],
        "strategy": "ties",
        "created_at": added.created_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "notes": "two\nlines",
        "aliases": [],
        "parents": [{"name": "base", "role": "finetuned_from", "weight": 0.5}],
        "details": None,
        "contents": None,
    }


def test_adding_the_same_again_changes_nothing(family: Registry) -> None:
    """Recording known facts a second time is a no-op that returns the record."""
    before = family.find("merged")
    again = family.add_checkpoint(
        "merged", kind="merged", fingerprint=D, parents=[Parent("vision", "model", 0.25)]
    )
    assert again == before
    assert len(family.checkpoints()) == 5


def test_missing_facts_are_filled_in(registry: Registry) -> None:
    """A later call may say what an earlier one did not know."""
    registry.add_checkpoint("b", kind="base")
    registry.add_checkpoint("m", kind="merged", modalities=["text"], parents=[Parent("b", "base")])
    registry.add_checkpoint("c", kind="finetuned")
    filled = registry.add_checkpoint(
        "m",
        kind="merged",
        fingerprint=A,
        source="./m",
        modalities=["audio"],
        parents=[Parent("b", "base", 0.5), Parent("c", "model")],
    )
    assert (filled.fingerprint, filled.source) == (A, "./m")
    assert filled.modalities == ("audio", "text")
    assert [(p.name, p.role, p.weight) for p in filled.parents] == [
        ("b", "base", 0.5),
        ("c", "model", None),
    ]


@pytest.mark.parametrize(
    ("kind", "fingerprint", "source", "said"),
    [
        ("merged", A, None, "kind base, not merged"),
        ("base", B, None, f"fingerprint {A}, not {B}"),
        ("base", None, "elsewhere", "source here, not elsewhere"),
    ],
)
def test_contradictions_are_refused(
    registry: Registry, kind: str, fingerprint: str | None, source: str | None, said: str
) -> None:
    """A name never silently changes what it means."""
    before = registry.add_checkpoint("m", kind="base", fingerprint=A, source="here")
    with pytest.raises(RegistryError, match=said):
        registry.add_checkpoint("m", kind=kind, fingerprint=fingerprint, source=source)
    assert registry.get("m") == before


def test_the_same_bytes_may_move(registry: Registry) -> None:
    """Where a checkpoint is may change, as long as its bytes are known to be the same."""
    registry.add_checkpoint("m", kind="base", fingerprint=A, source="here")
    moved = registry.add_checkpoint("m", kind="base", fingerprint=A, source="there")
    assert moved.source == "there"


def test_two_names_may_share_bytes(registry: Registry) -> None:
    """A copy under another name is another checkpoint with the same fingerprint."""
    registry.add_checkpoint("one", kind="base", fingerprint=A)
    registry.add_checkpoint("two", kind="base", fingerprint=A)
    registry.add_checkpoint("other", kind="base", fingerprint=B)
    assert [found.name for found in registry.by_fingerprint(A)] == ["one", "two"]
    assert registry.by_fingerprint(C) == []


def test_a_fingerprint_prefix_finds_its_checkpoint(family: Registry) -> None:
    """Eight digits are enough, in either case."""
    assert family.find("bbbbbbbb").name == "vision"
    assert family.find("BBBBBBBBB").name == "vision"
    with pytest.raises(RegistryError, match="no checkpoint 'bbbbbbb'"):
        family.find("bbbbbbb")


def test_an_ambiguous_prefix_lists_the_names(registry: Registry) -> None:
    """Where a prefix means several checkpoints, the error says which."""
    registry.add_checkpoint("one", kind="base", fingerprint="12345678" + "0" * 56)
    registry.add_checkpoint("two", kind="base", fingerprint="12345678" + "f" * 56)
    with pytest.raises(RegistryError, match="means any of 'one', 'two': use a name"):
        registry.find("12345678")
    assert registry.find("12345678f").name == "two"


def test_a_name_comes_before_a_fingerprint(registry: Registry) -> None:
    """A name that looks like a fingerprint is still a name."""
    registry.add_checkpoint("deadbeef", kind="base", fingerprint=A)
    registry.add_checkpoint("other", kind="base", fingerprint="deadbeef" + "0" * 56)
    assert registry.find("deadbeef").fingerprint == A


def test_an_unknown_name_is_answered_with_a_suggestion(family: Registry) -> None:
    """A typing error is answered with the closest name."""
    with pytest.raises(RegistryError, match=r"no checkpoint 'vison' \(did you mean 'vision'\?\)"):
        family.find("vison")
    assert family.get("vison") is None


def test_an_alias_is_another_name(family: Registry) -> None:
    """An alias finds its checkpoint everywhere, and may be given twice."""
    family.add_alias("merged", "best")
    assert family.add_alias("merged", "best").aliases == ("best",)
    assert family.find("best").name == "merged"
    assert family.lineage("best").root == "merged"
    assert family.get("best") is None


def test_names_and_aliases_do_not_overlap(family: Registry) -> None:
    """An alias is never a name, a name never an alias, and an alias means one checkpoint."""
    family.add_alias("merged", "best")
    with pytest.raises(RegistryError, match="alias 'vision' is a checkpoint's name"):
        family.add_alias("merged", "vision")
    with pytest.raises(RegistryError, match="'best' is an alias of 'merged'"):
        family.add_checkpoint("best", kind="base")
    with pytest.raises(RegistryError, match="alias 'best' already means 'merged'"):
        family.add_alias("base", "best")


def test_the_list_can_be_narrowed(family: Registry) -> None:
    """Every filter narrows the list, which begins with the newest."""

    def listed(found: list[Checkpoint]) -> list[str]:
        return [checkpoint.name for checkpoint in found]

    assert listed(family.checkpoints()) == ["packed", "merged", "audio", "vision", "base"]
    assert listed(family.checkpoints(kind=Kind.FINETUNED)) == ["audio", "vision"]
    assert listed(family.checkpoints(modality="vision")) == ["vision"]
    assert listed(family.checkpoints(strategy="average")) == ["merged"]
    assert listed(family.checkpoints(parent="base")) == ["audio", "vision"]
    assert listed(family.checkpoints(kind="finetuned", parent="merged")) == []
    assert listed(family.checkpoints(limit=1)) == ["packed"]
    assert len(family.checkpoints(limit=None)) == 5


def test_wrong_filters_are_refused(family: Registry) -> None:
    """A misspelt kind and a negative limit are errors, not empty lists."""
    with pytest.raises(RegistryError, match=r"unknown kind 'merge' \(did you mean 'merged'"):
        family.checkpoints(kind="merge")
    with pytest.raises(RegistryError, match="limit -1 is out of range"):
        family.checkpoints(limit=-1)


def test_an_unknown_parent_is_refused(family: Registry) -> None:
    """Nothing is recorded where a parent is not known."""
    with pytest.raises(RegistryError, match=r"no checkpoint 'bse' \(did you mean 'base'"):
        family.add_checkpoint("m", kind="merged", parents=[Parent("bse", "base")])
    assert family.get("m") is None


@pytest.mark.parametrize(("child", "parent"), [("base", "base"), ("base", "packed")])
def test_a_cycle_is_refused(family: Registry, child: str, parent: str) -> None:
    """No checkpoint becomes its own ancestor, directly or over generations."""
    before = family.find(child)
    with pytest.raises(RegistryError, match=f"'{parent}' cannot be a parent of '{child}'"):
        family.add_checkpoint(child, kind="base", parents=[Parent(parent)])
    assert family.find(child) == before


def test_one_parent_may_have_several_roles(family: Registry) -> None:
    """A base that is also a model is two edges, and a model listed twice is one."""
    added = family.add_checkpoint(
        "m",
        kind="merged",
        parents=[
            Parent("vision", "model", 0.25),
            Parent("base", "base"),
            Parent("vision", "model", 0.5),
            Parent("base", "model"),
        ],
    )
    assert [(p.name, p.role, p.weight) for p in added.parents] == [
        ("vision", "model", 0.75),
        ("base", "base", None),
        ("base", "model", None),
    ]


def test_another_weight_is_a_contradiction(family: Registry) -> None:
    """What a parent contributed does not change afterwards."""
    with pytest.raises(RegistryError, match=r"the weight of 'vision' as 0\.25, not 0\.5"):
        family.add_checkpoint("merged", kind="merged", parents=[Parent("vision", "model", 0.5)])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "cannot be empty"),
        ("  ", "cannot be empty"),
        ("x" * 1001, "1001 characters is too long"),
        ("a\nb", "control character"),
        ("a\x1b[31mb", "control character"),
        ("a\0b", "control character"),
        ("\ud800", "control character"),
        ("a\u2028b", "control character"),
    ],
)
def test_unusable_names_are_refused(registry: Registry, name: str, said: str) -> None:
    """A name is one line of printable text."""
    with pytest.raises(RegistryError, match=said):
        registry.add_checkpoint(name, kind="base")
    with pytest.raises(RegistryError, match=said):
        registry.get(name)


@pytest.mark.parametrize(
    ("fingerprint", "weight", "role", "said"),
    [
        ("abc", None, "base", "is not 8 to 64 hexadecimal digits"),
        ("z" * 64, None, "base", "is not 8 to 64 hexadecimal digits"),
        (A, float("nan"), "base", "weight nan is not finite"),
        (A, None, "bases", r"unknown role 'bases' \(did you mean 'base'"),
    ],
)
def test_unusable_facts_are_refused(
    registry: Registry, fingerprint: str, weight: float | None, role: str, said: str
) -> None:
    """Every fact is checked before anything is written."""
    with pytest.raises(RegistryError, match=said):
        registry.add_checkpoint(
            "m", kind="merged", fingerprint=fingerprint, parents=[Parent("b", role, weight)]
        )


HOSTILE = ["Robert'); DROP TABLE checkpoints;--", "../../etc/passwd", 'say "hi"', "100%_\\", "模型"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_only_names(registry: Registry, name: str) -> None:
    """Quotes, slashes and SQL are stored and found like any letter."""
    registry.add_checkpoint(name, kind="base", modalities=[name])
    registry.add_score(name, name, 1.0, metric=name)
    assert registry.find(name).modalities == (name,)
    assert registry.scores(name)[0].metric == name
    assert registry.lineage(name).nodes[0].name == name


@given(st.lists(names, min_size=1, max_size=4, unique=True))
@settings(max_examples=15, deadline=None)
def test_every_printable_name_comes_back(wanted: list[str]) -> None:
    """Any text on one line is a name, distinct from every other text."""
    with Registry("sqlite://") as registry:
        for name in wanted:
            registry.add_checkpoint(name, kind="base", notes=name)
        assert [registry.find(name).notes for name in wanted] == wanted
        assert len(registry.checkpoints()) == len(wanted)


def test_a_registry_survives_being_closed(path: Path) -> None:
    """What one object wrote, the next one reads."""
    with Registry(path) as registry:
        registry.add_checkpoint("m", kind="base")
    with Registry(f"sqlite:///{path}") as registry:
        assert registry.find("m").kind is Kind.BASE
