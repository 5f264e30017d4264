"""TALL-masks and consensus merging (Wang et al., 2024, arXiv 2405.07813).

τ★ = Σ wᵢτᵢ is rounded to the checkpoints' dtype, and that tensor is what masks compare with. A
model is localised by mᵢ = 1 where |τᵢ| > λᵢ|τ★ − τᵢ| (the authors' code; the paper writes ≥).
Consensus merging keeps what is in at least k masks: θ₀ + α·(1[Σ mᵢ ≥ k]∘τ★).
"""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from mergekit.merge_methods import (
    GroupMergeMethod,
    MergeMethodSpec,
    OptionalTensorPolicy,
    ParameterScope,
    TensorGroup,
)
from mergekit.merge_methods.base import ParameterSpec
from pydantic import Field

from omnireg.hookspecs import Decoupling, ListedModel, Rescaling, Surveyed
from omnireg.strategies.task_vectors import (
    FROM_BASE,
    NonNegative,
    choose_index,
    task_vector,
    working,
)

Count = Annotated[int, Field(ge=0)]


def tall_mask(vector: torch.Tensor, merged: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return where a model is in τ★: |τᵢ| > λ|τ★ − τᵢ|, boolean, within the support of τ★."""
    return (vector.abs() > threshold * (merged - vector).abs()) & (merged != 0)


class Consensus(GroupMergeMethod):
    """θ₀ + α·(consensus∘τ★), or θ₀ + mᵢ∘τ★ for ``mask_of``."""

    spec = MergeMethodSpec(
        name="consensus",
        pretty_name="Consensus merging",
        reference_url="https://arxiv.org/abs/2405.07813",
        contract=FROM_BASE,
        optional_tensor_policy=OptionalTensorPolicy.PASSTHROUGH_BASE_SINGLETON,
        parameters=(
            ParameterSpec("weight", float, ParameterScope.NON_BASE, 1.0, "wᵢ of Σ wᵢτᵢ"),
            ParameterSpec(
                "mask_lambda", NonNegative, ParameterScope.NON_BASE, 0.4, "λᵢ, higher keeps fewer"
            ),
            ParameterSpec(
                "least", Count, ParameterScope.SHARED, 2, "in how many masks an element must be, k"
            ),
            ParameterSpec("scale", float, ParameterScope.SHARED, 0.3, "scale of the merge, α"),
            ParameterSpec(
                "mask_of",
                ListedModel | None,
                ParameterScope.SHARED,
                None,
                "the listed model to localise, without α",
            ),
        ),
    )

    def merge_group(self, group: TensorGroup, /, **parameters: Any) -> torch.Tensor:
        """Merge one tensor group; all inputs and the result have one shape and dtype.

        Raises:
            ValueError: ``mask_of`` names no listed model.
        """
        stored, found = self.side_outputs(group, parameters)
        merged, chosen = working(stored), parameters["mask_of"]
        if chosen is not None:
            refs = [str(entry.id) for entry in group.non_base]
            kept = list(found.values())[choose_index(chosen, refs)].mask
            change = torch.where(kept, merged, 0)
        else:
            # of a tensor that fewer models have, all of them are enough
            least = min(parameters["least"], len(found))
            votes = torch.stack([model.mask for model in found.values()]).sum(0)
            change = parameters["scale"] * torch.where(votes >= least, merged, 0)
        return (working(group.base.tensor) + change).to(group.base.tensor.dtype)

    def side_outputs(
        self, group: TensorGroup, parameters: Mapping[str, Any], surveyed: Surveyed | None = None
    ) -> tuple[torch.Tensor, dict[str, Decoupling]]:
        """See :class:`omnireg.hookspecs.DecouplingStrategy`."""
        vectors = {entry.id: task_vector(entry, group.base) for entry in group.non_base}
        weighted = [parameters["weight"][ref] * vector for ref, vector in vectors.items()]
        stored = torch.stack(weighted).sum(0).to(group.base.tensor.dtype)
        merged = working(stored)
        return stored, {
            str(ref): Decoupling(vector, tall_mask(vector, merged, parameters["mask_lambda"][ref]))
            for ref, vector in vectors.items()
        }

    def rescaling(self, parameters: Mapping[str, Any]) -> Rescaling | None:
        """See :class:`omnireg.hookspecs.DecouplingStrategy`."""
        return None


METHOD = Consensus()
