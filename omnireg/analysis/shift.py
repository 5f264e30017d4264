"""How far models moved from their base, and how much they get in each other's way.

Δavg = mean |θᵢ − θ₀| (arXiv 2506.01872, Eq. 3), per tensor, layer, kind of module and model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from omnireg.analysis.vectors import Sums, Vectors
from omnireg.backbones.alignment import LAYER
from omnireg.plugins.host import PluginHost


@dataclass(frozen=True)
class ModelShift:
    """One model's shift from the base.

    Attributes:
        name: the model, as it was named.
        delta_avg: mean |θᵢ − θ₀| over all elements.
        relative: ‖τᵢ‖₂ / ‖θ₀‖₂.
        largest: max |θᵢ − θ₀|.
        moved: share of the elements that are not where the base has them.
        layers: Δavg of each layer, in order.
        modules: Δavg by kind of module, such as ``self_attn.q_proj.weight``.
        tensors: Δavg by tensor.
        norms: ‖τᵢ‖₂ by tensor.
    """

    name: str
    delta_avg: float
    relative: float
    largest: float
    moved: float
    layers: tuple[float, ...]
    modules: dict[str, float]
    tensors: dict[str, float]
    norms: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the model's part of the JSON object of ``analyze shift``."""
        return {
            "name": self.name,
            "delta_avg": self.delta_avg,
            "relative": self.relative,
            "largest": self.largest,
            "moved": self.moved,
            "layers": list(self.layers),
            "modules": self.modules,
            "tensors": self.tensors,
        }


@dataclass(frozen=True)
class PairShift:
    """Two task vectors beside each other.

    Attributes:
        models: their names.
        cosine: cos(τᵢ, τⱼ); None where one of them is 0.
        sign_agreement: of the elements that both move, the share moved in the same direction.
        layers: cos(τᵢ, τⱼ) of each layer.
    """

    models: tuple[str, str]
    cosine: float | None
    sign_agreement: float | None
    layers: tuple[float | None, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the pair's part of the JSON object of ``analyze shift``."""
        return {
            "models": list(self.models),
            "cosine": self.cosine,
            "sign_agreement": self.sign_agreement,
            "layers": list(self.layers),
        }


@dataclass(frozen=True)
class Shift:
    """What one pass over a base and its models found.

    Attributes:
        base: the base, as it was named.
        numel: number of elements of the shared language model.
        models: in the order that they were named in.
        pairs: every two of them.
        conflict: of the elements that any model moves, the share that some move up and others
            down; a merge has to let one of them down there.
        conflict_by_layer: the same for each layer.
    """

    base: str
    numel: int
    models: tuple[ModelShift, ...]
    pairs: tuple[PairShift, ...]
    conflict: float
    conflict_by_layer: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``analyze shift``."""
        return {
            "base": self.base,
            "numel": self.numel,
            "models": [model.to_json() for model in self.models],
            "pairs": [pair.to_json() for pair in self.pairs],
            "conflict": self.conflict,
            "conflict_by_layer": list(self.conflict_by_layer),
        }


def shift(
    base: str,
    models: Sequence[str],
    *,
    threads: int | None = None,
    plugins: PluginHost | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Shift:
    """Compare models with their base in one pass; memory does not grow with them.

    Args:
        base: a folder or a Hub id.
        models: the same; hosts are compared by the language model that they share with the base.
        threads: how many to use; all cores when None. Changes no bit.
        plugins: where host layouts come from.
        tick: called with elements done, and of how many.

    Raises:
        OmniregError: a checkpoint is missing or damaged, holds NaN or Inf, or does not fit.
    """
    vectors = Vectors.of(base, models, plugins)
    count = len(models)
    total = Sums.none(count)
    layers: dict[int, Sums] = {}
    modules: dict[str, Sums] = {}
    tensors: dict[str, Sums] = {}
    for name, found in vectors.sums(threads=threads, tick=tick):
        tensors[name] = found
        total.add(found)
        layer, module = _place(name)
        modules.setdefault(module, Sums.none(count)).add(found)
        if layer is not None:
            layers.setdefault(layer, Sums.none(count)).add(found)
    in_order = [layers[number] for number in sorted(layers)]
    return Shift(
        base,
        total.numel,
        tuple(_model(name, i, total, in_order, modules, tensors) for i, name in enumerate(models)),
        tuple(_pair(models, pair, total, in_order) for pair in combinations(range(count), 2)),
        total.conflict,
        tuple(each.conflict for each in in_order),
    )


def _place(name: str) -> tuple[int | None, str]:
    """Return a tensor's layer and kind of module."""
    found = LAYER.search(name)
    if found is None:
        return None, name.removeprefix("model.")
    return int(found[1]), name[found.end() :]


def _model(
    name: str, i: int, total: Sums, layers: Sequence[Sums], modules: dict[str, Sums],
    tensors: dict[str, Sums],
) -> ModelShift:  # fmt: skip
    return ModelShift(
        name,
        float(total.delta_avg[i]),
        float(total.relative[i]),
        float(total.largest[i]),
        float(total.moved[i] / max(total.numel, 1)),
        tuple(float(each.delta_avg[i]) for each in layers),
        {module: float(each.delta_avg[i]) for module, each in modules.items()},
        {tensor: float(each.delta_avg[i]) for tensor, each in tensors.items()},
        {tensor: float(each.norms[i]) for tensor, each in tensors.items()},
    )


def _pair(
    models: Sequence[str], pair: tuple[int, int], total: Sums, layers: Sequence[Sums]
) -> PairShift:
    one, other = pair
    return PairShift(
        (models[one], models[other]),
        total.cosine(one, other),
        total.sign_agreement(one, other),
        tuple(each.cosine(one, other) for each in layers),
    )
