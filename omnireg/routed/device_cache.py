"""What weights are formed of, kept on an accelerator, and how they are formed there."""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omnireg.checkpoints.tensors import TORCH_DTYPES
from omnireg.hookspecs import PROJECT
from omnireg.routed.routes import Blended
from omnireg.strategies.kernels.views import Stored

_log = logging.getLogger(PROJECT)


class Resident:
    """θ₀, support, values and masks of one tensor, as a package stores them, on a device.

    What it forms has the bits that :func:`omnireg.strategies.kernels.decoupling.form` writes: in
    one pass where there is Triton, else in some ten calls of torch.
    """

    def __init__(self, arrays: Stored, ranks: NDArray[np.int64], device: torch.device) -> None:
        """Move them there; ``ranks`` of every ``STEP``-th element in the vector."""
        assert arrays.base is not None
        self._dtype = TORCH_DTYPES()[arrays.dtype]
        self._base, self._values = (
            _moved(part, device).view(self._dtype) for part in (arrays.base, arrays.values)
        )
        self._support, self._ranks = _moved(arrays.support, device), _moved(ranks, device)
        self._names = list(arrays.masks)
        self._masks = torch.stack([_moved(mask, device) for mask in arrays.masks.values()])
        self._chosen: dict[Blended, tuple[Tensor, Tensor]] = {}
        self._ones = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8, device=device)
        self.kernel = _kernel(device)

    def write(
        self,
        blends: Sequence[Blended],
        span: tuple[int, int],
        rank: Callable[[int], int],
        outs: Sequence[Tensor],
    ) -> None:
        """Write a span of elements of every blend; ``rank`` counts the vector's before one."""
        changed = []
        for blend, out in zip(blends, outs, strict=True):
            if blend.plain:
                out.copy_(self._base[slice(*span)])
            elif self.kernel:
                self.kernel.form(
                    self._base, self._support, self._ranks, self._values, self._masks,
                    self._rows(blend), blend.union, span, out,
                )  # fmt: skip
            else:
                changed.append((blend, out))
        if changed:
            self._write(changed, span, (rank(span[0]), rank(span[1])))

    def _rows(self, blend: Blended) -> tuple[Tensor, Tensor]:
        """Return the rows of a blend's masks and their weights, on the device."""
        if blend not in self._chosen:
            rows = torch.tensor([self._names.index(n) for n in blend.models], dtype=torch.int64)
            weights = torch.tensor(blend.weights, dtype=torch.float32)
            place = self._base.device
            self._chosen[blend] = rows.to(place), weights.to(place)
        return self._chosen[blend]

    def _write(
        self,
        changed: Sequence[tuple[Blended, Tensor]],
        span: tuple[int, int],
        ranks: tuple[int, int],
    ) -> None:
        bits = self._bits(self._support, *span)
        # where a place has no element of the vector it takes number 0, which is no change
        places = bits.cumsum(0, dtype=torch.int32).mul_(bits)
        vector = self._values[slice(*ranks)].float()
        for blend, out in changed:
            changes = torch.nn.functional.pad(self._kept(blend, vector, ranks), (1, 0))
            whole = self._base[slice(*span)] + changes.index_select(0, places)
            out.copy_(whole if out.dtype == self._dtype else whole.to(self._dtype))

    def _kept(self, blend: Blended, vector: Tensor, ranks: tuple[int, int]) -> Tensor:
        """Return the elements that the vector has, times what the blend says of each."""
        if not blend.models:
            return vector
        masks = [self._bits(self._masks[self._names.index(name)], *ranks) for name in blend.models]
        if blend.union:
            masks = [torch.stack(masks).any(0)]
        if len(masks) == 1:
            return torch.where(masks[0], vector * blend.weights[0], 0)
        share = torch.zeros_like(vector)
        for mask, weight in zip(masks, blend.weights, strict=True):
            share += mask * weight
        # not -0 where nothing is kept: it would keep the sign of a zero of the base
        return torch.where(share != 0, vector * share, 0)

    def _bits(self, packed: Tensor, start: int, stop: int) -> Tensor:
        """Return bits of a row of bytes, the lowest of each first, as booleans."""
        first = start // 8
        bits = (packed[first : -(-stop // 8)].unsqueeze(1) & self._ones) != 0
        return bits.flatten()[start - 8 * first : stop - 8 * first]


@cache
def _kernel(device: torch.device) -> ModuleType | None:
    """Return the module that forms weights in one pass, where torch brought what it takes."""
    if device.type != "cuda":
        return None
    try:
        from omnireg.routed import triton_kernel
    except ImportError:
        return None
    return triton_kernel if works(triton_kernel, device) else None


def works(kernel: Any, device: torch.device) -> bool:
    """Whether a kernel compiles and runs on a device; Triton needs a C compiler, for one."""
    base = torch.ones(8, dtype=torch.bfloat16, device=device)
    none = torch.zeros(1, 8, dtype=torch.int64, device=device)
    bits, out = none.to(torch.uint8), torch.zeros_like(base)
    try:
        kernel.form(base, bits, none, base, bits, (none[0, :0], base[:0]), False, (0, 8), out)
        return bool((out == base).all())
    except Exception as exc:
        _log.warning(
            "weights are formed by torch on %s, call by call, since Triton fails there: %s",
            device, " ".join(str(exc).split())[:200] or type(exc).__name__,
        )  # fmt: skip
        return False


def _moved(part: NDArray[np.uint8] | NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(part.copy()).to(device)
