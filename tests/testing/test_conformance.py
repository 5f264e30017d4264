"""Our own strategies pass the suite that others' have to, and the suite can fail."""

import os
import subprocess
import sys
from pathlib import Path

from omnireg.testing import omnireg_conformance
from tests_support import distribution

TestAverage = omnireg_conformance("average")
TestDeltaWeighted = omnireg_conformance("delta_weighted")
TestDeltaWeightedByModel = omnireg_conformance(
    "delta_weighted", parameters={"scope": "model"}, needs_stream=True
)
TestOmniTies = omnireg_conformance("omni_ties", parameters={"density": 0.4})
TestOmniTiesByModel = omnireg_conformance(
    "omni_ties", parameters={"density": 0.4, "trim_scope": "model"}, needs_stream=True
)
TestMmer = omnireg_conformance("mmer", parameters={"density": 0.5}, mask_of=True)
TestMmerRescaled = omnireg_conformance("mmer", parameters={"density": 0.5, "rescale": "l1"})
TestTies = omnireg_conformance("ties", parameters={"density": 0.4, "weight": 1.0})

BAD = """
import os
import torch
from mergekit.merge_methods import (
    GroupMergeMethod, InputContract, BasePolicy, MergeMethodSpec, OptionalTensorPolicy,
)
from omnireg import hookimpl

class Bad(GroupMergeMethod):
    spec = MergeMethodSpec(
        name="bad", contract=InputContract(base=BasePolicy.REQUIRED, min_inputs=2),
        optional_tensor_policy=OptionalTensorPolicy.PASSTHROUGH_BASE_SINGLETON, parameters=(),
    )

    def merge_group(self, group, /, **parameters):
        first = group.non_base[0].tensor
        if not first.requires_grad and os.environ.get("BAD") == "mutates":
            first.add_(1)
        noise = hash("x") % 7 if os.environ.get("BAD") == "hashes" else 1
        kept = first.float() * (1 + 1e-3 * noise)
        return kept if os.environ.get("BAD") == "widens" else kept.to(first.dtype)

@hookimpl
def omnireg_register_strategies(register):
    register(Bad())
"""
TESTS = """
from omnireg.testing import omnireg_conformance
TestBad = omnireg_conformance("bad")
"""


PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "write-a-strategy.md"


def test_the_plugin_of_the_page_passes_as_the_page_tests_it(tmp_path: Path) -> None:
    """A strategy that has to be told a model; the blocks are taken from the page."""
    text = PAGE.read_text("utf-8")

    def block(after: str) -> str:
        return text.partition(after)[2].partition("```python\n")[2].partition("```")[0]

    site = tmp_path / "site"
    site.mkdir()
    distribution(site, "omnireg-pull", "")
    (site / "omnireg_pull.py").unlink()
    (site / "omnireg_pull").mkdir()
    for name in ("__init__.py", "method.py"):
        (site / "omnireg_pull" / name).write_text(block(f"`src/omnireg_pull/{name}`"))
    (tmp_path / "test_pull.py").write_text(block("## Test it"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_pull.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "19 passed" in done.stdout


def failures(folder: Path, site: Path, kind: str, only: str) -> str:
    """Return what pytest prints about a strategy that is bad in one way."""
    (folder / "test_bad.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_bad.py", "-k", only],
        cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path]), "BAD": kind},
    )  # fmt: skip
    return done.stdout


def test_the_suite_finds_what_is_wrong(tmp_path: Path) -> None:
    """A base that is changed, an order that matters, a hash seed that shows."""
    site = tmp_path / "site"
    site.mkdir()
    distribution(site, "omnireg-bad", BAD)
    plain = failures(tmp_path, site, "", "base or order or shape or one_model or inputs")
    assert "FAILED test_bad.py::TestBad::test_no_change_gives_the_base[float32]" in plain
    assert "FAILED test_bad.py::TestBad::test_the_order_of_models" in plain
    assert "FAILED test_bad.py::TestBad::test_shape" not in plain
    assert "FAILED test_bad.py::TestBad::test_one_model" not in plain
    assert "FAILED test_bad.py::TestBad::test_inputs" not in plain
    mutates = failures(tmp_path, site, "mutates", "inputs or shape or engines")
    assert "FAILED test_bad.py::TestBad::test_inputs_are_not_changed" in mutates
    assert "the method changed its input" in mutates
    assert "1 failed, 6 passed" in mutates
    assert "test_runs_agree" in failures(tmp_path, site, "hashes", "runs")
