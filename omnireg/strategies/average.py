"""Plain and weighted averaging of the models (arXiv 2506.01872, Eq. 1, with its missing 1/N)."""

from typing import Any

import torch
from mergekit.merge_methods import (
    BasePolicy,
    GroupMergeMethod,
    InputContract,
    MergeMethodSpec,
    OptionalTensorPolicy,
    ParameterScope,
    TensorGroup,
)
from mergekit.merge_methods.base import ParameterSpec

from omnireg.strategies.task_vectors import working


class Average(GroupMergeMethod):
    """θ = Σ wᵢθᵢ / Σ wᵢ over the models; the base counts only with ``include_base``."""

    spec = MergeMethodSpec(
        name="average",
        pretty_name="Average",
        reference_url="https://arxiv.org/abs/2506.01872",
        contract=InputContract(base=BasePolicy.OPTIONAL, min_inputs=2),
        optional_tensor_policy=OptionalTensorPolicy.PASSTHROUGH_SINGLETON,
        parameters=(
            ParameterSpec("weight", float, ParameterScope.INPUT, 1.0, "how much an input counts"),
            ParameterSpec(
                "normalize", bool, ParameterScope.SHARED, True, "divide by the sum of the weights"
            ),
            ParameterSpec(
                "include_base", bool, ParameterScope.SHARED, False, "count the base as an input"
            ),
        ),
    )

    def merge_group(self, group: TensorGroup, /, **parameters: Any) -> torch.Tensor:
        """Average one tensor group; all inputs and the result have one shape and dtype.

        Raises:
            ValueError: the weights sum to zero and are to be normalised.
        """
        entries = group.entries if parameters["include_base"] else group.non_base
        weights = parameters["weight"].values_for(entries)
        first = working(entries[0].tensor)
        if not parameters["normalize"]:
            total = weights[0] * first
            for weight, entry in zip(weights[1:], entries[1:], strict=True):
                total += weight * working(entry.tensor)
            return total.to(entries[0].tensor.dtype)
        if sum(weights) == 0:
            raise ValueError("average: the weights sum to zero; set normalize: false or weights")
        # The mean as an offset from the first input: equal inputs come back bit for bit.
        offset = torch.zeros_like(first)
        for weight, entry in zip(weights[1:], entries[1:], strict=True):
            offset += weight * (working(entry.tensor) - first)
        return (first + offset / sum(weights)).to(entries[0].tensor.dtype)


METHOD = Average()
