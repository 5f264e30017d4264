"""What task vectors are like, alone and beside each other, in one pass over all of them."""

import numpy as np
from numpy.typing import NDArray

from omnireg.strategies.kernels.formats import BLOCK, kernel, load

#: products are added up in so many float32 lanes, block by block in float64
_LANES = 64


@kernel
def compare(
    kinds: NDArray[np.int64], addresses: NDArray[np.int64], count: int,
    absolute: NDArray[np.float64], largest: NDArray[np.float64], moved: NDArray[np.int64],
    products: NDArray[np.float64], agree: NDArray[np.int64], oppose: NDArray[np.int64],
    shared: NDArray[np.int64],
) -> None:  # fmt: skip
    """Add what τ₁ … τₙ are like to what is given; the first input is the base.

    ``products`` is (n + 1, n + 1) of θ₀, τ₁ … τₙ; ``agree`` and ``oppose`` count elements that two
    vectors move in the same and in opposite directions; ``shared`` counts elements that any vector
    moves, and elements that some vectors move up and others down.
    """
    n = len(addresses) - 1
    vectors = np.empty((n + 1, BLOCK), np.float32)
    lanes = np.empty(_LANES, np.float32)
    up, down = np.empty(BLOCK, np.uint8), np.empty(BLOCK, np.uint8)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        zero = vectors[0]
        load(kinds[0], addresses[0], start, size, zero)
        products[0, 0] += _product(zero, zero, size, lanes)
        up[:size] = 0
        down[:size] = 0
        for j in range(1, n + 1):
            vector = vectors[j]
            load(kinds[j], addresses[j], start, size, vector)
            for i in range(size):
                vector[i] -= zero[i]
            absolute[j - 1] += _absolute(vector, size, lanes)
            top, count_moved = np.float32(0), 0
            for i in range(size):
                top = max(top, abs(vector[i]))
                count_moved += vector[i] != 0
                up[i] |= vector[i] > 0
                down[i] |= vector[i] < 0
            largest[j - 1] = max(largest[j - 1], np.float64(top))
            moved[j - 1] += count_moved
            for k in range(1, j + 1):
                products[j, k] += _product(vector, vectors[k], size, lanes)
            for k in range(1, j):
                other = vectors[k]
                same, opposite = 0, 0
                for i in range(size):
                    rises, falls = vector[i] > 0, vector[i] < 0
                    same += (rises & (other[i] > 0)) | (falls & (other[i] < 0))
                    opposite += (rises & (other[i] < 0)) | (falls & (other[i] > 0))
                agree[j - 1, k - 1] += same
                oppose[j - 1, k - 1] += opposite
        anyone, both = 0, 0
        for i in range(size):
            anyone += up[i] | down[i]
            both += up[i] & down[i]
        shared[0] += anyone
        shared[1] += both


@kernel
def _product(
    one: NDArray[np.float32], other: NDArray[np.float32], size: int, lanes: NDArray[np.float32]
) -> float:
    lanes[:] = 0
    whole = size - size % _LANES
    for row in range(0, whole, _LANES):
        for i in range(_LANES):
            lanes[i] += one[row + i] * other[row + i]
    for i in range(size - whole):
        lanes[i] += one[whole + i] * other[whole + i]
    return _total(lanes)


@kernel
def _absolute(vector: NDArray[np.float32], size: int, lanes: NDArray[np.float32]) -> float:
    lanes[:] = 0
    whole = size - size % _LANES
    for row in range(0, whole, _LANES):
        for i in range(_LANES):
            lanes[i] += abs(vector[row + i])
    for i in range(size - whole):
        lanes[i] += abs(vector[whole + i])
    return _total(lanes)


@kernel
def _total(lanes: NDArray[np.float32]) -> float:
    total = 0.0
    for i in range(_LANES):
        total += np.float64(lanes[i])
    return total
