"""A sparse vector without its zeros, and masks that lie within its support.

A vector is one bit per element (is it anything but +0?) and the elements whose bit is set. A mask
is one bit per such element. Bits are packed eight a byte, lowest first.
"""

import numpy as np
from numpy.typing import NDArray

from omnireg.strategies.kernels.formats import (
    BLOCK,
    F32,
    bytes_at,
    kernel,
    load,
    long_at,
    short_at,
    store,
)


@kernel
def compact(
    kind: int, vector: int, masks: NDArray[np.int64], count: int, support: int, values: int,
    packed: NDArray[np.int64], rank: int,
) -> int:  # fmt: skip
    """Append a chunk to a coded vector and its masks, and return how many elements it has then.

    ``masks`` are packed over all elements of the chunk; what is appended to has to be zeroed.
    """
    bits = bytes_at(support, (count + 7) // 8)
    for i in range(count):
        if kind == F32:
            value = long_at(vector, count)[i]
            if value == 0:
                continue
            long_at(values, rank + 1)[rank] = value
        else:
            half = short_at(vector, count)[i]
            if half == 0:
                continue
            short_at(values, rank + 1)[rank] = half
        bits[i >> 3] |= np.uint8(1 << (i & 7))
        for j in range(len(masks)):
            mark = (bytes_at(masks[j], (count + 7) // 8)[i >> 3] >> np.uint8(i & 7)) & np.uint8(1)
            bytes_at(packed[j], (rank >> 3) + 1)[rank >> 3] |= np.uint8(mark << np.uint8(rank & 7))
        rank += 1
    return rank


@kernel
def expand(
    kind: int, support: int, values: int, start: int, count: int, out: int, rank: int
) -> int:
    """Write elements ``start`` … of a coded vector; ``rank`` elements are set before them.

    Returns how many are set before what follows.
    """
    bits = bytes_at(support, (start + count + 7) // 8)
    for i in range(count):
        at = start + i
        is_set = (bits[at >> 3] >> np.uint8(at & 7)) & np.uint8(1)
        if kind == F32:
            long_at(out, count)[i] = long_at(values, rank + 1)[rank] if is_set else np.uint32(0)
        else:
            short_at(out, count)[i] = short_at(values, rank + 1)[rank] if is_set else np.uint16(0)
        rank += int(is_set)
    return rank


@kernel
def decouple(
    kind: int, base: int, support: int, values: int, mask: int, start: int, count: int,
    factor: np.float32, out: int, rank: int,
) -> int:  # fmt: skip
    """Write elements of θ₀ + s·(m∘τ★); without a mask (address 0) of θ₀ + s·τ★."""
    width = 4 if kind == F32 else 2
    bits = bytes_at(support, (start + count + 7) // 8)
    zero, change = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    whole, half = np.zeros(BLOCK, np.uint32), np.zeros(BLOCK, np.uint16)
    for first in range(0, count, BLOCK):
        size = min(BLOCK, count - first)
        for i in range(size):
            at = start + first + i
            is_set = (bits[at >> 3] >> np.uint8(at & 7)) & np.uint8(1)
            kept = is_set != 0
            if kept and mask != 0:
                kept = (bytes_at(mask, (rank >> 3) + 1)[rank >> 3] >> np.uint8(rank & 7)) & 1 != 0
            if kind == F32:
                whole[i] = long_at(values, rank + 1)[rank] if kept else np.uint32(0)
            else:
                half[i] = short_at(values, rank + 1)[rank] if kept else np.uint16(0)
            rank += int(is_set)
        load(kind, base + first * width, 0, size, zero)
        load(kind, whole.ctypes.data if kind == F32 else half.ctypes.data, 0, size, change)
        for i in range(size):
            zero[i] += factor * change[i]
        store(kind, zero, size, out + first * width, 0)
    return rank


@kernel
def count_set(address: int, count: int) -> int:
    """Return how many of the first ``count`` bits are set."""
    total = np.int64(0)
    whole = count >> 3
    bits = bytes_at(address, (count + 7) // 8)
    for i in range(whole):
        byte = np.int64(bits[i])
        byte = byte - ((byte >> 1) & 0x55)
        byte = (byte & 0x33) + ((byte >> 2) & 0x33)
        total += (byte + (byte >> 4)) & 0x0F
    for i in range(8 * whole, count):
        total += np.int64((bits[i >> 3] >> np.uint8(i & 7)) & np.uint8(1))
    return int(total)


@kernel
def add_distance(
    kind: int, base: int, model: int, vector: int, mask: int, count: int,
    sums: NDArray[np.float64],
) -> None:  # fmt: skip
    """Add Σ|τᵢ| and Σ|τᵢ − mᵢ∘τ★| of a chunk; the mask is packed over all its elements."""
    width = 4 if kind == F32 else 2
    zero, other = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    merged = np.empty(BLOCK, np.float32)
    bits = bytes_at(mask, (count + 7) // 8)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        load(kind, base + start * width, 0, size, zero)
        load(kind, model + start * width, 0, size, other)
        load(kind, vector + start * width, 0, size, merged)
        whole, left = np.float64(0), np.float64(0)
        for i in range(size):
            kept = (bits[(start + i) >> 3] >> np.uint8((start + i) & 7)) & np.uint8(1)
            shift = other[i] - zero[i]
            whole += np.float64(abs(shift))
            left += np.float64(abs(shift - (merged[i] if kept != 0 else np.float32(0))))
        sums[0] += whole
        sums[1] += left
