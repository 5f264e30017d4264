"""What the author of a strategy is told, and what a strategy cannot get wrong unseen."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from omnireg.demo import story
from tests_support import Outcome, Run

PLUGIN = """
import torch
from mergekit.merge_methods import (
    BasePolicy, GroupMergeMethod, InputContract, MergeMethodSpec, OptionalTensorPolicy,
    ParameterScope,
)
from mergekit.merge_methods.base import ParameterSpec
from omnireg import hookimpl
from omnireg.hookspecs import Decoupling, ListedModel

class Side(GroupMergeMethod):
    spec = MergeMethodSpec(
        name="side", contract=InputContract(base=BasePolicy.REQUIRED, min_inputs=2),
        optional_tensor_policy=OptionalTensorPolicy.PASSTHROUGH_BASE_SINGLETON,
        parameters=(
            ParameterSpec("mask_of", ListedModel | None, ParameterScope.SHARED, None, "which"),
        ),
    )

    def parts(self, group):
        base = group.base.tensor
        vectors = {str(e.id): e.tensor.float() - base.float() for e in group.non_base}
        star = sum(vectors.values()).to(base.dtype)
        return star, {k: Decoupling(v, (v * star.float()) > 0) for k, v in vectors.items()}

    def merge_group(self, group, /, **parameters):
        star, found = self.parts(group)
        if parameters["mask_of"]:
            star = torch.where(found[parameters["mask_of"]].mask, star, 0)
        return (group.base.tensor.float() + star.float()).to(group.base.tensor.dtype)

    def side_outputs(self, group, parameters, surveyed=None):
        star, found = self.parts(group)
        return star, found

    def rescaling(self, parameters):
        return None

@hookimpl
def omnireg_register_strategies(register):
    register(Side())
