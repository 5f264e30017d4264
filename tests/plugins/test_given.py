"""What plugins give, of a wrong kind: results of strategies and evaluators, host layouts."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from omnireg import HostLayout, Sense
from omnireg.engine.results import Like
from omnireg.errors import EvaluationError, PluginError
from omnireg.hookspecs import Result
from omnireg.plugins.contract import checked_layout, checked_result
from omnireg.plugins.host import PluginHost
from omnireg.registry import Registry
from tests_support import distribution
from troubled import FATAL, NAME, Bench, troubled

#: what a merge may not give
WRONG = {
    "integers": "t.to(torch.int64)", "truths": "t > 0", "complex": "t.to(torch.complex64)",
    "sparse": "t.to_sparse()", "empty": "t.to('meta')", "short": "t.flatten()[:1]",
    "eight bits": "t.to(torch.float8_e4m3fn)", "number": "1.0", "array": "t.numpy()",
    "nothing": "None", "several": "[t]", "type": "torch.Tensor",
    "quantised": "torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8)",
}  # fmt: skip
#: what it may; each is twice the first model
RIGHT = {
    "in place": "t.mul_(2)", "everything in place": "[[x.mul_(2) for x in group.tensors], t][1]",
    "graph": "t.requires_grad_() * 2", "parameter": "torch.nn.Parameter(t * 2)",
    "wide": "t.double() * 2", "strided": "torch.stack([2 * t, t], -1)[..., 0]",
    "negative": "torch.complex(t, -2 * t).conj().imag",
}  # fmt: skip


def giving(site: Path, given: str) -> None:
    """Install a strategy whose merge gives something."""
    troubled(site, "merge", f"t = {given}")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("engine", ["stream", "mergekit"])
@pytest.mark.parametrize("kind", WRONG)
def test_results_of_a_wrong_kind_are_refused(
    site: Path, bench: Bench, kind: str, engine: str
) -> None:
    """By the strategy's and the tensor's name; nothing is left, and the run has failed."""
    giving(site, WRONG[kind])
    done = bench.merge("troubled", "out", "--engine", engine)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: troubled: ")
    assert ", in tensor " in done.err
    assert len(done.err.splitlines()) == 1
    assert not list(Path().glob("*out*"))
    with Registry() as book:
        assert [run.status for run in book.runs()] == ["failed"]


@pytest.mark.parametrize("kind", RIGHT)
def test_what_can_be_taken_is_taken(site: Path, bench: Bench, kind: str) -> None:
    """By both engines, with the same bytes; inputs that are written to stay what they were."""
    giving(site, RIGHT[kind])
    first = bench.family.models[0] / "model.safetensors"
    wanted, stored = load_file(first), first.read_bytes()
    for engine in ("stream", "mergekit"):
        done = bench.merge("troubled", engine, "--engine", engine, "--no-record")
        assert done.code == 0, done.err
        found = load_file(f"{engine}/model.safetensors")
        assert all(found[name].equal(2 * tensor) for name, tensor in wanted.items())
    assert first.read_bytes() == stored


def test_a_layer_that_is_used_twice_is_the_same_twice(site: Path, bench: Bench) -> None:
    """Where mergekit plans by itself, a method that writes to its inputs gets its own as well."""
    giving(site, RIGHT["everything in place"])
    base, one = bench.family.base, bench.family.models[0]
    part = (
        f"  - sources: [{{model: {one}, layer_range: [0, 1]}},"
        f" {{model: {base}, layer_range: [0, 1]}}]\n"
    )
    Path("r.yml").write_text(f"merge_method: troubled\nbase_model: {base}\nslices:\n{part}{part}")
    done = bench.run("merge", "r.yml", "out", "--no-record")
    assert done.code == 0, done.err
    found = load_file("out/model.safetensors")
    own = load_file(one / "model.safetensors")
    for layer in (0, 1):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        assert found[name].equal(2 * own["model.layers.0.mlp.up_proj.weight"])
    giving(site, WRONG["integers"])
    sys.modules.pop("omnireg_troubled_impl")
    refused = bench.run("merge", "r.yml", "none", "--no-record")
    assert refused.code == 1
    assert "error: troubled: it gives a result of torch.int64" in refused.err
    assert not Path("none").exists()


def test_an_exit_under_mergekits_own_command_is_an_error(site: Path, bench: Bench) -> None:
    """Where nothing is made, the command does not end as if it were."""
    troubled(site, "merge", FATAL["exit"])
    done = bench.run("mergekit", "yaml", bench.recipe("troubled"), "out", "--no-write-model-card")
    assert done.code == 1
    assert "error: mergekit yaml: it was ended by SystemExit: 0" in done.err


@given(
    st.sampled_from(
        [torch.int8, torch.bool, torch.complex64, torch.float16, torch.bfloat16, torch.float64]
    ),
    st.lists(st.integers(0, 3), max_size=3),
    st.lists(st.integers(0, 3), max_size=3),
)
def test_a_result_is_like_its_inputs(
    dtype: torch.dtype, shape: list[int], other: list[int]
) -> None:
    """It is taken if it has their shape and is floating-point; buffers keep their dtype."""
    found = torch.zeros(other, dtype=dtype)
    for inputs in (torch.float32, torch.int64):
        like = Like(tuple(shape), inputs)
        if shape == other and dtype.is_floating_point and inputs is torch.float32:
            assert like.merged(found).equal(found)
        else:
            with pytest.raises(ValueError, match="it gives a result of torch"):
                like.merged(found)


# evaluators


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ("yield 3", "gives 3, which is no Result"),
        ("yield Result(task, 'count', float('nan'))", "has the value nan, which is no finite"),
        ("yield Result(task, 'count', '1')", "has the value '1', which is no finite number"),
        ("yield Result(task, 'count', True)", "has the value True"),
        ("yield Result(task, None, 1.0)", "has the metric None"),
        ("yield Result('', 'count', 1.0)", "has the benchmark ''"),
        ("yield Result(task, 'count', 1.0, n=-1)", "has the n -1, which is no count"),
        ("yield Result(task, 'count', 1.0, stderr='x')", "has the stderr 'x'"),
        ("yield Result(task, 'count', 1.0, partial=None)", "has the partial None"),
        ("yield Result(task, 'count', 1.0, split=3)", "has the split 3, which is no text"),
        ("yield Result(task, 'count', 1.0, setup={'a': object()})", "setup is no plain data"),
        ("yield Result(task, 'count', 1.0, details=[1])", "details is [1], which is no mapping"),
    ],
)
def test_results_of_an_evaluator_that_are_none(
    site: Path, bench: Bench, given_: str, said: str
) -> None:
    """They are refused by its name, and not recorded."""
    troubled(site, "measure", given_)
    done = bench.reach("eval")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: evaluator 'trouble' of omnireg-troubled")
    assert said in done.err
    assert len(done.err.splitlines()) == 1
    with Registry() as book:
        assert book.scores("m") == []


def test_an_evaluators_numbers_may_be_numpys(site: Path, bench: Bench) -> None:
    """They are recorded as plain ones."""
    numbers = "np.float32(0.5), n=np.int64(3), stderr=np.float64(0.1), partial=np.bool_(False)"
    trouble = f"import numpy as np\nyield Result('np', 'count', {numbers})"
    troubled(site, "measure", trouble)
    done = bench.reach("eval")
    assert done.code == 0, done.err
    score = next(each for each in json.loads(done.out) if each["benchmark"] == "np")
    assert (score["value"], score["n"], score["partial"]) == (0.5, 3, False)


_anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(),
    st.lists(st.text(), max_size=2), st.dictionaries(st.text(), st.integers(), max_size=2),
    st.tuples(st.text(), st.integers()),
)  # fmt: skip


@given(
    st.fixed_dictionaries(
        {"benchmark": _anything, "metric": _anything, "value": _anything},
        optional=dict.fromkeys(
            ["stderr", "n", "n_shot", "filter", "setup", "details", "partial"], _anything
        ),
    )
)
def test_any_result_is_plain_or_refused(values: dict[str, Any]) -> None:
    """Never anything between, whatever an evaluator puts into it."""
    try:
        found = checked_result(Result(**values), "somebody")
    except EvaluationError:
        return
    assert isinstance(found.value, float)
    assert json.loads(json.dumps([found.benchmark, found.value, found.n, dict(found.setup)]))


# host layouts


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("HostLayout('Mine')", "architectures is 'Mine'; it has to be a tuple of names"),
        ("HostLayout(())", "architectures is ()"),
        ("HostLayout(('Mine',), carried='tower.*')", "carried is 'tower.*'"),
        ("HostLayout(('Mine',), ignored=(1,))", "ignored is (1,)"),
        ("HostLayout(('Mine',), text_architecture=None)", "text_architecture is None"),
        ("HostLayout(('Mine',), senses=('image',))", "senses is ('image',)"),
        ("HostLayout(('Mine',), senses={'image': 3})", "senses['image'] is 3"),
        ("HostLayout(('Mine',), senses={'image': Sense('id', 'images')})", "senses['image'] is"),
        ("3", "3 is no HostLayout"),
    ],
)
def test_a_layout_of_wrong_values_is_broken(
    site: Path, layout: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Text in the place of a tuple would be taken for its letters, one of which is ``*``."""
    head = "from omnireg import HostLayout, Sense, hookimpl\n@hookimpl\n"
    body = f"def omnireg_register_hosts(register): register({layout})"
    distribution(site, NAME, head + body)
    plugins = PluginHost()
    assert said in caplog.text
    assert "Mine" not in plugins.layouts
    assert "LlavaForConditionalGeneration" in plugins.layouts


@given(_anything, _anything, _anything)
def test_any_layout_is_usable_or_refused(names: Any, carried: Any, senses: Any) -> None:
    """Never anything between, whatever a plugin puts into it."""
    try:
        found = checked_layout(HostLayout(names, senses, carried))
    except PluginError:
        return
    assert all(isinstance(each, str) for each in (*found.architectures, *found.carried))
    assert all(isinstance(sense, Sense) for sense in found.senses.values())
