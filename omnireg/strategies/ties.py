"""TIES: trim, elect signs, disjoint mean (arXiv 2306.01708), exact to the last element."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mergekit.merge_methods import (
    GroupMergeMethod,
    MergeMethodSpec,
    OptionalTensorPolicy,
    ParameterScope,
    TensorGroup,
)
from mergekit.merge_methods.base import ParameterSpec

from omnireg.hookspecs import Scope, Surveyed
from omnireg.strategies.task_vectors import (
    FROM_BASE,
    Fraction,
    per_tensor_only,
    task_vector,
    working,
)
from omnireg.strategies.thresholds import Thresholds, count, next_count

#: shared by omni_ties and mmer
TRIM_PARAMETERS = (
    ParameterSpec("weight", float, ParameterScope.NON_BASE, 1.0, "how much a model counts"),
    ParameterSpec(
        "density", Fraction, ParameterScope.NON_BASE, 0.5, "share of largest |τ| that is kept"
    ),
    ParameterSpec(
        "normalize", bool, ParameterScope.SHARED, True, "divide by the weights that agree"
    ),
    ParameterSpec(
        "trim_scope", Scope, ParameterScope.SHARED, Scope.TENSOR, "trim each tensor or the model"
    ),
)


def trim(vector: torch.Tensor, density: float) -> torch.Tensor:
    """Keep the k = max(1, ⌊density·numel⌋) largest |τ|, equal ones in index order; zero the rest.

    The k-th magnitude is found by selection, not by sorting. Same shape and dtype as the input.
    """
    size = vector.numel()
    k = max(1, int(density * size))
    if k >= size:
        return vector
    magnitude = vector.abs().reshape(-1)
    threshold = magnitude.kthvalue(size - k + 1).values
    keep = magnitude > threshold
    equal = magnitude == threshold
    keep |= equal & (equal.cumsum(0) <= k - keep.sum())
    return torch.where(keep.view_as(vector), vector, 0)


def elect_and_average(
    vectors: Sequence[torch.Tensor], weights: Sequence[float], *, normalize: bool
) -> torch.Tensor:
    """Return the disjoint mean of trimmed task vectors, 0 where Σ wᵢτᵢ is exactly 0.

    γ = sign(Σ wᵢτᵢ); Σ wᵢτᵢ over the i with sign(τᵢ) = γ, divided by their Σ wᵢ (steps 2 and 3).
    """
    elected = torch.zeros_like(vectors[0])
    for vector, weight in zip(vectors, weights, strict=True):
        elected += weight * vector
    elected.sign_()
    total = torch.zeros_like(elected)
    divisor = torch.zeros_like(elected)
    for vector, weight in zip(vectors, weights, strict=True):
        agrees = (vector.sign() == elected) & (elected != 0)
        total += torch.where(agrees, weight * vector, 0)
        divisor += torch.where(agrees, weight, 0.0)
    if not normalize:
        return total
    return torch.where(divisor != 0, total / divisor, 0)


def trim_at(vector: torch.Tensor, magnitude: int, quota: int) -> torch.Tensor:
    """Keep what is above a magnitude, and the first ``quota`` elements equal to it; zero the rest.

    ``magnitude`` is the bits of a float32. Same shape and dtype as the input.
    """
    bits = vector.contiguous().view(torch.int32) & 0x7FFFFFFF
    equal = (bits == magnitude).reshape(-1)
    keep = (bits > magnitude) | (equal & (equal.cumsum(0) <= quota)).view_as(bits)
    return torch.where(keep, vector, 0)


def vectors_of(group: TensorGroup, known: Surveyed) -> dict[int, Any]:
    """Return the task vectors of a group as float32 arrays, by the place of their model.

    Raises:
        ValueError: they are float64, whose magnitudes no survey counts.
    """
    vectors = {known.place(e.id): task_vector(e, group.base) for e in group.non_base}
    if any(vector.dtype != torch.float32 for vector in vectors.values()):
        raise ValueError("trim_scope: model is for float32 and shorter; set dtype: float32")
    return {place: vector.cpu().numpy() for place, vector in vectors.items()}


class TrimmedTogether:
    """The first pass of a strategy that trims the whole model at once."""

    def survey(self, known: Surveyed, parameters: Mapping[str, Any]) -> Any:
        """See :class:`omnireg.hookspecs.Surveying`."""
        if parameters["trim_scope"] is not Scope.MODEL:
            return None
        densities = [parameters["density"][model] for model in known.models]
        return next_count(known.found, densities)

    def observe(
        self, survey: Any, group: TensorGroup, known: Surveyed, parameters: Mapping[str, Any]
    ) -> Any:
        """See :class:`omnireg.hookspecs.Surveying`."""
        return count(survey, vectors_of(group, known))


def trimmed(
    group: TensorGroup, parameters: Mapping[str, Any], surveyed: Surveyed | None
) -> list[torch.Tensor]:
    """Return the trimmed task vectors of a group, each by its own density or by the model's."""
    entries = group.non_base
    vectors = [task_vector(entry, group.base) for entry in entries]
    if parameters["trim_scope"] is not Scope.MODEL or surveyed is None:
        per_tensor_only("trim_scope", parameters["trim_scope"])
        densities = parameters["density"].values_for(entries)
        return [trim(v, density) for v, density in zip(vectors, densities, strict=True)]
    found: Thresholds = surveyed.found
    quotas = found.quotas(surveyed.number)
    places = [surveyed.place(entry.id) for entry in entries]
    return [
        trim_at(vector, int(found.magnitudes[place]), int(quotas[place]))
        for vector, place in zip(vectors, places, strict=True)
    ]


def ties_vector(
    group: TensorGroup, parameters: Mapping[str, Any], surveyed: Surveyed | None = None
) -> torch.Tensor:
    """Return the merged task vector of a group in working precision, before any scaling."""
    entries = group.non_base
    vectors = trimmed(group, parameters, surveyed)
    weights = parameters["weight"].values_for(entries)
    return elect_and_average(vectors, weights, normalize=parameters["normalize"])


class OmniTies(TrimmedTogether, GroupMergeMethod):
    """θ = θ₀ + λ·TIES(τ₁…τₙ), computed in float32 and rounded once."""

    spec = MergeMethodSpec(
        name="omni_ties",
        pretty_name="TIES (exact)",
        reference_url="https://arxiv.org/abs/2306.01708",
        contract=FROM_BASE,
        optional_tensor_policy=OptionalTensorPolicy.PASSTHROUGH_BASE_SINGLETON,
        parameters=(
            *TRIM_PARAMETERS,
            ParameterSpec("lambda", float, ParameterScope.SHARED, 1.0, "scale of the result, λ"),
        ),
    )

    def merge_group(
        self, group: TensorGroup, /, *, surveyed: Surveyed | None = None, **parameters: Any
    ) -> torch.Tensor:
        """Merge one tensor group; all inputs and the result have one shape and dtype.

        Raises:
            ValueError: ``trim_scope: model`` was asked of an engine without a first pass.
        """
        base = group.base
        merged = parameters["lambda"] * ties_vector(group, parameters, surveyed)
        return (working(base.tensor) + merged).to(base.tensor.dtype)


METHOD = OmniTies()
