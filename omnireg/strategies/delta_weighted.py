"""Δavg-weighted averaging (arXiv 2506.01872, Eq. 3 and 4)."""

import math
from collections.abc import Sequence
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

from omnireg.hookspecs import Scope
from omnireg.strategies.task_vectors import (
    FROM_BASE,
    Positive,
    UnitInterval,
    absolute_sum,
    per_tensor_only,
    task_vector,
    working,
)


def softmax(shifts: Sequence[float], temperature: float) -> list[float]:
    """Weigh models by their shift, αᵢ ∝ exp(Δᵢ / T), in float64 (between Eq. 3 and 4)."""
    top = max(shifts)
    raised = [math.exp((shift - top) / temperature) for shift in shifts]
    return [value / math.fsum(raised) for value in raised]


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

    def merge_group(self, group: TensorGroup, /, **parameters: Any) -> torch.Tensor:
        """Merge one tensor group; all inputs and the result have one shape and dtype.

        Raises:
            ValueError: ``scope: model`` was asked of an engine without a first pass.
        """
        per_tensor_only("scope", parameters["scope"])
        base, entries = group.base, group.non_base
        vectors = [task_vector(entry, base) for entry in entries]
        shifts = [absolute_sum(vector) / max(vector.numel(), 1) for vector in vectors]
        weights = softmax(shifts, parameters["temperature"])
        # Σαᵢ = 1, so α₀θ₀ + (1−α₀)Σαᵢθᵢ is θ₀ + (1−α₀)Σαᵢτᵢ, which is exact for τ = 0.
        shift = torch.zeros_like(vectors[0])
        for weight, vector in zip(weights, vectors, strict=True):
            shift += (1 - parameters["alpha0"]) * weight * vector
        return (working(base.tensor) + shift).to(base.tensor.dtype)


METHOD = DeltaWeighted()
