"""Δavg-weighted averaging (arXiv 2506.01872, Eq. 3 and 4)."""

import math
from collections import Counter, defaultdict
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
    Positive,
    UnitInterval,
    absolute_sum,
    per_tensor_only,
    span_sums,
    task_vector,
    working,
)


def softmax(shifts: Sequence[float], temperature: float) -> list[float]:
    """Weigh models by their shift, αᵢ ∝ exp(Δᵢ / T), in float64 (between Eq. 3 and 4)."""
    top = max(shifts)
    raised = [math.exp((shift - top) / temperature) for shift in shifts]
    return [value / math.fsum(raised) for value in raised]


class Shifts:
    """The mean |θᵢ − θ₀| of every model over all that is observed (Eq. 3), by its place."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._sums: defaultdict[int, list[float]] = defaultdict(list)

    def add(self, observation: Mapping[int, tuple[int, list[float]]]) -> None:
        """Take in the number of elements and the sums of their spans, by model."""
        for place, (count, sums) in observation.items():
            self._counts[place] += count
            self._sums[place] += sums

    def result(self) -> dict[int, float]:
        """Return Δᵢ by model."""
        return {
            place: math.fsum(sums) / max(self._counts[place], 1)
            for place, sums in self._sums.items()
        }


class DeltaWeighted(GroupMergeMethod):
    """θ = α₀θ₀ + (1−α₀) Σ αᵢθᵢ with αᵢ = softmax(mean|θᵢ−θ₀| / T).

    The defaults α₀ = 0.5 and T = 10⁻³ are those of the authors' released code; the paper's text
    states neither. Δ is taken in float32 whatever the checkpoints' dtype.
    """

    spec = MergeMethodSpec(
        name="delta_weighted",
        pretty_name="Δavg-weighted average",
        reference_url="https://arxiv.org/abs/2506.01872",
        contract=FROM_BASE,
        optional_tensor_policy=OptionalTensorPolicy.PASSTHROUGH_BASE_SINGLETON,
        parameters=(
            ParameterSpec(
                "alpha0", UnitInterval, ParameterScope.SHARED, 0.5, "share of the base, α₀"
            ),
            ParameterSpec(
                "temperature", Positive, ParameterScope.SHARED, 1e-3, "softmax temperature T"
            ),
            ParameterSpec(
                "scope", Scope, ParameterScope.SHARED, Scope.TENSOR, "one Δ per tensor or per model"
            ),
        ),
    )

    def survey(self, known: Surveyed, parameters: Mapping[str, Any]) -> Shifts | None:
        """See :class:`omnireg.hookspecs.Surveying`."""
        wanted = known.found is None and parameters["scope"] is Scope.MODEL
        return Shifts() if wanted else None

    def observe(
        self, survey: Shifts, group: TensorGroup, known: Surveyed, parameters: Mapping[str, Any]
    ) -> Any:
        """See :class:`omnireg.hookspecs.Surveying`."""
        vectors = {known.place(e.id): task_vector(e, group.base) for e in group.non_base}
        return {place: (vector.numel(), span_sums(vector)) for place, vector in vectors.items()}

    def merge_group(
        self, group: TensorGroup, /, *, surveyed: Surveyed | None = None, **parameters: Any
    ) -> torch.Tensor:
        """Merge one tensor group; all inputs and the result have one shape and dtype.

        Raises:
            ValueError: ``scope: model`` was asked of an engine without a first pass.
        """
        base, entries = group.base, group.non_base
        vectors = [task_vector(entry, base) for entry in entries]
        if surveyed is None or surveyed.found is None:
            per_tensor_only("scope", parameters["scope"])
            shifts = [absolute_sum(vector) / max(vector.numel(), 1) for vector in vectors]
        else:
            shifts = [surveyed.found[surveyed.place(entry.id)] for entry in entries]
        weights = softmax(shifts, parameters["temperature"])
        # Σαᵢ = 1, so α₀θ₀ + (1−α₀)Σαᵢθᵢ is θ₀ + (1−α₀)Σαᵢτᵢ, which is exact for τ = 0.
        shift = torch.zeros_like(vectors[0])
        for weight, vector in zip(weights, vectors, strict=True):
            shift += (1 - parameters["alpha0"]) * weight * vector
        return (working(base.tensor) + shift).to(base.tensor.dtype)


METHOD = DeltaWeighted()
