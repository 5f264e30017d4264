"""Counts of magnitudes and trims by threshold; :mod:`omnireg.strategies.thresholds` says why."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnireg.strategies.kernels.formats import (
    BF16,
    BLOCK,
    F16,
    difference,
    kernel,
    load,
    rounded,
    to_half,
)
from omnireg.strategies.thresholds import ALL


@kernel
def count_upper(
    kind: int, round_to: int, base: int, addresses: NDArray[np.int64], count: int,
    counts: NDArray[np.uint32],
) -> None:  # fmt: skip
    """Count the upper 15 bits of |θᵢ − θ₀|, the difference rounded to ``round_to`` before."""
    zero, other = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    bits = other.view(np.uint32)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        load(kind, base, start, size, zero)
        for j in range(len(addresses)):
            difference(kind, addresses[j], start, size, zero, other)
            if round_to == F16:
                for i in range(size):
                    counts[j, to_half(bits[i]) & np.uint32(0x7FFF)] += np.uint32(1)
                continue
            if round_to == BF16:
                rounded(BF16, other, size)
            for i in range(size):
                counts[j, (bits[i] >> np.uint32(16)) & np.uint32(0x7FFF)] += np.uint32(1)


@kernel
def count_lower(
    kind: int, base: int, addresses: NDArray[np.int64], bins: NDArray[np.int64], count: int,
    counts: NDArray[np.uint32],
) -> None:  # fmt: skip
    """Count the lower 16 bits of those |θᵢ − θ₀| whose upper bits are ``bins[i]``; -1 is none."""
    zero, other = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    bits = other.view(np.uint32)
    hits = np.zeros(BLOCK, np.uint8)
    eights = hits.view(np.uint64)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        load(kind, base, start, size, zero)
        for j in range(len(addresses)):
            if bins[j] < 0:
                continue
            wanted = np.uint32(bins[j])
            difference(kind, addresses[j], start, size, zero, other)
            hits[:] = 0
            for i in range(size):
                hits[i] = np.uint8((bits[i] >> np.uint32(16)) & np.uint32(0x7FFF) == wanted)
            # most groups of eight have no hit at all
            for group in range(BLOCK // 8):
                if eights[group] == 0:
                    continue
                for i in range(8 * group, 8 * group + 8):
                    if hits[i] != 0:
                        counts[j, bits[i] & np.uint32(0xFFFF)] += np.uint32(1)


@kernel
def trim(block: NDArray[np.float32], size: int, threshold: int, quota: Any) -> Any:
    """Zero what is below the threshold, keep the first ``quota`` elements equal to it.

    Magnitudes are float32 bits. Returns the quota that is left.
    """
    bits = block.view(np.uint32)
    low = np.uint32(threshold)
    equal = np.int64(0)
    if quota != ALL:
        for i in range(size):
            equal += np.int64((bits[i] & np.uint32(0x7FFFFFFF)) == low)
    if equal <= quota:
        for i in range(size):
            bits[i] = bits[i] if (bits[i] & np.uint32(0x7FFFFFFF)) >= low else np.uint32(0)
        return quota - equal
    if quota == 0:
        for i in range(size):
            bits[i] = bits[i] if (bits[i] & np.uint32(0x7FFFFFFF)) > low else np.uint32(0)
        return quota
    for i in range(size):
        magnitude = bits[i] & np.uint32(0x7FFFFFFF)
        if magnitude < low or (magnitude == low and quota == 0):
            bits[i] = np.uint32(0)
        elif magnitude == low:
            quota -= 1
    return quota
