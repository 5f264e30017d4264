"""mergekit's ``task_arithmetic`` and ``ties``, bit for bit.

mergekit computes in the checkpoints' own dtype and rounds after every operation; sums over the
models are taken in float32 and rounded once. A sum of exactly zero elects the positive sign there.
"""

import numpy as np
from numpy.typing import NDArray

from omnireg.strategies.kernels.formats import BLOCK, difference, kernel, load, rounded, store
from omnireg.strategies.kernels.selection import trim


@kernel
def merged(
    kind: int, base: int, addresses: NDArray[np.int64], weights: NDArray[np.float32],
    consensus: bool, normalize: bool, scale: np.float32, fixed_divisor: np.float32,
    thresholds: NDArray[np.int64], quotas: NDArray[np.int64], count: int, out: int,
) -> None:  # fmt: skip
    """θ₀ + λ·Σ wᵢτᵢ / divisor; with ``consensus`` over the τᵢ of the elected sign alone.

    ``weights`` and ``fixed_divisor`` are already rounded to the dtype. A negative threshold trims
    nothing.
    """
    n = len(addresses)
    vectors, zero = np.empty((n, BLOCK), np.float32), np.empty(BLOCK, np.float32)
    total, divisor = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    majority = np.empty(BLOCK, np.float32)
    left = quotas.copy()
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        load(kind, base, start, size, zero)
        for j in range(n):
            vector = vectors[j]
            difference(kind, addresses[j], start, size, zero, vector)
            rounded(kind, vector, size)
            if thresholds[j] >= 0:
                left[j] = trim(vector, size, thresholds[j], left[j])
            weight = weights[j]
            for i in range(size):
                vector[i] *= weight
            rounded(kind, vector, size)
        total[:size] = 0
        for j in range(n):
            vector = vectors[j]
            for i in range(size):
                total[i] += vector[i]
        rounded(kind, total, size)
        if consensus:
            for i in range(size):
                majority[i] = np.float32(1) if total[i] >= 0 else np.float32(-1)
            total[:size] = 0
            divisor[:size] = 0
            for j in range(n):
                vector, weight = vectors[j], weights[j]
                for i in range(size):
                    agrees = vector[i] * majority[i] > 0
                    total[i] += vector[i] if agrees else np.float32(0)
                    divisor[i] += weight if agrees else np.float32(0)
            rounded(kind, total, size)
            rounded(kind, divisor, size)
            for i in range(size):
                divisor[i] = divisor[i] if divisor[i] != 0 else np.float32(1)
        if normalize:
            if not consensus:
                divisor[:size] = fixed_divisor
            for i in range(size):
                total[i] /= divisor[i]
            rounded(kind, total, size)
        if scale != 1:
            for i in range(size):
                total[i] *= scale
            rounded(kind, total, size)
        for i in range(size):
            zero[i] += total[i]
        store(kind, zero, size, out, start)
