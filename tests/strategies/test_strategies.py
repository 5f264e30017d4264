"""The four strategies against hand-computed tensors and independent implementations."""

import math
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mergekit.merge_methods import MergeMethod, get, merge_tensors

from omnireg.hookspecs import Scope
from omnireg.plugins.host import PluginHost
from omnireg.strategies import average, delta_weighted, mmer, ties
from omnireg.strategies.mmer import MaskRule, Rescale, mask
from omnireg.strategies.task_vectors import absolute_sum
from omnireg.strategies.ties import trim
from plain import plain_mmer

METHODS: dict[str, MergeMethod] = {
    "average": average.METHOD,
    "delta_weighted": delta_weighted.METHOD,
    "omni_ties": ties.METHOD,
    "mmer": mmer.METHOD,
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def merged(
    name: str, base: torch.Tensor, models: list[torch.Tensor], **parameters: Any
) -> torch.Tensor:
    """Merge with the base first and the models named m1, m2, …."""
    ids = ["base", *(f"m{i}" for i in range(1, len(models) + 1))]
    out: torch.Tensor = merge_tensors(
        [base, *models], METHODS[name], ids=ids, base_index=0, parameters=parameters
    )
    return out


def random_family(
    seed: int = 0, shape: tuple[int, ...] = (37, 29), models: int = 3, scale: float = 0.1
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A float32 base and models around it, all magnitudes distinct."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    return base, [base + scale * torch.randn(shape, generator=generator) for _ in range(models)]


# Hand-computed


def test_average_is_the_mean_of_the_models_and_leaves_the_base_out() -> None:
    """(1 + 3) / 2 and (2 + 6) / 2, whatever the base is."""
    base = torch.tensor([100.0, 100.0])
    out = merged("average", base, [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])])
    assert out.tolist() == [2.0, 4.0]


def test_average_counts_the_base_when_asked() -> None:
    """(6 + 0 + 3) / 3."""
    models = [torch.tensor([0.0]), torch.tensor([3.0])]
    assert merged("average", torch.tensor([6.0]), models, include_base=True).tolist() == [3.0]


def test_average_takes_weights_and_can_leave_them_unnormalised() -> None:
    """(1·1 + 3·5) / 4 = 4, and 16 without dividing."""
    models = [torch.tensor([1.0]), torch.tensor([5.0])]
    weights = {"base": 1.0, "m1": 1.0, "m2": 3.0}
    base = torch.tensor([0.0])
    assert merged("average", base, models, weight=weights).tolist() == [4.0]
    assert merged("average", base, models, weight=weights, normalize=False).tolist() == [16.0]


def test_average_refuses_weights_that_sum_to_zero() -> None:
    """Dividing by zero is an error, not a tensor of NaN."""
    models = [torch.tensor([1.0]), torch.tensor([5.0])]
    with pytest.raises(ValueError, match="sum to zero"):
        merged("average", torch.tensor([0.0]), models, weight={"base": 1, "m1": 1, "m2": -1})


def test_average_without_a_base_counts_every_input() -> None:
    """No base: (2 + 4) / 2."""
    tensors = [torch.tensor([2.0]), torch.tensor([4.0])]
    assert merge_tensors(tensors, average.METHOD, ids=["a", "b"]).tolist() == [3.0]


def test_delta_weighted_follows_equations_3_and_4() -> None:
    """Shifts 1e-3 and 2e-3 at T = 1e-3 give α = softmax(1, 2)."""
    base = torch.zeros(4)
    models = [torch.full((4,), 1e-3), torch.full((4,), -2e-3)]
    first = 1 / (1 + math.e)
    expected = 0.5 * (first * 1e-3 + (1 - first) * -2e-3)
    out = merged("delta_weighted", base, models)
    assert out.tolist() == pytest.approx([expected] * 4, rel=1e-6)


def test_delta_weighted_at_temperature_one_is_uniform_to_three_digits() -> None:
    """Shifts of the order 1e-3 hardly differ at T = 1, which is why the default is 1e-3."""
    alphas = delta_weighted.softmax([1e-4, 1e-3], 1.0)
    assert alphas == pytest.approx([0.5, 0.5], abs=1e-3)
    assert delta_weighted.softmax([1e-4, 1e-3], 1e-3)[1] > 0.7


def test_delta_weighted_equal_shifts_are_not_the_plain_mean() -> None:
    """Equal shifts give each model (1 − α₀)/n and the base α₀."""
    base, models = torch.tensor([1.0]), [torch.tensor([2.0]), torch.tensor([0.0])]
    assert merged("delta_weighted", base, models, alpha0=0.25).tolist() == [1.0]
    assert merged("delta_weighted", base, [models[0]], alpha0=0.25).tolist() == [1.75]


