"""Averages: ours, mergekit's ``linear``, and the Δavg-weighted one."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnireg.strategies.kernels.formats import BLOCK, kernel, load, multiply_add, store

LANES = 1024


@kernel
def mean(
    kind: int, addresses: NDArray[np.int64], weights: NDArray[np.float32], total: Any,
    count: int, out: int,
) -> None:  # fmt: skip
    """θ₁ + Σ wᵢ(θᵢ − θ₁) / total, the order in which ``average`` adds."""
    first, other = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    offset = np.empty(BLOCK, np.float32)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        load(kind, addresses[0], start, size, first)
        offset[:size] = 0
        for j in range(1, len(addresses)):
            load(kind, addresses[j], start, size, other)
            weight = weights[j]
            for i in range(size):
                offset[i] += weight * (other[i] - first[i])
        for i in range(size):
            first[i] += offset[i] / total
        store(kind, first, size, out, start)


@kernel
def weighted_sum(
    kind: int, addresses: NDArray[np.int64], weights: NDArray[np.float32], from_zero: bool,
    fuse: bool, divide: bool, total: Any, count: int, out: int,
) -> None:  # fmt: skip
    """Σ wᵢθᵢ, divided by ``total`` if asked.

    The first is added to zero or taken as it is, which shows in the sign of a zero. ``fuse``
    rounds each product and sum once.
    """
    other, result = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        result[:size] = 0 if from_zero else np.float32(-0.0)
        for j in range(len(addresses)):
            load(kind, addresses[j], start, size, other)
            weight = weights[j]
            if fuse:
                for i in range(size):
                    result[i] = multiply_add(other[i], weight, result[i])
            else:
                for i in range(size):
                    result[i] += weight * other[i]
        if divide:
            for i in range(size):
                result[i] /= total
        store(kind, result, size, out, start)


@kernel
def absolute_sums(
    kind: int, base: int, addresses: NDArray[np.int64], count: int, lanes: NDArray[np.float64]
) -> None:
    """Add |θᵢ − θ₀| to 1024 lanes per model, element by element in storage order."""
    zero, other = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        load(kind, base, start, size, zero)
        for j in range(len(addresses)):
            load(kind, addresses[j], start, size, other)
            for row in range(0, size, LANES):
                for i in range(min(LANES, size - row)):
                    lanes[j, i] += np.float64(abs(other[row + i] - zero[row + i]))


@kernel
def shifted(
    kind: int, base: int, addresses: NDArray[np.int64], shares: NDArray[np.float32],
    count: int, out: int,
) -> None:  # fmt: skip
    """θ₀ + Σ shareᵢ(θᵢ − θ₀)."""
    zero, other = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    shift = np.empty(BLOCK, np.float32)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        load(kind, base, start, size, zero)
        shift[:size] = 0
        for j in range(len(addresses)):
            load(kind, addresses[j], start, size, other)
            share = shares[j]
            for i in range(size):
                shift[i] += share * (other[i] - zero[i])
        for i in range(size):
            zero[i] += shift[i]
        store(kind, zero, size, out, start)
