"""Compiled passes give the bits of the torch code, for any numbers, any chunks and any dtype."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mergekit.merge_methods import MergeMethod, PerInputValues, TensorGroup
from mergekit.merge_methods.registry import get

from omnireg.hookspecs import Scope, Surveyed
from omnireg.strategies import average, delta_weighted, mmer, ties
from omnireg.strategies.kernels import formats
from omnireg.strategies.kernels.choose import Tensor, fuse, is_accelerated
from omnireg.strategies.kernels.fused import Chunk, Fused
from omnireg.strategies.mmer import MaskRule, Rescale
from omnireg.strategies.thresholds import Kind

DTYPES = {Kind.BF16: torch.bfloat16, Kind.F16: torch.float16, Kind.F32: torch.float32}
BASE, MODELS = "base", ("a", "b", "c", "d", "e")
MERGEKITS = ("linear", "task_arithmetic", "ties")
TRIM = {"normalize": True, "trim_scope": Scope.TENSOR}
OURS: dict[str, tuple[MergeMethod, dict[str, Any]]] = {
    "average": (average.METHOD, {"normalize": True, "include_base": False}),
    "sum": (average.METHOD, {"normalize": False, "include_base": True}),
    "delta_weighted": (
        delta_weighted.METHOD,
        {"alpha0": 0.3, "temperature": 1e-3, "scope": Scope.TENSOR},
    ),
    "omni_ties": (ties.METHOD, {**TRIM, "lambda": 0.7}),
    "omni_ties, sums": (ties.METHOD, {**TRIM, "normalize": False, "lambda": 1.0}),
    **{
        f"mmer, {rule}, {directional}": (
            mmer.METHOD,
            {
                **TRIM, "scale": 1.5, "mask_rule": rule, "directional": directional,
                "rescale": Rescale.NONE, "rescale_scope": Scope.TENSOR, "mask_of": "b",
            },
        )
        for rule in MaskRule for directional in (True, False)
    },
}  # fmt: skip
BITS = {Kind.BF16: 16, Kind.F16: 16, Kind.F32: 32}
#: exponents of everyday weights, so that differences of all sizes and exact ties occur
NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0**-30, 3e-39]),
    st.integers(-40, 40).map(lambda n: n / 32),
    st.floats(-4, 4, width=32),
)


def inputs(rows: Sequence[Sequence[float]], kind: Kind) -> list[torch.Tensor]:
    """Return one tensor per row."""
    return [torch.tensor(row, dtype=torch.float32).to(DTYPES[kind]) for row in rows]


def family(count: int, models: int, kind: Kind, seed: int = 0) -> list[torch.Tensor]:
    """Return a base and models that differ from it by small noise."""
    generator = torch.Generator().manual_seed(seed)
    base = 0.02 * torch.randn(count, generator=generator)
    noise = [1e-3 * (i + 1) * torch.randn(count, generator=generator) for i in range(models)]
    return [base.to(DTYPES[kind]), *((base + n).to(DTYPES[kind]) for n in noise)]


def chunks_of(tensors: Sequence[torch.Tensor], kind: Kind, size: int) -> list[Chunk]:
    """Cut tensors into chunks, the first tensor being the base."""
    count = tensors[0].numel()
    arrays = [bits(tensor, kind) for tensor in tensors]
    return [
        Chunk(kind, min(size, count - start), tuple(a[start : start + size] for a in arrays), 0)
        for start in range(0, count, size)
    ]


def run(fused: Fused, chunks: Sequence[Chunk]) -> list[Any]:
    """Make the surveys, then emit every chunk; return each output whole."""
    found: Any = None
    while survey := fused.survey(found):
        for chunk in chunks:
            survey.add(fused.observe(survey, chunk))
        found = survey.result()
    emitted = [fused.emit(chunk, found, number) for number, chunk in enumerate(chunks)]
    return [np.concatenate(parts) for parts in zip(*emitted, strict=True)]


def bits(tensor: torch.Tensor, kind: Kind) -> Any:
    """Return a tensor's bits, so that the sign of a zero counts."""
    whole = torch.int16 if BITS[kind] == 16 else torch.int32
    return tensor.contiguous().view(whole).numpy().reshape(-1)


def bound(method: MergeMethod, models: int, shared: dict[str, Any], density: float) -> Any:
    """Return the parameters of every input, by reference."""
    values = {"density": density, "mask_lambda": 0.4}
    refs = (BASE, *MODELS[:models])
    return {
        ref: {
            p.name: values.get(p.name, 0.3 + 0.37 * number)
            for p in method.spec.input_parameters
            if ref != BASE or p.scope == "input"
        }
        for number, ref in enumerate(refs)
    }


