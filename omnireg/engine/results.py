"""What a merge method gives back, checked before anything is made of it.

What is wrong is a ValueError; whoever calls a method adds its name and the tensor's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from omnireg.hookspecs import Decoupling, Rescaling, Scope

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Like:
    """What a merged tensor has to be like: its inputs, as they were before a method saw them."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensors: Iterable[torch.Tensor]) -> "Like":
        """Return what the inputs have in common."""
        first = next(iter(tensors))
        return cls(tuple(first.shape), first.dtype)

    def merged(self, found: Any) -> torch.Tensor:
        """Return a merged tensor: dense, of the inputs' shape, and floating-point as they are.

        Raises:
            ValueError: it is something else.
        """
        dtypes = _FLOATS if self.dtype.is_floating_point else (self.dtype,)
        return _dense(found, self.shape, dtypes, "it gives a result")


def _dense(
    found: Any, shape: tuple[int, ...], dtypes: Sequence[torch.dtype], gives: str
) -> torch.Tensor:
    """Return a tensor that has values, without its history; refuse anything else."""
    odd = _oddness(found, shape, dtypes)
    if odd is None:
        tensor: torch.Tensor = found.detach().resolve_neg()
        return tensor
    kind = "floating-point" if dtypes == _FLOATS else str(dtypes[0])
    raise ValueError(f"{gives} {odd}; it has to be dense, {kind} and of shape {shape}")


def _oddness(found: Any, shape: tuple[int, ...], dtypes: Sequence[torch.dtype]) -> str | None:
    if not isinstance(found, torch.Tensor):
        return f"that is no tensor but {type(found).__name__}"
    if found.is_meta:
        return "without values, on the device meta"
    if found.layout is not torch.strided:
        return f"of the layout {found.layout}"
    if found.is_quantized:
        return f"of quantised {found.dtype}"
    if found.dtype not in dtypes or tuple(found.shape) != shape:
        return f"of {found.dtype} and shape {tuple(found.shape)}"
    return None


def checked_side_outputs(
    like: Like, models: Sequence[str], merged: Any, found: Any
) -> tuple[torch.Tensor, dict[str, Decoupling]]:
    """Return side outputs on the processor; refuse what would make a package of something else.

    Raises:
        ValueError: says what :class:`omnireg.hookspecs.DecouplingStrategy` asks for.
    """
    vector = _dense(merged, like.shape, (like.dtype,), "side_outputs gives a task vector").cpu()
    if not isinstance(found, Mapping) or set(found) != set(models):
        named = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise ValueError(
            f"side_outputs decouples {named or 'nothing'}; it has to decouple {', '.join(models)}"
        )
    absent = vector == 0
    parts = {ref: _decoupling(ref, found[ref], like) for ref in found}
    for ref, part in parts.items():
        if bool((part.mask & absent).any()):
            raise ValueError(f"the mask of {ref} keeps elements that the task vector does not have")
    return vector, parts


def _decoupling(ref: str, part: Any, like: Like) -> Decoupling:
    if not isinstance(part, Decoupling):
        raise ValueError(f"side_outputs gives {ref} no Decoupling but {type(part).__name__}")
    vector = _dense(part.vector, like.shape, _FLOATS, f"side_outputs gives {ref} a vector")
    mask = _dense(part.mask, like.shape, (torch.bool,), f"side_outputs gives {ref} a mask")
    return replace(part, vector=vector.cpu(), mask=mask.cpu())


def checked_rescaling(found: Any) -> Rescaling | None:
    """Return how masked vectors are scaled.

    Raises:
        ValueError: it is no Rescaling, or one of another power or scope.
    """
    if found is None:
        return None
    if not isinstance(found, Rescaling) or found.power not in (1, 2):
        raise ValueError(f"rescaling gives {found!r}; it has to be None or Rescaling(1 or 2, …)")
    return replace(found, scope=Scope(found.scope))