def test_ties_trims_elects_and_averages_what_agrees() -> None:
    """Worked by hand for three task vectors at density ½."""
    base = torch.zeros(4)
    vectors = [
        torch.tensor([4.0, -3.0, 0.5, 0.1]),  # keeps 4, -3
        torch.tensor([2.0, 1.0, -5.0, 0.0]),  # keeps 2, -5
        torch.tensor([-1.0, 6.0, 0.2, 7.0]),  # keeps 6, 7
    ]
    out = merged("omni_ties", base, vectors, density=0.5)
    assert out.tolist() == [3.0, 6.0, -5.0, 7.0]
    doubled = merged("omni_ties", base, vectors, density=0.5, **{"lambda": 2.0})
    assert doubled.tolist() == [6.0, 12.0, -10.0, 14.0]


def test_ties_weights_count_in_the_election_and_in_the_mean() -> None:
    """Weights 3 and 1: −1·3 + 2·1 elects −, 4·1 and 2·3 average to 10/4."""
    base = torch.zeros(2)
    models = [torch.tensor([-1.0, 2.0]), torch.tensor([2.0, 4.0])]
    out = merged("omni_ties", base, models, density=1.0, weight={"m1": 3.0, "m2": 1.0})
    assert out.tolist() == [-1.0, 2.5]


def test_a_weighted_sum_of_exactly_zero_elects_nothing() -> None:
    """+1 and −1 cancel: the base stays, where mergekit's ties would take +1."""
    base, models = torch.tensor([5.0]), [torch.tensor([6.0]), torch.tensor([4.0])]
    assert merged("omni_ties", base, models, density=1.0).tolist() == [5.0]
    theirs = merge_tensors(
        [base, *models],
        get("ties"),
        ids=["base", "m1", "m2"],
        base_index=0,
        parameters={"weight": 1.0, "density": 1.0},
    )
    assert theirs.tolist() == [6.0]


def test_trim_keeps_exactly_k_and_breaks_ties_in_index_order() -> None:
    """Five equal magnitudes at density 0.4 keep the first two."""
    vector = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    assert trim(vector, 0.4).tolist() == [1.0, -1.0, 0.0, 0.0, 0.0]
    assert trim(vector, 1e-9).tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_mmer_without_mask_of_is_base_plus_merged_vector() -> None:
    """θ₀ + α·TIES, so scale 1 equals omni_ties with the same densities."""
    base, models = random_family()
    plain = merged("mmer", base, models, density=0.3)
    assert torch.equal(plain, merged("omni_ties", base, models, density=0.3))


def test_mmer_masks_by_direction_and_significance() -> None:
    """Worked by hand: τ★ = [3, −2, 6, 0]; model 1 keeps what agrees and is at least half."""
    base = torch.ones(4)
    first, second = torch.tensor([4.0, -2.0, 1.0, 1.0]), torch.tensor([2.0, 1.0, 11.0, -1.0])
    out = merged("mmer", base, [base + first, base + second], density=1.0, mask_of="m1")
    assert (out - base).tolist() == [3.0, -2.0, 0.0, 0.0]
    other = merged("mmer", base, [base + first, base + second], density=1.0, mask_of="m2")
    assert (other - base).tolist() == [3.0, 0.0, 6.0, 0.0]


def test_mmer_without_direction_keeps_opposite_signs() -> None:
    """The paper's ablation: |τ| = 1 is at least half of |τ★| = 2 though the signs differ."""
    base = torch.zeros(1)
    models = [torch.tensor([-2.0]), torch.tensor([1.0])]
    kept = merged("mmer", base, models, density=1.0, mask_of="m2", directional=False)
    assert kept.tolist() == [-2.0]
    assert merged("mmer", base, models, density=1.0, mask_of="m2").tolist() == [0.0]


def test_mmer_rescale_restores_the_norm_of_the_task_vector() -> None:
    """The masked vector has the L1 (L2) norm of τᵢ after rescaling."""
    base, models = random_family()
    zero = torch.zeros_like(base)
    vectors = [model - base for model in models]
    for rescale, norm in (("l1", 1), ("l2", 2)):
        out = merged("mmer", zero, vectors, density=0.2, mask_of="m1", rescale=rescale)
        assert out.norm(p=norm).item() == pytest.approx(vectors[0].norm(p=norm).item(), rel=1e-5)


def test_mmer_names_the_choices_when_mask_of_is_not_listed() -> None:
    """A name that no model has lists the models."""
    base, models = random_family(models=2)
    with pytest.raises(ValueError, match=r"'m9' is not a listed model; choose one of: m1, m2"):
        merged("mmer", base, models, mask_of="m9")