def by_torch(
    method: MergeMethod, tensors: Sequence[torch.Tensor], shared: dict[str, Any], per_input: Any
) -> torch.Tensor:
    """Merge with the method's own code."""
    refs = (BASE, *MODELS[: len(tensors) - 1])
    group = TensorGroup.from_tensors(tensors, ids=refs, base_index=0)
    parameters = dict(shared)
    for p in method.spec.input_parameters:
        wanted = refs if p.scope == "input" else refs[1:]
        parameters[p.name] = PerInputValues([(ref, per_input[ref][p.name]) for ref in wanted])
    before = [tensor.clone() for tensor in tensors]
    merged: torch.Tensor
    (merged,) = method((group,), parameters=parameters)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
    return merged


def compare(
    method: MergeMethod,
    shared: dict[str, Any],
    tensors: Sequence[torch.Tensor],
    kind: Kind,
    *,
    density: float,
    size: int,
) -> None:
    """Assert that the compiled pass gives the bits of the torch code."""
    refs = (BASE, *MODELS[: len(tensors) - 1])
    per_input = bound(method, len(tensors) - 1, shared, density)
    fused = fuse(method, Tensor(kind, tensors[0].numel(), refs, refs, BASE, shared, per_input))
    assert fused is not None
    (found,) = run(fused, chunks_of(tensors, kind, size))
    wanted = bits(by_torch(method, tensors, shared, per_input), kind)
    np.testing.assert_array_equal(found.view(wanted.dtype), wanted)


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 1.0])
def test_ours_on_everyday_weights(name: str, kind: Kind, density: float) -> None:
    """Every strategy of ours, in chunks that cut through ties of magnitude."""
    method, shared = OURS[name]
    tensors = family(30_011, 5, kind)
    size = 30_011 if "delta" in name else 7000
    compare(method, shared, tensors, kind, density=density, size=size)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=st.sampled_from(list(DTYPES)), name=st.sampled_from(list(OURS)))
def test_ours_on_any_numbers(data: Any, kind: Kind, name: str) -> None:
    """Zeros of both signs, subnormals, exact ties of magnitude and opposite signs."""
    count = data.draw(st.integers(1, 40))
    row = st.lists(NUMBERS, min_size=count, max_size=count)
    tensors = inputs(data.draw(st.lists(row, min_size=3, max_size=4)), kind)
    method, shared = OURS[name]
    size = count if "delta" in name else data.draw(st.integers(8, 48))
    density = data.draw(st.sampled_from([0.05, 0.3, 0.5, 1.0]))
    compare(method, shared, tensors, kind, density=density, size=size)


def mergekits(name: str) -> dict[str, Any]:
    """Return the shared parameters of one of mergekit's methods."""
    values = {"lambda": 0.7, "normalize": name != "task_arithmetic"}
    return {p.name: values.get(p.name, p.default) for p in get(name).spec.shared_parameters}


@pytest.fixture
def stable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let mergekit's trim break ties of magnitude in index order."""
    import functools

    monkeypatch.setattr(torch, "argsort", functools.partial(torch.argsort, stable=True))


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("models", [2, 3])
@pytest.mark.parametrize("name", MERGEKITS)
@pytest.mark.parametrize("count", [2, 7, 33_333])
def test_mergekits_own(name: str, models: int, kind: Kind, count: int, stable: None) -> None:
    """``linear``, ``task_arithmetic`` and ``ties``: every rounding, and +1 for a sum of zero."""
    tensors = family(count, models, kind)
    for density in (0.2, 1.0):
        compare(get(name), mergekits(name), tensors, kind, density=density, size=9000)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=st.sampled_from(list(DTYPES)), name=st.sampled_from(MERGEKITS))
def test_mergekits_own_on_any_numbers(data: Any, kind: Kind, name: str) -> None:
    """As above, on numbers chosen to be awkward; distinct magnitudes where it trims."""
    count = data.draw(st.integers(2, 40))
    row = st.lists(NUMBERS, min_size=count, max_size=count)
    tensors = inputs(data.draw(st.lists(row, min_size=3, max_size=4)), kind)
    compare(get(name), mergekits(name), tensors, kind, density=1.0, size=16)


def test_more_models_than_torch_adds_in_order_are_left_to_torch() -> None:
    """With four models the order of mergekit's sums depends on shape and threads: no kernel."""
    refs = (BASE, *MODELS[:4])
    for name in ("ties", "task_arithmetic"):
        shared = mergekits(name)
        per_input = bound(get(name), 4, shared, 0.5)
        assert fuse(get(name), Tensor(Kind.BF16, 99, refs, refs, BASE, shared, per_input)) is None
    assert is_accelerated(get("ties"))
    assert not is_accelerated(get("slerp"))


