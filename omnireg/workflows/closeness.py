"""How close decoupled models come to the originals, from the weights alone.

For every setting, sums over all tensors of τᵢ and of sᵢ·(mᵢ∘τ★) are enough for every criterion. Of
a large tensor evenly spaced pieces are looked at; its trim is then that of the pieces.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mergekit.merge_methods import TensorEntry, TensorGroup
from mergekit.merge_methods.dtype import align_dtype

from omnireg.checkpoints.shards import ByteReader
from omnireg.engine.tensors import parameters_of
from omnireg.errors import ConfigError
from omnireg.hookspecs import Scope
from omnireg.planning import Merged, Plan
from omnireg.planning.parameters import Resolver, check_parameters
from omnireg.recipe import Recipe
from omnireg.strategies.mmer import Rescale, mask, rescale_factor
from omnireg.strategies.task_vectors import task_vector, working
from omnireg.strategies.ties import ties_vector

#: parameters that τ★ does not depend on, before its scale
_OF_MASKS = (
    "scale",
    "mask_lambda",
    "mask_rule",
    "directional",
    "rescale",
    "rescale_scope",
    "mask_of",
)
_PIECE = 4096


@dataclass(frozen=True)
class Closeness:
    """Sums over τ = τᵢ and k = sᵢ·(mᵢ∘τ★) of one model: |τ|, |τ−k|, τ², k², τ·k."""

    absolute: float = 0.0
    distance: float = 0.0
    square: float = 0.0
    kept: float = 0.0
    product: float = 0.0

    def __add__(self, other: "Closeness") -> "Closeness":
        mine, theirs = vars(self), vars(other)
        return Closeness(**{name: mine[name] + theirs[name] for name in mine})

    @property
    def l1(self) -> float:
        """1 − ‖τ − k‖₁ / ‖τ‖₁."""
        return 1 - self.distance / self.absolute if self.absolute else 1.0

    @property
    def l2(self) -> float:
        """1 − ‖τ − k‖₂ / ‖τ‖₂."""
        if not self.square:
            return 1.0
        left = max(self.square - 2 * self.product + self.kept, 0.0)
        return 1 - math.sqrt(left / self.square)

    @property
    def cosine(self) -> float:
        """cos(τ, k)."""
        length = math.sqrt(self.square * self.kept)
        return self.product / length if length else 0.0

    @property
    def fit(self) -> float:
        """cos(τ, k) − ½·|ln(‖k‖₂ / ‖τ‖₂)|: direction, and as much length as the original."""
        if not self.square or not self.kept:
            return -math.inf if self.square else 1.0
        return self.cosine - abs(math.log(self.kept / self.square)) / 4


def measure(
    plan: Plan,
    recipes: Sequence[Recipe],
    *,
    sample: int,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Closeness]]:
    """Return, for every recipe, how close each model comes, by reference.

    Args:
        plan: of one of them; they differ in parameters alone.
        recipes: the settings.
        sample: of how many elements of a tensor to look at; 0 for all.
        tick: called with tensors done, and of how many.

    Raises:
        ConfigError: a parameter cannot be right, or needs a pass over the whole model.
    """
    spec, order = plan.strategy.load().spec, [item.ref for item in plan.inputs]
    for recipe in recipes:
        check_parameters(recipe, spec, first_pass=True)
    resolvers = [Resolver(recipe, spec, order) for recipe in recipes]
    models = tuple(ref for ref in order if ref != plan.recipe.base_model)
    totals: list[dict[str, Closeness]] = [dict.fromkeys(models, Closeness()) for _ in recipes]
    read = ByteReader()
    for done, merged in enumerate(plan.merged.values()):
        group = _group(merged, plan, read, sample)
        weight = merged.sources[0].numel / group.base.tensor.numel()
        settings = [
            parameters_of(resolver.bind(merged.name, merged.position), plan.strategy.load(), models)
            for resolver in resolvers
        ]
        for total, found in zip(totals, _closeness(group, settings, weight), strict=True):
            for ref, closeness in found.items():
                total[ref] += closeness
        tick(done + 1, len(plan.merged))
    read.check()
    return totals


def _group(merged: Merged, plan: Plan, read: ByteReader, sample: int) -> Any:
    entries = tuple(
        TensorEntry(
            source.ref,
            _sampled(source.tensor(read).reshape(-1), sample),
            source.ref == plan.recipe.base_model,
        )
        for source in merged.sources
    )
    return align_dtype(TensorGroup(entries))


def _sampled(tensor: torch.Tensor, sample: int) -> torch.Tensor:
    """Return evenly spaced pieces of a flat tensor."""
    stride = tensor.numel() // sample if sample else 1
    if stride < 2:
        return tensor
    pieces = tensor[: tensor.numel() // _PIECE * _PIECE].view(-1, _PIECE)
    return pieces[::stride].reshape(-1)


def _closeness(
    group: Any, settings: Iterable[Mapping[str, Any]], weight: float
) -> list[dict[str, Closeness]]:
    vectors: dict[str, torch.Tensor] = {}
    own = {str(e.id): task_vector(e, group.base) for e in group.non_base}
    sizes = {ref: (_sum(v.abs()), _sum(v * v)) for ref, v in own.items()}
    found = []
    for parameters in settings:
        if parameters["trim_scope"] is Scope.MODEL or _rescaled_together(parameters):
            raise ConfigError(
                "calibrating without scores looks at one tensor at a time: use trim_scope: tensor"
                " and rescale_scope: tensor, or give a score"
            )
        key = repr({k: _plain(v) for k, v in parameters.items() if k not in _OF_MASKS})
        if key not in vectors:
            vectors[key] = ties_vector(group, parameters, None)
        stored = parameters["scale"] * vectors[key]
        merged = working(stored.to(group.base.tensor.dtype))
        found.append(
            {
                ref: _of_model(vector, merged, parameters, ref, sizes[ref], weight)
                for ref, vector in own.items()
            }
        )
    return found


def _of_model(
    vector: torch.Tensor, merged: torch.Tensor, parameters: Mapping[str, Any], ref: str,
    sizes: tuple[float, float], weight: float,
) -> Closeness:  # fmt: skip
    keep = mask(
        vector, merged, rule=parameters["mask_rule"], threshold=parameters["mask_lambda"][ref],
        directional=parameters["directional"],
    )  # fmt: skip
    kept = torch.where(keep, merged, 0)
    kept = rescale_factor(vector, kept, parameters["rescale"]) * kept
    absolute, square = sizes
    return Closeness(
        weight * absolute, weight * _sum((vector - kept).abs()), weight * square,
        weight * _sum(kept * kept), weight * _sum(vector * kept),
    )  # fmt: skip


def _rescaled_together(parameters: Mapping[str, Any]) -> bool:
    rescaled = parameters["rescale"] is not Rescale.NONE
    return rescaled and parameters["rescale_scope"] is Scope.MODEL


def _plain(value: Any) -> Any:
    return dict(value.items()) if hasattr(value, "items") else value


def _sum(tensor: torch.Tensor) -> float:
    return float(tensor.sum(dtype=torch.float64))
