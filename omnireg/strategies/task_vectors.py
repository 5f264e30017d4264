"""What the strategies share: float32 working copies, task vectors and the declared contracts.

Every strategy here computes in float32 (float64 for float64 inputs) whatever the checkpoints'
dtype is, and rounds once at the end. A tensor that one model lacks is left out and the weights of
the rest count for it; lacking in every model it is the base's; lacking in the base is an error.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from mergekit.merge_methods import BasePolicy, InputContract, TensorEntry
from pydantic import Field

from omnireg.hookspecs import Scope

Fraction = Annotated[float, Field(gt=0, le=1)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]

#: a base and at least one model that was fine-tuned from it
FROM_BASE = InputContract(base=BasePolicy.REQUIRED, min_inputs=2, min_non_base=1)

#: how many elements are added up before sums are combined, and what an engine hands out at once
SPAN = 1 << 22
LANES = 1024


def per_tensor_only(parameter: str, scope: Scope) -> None:
    """Refuse a whole-model statistic where only one tensor is in sight.

    Raises:
        ValueError: ``scope`` is ``model``.
    """
    if scope is Scope.MODEL:
        raise ValueError(
            f"{parameter}: model needs a first pass over all weights, which only the streaming"
            f" engine makes; use {parameter}: tensor with mergekit's engine"
        )


def working(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in the dtype the strategies compute in; never a view to write to."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def task_vector(entry: TensorEntry, base: TensorEntry) -> torch.Tensor:
    """Return τᵢ = θᵢ − θ₀ in working precision, same shape as the inputs."""
    return working(entry.tensor) - working(base.tensor)


def choose_index(name: str, refs: Sequence[str]) -> int:
    """Return which reference ``name`` means, comparing folders by where they are.

    Raises:
        ValueError: it is none of them.
    """
    places = [_normalised(ref) for ref in refs]
    if _normalised(name) not in places:
        listed = ", ".join(refs)
        raise ValueError(f"mask_of: {name!r} is not a listed model; choose one of: {listed}")
    return places.index(_normalised(name))


def _normalised(name: str) -> str:
    return os.path.realpath(Path(name).expanduser()) if Path(name).expanduser().exists() else name


def absolute_sum(tensor: torch.Tensor, power: int = 1) -> float:
    """Return Σ|x|ᵖ in float64, the same bits whatever the thread count."""
    return math.fsum(span_sums(tensor, power))


def span_sums(tensor: torch.Tensor, power: int = 1) -> list[float]:
    """Return Σ|x|ᵖ of every run of :data:`SPAN` elements, so that runs can be added up apart.

    Elements are added in storage order into 1024 interleaved accumulators, an order that a
    vectorised loop can keep; their exact sum is rounded once.
    """
    flat = tensor.detach().abs().reshape(-1).cpu().numpy()
    return [_span_sum(flat[i : i + SPAN], power) for i in range(0, flat.size, SPAN)]


def _span_sum(flat: Any, power: int) -> float:
    wide = flat.astype("float64") ** power
    whole = wide.size - wide.size % LANES
    lanes = wide[:whole].reshape(-1, LANES).sum(axis=0)
    lanes[: wide.size - whole] += wide[whole:]
    return math.fsum(lanes.tolist())
