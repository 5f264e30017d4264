"""A sparse vector without its zeros, and masks that lie within its support.

A vector is one bit per element (is it anything but +0?) and the elements whose bit is set. A mask
is one bit per such element. Bits are packed eight a byte, lowest first.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnireg.strategies.kernels.formats import (
    BLOCK,
    F32,
    bytes_at,
    difference,
    inlined,
    kernel,
    load,
    long_at,
    short_at,
    trailing_zeros,
    word_at,
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
    for byte in range((count + 7) // 8):
        size = min(8, count - 8 * byte)
        found = np.uint8(0)
        if kind == F32:
            whole = long_at(vector + 32 * byte, size)
            for i in range(size):
                found |= np.uint8(np.uint8(whole[i] != 0) << np.uint8(i))
        else:
            half = short_at(vector + 16 * byte, size)
            for i in range(size):
                found |= np.uint8(np.uint8(half[i] != 0) << np.uint8(i))
        bits[byte] = found
        left = np.uint64(found)
        while left != 0:
            i = trailing_zeros(left)
            left &= left - np.uint64(1)
            if kind == F32:
                long_at(values, rank + 1)[rank] = long_at(vector + 32 * byte, 8)[i]
            else:
                short_at(values, rank + 1)[rank] = short_at(vector + 16 * byte, 8)[i]
            for j in range(len(masks)):
                mark = (bytes_at(masks[j], byte + 1)[byte] >> np.uint8(i)) & np.uint8(1)
                into = bytes_at(packed[j], (rank >> 3) + 1)
                into[rank >> 3] |= np.uint8(mark << np.uint8(rank & 7))
            rank += 1
    return rank


@inlined
def _word(support: Any, word: Any, start: Any, stop: Any) -> Any:
    """Return 64 bits of a support, without those before ``start`` and from ``stop`` on."""
    left = word_at(support, word + 1)[word]
    first = 64 * word
    if first < start:
        left &= np.uint64(0xFFFFFFFFFFFFFFFF) << np.uint64(start - first)
    if first + 64 > stop:
        left &= (np.uint64(1) << np.uint64(stop - first)) - np.uint64(1)
    return left


@kernel
def expand(
    kind: int, support: int, values: int, start: int, count: int, out: int, rank: int
) -> int:
    """Write elements ``start`` … of a coded vector; ``rank`` elements are set before them.

    Returns how many are set before what follows.
    """
    stop = start + count
    if kind == F32:
        long_at(out, count)[:] = 0
    else:
        short_at(out, count)[:] = 0
    for word in range(start >> 6, (stop + 63) >> 6):
        left = _word(support, word, start, stop)
        while left != 0:
            at = 64 * word + trailing_zeros(left) - start
            left &= left - np.uint64(1)
            if kind == F32:
                long_at(out, count)[at] = long_at(values, rank + 1)[rank]
            else:
                short_at(out, count)[at] = short_at(values, rank + 1)[rank]
            rank += 1
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
    lanes: NDArray[np.float64],
) -> None:  # fmt: skip
    """Add |τᵢ| and |τᵢ − mᵢ∘τ★| of a chunk to two rows of 1024 lanes.

    The mask is packed over all elements of the chunk.
    """
    width = 4 if kind == F32 else 2
    zero, shift = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    merged, kept = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        load(kind, base + start * width, 0, size, zero)
        load(kind, vector + start * width, 0, size, merged)
        difference(kind, model + start * width, 0, size, zero, shift)
        marks = bytes_at(mask + start // 8, (size + 7) // 8)
        for byte in range((size + 7) // 8):
            for bit in range(8):
                kept[8 * byte + bit] = np.float32((marks[byte] >> np.uint8(bit)) & np.uint8(1))
        for i in range(size):
            lanes[0, i] += np.float64(abs(shift[i]))
        for i in range(size):
            lanes[1, i] += np.float64(abs(shift[i] - kept[i] * merged[i]))
