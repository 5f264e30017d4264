"""EMR-Merging (Huang et al., 2024, arXiv 2405.17461): elect, mask, rescale.

Elect: γ = sign(Σ τᵢ); τ★ has that sign and, element by element, the largest |τᵢ| of those vectors
that share it. Mask: mᵢ = 1 where τᵢ and τ★ have the same sign. Rescale: λᵢ = Σ|τᵢ| / Σ|mᵢ∘τ★|, one
number for each model. Model i is θ₀ + λᵢ·(mᵢ∘τ★).

Two habits of the authors' released code are not followed. It takes a sum of exactly zero for
negative; here it elects nothing, so the result does not depend on the sign of every vector. And it
adds up means over tensors where the paper's formula adds up elements, so that a bias would weigh as
much as a matrix; here elements are added up, as in the paper.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
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

from omnireg.hookspecs import (
    Decoupling,
    ListedModel,
    Rescaling,
    Scope,
    Surveyed,
)
from omnireg.strategies.task_vectors import (
    FROM_BASE,
    absolute_sum,
    choose_index,
    per_tensor_only,
    span_sums,
    task_vector,
    working,
)


def elect(vectors: list[torch.Tensor]) -> torch.Tensor:
    """Return τ★: the elected sign with the largest magnitude among vectors that have it."""
    sign = torch.stack(vectors).sum(0).sign()
    largest = torch.zeros_like(sign)
    for vector in vectors:
        largest = torch.maximum(largest, torch.where(vector * sign > 0, vector.abs(), 0))
    return largest * sign


@dataclass(frozen=True)
class Sums:
    """Σ|τᵢ| and Σ|mᵢ∘τ★| of the chosen model over all tensors."""

    whole: float
    kept: float

    @property
    def factor(self) -> float:
        """λᵢ; 1 where nothing is kept."""
        return self.whole / self.kept if self.kept else 1.0


class Norms:
    """Adds both sums up, tensor by tensor."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._sums: tuple[list[float], list[float]] = ([], [])

    def add(self, observation: tuple[list[float], list[float]]) -> None:
        """Take in the sums of one tensor's spans."""
        for known, new in zip(self._sums, observation, strict=True):
            known += new

    def result(self) -> Sums:
        """Return both sums."""
        return Sums(*(math.fsum(sums) for sums in self._sums))


class Emr(GroupMergeMethod):
    """θ₀ + λᵢ·(mᵢ∘τ★) for ``mask_of``, θ₀ + τ★ without it."""

    spec = MergeMethodSpec(
        name="emr",
        pretty_name="EMR-Merging",
        reference_url="https://arxiv.org/abs/2405.17461",
        contract=FROM_BASE,
        optional_tensor_policy=OptionalTensorPolicy.PASSTHROUGH_BASE_SINGLETON,
        parameters=(
            ParameterSpec(
                "rescale", bool, ParameterScope.SHARED, True, "scale masked vectors by λᵢ"
            ),
            ParameterSpec(
                "rescale_scope",
                Scope,
                ParameterScope.SHARED,
                Scope.MODEL,
                "one λᵢ per model (the paper) or per tensor",
            ),
            ParameterSpec(
                "mask_of",
                ListedModel | None,
                ParameterScope.SHARED,
                None,
                "the listed model to decouple; θ₀ + τ★ when unset",
            ),
        ),
    )

    def survey(self, known: Surveyed, parameters: Mapping[str, Any]) -> Norms | None:
        """See :class:`omnireg.hookspecs.Surveying`."""
        wanted = parameters["mask_of"] is not None and _whole_model(parameters)
        return Norms() if wanted and known.found is None else None

    def observe(
        self, survey: Norms, group: TensorGroup, known: Surveyed, parameters: Mapping[str, Any]
    ) -> Any:
        """See :class:`omnireg.hookspecs.Surveying`."""
        if parameters["mask_of"] not in [str(entry.id) for entry in group.non_base]:
            return [], []
        vector, masked = self._masked(group, parameters)
        return span_sums(vector, 1), span_sums(masked, 1)

    def merge_group(
        self, group: TensorGroup, /, *, surveyed: Surveyed | None = None, **parameters: Any
    ) -> torch.Tensor:
        """Merge one tensor group; all inputs and the result have one shape and dtype.

        Raises:
            ValueError: one λᵢ per model was asked of an engine without a first pass, or ``mask_of``
                names no listed model.
        """
        if parameters["mask_of"] is None:
            change = working(self._merged(group))
        else:
            vector, masked = self._masked(group, parameters)
            change = self._factor(vector, masked, surveyed, parameters) * masked
        return (working(group.base.tensor) + change).to(group.base.tensor.dtype)

    def side_outputs(
        self, group: TensorGroup, parameters: Mapping[str, Any], surveyed: Surveyed | None = None
    ) -> tuple[torch.Tensor, dict[str, Decoupling]]:
        """See :class:`omnireg.hookspecs.DecouplingStrategy`."""
        merged = self._merged(group)
        found = {}
        for entry in group.non_base:
            vector = task_vector(entry, group.base)
            found[str(entry.id)] = Decoupling(vector, vector * working(merged) > 0)
        return merged, found

    def rescaling(self, parameters: Mapping[str, Any]) -> Rescaling | None:
        """See :class:`omnireg.hookspecs.DecouplingStrategy`."""
        return Rescaling(1, parameters["rescale_scope"]) if parameters["rescale"] else None

    @staticmethod
    def _merged(group: TensorGroup) -> torch.Tensor:
        """Return τ★ as it is stored, in the group's dtype."""
        vectors = [task_vector(entry, group.base) for entry in group.non_base]
        return elect(vectors).to(group.base.tensor.dtype)

    def _masked(
        self, group: TensorGroup, parameters: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return τᵢ and mᵢ∘τ★ of the chosen model."""
        refs = [str(entry.id) for entry in group.non_base]
        entry = group.non_base[choose_index(parameters["mask_of"], refs)]
        vector, merged = task_vector(entry, group.base), working(self._merged(group))
        return vector, torch.where(vector * merged > 0, merged, 0)

    @staticmethod
    def _factor(
        vector: torch.Tensor,
        masked: torch.Tensor,
        surveyed: Surveyed | None,
        parameters: Mapping[str, Any],
    ) -> float:
        if not parameters["rescale"]:
            return 1.0
        if surveyed is not None and surveyed.found is not None:
            return float(surveyed.found.factor)
        per_tensor_only("rescale_scope", parameters["rescale_scope"])
        return Sums(absolute_sum(vector), absolute_sum(masked)).factor


def _whole_model(parameters: Mapping[str, Any]) -> bool:
    return bool(parameters["rescale"]) and parameters["rescale_scope"] is Scope.MODEL


METHOD = Emr()
