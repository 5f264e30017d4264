"""MMER: merge, then decouple with binary masks (arXiv 2505.17110).

τ★ = α·TIES(τ₁…τₙ) is rounded to the checkpoints' dtype and *that* tensor defines every model, so
the plain method, an extraction and a package give the same bits. Model i is θ̂ᵢ = θ₀ + mᵢ∘τ★ with
mᵢ = 1 where τᵢ and τ★ agree in sign and |τᵢ| is significant. Where the paper puts λᵢ is not known
to us: both readings are offered, neither is claimed to be the letter of the paper.
"""

import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from mergekit.merge_methods import (
    GroupMergeMethod,
    MergeMethodSpec,
    OptionalTensorPolicy,
    ParameterScope,
    TensorEntry,
    TensorGroup,
)
from mergekit.merge_methods.base import ParameterSpec

from omnireg.hookspecs import ListedModel, Scope
from omnireg.strategies.task_vectors import (
    FROM_BASE,
    NonNegative,
    absolute_sum,
    per_tensor_only,
    task_vector,
    working,
)
from omnireg.strategies.ties import TRIM_PARAMETERS, ties_vector


class MaskRule(StrEnum):
    """Dominant significance: against τ★ (``ratio``) or against the distance to it."""

    RATIO = "ratio"
    DISTANCE = "distance"


class Rescale(StrEnum):
    """The norm of τᵢ that a masked vector is scaled back to; ours, beyond the paper."""

    NONE = "none"
    L1 = "l1"
    L2 = "l2"


#: where the mask minimises ‖θ̂ᵢ − θᵢ‖₁ element by element
OPTIMAL_LAMBDA = {MaskRule.RATIO: 0.5, MaskRule.DISTANCE: 1.0}


def merged_task_vector(group: TensorGroup, parameters: dict[str, Any]) -> torch.Tensor:
    """Return τ★ as it is stored: scaled, in the group's dtype."""
    merged = parameters["scale"] * ties_vector(group, parameters)
    return merged.to(group.base.tensor.dtype)


def mask(
    vector: torch.Tensor,
    merged: torch.Tensor,
    *,
    rule: MaskRule,
    threshold: float | None,
    directional: bool,
) -> torch.Tensor:
    """Return the boolean mask of one model, all within the support of τ★.

    Args:
        vector: τᵢ, untrimmed and unweighted, in working precision.
        merged: τ★ as stored, in working precision, same shape.
        rule: ``ratio`` |τᵢ| ≥ λ|τ★|, or ``distance`` |τᵢ| ≥ λ|τ★ − τᵢ|.
        threshold: λ; the L1 optimum of the rule when None. Higher keeps fewer.
        directional: require equal signs (False is the paper's ablation).
    """
    threshold = OPTIMAL_LAMBDA[rule] if threshold is None else threshold
    yardstick = merged if rule is MaskRule.RATIO else merged - vector
    keep = (vector.abs() >= threshold * yardstick.abs()) & (merged != 0)
    return keep & (vector.sign() == merged.sign()) if directional else keep


def rescale_factor(vector: torch.Tensor, masked: torch.Tensor, rescale: Rescale) -> float:
    """Return sᵢ = ‖τᵢ‖ₚ / ‖mᵢ∘τ★‖ₚ, or 1 where the masked vector is zero."""
    if rescale is Rescale.NONE:
        return 1.0
    power = 1 if rescale is Rescale.L1 else 2
    whole, kept = absolute_sum(vector, power), absolute_sum(masked, power)
    return float((whole / kept) ** (1 / power)) if kept else 1.0


def choose(name: str, entries: Sequence[TensorEntry]) -> TensorEntry | None:
    """Return the entry that ``name`` lists, comparing folders by where they are."""
    wanted = _normalised(name)
    return next((entry for entry in entries if _normalised(str(entry.id)) == wanted), None)


def _normalised(name: str) -> str:
    return os.path.realpath(Path(name).expanduser()) if Path(name).expanduser().exists() else name


class Mmer(GroupMergeMethod):
    """θ₀ + mᵢ∘τ★ for ``mask_of``, θ₀ + τ★ without it."""

    spec = MergeMethodSpec(
        name="mmer",
        pretty_name="MMER",
        reference_url="https://arxiv.org/abs/2505.17110",
        contract=FROM_BASE,
        optional_tensor_policy=OptionalTensorPolicy.PASSTHROUGH_BASE_SINGLETON,
        parameters=(
            *TRIM_PARAMETERS,
            ParameterSpec("scale", float, ParameterScope.SHARED, 1.0, "scale of τ★, α"),
            ParameterSpec(
                "mask_lambda",
                NonNegative | None,
                ParameterScope.NON_BASE,
                None,
                "λᵢ, higher keeps fewer; 0.5 (ratio) or 1 (distance) when unset",
            ),
            ParameterSpec(
                "mask_rule",
                MaskRule,
                ParameterScope.SHARED,
                MaskRule.RATIO,
                "|τᵢ| ≥ λ|τ★| or |τᵢ| ≥ λ|τ★ − τᵢ|",
            ),
            ParameterSpec("directional", bool, ParameterScope.SHARED, True, "require equal signs"),
            ParameterSpec(
                "rescale",
                Rescale,
                ParameterScope.SHARED,
                Rescale.NONE,
                "scale mᵢ∘τ★ to the norm of τᵢ (ours, beyond the paper)",
            ),
            ParameterSpec(
                "rescale_scope",
                Scope,
                ParameterScope.SHARED,
                Scope.TENSOR,
                "one scale per tensor or per model",
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

    def merge_group(self, group: TensorGroup, /, **parameters: Any) -> torch.Tensor:
        """Merge one tensor group; all inputs and the result have one shape and dtype.

        Raises:
            ValueError: a whole-model scope was asked of an engine without a first pass, or
                ``mask_of`` names no listed model.
        """
        base, name = group.base, parameters["mask_of"]
        if parameters["rescale"] is not Rescale.NONE:
            per_tensor_only("rescale_scope", parameters["rescale_scope"])
        change = working(merged_task_vector(group, parameters))
        if name is not None:
            change = self._decoupled(group, name, change, parameters)
        return (working(base.tensor) + change).to(base.tensor.dtype)

    def _decoupled(
        self, group: TensorGroup, name: str, merged: torch.Tensor, parameters: dict[str, Any]
    ) -> torch.Tensor:
        entry = choose(name, group.non_base)
        if entry is None:
            listed = ", ".join(str(e.id) for e in group.non_base)
            raise ValueError(f"mask_of: {name!r} is not a listed model; choose one of: {listed}")
        vector = task_vector(entry, group.base)
        keep = mask(
            vector,
            merged,
            rule=parameters["mask_rule"],
            threshold=parameters["mask_lambda"][entry.id],
            directional=parameters["directional"],
        )
        masked = torch.where(keep, merged, 0)
        return rescale_factor(vector, masked, parameters["rescale"]) * masked


METHOD = Mmer()
