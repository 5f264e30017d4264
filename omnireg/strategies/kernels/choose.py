"""Which merges have a compiled pass: a method, its parameters and its inputs in, a kernel out.

A kernel is only offered where it gives the bits that the method's torch code gives. Everything
else, NaN and Inf included, is the torch code's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from mergekit.merge_methods import GeneralizedTaskArithmeticMerge, MergeMethod
from mergekit.merge_methods.generalized_task_arithmetic import ConsensusMethod
from mergekit.merge_methods.linear import linear_merge
from mergekit.sparsify import SparsificationMethod

from omnireg.hookspecs import Scope
from omnireg.strategies.average import Average
from omnireg.strategies.delta_weighted import DeltaWeighted
from omnireg.strategies.kernels import fused
from omnireg.strategies.kernels.fused import Chunk, Fused, Trim
from omnireg.strategies.mmer import OPTIMAL_LAMBDA, MaskRule, Mmer, Rescale
from omnireg.strategies.task_vectors import choose_index
from omnireg.strategies.thresholds import Kind
from omnireg.strategies.ties import OmniTies

KINDS = {"BF16": Kind.BF16, "F16": Kind.F16, "F32": Kind.F32}
_TORCH = {Kind.BF16: torch.bfloat16, Kind.F16: torch.float16, Kind.F32: torch.float32}
#: beyond so many models torch's order of addition depends on a tensor's shape and on threads
_MOST_ADDED_IN_ORDER = 3
_TASK_ARITHMETIC = (None, None)
_TIES = (ConsensusMethod.sum, SparsificationMethod.magnitude)


@dataclass(frozen=True)
class Tensor:
    """What a kernel must know of one merged tensor.

    Attributes:
        refs: the inputs that have it, in the recipe's order.
        everyone: all inputs of the recipe, in order.
        base: the base's reference; None without one.
        shared, per_input: the method's parameters.
        side_outputs: τ★ and masks are wanted instead of a merged tensor (MMER).
    """

    kind: Kind
    numel: int
    refs: tuple[str, ...]
    everyone: tuple[str, ...]
    base: str | None
    shared: Mapping[str, Any]
    per_input: Mapping[str, Mapping[str, Any]]
    side_outputs: bool = False

    @property
    def models(self) -> tuple[str, ...]:
        """The inputs that are not the base."""
        return tuple(ref for ref in self.refs if ref != self.base)

    @property
    def base_index(self) -> int | None:
        """The base's place among the inputs."""
        return self.refs.index(self.base) if self.base in self.refs else None

    def values(self, parameter: str, refs: Sequence[str] | None = None) -> tuple[Any, ...]:
        """Return a parameter of each model, or of the inputs named."""
        wanted = self.models if refs is None else refs
        return tuple(self.per_input[ref][parameter] for ref in wanted)


def is_accelerated(method: MergeMethod) -> bool:
    """Whether a method has a compiled pass for its usual inputs."""
    return _builder(method) is not None


def fuse(method: MergeMethod, tensor: Tensor) -> Fused | None:
    """Return the compiled pass of a method over one tensor; None where only torch code will do."""
    build = _builder(method)
    complete = tensor.refs == tensor.everyone
    if build is None or tensor.numel == 0 or len(tensor.refs) < 2:
        return None
    if tensor.base is not None and tensor.base not in tensor.refs:
        return None
    if not complete and not type(method).__module__.startswith("omnireg."):
        return None
    made: Fused | None = build(method, tensor)
    return made


def _builder(method: MergeMethod) -> Any:
    if method is linear_merge:
        return _linear
    if type(method) is GeneralizedTaskArithmeticMerge:
        steps = (method.consensus_method, method.sparsification_method)
        return _arithmetic if steps in (_TASK_ARITHMETIC, _TIES) else None
    return {
        Average: _average, DeltaWeighted: _delta_weighted, OmniTies: _ties, Mmer: _mmer,
    }.get(type(method))  # fmt: skip


