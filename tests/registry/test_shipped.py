"""The registry that ships: built from the manifests, and it answers as the paper prints."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from omnireg.registry import Registry
from tests_support import Run

TOP = Path(__file__).parents[2]
SHIPPED, MANIFESTS = TOP / "registry.db", sorted((TOP / "docs" / "manifests").glob("*.yaml"))
#: the arrows of Table 3 of arXiv 2506.01872, whose ↑ on HarmBench is a lower success rate
TABLE_3 = {
    "Qwen/Qwen2-VL-7B-Instruct": "↑ ↑ ↓ = ↑ ↓ ↓ ↓ ↓ ↓ = ↑",
    "lmms-lab/LLaVA-Video-7B-Qwen2": "↑ ↑ ↓ = ↓ ↓ ↓ ↓ ↓ ↓ ↓ ↓",
    "lmms-lab/llava-onevision-qwen2-7b-si": "↓ ↑ ↓ = ↓ ↓ ↓ ↓ ↓ ↓ ↓ ↓",
}
COLUMNS = [
    ("MMLU", "accuracy"), ("MMLU-Pro", "accuracy"), ("IFEval", "average accuracy"),
    ("Passkey Retrieval", "accuracy"), ("ZeroScrolls/Quality", "accuracy"), ("GPQA", "accuracy"),
    ("MATH", "accuracy"), ("HumanEval+", "pass@1"), ("HumanEval+", "pass@5"),
    ("HumanEval+", "pass@10"), ("MMMLU", "accuracy"), ("HarmBench", "ASR@100"),
]  # fmt: skip
BASE = "Qwen/Qwen2-7B-Instruct"


@pytest.fixture
def shipped() -> Iterator[Registry]:
    """Return the registry that ships, after a check that the test left it as it was."""
    before = SHIPPED.read_bytes()
    with Registry(SHIPPED) as opened:
        yield opened
    assert SHIPPED.read_bytes() == before
    assert [file.name for file in TOP.glob("registry.db*")] == ["registry.db"]


def _contents(registry: Registry) -> list[tuple[str, dict[str, Any]]]:
    return [(kind, fields | {"created_at": None}) for kind, fields in registry.items()]


def test_the_manifests_make_it(shipped: Registry, path: Path) -> None:
    """Type `make registry` if this fails."""
    with Registry(path) as rebuilt:
        rebuilt.apply(*MANIFESTS)
        assert _contents(rebuilt) == _contents(shipped)
        assert not rebuilt.apply(*MANIFESTS).total
    assert shipped.check() == []


def test_it_is_one_file_that_is_not_in_write_ahead_mode(shipped: Registry) -> None:
    """Bytes 18 and 19 of a SQLite file say which journal it wants."""
    assert SHIPPED.read_bytes()[18:20] == b"\x01\x01"


@pytest.mark.parametrize("name", TABLE_3)
def test_a_comparison_prints_the_arrows_of_the_paper(shipped: Registry, name: str) -> None:
    """Better is ↑, whichever way a benchmark counts."""
    rows = {
        (row.benchmark, row.metric): row.values[name].better
        for row in shipped.compare(name, against=BASE, source="Table 3").rows
    }
    arrows = {True: "↑", False: "↓", None: "="}
    assert " ".join(arrows[rows[column]] for column in COLUMNS) == TABLE_3[name]
    assert len(rows) == len(COLUMNS)


def test_the_command_line_prints_them(run: Run) -> None:
    """As a reader of a fresh clone would ask."""
    seen = run("--registry", SHIPPED, "compare", "Qwen2-VL-7B-Instruct", "--against", BASE).out
    for cell in ("66.5↑", "40↑", "48.6↓", "100=", "90.5↑", "37.6↓", "51.4=", "11.4↑"):
        assert cell in seen


def test_every_number_of_the_tables_is_there(shipped: Registry) -> None:
    """Counted by hand: rows × columns of what is printed, without dashes."""
    found = shipped.sql("SELECT source, count(*) FROM v_scores GROUP BY source").rows
    tables = {source.removeprefix("arXiv:2506.01872, "): number for source, number in found}
    assert {key: tables[key] for key in tables if key.startswith("Table")} == {
        "Table 3": 12 * 12,
        "Table 4": 6 * 12,
        "Table 5": 3 * 2,
        "Table 6": 4 + 2 + 2 + 1 + 2 + 2,
        "Table 7": 4 * 4,
    }


def test_the_merge_with_three_names_is_one(shipped: Registry) -> None:
    """Its parents, and the mean differences that the paper's appendix states for Table 7."""
    merge = shipped.find("Qwen2-7B-weighted")
    assert merge == shipped.find("Qwen2-weighted-all")
    assert merge.strategy == "delta_weighted"
    assert [str(parent.role) for parent in merge.parents] == ["base", "model", "model", "model"]
    tuned = shipped.compare("Qwen/Qwen2.5-Omni-7B", against="Qwen2.5-7B", source="Table 7")
    merged = shipped.compare("Qwen2-7B-weighted", against=BASE, source="Table 7")
    assert tuned.mean[tuned.names[0]].delta == pytest.approx(-6.25)
    assert merged.mean[merged.names[0]].delta == pytest.approx(-2.625)
    # the means of the relative differences that the table prints
    for found, printed in ((tuned, (-16.5, -15.4, -5.3, -7.2)), (merged, (3.4, -33.1, -5.0, -7.7))):
        relative = found.mean[found.names[0]].relative
        assert relative == pytest.approx(sum(printed) / 400, abs=5e-4)


def test_the_signatures_of_the_paper_fire(shipped: Registry) -> None:
    """LLaVA-OneVision lost instructions and code; 1.4 T tokens taught Qwen2-VL little MMLU."""
    lost = {s.signature for s in shipped.check_scores("LLaVA-OneVision-Qwen2-7B-SI")}
    assert lost == {"instruction_following_collapse", "code_collapse"}
    idle = shipped.check_scores("Qwen2-VL-7B-Instruct")
    assert [s.signature for s in idle] == ["no_knowledge_gain"]