# The two readings of the paper's λ


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, 40, elements=st.floats(-4, 4, width=32)),
    hnp.arrays(np.float32, 40, elements=st.floats(-4, 4, width=32)),
)
def test_both_mask_rules_minimise_the_l1_distance_at_their_default(
    own: np.ndarray[Any, np.dtype[np.float32]], other: np.ndarray[Any, np.dtype[np.float32]]
) -> None:
    """No element would be nearer to τᵢ with its bit flipped."""
    vector, star = torch.from_numpy(own), torch.from_numpy(other)
    for rule in MaskRule:
        keep = mask(vector, star, rule=rule, threshold=None, directional=True)
        chosen = (torch.where(keep, star, 0) - vector).abs()
        flipped = (torch.where(keep, 0, star) - vector).abs()
        assert bool((chosen <= flipped + 1e-5).all())


# Independent implementations


def test_average_agrees_with_mergekit_linear() -> None:
    """Same weights, float32: equal up to rounding."""
    base, models = random_family()
    weights = [0.2, 0.5, 0.3]
    theirs = merge_tensors(models, get("linear"), parameters={"weight": weights})
    named = {"base": 1.0, **{f"m{i}": w for i, w in enumerate(weights, 1)}}
    torch.testing.assert_close(merged("average", base, models, weight=named), theirs)


@pytest.mark.parametrize("density", [1.0, 0.37])
def test_omni_ties_agrees_with_mergekit_ties(density: float) -> None:
    """Distinct magnitudes and no zero sums, float32: equal up to rounding."""
    base, models = random_family()
    theirs = merge_tensors(
        [base, *models],
        get("ties"),
        ids=["base", "m1", "m2", "m3"],
        base_index=0,
        parameters={"weight": 1.0, "density": density},
    )
    torch.testing.assert_close(merged("omni_ties", base, models, density=density), theirs)