def _average(_: MergeMethod, tensor: Tensor) -> Fused | None:
    with_base = bool(tensor.shared["include_base"]) or tensor.base is None
    weights = tensor.values("weight", tensor.refs if with_base else tensor.models)
    if not tensor.shared["normalize"]:
        return fused.WeightedSum(weights, with_base, from_zero=False, fuse=False, total=None)
    return fused.Mean(weights, with_base) if sum(weights) else None


def _linear(_: MergeMethod, tensor: Tensor) -> Fused | None:
    weights = tensor.values("weight", tensor.refs)
    total = None
    if tensor.shared["normalize"]:
        total = float(torch.tensor([weights], dtype=torch.float32).sum(dim=1))
    made = [fused.WeightedSum(weights, True, True, fuse, total) for fuse in (True, False)]
    rounding = _linear_rounding()
    return None if total == 0 or rounding is None else made[0 if rounding else 1]


@cache
def _linear_rounding() -> bool | None:
    """Whether torch's ``addcmul`` rounds once or twice on this processor; None: neither, always."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(4099, generator=generator) for _ in range(3)]
    weights = (0.3, 0.9, 1.7)
    given = torch.tensor([weights], dtype=torch.float32)
    batch: Any = _Batch(tuple(tensor.unsqueeze(0) for tensor in inputs))
    wanted = linear_merge.implementation(batch, weight=given, normalize=False)
    chunk = Chunk(Kind.F32, 4099, tuple(tensor.numpy() for tensor in inputs), None)
    for fuse in (True, False):
        (found,) = fused.WeightedSum(weights, True, True, fuse, None).emit(chunk, None, 0)
        if np.array_equal(found, wanted.numpy().reshape(-1)):
            return fuse
    return None


@dataclass(frozen=True)
class _Batch:
    tensors: tuple[torch.Tensor, ...]


def _delta_weighted(_: MergeMethod, tensor: Tensor) -> Fused:
    return fused.DeltaWeighted(tensor.shared["alpha0"], tensor.shared["temperature"])


def _trim(tensor: Tensor) -> Trim:
    """A trim of one tensor is of the models that have it, one of the model of everyone."""
    everyone = tuple(ref for ref in tensor.everyone if ref != tensor.base)
    together = tensor.shared["trim_scope"] is Scope.MODEL
    return Trim(tensor.values("density", everyone if together else None))


def _ties(_: MergeMethod, tensor: Tensor) -> Fused:
    return fused.Ties(
        _trim(tensor),
        tensor.values("weight"),
        tensor.shared["normalize"],
        tensor.shared["lambda"],
    )


def _mmer(_: MergeMethod, tensor: Tensor) -> Fused | None:
    if tensor.shared["rescale"] is not Rescale.NONE:
        return None
    rule = tensor.shared["mask_rule"]
    lambdas = tensor.values("mask_lambda")
    chosen = tensor.shared["mask_of"]
    return fused.Mmer(
        _trim(tensor),
        tensor.values("weight"),
        tensor.shared["normalize"],
        tensor.shared["scale"],
        rule=0 if rule is MaskRule.RATIO else 1,
        lambdas=tuple(OPTIMAL_LAMBDA[rule] if given is None else given for given in lambdas),
        directional=tensor.shared["directional"],
        chosen=None if chosen is None else choose_index(chosen, tensor.models),
        side_outputs=tensor.side_outputs,
    )


def _arithmetic(method: GeneralizedTaskArithmeticMerge, tensor: Tensor) -> Fused | None:
    """Mergekit rounds weights and sums to the checkpoints' dtype; so do the scalars here."""
    shared, models = tensor.shared, len(tensor.models)
    if models > _MOST_ADDED_IN_ORDER or tensor.numel == 1 or shared["rescale"]:
        return None
    weights = torch.tensor(tensor.values("weight"), dtype=_TORCH[tensor.kind])
    divisor = weights.sum(dim=0)
    divisor = torch.ones_like(divisor) if divisor.abs() < 1e-8 else divisor
    trims = method.sparsification_method is not None
    return fused.Arithmetic(
        Trim(tensor.values("density"), tensor.kind) if trims else None,
        tuple(weights.tolist()),
        consensus=method.consensus_method is not None,
        normalize=shared["normalize"],
        scale=shared["lambda"],
        divisor=float(divisor),
    )
