"""What weights are formed of, kept on an accelerator, and how torch forms them there."""

from collections.abc import Sequence

import torch
from torch import Tensor

from omnireg.package.reading import Arrays, Bytes
from omnireg.routed.routes import Blended
from omnireg.tensors import TORCH_DTYPES


class Resident:
    """θ₀, support, values and masks of one tensor, as a package stores them, on a device.

    What it forms has the bits that :func:`omnireg.strategies.kernels.decoupling.form` writes.
    """

    def __init__(self, arrays: Arrays, device: torch.device) -> None:
        """Move them there."""
        self._dtype = TORCH_DTYPES()[arrays.dtype]
        self._base, self._values = (
            _moved(part, device).view(self._dtype) for part in (arrays.base, arrays.values)
        )
        self._support = _moved(arrays.support, device)
        self._masks = {name: _moved(mask, device) for name, mask in arrays.masks.items()}

    def write(
        self,
        blends: Sequence[Blended],
        span: tuple[int, int],
        ranks: tuple[int, int],
        outs: Sequence[Tensor],
    ) -> None:
        """Write a span of elements of every blend; ``ranks`` is where the vector has its part."""
        start, stop = span
        base = self._base[start:stop]
        bits = _bits(self._support, start, stop)
        # where a place has no element of the vector it takes number 0, which is no change
        places = bits.cumsum(0, dtype=torch.int32).mul_(bits)
        vector = self._values[slice(*ranks)].float()
        for blend, out in zip(blends, outs, strict=True):
            if blend.plain:
                out.copy_(base)
                continue
            changes = torch.nn.functional.pad(self._kept(blend, vector, ranks), (1, 0))
            whole = base.float() + changes.index_select(0, places)
            out.copy_(whole.to(self._dtype))

    def _kept(self, blend: Blended, vector: Tensor, ranks: tuple[int, int]) -> Tensor:
        """Return the elements that the vector has, times what the blend says of each."""
        if not blend.models:
            return vector
        masks = [_bits(self._masks[name], *ranks) for name in blend.models]
        if blend.union:
            masks = [torch.stack(masks).any(0)]
        if len(masks) == 1:
            return torch.where(masks[0], vector * blend.weights[0], 0)
        share = torch.zeros_like(vector)
        for mask, weight in zip(masks, blend.weights, strict=True):
            share += mask * weight
        # not -0 where nothing is kept: it would keep the sign of a zero of the base
        return torch.where(share != 0, vector * share, 0)


def _moved(part: Bytes, device: torch.device) -> Tensor:
    return torch.from_numpy(part.copy()).to(device)


def _bits(packed: Tensor, start: int, stop: int) -> Tensor:
    """Return bits of a row of bytes, the lowest of each first, as booleans."""
    first = start // 8
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    shifted = torch.bitwise_right_shift(packed[first : -(-stop // 8)].unsqueeze(1), places)
    return (shifted & 1).bool().flatten()[start - 8 * first : stop - 8 * first]