@pytest.fixture(scope="session")
def fusion_bench() -> Any:
    """fusion-bench's own functions; importing it warns about third parties."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fusion_bench.method.tall_mask import utils as tall
        from fusion_bench.method.ties_merging import ties_merging_utils as reference
    return reference, tall


@pytest.mark.parametrize("density", [1.0, 0.5, 0.2])
def test_omni_ties_agrees_with_fusion_bench(fusion_bench: Any, density: float) -> None:
    """One flat tensor, so that whole-model and per-tensor trimming are the same thing.

    Its threshold is one rank lower than the share says, so that it keeps k + 1 elements.
    """
    base, models = random_family(shape=(1, 4000))
    vectors = torch.stack([(model - base).reshape(-1) for model in models])
    merge = fusion_bench[0].ties_merging
    share = (int(density * 4000) - 1) / 4000
    expected = merge(vectors.clone(), reset_thresh=share, merge_func="dis-mean")
    ours = merged("omni_ties", torch.zeros(4000), list(vectors), density=density)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("threshold", [0.4, 1.0, 1.7])
def test_distance_rule_agrees_with_tall_masks(fusion_bench: Any, threshold: float) -> None:
    """TALL masks compare |τᵢ| with λ|τ★ − τᵢ|; ours without the direction rule is the same."""
    base, models = random_family(shape=(1, 4000))
    flat = [t.reshape(-1) for t in models]
    vectors = torch.stack([t - base.reshape(-1) for t in flat])
    star = vectors.mean(0)
    theirs = fusion_bench[1].generate_task_masks(
        vectors, torch.stack(flat), base.reshape(-1), tv=star, tall_mask_lambda=threshold
    )
    for vector, expected in zip(vectors, theirs, strict=True):
        ours = mask(vector, star, rule=MaskRule.DISTANCE, threshold=threshold, directional=False)
        assert (ours != expected).float().mean() < 1e-3  # they subtract rounded sums


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("density", "scale"), [(1.0, 1.0), (0.5, 1.5), (0.2, 1.0)])
def test_mmer_equals_a_plain_implementation(
    dtype: torch.dtype, density: float, scale: float
) -> None:
    """Same bits in every dtype, equal magnitudes of low-precision dtypes included."""
    base, models = random_family()
    base, models = base.to(dtype), [m.to(dtype) for m in models]
    for which in range(3):
        ours = merged("mmer", base, models, density=density, scale=scale, mask_of=f"m{which + 1}")
        assert torch.equal(ours, plain_mmer(base, models, which, density, scale))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("density", [0.5, 0.03])
def test_trim_equals_the_stable_sort(dtype: torch.dtype, density: float) -> None:
    """Selection keeps the same elements as a stable descending argsort."""
    vector = torch.randn(5000, generator=torch.Generator().manual_seed(1)).to(dtype).float()
    kept = torch.argsort(vector.abs(), descending=True, stable=True)[: int(density * 5000)]
    expected = torch.zeros_like(vector)
    expected[kept] = vector[kept]
    assert torch.equal(trim(vector, density), expected)


# Invariants


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_models_equal_to_the_base_give_the_base(
    name: str, dtype: torch.dtype, data: st.DataObject
) -> None:
    """All τ = 0: the result is the base, bit for bit."""
    values = data.draw(hnp.arrays(np.float32, 11, elements=st.floats(-10, 10, width=32)))
    base = torch.from_numpy(values).to(dtype)
    count = data.draw(st.integers(1, 7))
    assert torch.equal(merged(name, base, [base.clone() for _ in range(count)]), base)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", METHODS)
def test_shape_and_dtype_are_kept_and_inputs_are_not_mutated(name: str, dtype: torch.dtype) -> None:
    """The inputs are the same bits after the merge as before."""
    base, models = random_family(shape=(3, 5, 7))
    tensors = [t.to(dtype) for t in (base, *models)]
    before = [t.clone() for t in tensors]
    extra = {"mask_of": "m2"} if name == "mmer" else {}
    out = merged(name, tensors[0], tensors[1:], **extra)
    assert out.shape == base.shape
    assert out.dtype == dtype
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
    assert out.data_ptr() not in [t.data_ptr() for t in tensors]


@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_the_models_does_not_matter(name: str) -> None:
    """Up to the rounding of a sum in another order."""
    base, models = random_family()
    there = merged(name, base, models)
    back = merged(name, base, models[::-1])
    torch.testing.assert_close(there, back, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_scalars_and_empty_tensors_merge(name: str) -> None:
    """A tensor of no dimension is one element; one of no elements stays so."""
    assert merged(name, torch.tensor(1.0), [torch.tensor(1.0)] * 2).shape == ()


@pytest.mark.parametrize("threads", [1, 2])
def test_absolute_sum_does_not_depend_on_threads(threads: int) -> None:
    """The same bits as an exactly rounded sum of the lanes, for any thread count."""
    values = torch.randn(100_003, generator=torch.Generator().manual_seed(2))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        total = absolute_sum(values)
    finally:
        torch.set_num_threads(before)
    assert total == pytest.approx(math.fsum(values.abs().double().tolist()), rel=1e-12)
    assert total == absolute_sum(values)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("delta_weighted", {"scope": Scope.MODEL}),
        ("omni_ties", {"trim_scope": "model"}),
        ("mmer", {"trim_scope": "model"}),
        ("mmer", {"rescale": Rescale.L1, "rescale_scope": "model"}),
    ],
)
def test_whole_model_scopes_name_the_engine_they_need(
    name: str, parameters: dict[str, Any]
) -> None:
    """Never a silent per-tensor run."""
    base, models = random_family(shape=(4,))
    with pytest.raises(ValueError, match="streaming engine"):
        merged(name, base, models, **parameters)


@pytest.mark.parametrize(
    ("name", "parameter", "value"),
    [
        ("delta_weighted", "alpha0", 1.5),
        ("delta_weighted", "temperature", 0.0),
        ("omni_ties", "density", 0.0),
        ("omni_ties", "density", 1.01),
        ("mmer", "mask_lambda", -0.1),
        ("mmer", "mask_rule", "biggest"),
        ("mmer", "rescale", "l3"),
    ],
)
def test_values_out_of_range_are_refused(name: str, parameter: str, value: Any) -> None:
    """Ranges are part of the declared contract."""
    base, models = random_family(shape=(4,))
    with pytest.raises(ValueError, match="Input should be"):
        merged(name, base, models, **{parameter: value})


@pytest.mark.parametrize("name", ["delta_weighted", "omni_ties", "mmer"])
def test_the_base_is_required(name: str) -> None:
    """The contract says so, and mergekit enforces it."""
    with pytest.raises(ValueError, match="requires a base"):
        merge_tensors([torch.ones(2), torch.ones(2)], METHODS[name], ids=["a", "b"])


def test_one_model_is_not_enough_to_average() -> None:
    """The contract wants two inputs."""
    with pytest.raises(ValueError, match="at least 2 inputs"):
        merge_tensors([torch.ones(2)], average.METHOD, ids=["a"])


def test_registration_is_idempotent_and_every_method_is_documented() -> None:
    """Installing twice changes nothing; names, references and descriptions are there."""
    plugins = PluginHost()
    plugins.install()
    plugins.install()
    for name, method in METHODS.items():
        assert get(name) is method
        assert method.spec.pretty_name
        assert str(method.spec.reference_url).startswith("https://arxiv.org/abs/")
        assert all(parameter.description for parameter in method.spec.parameters)


def test_two_hash_seeds_give_the_same_bits() -> None:
    """Nothing depends on the order of a set."""
    program = (
        "import torch;from mergekit.merge_methods import merge_tensors;"
        "from omnireg.strategies.mmer import METHOD;"
        "g=torch.Generator().manual_seed(0);t=[torch.randn(99,generator=g) for _ in range(4)];"
        "print(merge_tensors(t,METHOD,ids=list('abcd'),base_index=0,"
        "parameters={'mask_of':'c'}).tolist())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