@pytest.mark.parametrize("kind", DTYPES)
def test_mmers_side_outputs_rebuild_every_model(kind: Kind) -> None:
    """τ★ and the packed masks of one pass give θ₀ + mᵢ∘τ★ of every model, bit for bit."""
    _, shared = OURS[f"mmer, {MaskRule.RATIO}, True"]
    tensors = family(20_001, 3, kind)
    refs = (BASE, *MODELS[:3])
    per_input = bound(mmer.METHOD, 3, shared, 0.3)
    aside = Tensor(kind, 20_001, refs, refs, BASE, shared, per_input, side_outputs=True)
    fused = fuse(mmer.METHOD, aside)
    assert fused is not None
    vector, *masks = run(fused, chunks_of(tensors, kind, 8000))
    stored = torch.from_numpy(vector.view(np.int16 if BITS[kind] == 16 else np.int32))
    star = stored.view(DTYPES[kind]).float()
    for place, packed in enumerate(masks):
        keep = torch.from_numpy(np.unpackbits(packed, count=20_001, bitorder="little"))
        rebuilt = (tensors[0].float() + keep * star).to(DTYPES[kind])
        alone = {**shared, "mask_of": MODELS[place]}
        assert torch.equal(rebuilt, by_torch(mmer.METHOD, tensors, alone, per_input))


@pytest.mark.parametrize("kind", [Kind.BF16, Kind.F16])
def test_every_short_number_survives_widening_and_rounding(kind: Kind) -> None:
    """All 65 536 bit patterns but NaN come back; numpy and torch agree on the values."""
    short = np.arange(65_536, dtype=np.uint16)
    wide = np.empty(65_536, np.float32)
    back = np.empty_like(short)
    for start in range(0, 65_536, formats.BLOCK):
        block = wide[start : start + formats.BLOCK]
        formats.load(int(kind), short.ctypes.data, start, formats.BLOCK, block)
        formats.store(int(kind), block, formats.BLOCK, back.ctypes.data, start)
    numbers = ~np.isnan(wide)
    expected = torch.from_numpy(short.view(np.int16)).view(DTYPES[kind]).float().numpy()
    np.testing.assert_array_equal(wide[numbers], expected[numbers])
    np.testing.assert_array_equal(back[numbers], short[numbers])


def test_nonfinite_inputs_are_noticed() -> None:
    """A chunk says which of its inputs hold NaN or Inf."""
    tensors = family(100, 2, Kind.BF16)
    tensors[2][37] = float("inf")
    (chunk,) = chunks_of(tensors, Kind.BF16, 100)
    assert chunk.nonfinite() == [2]


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("name", ["omni_ties", f"mmer, {MaskRule.RATIO}, True"])
def test_a_trim_of_the_whole_model_equals_one_of_the_flattened_weights(
    name: str, kind: Kind
) -> None:
    """Three tensors trimmed together, by torch code and compiled, as one long tensor would be."""
    method, shared = OURS[name]
    sizes = (4001, 9, 2500)
    whole = family(sum(sizes), 3, kind)
    parts = list(zip(*(torch.split(tensor, list(sizes)) for tensor in whole), strict=True))
    refs = (BASE, *MODELS[:3])
    per_input = bound(method, 3, shared, 0.3)
    wanted = by_torch(method, whole, shared, per_input)
    together = {**shared, "trim_scope": Scope.MODEL}
    strategy: Any = method
    parameters = dict(together)
    for p in method.spec.input_parameters:
        parameters[p.name] = PerInputValues([(ref, per_input[ref][p.name]) for ref in refs[1:]])
    groups = [TensorGroup.from_tensors(part, ids=refs, base_index=0) for part in parts]
    known = Surveyed(refs[1:])
    while survey := strategy.survey(known, parameters):
        for number, group in enumerate(groups):
            at = Surveyed(refs[1:], known.found, number)
            survey.add(strategy.observe(survey, group, at, parameters))
        known = Surveyed(refs[1:], survey.result())
    merged = []
    for number, (group, part) in enumerate(zip(groups, parts, strict=True)):
        at = Surveyed(refs[1:], known.found, number)
        slow = strategy.merge_group(group, surveyed=at, **parameters)
        pass_ = fuse(method, Tensor(kind, part[0].numel(), refs, refs, BASE, together, per_input))
        assert pass_ is not None
        (chunk,) = chunks_of(part, kind, part[0].numel())
        (fast,) = pass_.emit(chunk, known.found, number)
        np.testing.assert_array_equal(fast.view(bits(slow, kind).dtype), bits(slow, kind))
        merged.append(slow)
    assert torch.equal(torch.cat(merged), wanted)
