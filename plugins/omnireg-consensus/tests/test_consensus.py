"""Consensus merging: by hand, against an independent implementation, and as every strategy."""

from pathlib import Path

import pytest
import torch
from fusion_bench.method.tall_mask.utils import generate_task_masks
from mergekit.merge_methods import PerInputValues, TensorEntry, TensorGroup
from torch import Tensor

from omnireg.cli import main
from omnireg.testing import Family, omnireg_conformance
from omnireg.testing.conformance import read
from omnireg_consensus.method import METHOD, tall_mask

TestConsensus = omnireg_conformance("consensus", mask_of=True)
TestTaskArithmetic = omnireg_conformance("consensus", parameters={"least": 0, "scale": 1.0})


def group(*vectors: Tensor) -> TensorGroup:
    """Return a group whose base is zero."""
    base = TensorEntry("base", torch.zeros_like(vectors[0]), True)
    return TensorGroup((base, *(TensorEntry(f"m{i}", v, False) for i, v in enumerate(vectors))))


def parameters(
    count: int, *, threshold: float = 1.0, least: int = 2, **more: object
) -> dict[str, object]:
    """Return parameters as ``merge_group`` gets them."""
    refs = [f"m{i}" for i in range(count)]
    return {
        "weight": PerInputValues([(ref, 1.0) for ref in refs]),
        "mask_lambda": PerInputValues([(ref, threshold) for ref in refs]),
        "least": least,
        "scale": 0.5,
        "mask_of": None,
        **more,
    }


def test_masks_and_consensus_by_hand() -> None:
    """λ = 1: an element is a model's own if the sum is nearer to it than to zero."""
    a = torch.tensor([4.0, 1.0, 0.0, 2.0])
    b = torch.tensor([1.0, -4.0, 0.0, 2.0])
    merged = a + b
    assert tall_mask(a, merged, 1.0).tolist() == [True, False, False, False]
    assert tall_mask(b, merged, 1.0).tolist() == [False, True, False, False]
    assert tall_mask(a, merged, 0.5).tolist() == [True, False, False, True]
    both = METHOD.merge_group(group(a, b), **parameters(2, threshold=0.5))
    assert both.tolist() == [0, 0, 0, 2]
    anyone = METHOD.merge_group(group(a, b), **parameters(2, threshold=0.5, least=1))
    assert anyone.tolist() == [2.5, -1.5, 0, 2]
    arithmetic = METHOD.merge_group(group(a, b), **parameters(2, least=0))
    assert arithmetic.tolist() == [2.5, -1.5, 0, 2]
    located = METHOD.merge_group(group(a, b), **parameters(2, threshold=0.5, mask_of="m1"))
    assert located.tolist() == [0, -3, 0, 4]
    alone = METHOD.merge_group(group(a), **parameters(1, least=2))
    assert alone.tolist() == [2, 0.5, 0, 1]


@pytest.mark.parametrize("threshold", [0.2, 0.4, 1.0])
def test_fusion_bench_gives_the_same_masks(
    threshold: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """TALL-masks of four vectors, by the authors' strict comparison."""
    rng = torch.Generator().manual_seed(0)
    base = torch.zeros(500)
    vectors = torch.randn(4, 500, generator=rng)
    wanted = generate_task_masks(
        vectors, base + vectors, base, vectors.sum(0), tall_mask_lambda=threshold
    )
    _, found = METHOD.side_outputs(group(*vectors), parameters(4, threshold=threshold))
    for place, model in enumerate(found.values()):
        assert model.mask.equal(wanted[place])
    assert "sparsity" in capsys.readouterr().out


def test_mergekit_yaml_runs_it(
    omnireg_models: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mergekit's own command, with the plugin registered, writes what omnireg merges."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMNIREG_REGISTRY", str(tmp_path / "r.db"))
    family = omnireg_models
    models = "".join(f"  - model: {model}\n" for model in family.models)
    (tmp_path / "r.yml").write_text(
        f"merge_method: consensus\nbase_model: {family.base}\nmodels:\n{models}"
    )
    assert main(["mergekit", "yaml", "r.yml", "theirs"]) == 0
    assert main(["merge", "r.yml", "ours", "-q"]) == 0
    ours, theirs = read(tmp_path / "ours"), read(tmp_path / "theirs")
    assert all(theirs[name].equal(tensor) for name, tensor in ours.items())


def test_values_out_of_range_are_refused(
    omnireg_models: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """By their declared ranges, before anything is read."""
    monkeypatch.chdir(tmp_path)
    family = omnireg_models
    for parameter, said in (("least: -1", "least"), ("mask_lambda: -0.1", "mask_lambda"),
                            ("lest: 1", "did you mean 'least'")):  # fmt: skip
        (tmp_path / "r.yml").write_text(
            f"merge_method: consensus\nbase_model: {family.base}\nmodels:\n"
            f"  - model: {family.models[0]}\nparameters: {{{parameter}}}\n"
        )
        assert main(["merge", "r.yml", "out", "--no-record"]) == 1
        assert said in capsys.readouterr().err
