"""One tensor of a task vector with its masks, coded chunk by chunk."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnireg.package.layout import L1, MASK, NORMS, SUPPORT, VALUES
from omnireg.planning import Merged
from omnireg.strategies.kernels import coding
from omnireg.strategies.kernels.choose import KINDS
from omnireg.strategies.kernels.formats import BLOCK
from omnireg.strategies.kernels.fused import Chunk
from omnireg.strategies.kernels.views import address, addresses, padded, width

STORAGE: Mapping[str, Any] = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32}


@dataclass
class Coded:
    """One tensor of the task vector with its masks, coded.

    ``distances`` are Σ|τᵢ| and Σ|τᵢ − mᵢ∘τ★| per model; ``norms`` the sums of |τᵢ|ᵖ and |mᵢ∘τ★|ᵖ
    over spans, where a scale is made of them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    values: NDArray[Any]
    support: NDArray[np.uint8]
    masks: dict[str, NDArray[np.uint8]]
    distances: dict[str, NDArray[np.float64]]
    norms: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def arrays(self) -> dict[str, tuple[str, NDArray[Any]]]:
        """Its arrays by name, each with its safetensors dtype."""
        return {
            self.name + VALUES: (self.dtype, self.values),
            self.name + SUPPORT: ("U8", self.support),
            **{self.name + MASK + model: ("U8", bits) for model, bits in self.masks.items()},
            **{self.name + L1 + model: ("F64", sums) for model, sums in self.distances.items()},
            **{self.name + NORMS + model: ("F64", sums) for model, sums in self.norms.items()},
        }


class Coder:
    """Codes a tensor chunk by chunk."""

    def __init__(self, merged: Merged, numel: int, present: list[str], models: list[str]) -> None:
        self._merged, self._present, self._done, self._rank = merged, present, 0, 0
        self._kind, self._numel = KINDS[merged.dtype], numel
        size = padded(numel)
        self._values = np.empty(numel, STORAGE[merged.dtype])
        self._support = np.zeros(size, np.uint8)
        self._masks = {model: np.zeros(size, np.uint8) for model in models}
        self.lanes = {model: np.zeros((2, BLOCK)) for model in models}

    def append(self, vector: NDArray[Any], masks: list[NDArray[np.uint8]], count: int) -> None:
        """Take in the next chunk; all but the last are of whole bytes of bits.

        Raises:
            ValueError: it is longer than the tensor, or begins amid a byte.
        """
        if self._done + count > self._numel or self._done % 8 or len(masks) != len(self._present):
            raise ValueError(f"{count} elements after {self._done} of {self._numel}")
        self._rank = coding.compact(
            self._kind, address(vector, count * width(self._kind)),
            addresses(masks, (count + 7) // 8), count,
            address(self._support, padded(self._numel)) + self._done // 8,
            address(self._values, self._numel * width(self._kind)),
            addresses((self._masks[m] for m in self._present), padded(self._numel)),
            self._rank,
        )  # fmt: skip
        self._done += count

    def measure(self, chunk: Chunk, vector: NDArray[Any], masks: list[NDArray[np.uint8]]) -> None:
        """Take in how far the models of the chunk are from what their masks keep of them."""
        merged = address(vector, chunk.count * width(self._kind))
        marks = addresses(masks, (chunk.count + 7) // 8)
        for name, model, mask in zip(self._present, chunk.models, marks, strict=True):
            coding.add_distance(
                self._kind, chunk.zero, model, merged, mask, chunk.count, self.lanes[name]
            )

    def finished(self) -> Coded:
        """Return the arrays, cut to what is used of them."""
        merged, size = self._merged, padded(self._rank)
        masks = {model: bits[:size].copy() for model, bits in self._masks.items()}
        values = self._values[: self._rank].copy()
        distances = {model: lanes.sum(axis=1) for model, lanes in self.lanes.items()}
        return Coded(
            merged.name, merged.dtype, merged.shape, values, self._support, masks, distances
        )
