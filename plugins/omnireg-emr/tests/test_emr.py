"""EMR-Merging: by hand, against an independent implementation, and as every strategy must be."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fusion_bench.method.emr_merging.utils import emr_merge
from mergekit.merge_methods import TensorEntry, TensorGroup
from torch import Tensor

import omnireg
from omnireg.errors import OmniregError
from omnireg.hookspecs import Scope
from omnireg.package import Package
from omnireg.package.adding import add
from omnireg.package.extracting import extract
from omnireg.routed import load
from omnireg.testing import Family, omnireg_conformance
from omnireg.testing.conformance import read
from omnireg_emr.method import METHOD, elect

TestEmr = omnireg_conformance("emr", mask_of=True)
TestEmrByTensor = omnireg_conformance("emr", parameters={"rescale_scope": "tensor"})


def group(*vectors: Tensor) -> TensorGroup:
    """Return a group whose base is zero."""
    base = TensorEntry("base", torch.zeros_like(vectors[0]), True)
    return TensorGroup((base, *(TensorEntry(f"m{i}", v, False) for i, v in enumerate(vectors))))


def test_elect_and_masks_by_hand() -> None:
    """The sign of the sum with the largest magnitude that has it; a sum of zero elects nothing."""
    a = torch.tensor([1.0, 3.0, -2.0, 1.0, 0.0])
    b = torch.tensor([2.0, -1.0, -5.0, -1.0, 0.0])
    merged = elect([a, b])
    assert merged.tolist() == [2, 3, -5, 0, 0]
    stored, found = METHOD.side_outputs(group(a, b), {"rescale": True})
    assert stored.equal(merged)
    assert found["m0"].mask.tolist() == [True, True, True, False, False]
    assert found["m1"].mask.tolist() == [True, False, True, False, False]
    masked = METHOD.merge_group(
        group(a, b), rescale=True, rescale_scope=Scope.TENSOR, mask_of="m1"
    )  # fmt: skip
    factor = (2 + 1 + 5 + 1) / (2 + 5)
    torch.testing.assert_close(masked, factor * torch.tensor([2.0, 0, -5, 0, 0]))
    plain = METHOD.merge_group(group(a, b), rescale=False, rescale_scope=Scope.MODEL, mask_of="m1")
    assert plain.tolist() == [2, 0, -5, 0, 0]


def test_fusion_bench_gives_the_same() -> None:
    """Unified vector, masks and rescalers, away from the two habits that are not followed.

    fusion-bench follows the authors' code: sums of zero count as negative, and means over tensors
    are added up. Continuous noise has no zero sums, and tensors of one size have one weight.
    """
    rng = torch.Generator().manual_seed(0)
    names = ("a", "b", "c")
    vectors = [{n: torch.randn(6, 5, generator=rng) for n in names} for _ in range(4)]
    unified, masks, rescalers = emr_merge([dict(v) for v in vectors])
    whole, kept = torch.zeros(4), torch.zeros(4)
    for name in names:
        stored, found = METHOD.side_outputs(group(*(v[name] for v in vectors)), {"rescale": True})
        torch.testing.assert_close(stored, unified[name])
        for place, model in enumerate(found.values()):
            assert model.mask.equal(masks[name][place])
            whole[place] += model.vector.abs().sum()
            kept[place] += (stored * model.mask).abs().sum()
    torch.testing.assert_close(whole / kept, rescalers)


def test_one_factor_for_a_whole_model(omnireg_models: Family, tmp_path: Path) -> None:
    """λᵢ is Σ|τᵢ| / Σ|mᵢ∘τ★| over all tensors, in the merge as in the package."""
    family = omnireg_models
    models = "".join(f"  - model: {model}\n" for model in family.models)
    text = f"merge_method: emr\nbase_model: {family.base}\nmodels:\n{models}"
    omnireg.merge(
        text + f"parameters: {{mask_of: {family.models[1]}}}\n", tmp_path / "alone", record=False
    )
    senses = ", ".join(f"s{i}: {model}" for i, model in enumerate(family.models))
    omnireg.merge(
        text + f"omnireg: {{output: package, modalities: {{{senses}}}}}\n",
        tmp_path / "package",
        record=False,
    )
    base, others = read(family.base), [read(model) for model in family.models]
    whole = kept = 0.0
    for name, zero in base.items():
        vectors = [other[name].double() - zero.double() for other in others]
        merged = elect(vectors)
        whole += float(vectors[1].abs().sum())
        kept += float(merged[vectors[1] * merged > 0].abs().sum())
    package = Package(tmp_path / "package")
    assert package.strategy == "emr"
    scale = package.models["s1"].scale
    assert isinstance(scale, float)
    assert scale == pytest.approx(whole / kept, rel=1e-5)
    found = read(tmp_path / "alone")
    name = "model.layers.0.mlp.up_proj.weight"
    vectors = [other[name] - base[name] for other in others]
    merged = elect(vectors)
    masked = torch.where(vectors[1] * merged > 0, merged, 0)
    torch.testing.assert_close(found[name], base[name] + whole / kept * masked)


def test_packages_are_extracted_routed_and_extended(omnireg_models: Family, tmp_path: Path) -> None:
    """With the machinery that MMER has: the routed model of one modality is the extracted one."""
    family = omnireg_models
    recipe = (
        f"merge_method: emr\nbase_model: {family.base}\nmodels:\n  - model: {family.prefixed}\n"
        f"  - model: {family.models[0]}\n"
        f"omnireg: {{output: package, modalities: {{image: {family.prefixed},"
        f" task: {family.models[0]}}}}}\n"
    )
    omnireg.merge(recipe, tmp_path / "package", record=False)
    package = Package(tmp_path / "package")
    extract(package, "task", tmp_path / "task")
    model = load(package)
    ids = torch.arange(3, 12)[None]
    from transformers import Qwen2ForCausalLM

    alone = Qwen2ForCausalLM.from_pretrained(tmp_path / "task")
    with torch.no_grad():
        found = model(input_ids=ids, text_routing="task").logits
        wanted = alone(input_ids=ids).logits
    columns = model.vocabulary.columns[None][: wanted.shape[-1]]
    torch.testing.assert_close(found[..., columns], wanted, rtol=1e-4, atol=1e-5)
    add(package, str(family.models[1]), "more", tmp_path / "three")
    three = Package(tmp_path / "three")
    assert three.strategy == "emr"
    assert set(three.modalities) == {"image", "task", "more"}


def test_one_factor_per_model_needs_the_streaming_engine(
    omnireg_models: Family, tmp_path: Path
) -> None:
    """Mergekit's engine says so, and what to do."""
    family = omnireg_models
    text = (
        f"merge_method: emr\nbase_model: {family.base}\nmodels:\n  - model: {family.models[0]}\n"
        f"  - model: {family.models[1]}\nparameters: {{mask_of: {family.models[0]}}}\n"
    )
    with pytest.raises(OmniregError, match="rescale_scope: tensor"):
        omnireg.merge(text, tmp_path / "out", record=False, engine="mergekit")
    assert not (tmp_path / "out").exists()


def test_mergekit_yaml_runs_it(
    omnireg_family: Callable[[str], Family], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mergekit's own command, with the plugin registered, writes what omnireg merges."""
    from omnireg.cli import main

    monkeypatch.chdir(tmp_path)
    family = omnireg_family("bfloat16")
    text = (
        f"merge_method: emr\nbase_model: {family.base}\nmodels:\n  - model: {family.models[0]}\n"
        f"  - model: {family.models[1]}\n"
        f"parameters: {{rescale_scope: tensor, mask_of: {family.models[0]}}}\n"
    )
    (tmp_path / "r.yml").write_text(text)
    assert main(["mergekit", "yaml", "r.yml", "theirs"]) == 0
    omnireg.merge(text, tmp_path / "ours", record=False)
    ours, theirs = read(tmp_path / "ours"), read(tmp_path / "theirs")
    assert all(theirs[name].equal(tensor) for name, tensor in ours.items())
