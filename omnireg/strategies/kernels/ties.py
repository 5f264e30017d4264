"""TIES and MMER as omnireg computes them: in float32, rounded once."""

import numpy as np
from numpy.typing import NDArray

from omnireg.strategies.kernels.formats import (
    BLOCK,
    bytes_at,
    difference,
    kernel,
    load,
    rounded,
    store,
)
from omnireg.strategies.kernels.selection import trim

RATIO = 0
DISTANCE = 1


@kernel
def trim_all(
    kind: int, addresses: NDArray[np.int64], start: int, size: int, zero: NDArray[np.float32],
    thresholds: NDArray[np.int64], left: NDArray[np.int64], vectors: NDArray[np.float32],
) -> None:  # fmt: skip
    """Trim a block of every task vector, and keep count of the quotas that are ``left``."""
    for j in range(len(addresses)):
        difference(kind, addresses[j], start, size, zero, vectors[j])
        left[j] = trim(vectors[j], size, thresholds[j], left[j])


@kernel
def elect(
    vectors: NDArray[np.float32], weights: NDArray[np.float32], normalize: bool, size: int,
    elected: NDArray[np.float32], divisor: NDArray[np.float32], total: NDArray[np.float32],
) -> None:  # fmt: skip
    """Elect signs and average what agrees into ``total`` (steps 2 and 3 of TIES)."""
    elected[:size] = 0
    divisor[:size] = 0
    total[:size] = 0
    for j in range(len(weights)):
        weight, vector = weights[j], vectors[j]
        for i in range(size):
            elected[i] += weight * vector[i]
    for j in range(len(weights)):
        weight, vector = weights[j], vectors[j]
        for i in range(size):
            same = ((elected[i] > 0) & (vector[i] > 0)) | ((elected[i] < 0) & (vector[i] < 0))
            total[i] += weight * vector[i] if same else np.float32(0)
            divisor[i] += weight if same else np.float32(0)
    if normalize:
        for i in range(size):
            quotient = total[i] / divisor[i]
            total[i] = quotient if divisor[i] != 0 else np.float32(0)


@kernel
def merged(
    kind: int, base: int, addresses: NDArray[np.int64], weights: NDArray[np.float32],
    normalize: bool, scale: np.float32, thresholds: NDArray[np.int64], quotas: NDArray[np.int64],
    count: int, out: int,
) -> None:  # fmt: skip
    """θ₀ + λ·TIES(τ₁…τₙ)."""
    n = len(addresses)
    vectors, zero = np.empty((n, BLOCK), np.float32), np.empty(BLOCK, np.float32)
    elected, divisor = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    total = np.empty(BLOCK, np.float32)
    left = quotas.copy()
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        load(kind, base, start, size, zero)
        trim_all(kind, addresses, start, size, zero, thresholds, left, vectors)
        elect(vectors, weights, normalize, size, elected, divisor, total)
        for i in range(size):
            zero[i] += scale * total[i]
        store(kind, zero, size, out, start)


@kernel
def decoupled(
    kind: int, base: int, addresses: NDArray[np.int64], weights: NDArray[np.float32],
    normalize: bool, scale: np.float32, thresholds: NDArray[np.int64], quotas: NDArray[np.int64],
    rule: int, lambdas: NDArray[np.float32], directional: bool, chosen: int, count: int,
    vector_out: int, masks_out: NDArray[np.int64], merged_out: int,
) -> None:  # fmt: skip
    """τ★ as stored, one mask per model (eight elements a byte, lowest bit first), θ₀ + m∘τ★.

    Each output is written where its address is not 0. ``chosen`` is the model whose mask the
    merged output uses, -1 for none.
    """
    n = len(addresses)
    vectors, zero = np.empty((n, BLOCK), np.float32), np.empty(BLOCK, np.float32)
    elected, divisor = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    total, vector = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    keep = np.empty(BLOCK, np.uint8)
    left = quotas.copy()
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        load(kind, base, start, size, zero)
        trim_all(kind, addresses, start, size, zero, thresholds, left, vectors)
        elect(vectors, weights, normalize, size, elected, divisor, total)
        for i in range(size):
            total[i] *= scale
        rounded(kind, total, size)
        if vector_out != 0:
            store(kind, total, size, vector_out, start)
        for j in range(n):
            if j != chosen and masks_out[j] == 0:
                continue
            difference(kind, addresses[j], start, size, zero, vector)
            significant(vector, total, rule, lambdas[j], directional, size, keep)
            if masks_out[j] != 0:
                pack(keep, size, masks_out[j], start)
            if j == chosen and merged_out != 0:
                for i in range(size):
                    elected[i] = zero[i] + (total[i] if keep[i] != 0 else np.float32(0))
                store(kind, elected, size, merged_out, start)
        if chosen < 0 and merged_out != 0:
            for i in range(size):
                elected[i] = zero[i] + total[i]
            store(kind, elected, size, merged_out, start)


@kernel
def significant(
    vector: NDArray[np.float32], total: NDArray[np.float32], rule: int, threshold: np.float32,
    directional: bool, size: int, keep: NDArray[np.uint8],
) -> None:  # fmt: skip
    """Mark where τᵢ is large beside τ★ and, if asked, of its sign."""
    any_sign = not directional
    for i in range(size):
        yardstick = total[i] if rule == RATIO else total[i] - vector[i]
        large = (abs(vector[i]) >= threshold * abs(yardstick)) & (total[i] != 0)
        same = ((vector[i] > 0) & (total[i] > 0)) | ((vector[i] < 0) & (total[i] < 0))
        keep[i] = np.uint8(large & (same | any_sign))


@kernel
def pack(keep: NDArray[np.uint8], size: int, address: int, start: int) -> None:
    """Write eight marks a byte, lowest bit first; ``start`` is a multiple of eight."""
    packed = bytes_at(address + start // 8, (size + 7) // 8)
    for byte in range((size + 7) // 8):
        value = np.uint8(0)
        for bit in range(min(8, size - 8 * byte)):
            value |= np.uint8(keep[8 * byte + bit] << bit)
        packed[byte] = value
