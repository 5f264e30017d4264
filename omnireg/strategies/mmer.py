"""MMER: merge, then decouple with binary masks (arXiv 2505.17110).

τ★ = α·TIES(τ₁…τₙ) is rounded to the checkpoints' dtype and *that* tensor defines every model, so
the plain method, an extraction and a package give the same bits. Model i is θ̂ᵢ = θ₀ + mᵢ∘τ★ with
mᵢ = 1 where τᵢ and τ★ agree in sign and |τᵢ| is significant. Where the paper puts λᵢ is not known
to us: both readings are offered, neither is claimed to be the letter of the paper.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
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

from omnireg.hookspecs import Decoupling, ListedModel, Rescaling, Scope, Surveyed
from omnireg.strategies.task_vectors import (
    FROM_BASE,
    NonNegative,
    absolute_sum,
    choose_index,
    per_tensor_only,
    span_sums,
    task_vector,
    working,
)
from omnireg.strategies.ties import TRIM_PARAMETERS, TrimmedTogether, ties_vector


class MaskRule(StrEnum):
    """Dominant significance: against τ★ (``ratio``) or against the distance to it."""

    RATIO = "ratio"
    DISTANCE = "distance"


class Rescale(StrEnum):
    """The norm of τᵢ that a masked vector is scaled back to; ours, beyond the paper."""

    NONE = "none"
    L1 = "l1"
    L2 = "l2"


#: the norm of a rescaling
POWER = {Rescale.L1: 1, Rescale.L2: 2}
#: where the mask minimises ‖θ̂ᵢ − θᵢ‖₁ element by element
OPTIMAL_LAMBDA = {MaskRule.RATIO: 0.5, MaskRule.DISTANCE: 1.0}


def merged_task_vector(
    group: TensorGroup, parameters: Mapping[str, Any], surveyed: Surveyed | None = None
) -> torch.Tensor:
    """Return τ★ as it is stored: scaled, in the group's dtype."""
    merged = parameters["scale"] * ties_vector(group, parameters, surveyed)
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
    power = POWER[rescale]
    whole, kept = absolute_sum(vector, power), absolute_sum(masked, power)
    return float((whole / kept) ** (1 / power)) if kept else 1.0


@dataclass(frozen=True)
class Norms:
    """‖τᵢ‖ₚᵖ and ‖mᵢ∘τ★‖ₚᵖ of the chosen model, beside the thresholds of an earlier survey."""

    thresholds: Any
    whole: float
    kept: float


class NormSums:
    """Adds up both norms of the chosen model over all tensors."""

    def __init__(self, thresholds: Any) -> None:
        """Keep what earlier surveys found."""
        self.thresholds = thresholds
        self._sums: tuple[list[float], list[float]] = ([], [])

    def add(self, observation: tuple[list[float], list[float]]) -> None:
        """Take in the sums of one tensor's spans."""
        for known, new in zip(self._sums, observation, strict=True):
            known += new

    def result(self) -> Norms:
        """Return the norms of the whole model."""
        return Norms(self.thresholds, *(math.fsum(sums) for sums in self._sums))


class Mmer(TrimmedTogether, GroupMergeMethod):
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

    def survey(self, known: Surveyed, parameters: Mapping[str, Any]) -> Any:
        """See :class:`omnireg.hookspecs.Surveying`."""
        if isinstance(known.found, Norms):
            return None
        trim = super().survey(known, parameters)
        if trim is None and _rescales_together(parameters):
            return NormSums(known.found)
        return trim

    def observe(
        self, survey: Any, group: TensorGroup, known: Surveyed, parameters: Mapping[str, Any]
    ) -> Any:
        """See :class:`omnireg.hookspecs.Surveying`."""
        if not isinstance(survey, NormSums):
            return super().observe(survey, group, known, parameters)
        if parameters["mask_of"] not in [str(e.id) for e in group.non_base]:
            return [], []
        vector, masked = self._masked(group, self._change(group, parameters, known), parameters)
        power = POWER[parameters["rescale"]]
        return span_sums(vector, power), span_sums(masked, power)

    def merge_group(
        self, group: TensorGroup, /, *, surveyed: Surveyed | None = None, **parameters: Any
    ) -> torch.Tensor:
        """Merge one tensor group; all inputs and the result have one shape and dtype.

        Raises:
            ValueError: a whole-model scope was asked of an engine without a first pass, or
                ``mask_of`` names no listed model.
        """
        base = group.base
        norms = surveyed.found if surveyed and isinstance(surveyed.found, Norms) else None
        if norms is None and parameters["rescale"] is not Rescale.NONE:
            per_tensor_only("rescale_scope", parameters["rescale_scope"])
        change = self._change(group, parameters, surveyed)
        if parameters["mask_of"] is not None:
            vector, masked = self._masked(group, change, parameters)
            if norms:
                power = POWER[parameters["rescale"]]
                factor = (norms.whole / norms.kept) ** (1 / power) if norms.kept else 1.0
            else:
                factor = rescale_factor(vector, masked, parameters["rescale"])
            change = factor * masked
        return (working(base.tensor) + change).to(base.tensor.dtype)

    def side_outputs(
        self, group: TensorGroup, parameters: Mapping[str, Any], surveyed: Surveyed | None = None
    ) -> tuple[torch.Tensor, dict[str, Decoupling]]:
        """See :class:`omnireg.hookspecs.DecouplingStrategy`."""
        merged = merged_task_vector(group, parameters, surveyed)
        change = working(merged)
        return merged, {
            str(entry.id): self._decoupling(group, change, entry, parameters)
            for entry in group.non_base
        }

    def rescaling(self, parameters: Mapping[str, Any]) -> Rescaling | None:
        """See :class:`omnireg.hookspecs.DecouplingStrategy`."""
        if parameters["rescale"] is Rescale.NONE:
            return None
        return Rescaling(POWER[parameters["rescale"]], parameters["rescale_scope"])

    def _change(
        self, group: TensorGroup, parameters: Mapping[str, Any], surveyed: Surveyed | None
    ) -> torch.Tensor:
        if surveyed and isinstance(surveyed.found, Norms):
            surveyed = replace(surveyed, found=surveyed.found.thresholds)
        return working(merged_task_vector(group, parameters, surveyed))

    def _masked(
        self, group: TensorGroup, merged: torch.Tensor, parameters: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return τᵢ and mᵢ∘τ★ of the chosen model."""
        names = [str(e.id) for e in group.non_base]
        entry = group.non_base[choose_index(parameters["mask_of"], names)]
        found = self._decoupling(group, merged, entry, parameters)
        return found.vector, torch.where(found.mask, merged, 0)

    @staticmethod
    def _decoupling(
        group: TensorGroup, merged: torch.Tensor, entry: TensorEntry, parameters: Mapping[str, Any]
    ) -> Decoupling:
        vector = task_vector(entry, group.base)
        keep = mask(
            vector,
            merged,
            rule=parameters["mask_rule"],
            threshold=parameters["mask_lambda"][entry.id],
            directional=parameters["directional"],
        )
        return Decoupling(vector, keep)


def _rescales_together(parameters: Mapping[str, Any]) -> bool:
    return (
        parameters["rescale"] is not Rescale.NONE
        and parameters["rescale_scope"] is Scope.MODEL
        and parameters["mask_of"] is not None
    )


METHOD = Mmer()
