"""One tensor of a task vector with its masks, coded chunk by chunk."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnireg.package import layout
from omnireg.package.layout import L1, MASK, NORMS, SUPPORT, VALUES
from omnireg.planning import Merged
from omnireg.strategies.kernels import coding
from omnireg.strategies.kernels.choose import KINDS
from omnireg.strategies.kernels.formats import BLOCK

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
        self._kind = KINDS[merged.dtype]
        size = layout.padded(numel)
        self._values = np.empty(numel, STORAGE[merged.dtype])
        self._support = np.zeros(size, np.uint8)
        self._masks = {model: np.zeros(size, np.uint8) for model in models}
        self.lanes = {model: np.zeros((2, BLOCK)) for model in models}

    def append(self, vector: NDArray[Any], masks: list[NDArray[np.uint8]], count: int) -> None:
        """Take in the next chunk; all but the last are of whole bytes of bits."""
        self._rank = coding.compact(
            self._kind, vector.ctypes.data,
            np.array([mask.ctypes.data for mask in masks], np.int64), count,
            self._support.ctypes.data + self._done // 8, self._values.ctypes.data,
            np.array([self._masks[model].ctypes.data for model in self._present], np.int64),
            self._rank,
        )  # fmt: skip
        self._done += count

    def measure(
        self, zero: int, models: NDArray[np.int64], vector: NDArray[Any],
        masks: list[NDArray[np.uint8]],
    ) -> None:  # fmt: skip
        """Take in how far the models of the chunk are from what their masks keep of them."""
        for name, model, mask in zip(self._present, models, masks, strict=True):
            coding.add_distance(
                self._kind, zero, model, vector.ctypes.data, mask.ctypes.data, vector.size,
                self.lanes[name],
            )  # fmt: skip

    def finished(self) -> Coded:
        """Return the arrays, cut to what is used of them."""
        merged, size = self._merged, layout.padded(self._rank)
        masks = {model: bits[:size].copy() for model, bits in self._masks.items()}
        values = self._values[: self._rank].copy()
        distances = {model: lanes.sum(axis=1) for model, lanes in self.lanes.items()}
        return Coded(
            merged.name, merged.dtype, merged.shape, values, self._support, masks, distances
        )