"""
RECIPE = """
merge_method: side
base_model: family/base
models: [{model: family/image}, {model: family/audio}]
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with the tiny family and the plugin."""
    shutil.copytree(story.FAMILY, tmp_path / "family")
    (tmp_path / "side.py").write_text(PLUGIN)
    return tmp_path


Merge = Callable[..., Outcome]


@pytest.fixture
def merge(here: Path, run: Run) -> Merge:
    """Return what merges with the plugin, a part of it replaced."""

    def call(was: str = "", now: str = "", more: str = "", *options: str) -> Outcome:
        assert was in PLUGIN
        (here / "side.py").write_text(PLUGIN.replace(was, now) if was else PLUGIN)
        (here / "r.yml").write_text(RECIPE + more)
        return run("merge", "r.yml", "out", "--plugin", "side.py", *options)

    return call


PACKAGE = "omnireg: {output: package}\n"
END = "        star, found = self.parts(group)\n        return star, found\n"


def said_by(place: str) -> str:
    """Return the end of ``side_outputs`` with something done before it returns."""
    return END.replace("        return", f"        {place}\n        return")


def test_side_outputs_that_are_right(here: Path, merge: Merge, run: Run) -> None:
    """A model that is taken out has the bytes of ``mask_of``."""
    assert merge("", "", PACKAGE).code == 0
    assert run("mmer", "extract", "out", "--modality", "image", "taken", "-q").code == 0
    shutil.rmtree(here / "out")
    host = "omnireg: {output: host, host: family/image}\n"
    alone = merge(
        "", "", "parameters: {mask_of: ./family/image/}\n" + host, "--no-record", "--json"
    )
    assert alone.code == 0, alone.err
    taken = json.loads(run("--json", "show", "taken").out)
    assert json.loads(alone.out)["fingerprint"] == taken["fingerprint"]


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (said_by("found.popitem()"), "it has to decouple family/image, family/audio"),
        (said_by("star = star.double()"), "gives a task vector of torch.float64"),
        (said_by("star = star.flatten()"), "gives a task vector of torch.bfloat16 and shape"),
        (
            said_by("found = {k: Decoupling(p.vector, p.mask.float()) for k, p in found.items()}"),
            "a mask of torch.float32",
        ),
        (
            said_by("found = {k: Decoupling(p.vector, p.mask[:1]) for k, p in found.items()}"),
            "it has to be dense, torch.bool and of shape",
        ),
        (
            said_by("found = {k: Decoupling(p.vector, ~p.mask) for k, p in found.items()}"),
            "keeps elements that the task vector does not have",
        ),
        (
            said_by("found = None"),
            "side_outputs decouples NoneType; it has to decouple family/image",
        ),
        (said_by("found = {k: v.mask for k, v in found.items()}"), "no Decoupling but Tensor"),
        (said_by("star = star.to_sparse()"), "a task vector of the layout torch.sparse_coo"),
        (said_by("star = 1.0"), "a task vector that is no tensor but float"),
        (
            said_by(
                "star = star * float('nan')\n        found = {k: Decoupling("
                "p.vector, p.mask & False) for k, p in found.items()}"
            ),
            "side makes NaN or Inf of finite inputs",
        ),
        (said_by("raise SystemExit(0)"), "SystemExit: 0"),
    ],
)
def test_side_outputs_that_are_wrong(here: Path, merge: Merge, now: str, said: str) -> None:
    """No package of something else is written, and nothing is left of it."""
    done = merge(END, now, PACKAGE)
    assert done.code == 1
    assert done.err.startswith("error: side")
    assert said in done.err
    assert "in tensor " in done.err
    assert not list(here.glob("out*"))


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ("    def rescaling(", "    def rescalling(", "no rescaling, which a package needs"),
        (
            "        return None\n",
            "        return 3\n",
            "rescaling gives 3; it has to be None or Rescaling",
        ),
        (
            "        return None\n",
            "        from omnireg.hookspecs import Rescaling as R\n        return R(3, 'tensor')\n",
            "has to be None or Rescaling(1 or 2",
        ),
        ("        return None\n", "        raise SystemExit\n", "error: side: SystemExit"),
    ],
)
def test_rescaling_that_is_wrong(here: Path, merge: Merge, was: str, now: str, said: str) -> None:
    """Missing, or no Rescaling."""
    done = merge(was, now, PACKAGE)
    assert done.code == 1
    assert said in done.err
    assert not list(here.glob("out*"))


@pytest.mark.parametrize("engine", ["stream", "mergekit"])
def test_a_listed_model_has_its_entrys_name(merge: Merge, here: Path, engine: str) -> None:
    """However the recipe writes its place."""
    for written in ("family/audio", "./family/audio/", str(here / "family" / "audio")):
        done = merge(
            "", "", f"parameters: {{mask_of: {written}}}\n", "--engine", engine, "--no-record"
        )
        assert done.code == 0, done.err
        shutil.rmtree(here / "out")


@pytest.mark.parametrize("engine", ["stream", "mergekit"])
def test_nan_of_a_method_is_not_written(here: Path, merge: Merge, engine: str) -> None:
    """By neither engine."""
    back = "        return (group.base.tensor.float() + star.float())"
    done = merge(back, back.replace("+", "* float('nan') +"), "", "--engine", engine)
    assert done.code == 1
    assert "side makes NaN or Inf of finite inputs, in tensor" in done.err
    assert not list(here.glob("out*"))


def test_what_a_method_raises_has_its_kind_and_place(merge: Merge) -> None:
    """A KeyError says nothing without its name."""
    back = "        star, found = self.parts(group)\n        if"
    done = merge(back, "        raise KeyError('oops')\n        if")
    assert done.code == 1
    assert "error: side: KeyError: 'oops', in tensor " in done.err


def test_an_edited_plugin_needs_another_name(here: Path, merge: Merge, run: Run) -> None:
    """It is told before the work, and verify knows whose fault a difference is."""
    assert merge().code == 0
    shutil.copytree(here / "out", here / "kept")
    shutil.rmtree(here / "out")
    half = ("return star, {k", "star = star / 2\n        return star, {k")
    done = merge(*half)
    assert done.code == 1
    assert "'out' is taken by a checkpoint with other bytes" in done.err
    assert "--no-record while trying" in done.err
    assert not list(here.glob("out*"))
    assert merge(*half, "", "--no-record").code == 0
    shutil.rmtree(here / "out")
    (here / "kept").rename(here / "out")
    again = run("verify", "out", "--rerun", "--plugin", "side.py")
    assert again.code == 1
    assert "it was merged with side.py sha256:" in again.err
    assert "find the old one" in again.err
