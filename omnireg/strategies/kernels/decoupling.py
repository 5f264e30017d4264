"""θ₀ + c∘τ★ out of a coded vector, in one pass.

Coefficients c are what masks say of each element that τ★ has. Of a block those elements are worked
out side by side, as they are stored, and then spread to their places.
"""

from typing import Any, Final

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from omnireg.strategies.kernels.formats import (
    BLOCK,
    F32,
    inlined,
    intrinsic,
    kernel,
    load,
    rounded,
    store,
    trailing_zeros,
)

_LANES = 16
_FLOATS = ir.VectorType(ir.FloatType(), _LANES)
_BITS = ir.VectorType(ir.IntType(1), _LANES)
_NOTHING = ir.Constant(_FLOATS, [0.0] * _LANES)
_WHOLE: Final = 0xFFFFFFFFFFFFFFFF


def _spreads_at_once() -> bool:
    """Whether this processor spreads sixteen floats with one instruction."""
    return bool(dict(llvm.get_host_cpu_features()).get("avx512vl"))


#: spread sixteen elements at a time, rather than one
WIDE: Final = _spreads_at_once()


@intrinsic
def _add_where(typingctx: Any, bits: Any, weight: Any, address: Any) -> Any:
    """Add a weight to those of sixteen floats whose bit is set."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word, weight, address = arguments
        pointer = builder.inttoptr(address, _FLOATS.as_pointer())
        chosen = builder.bitcast(builder.trunc(word, ir.IntType(_LANES)), _BITS)
        undefined = ir.Constant(_FLOATS, ir.Undefined)
        first = builder.insert_element(undefined, weight, ir.Constant(ir.IntType(32), 0))
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES)
        added = builder.select(
            chosen, builder.shuffle_vector(first, undefined, everywhere), _NOTHING
        )
        builder.store(builder.fadd(builder.load(pointer, align=4), added), pointer, align=4)
        return context.get_dummy_value()

    return types.void(types.uint64, types.float32, types.int64), generate


@intrinsic
def _spread(typingctx: Any, bits: Any, source: Any, target: Any) -> Any:
    """Write sixteen floats: the next ones of the source where a bit is set, else 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word, source, target = arguments
        pointer = ir.FloatType().as_pointer()
        name = f"llvm.masked.expandload.v{_LANES}f32"
        function = builder.module.globals.get(name) or ir.Function(
            builder.module, ir.FunctionType(_FLOATS, [pointer, _BITS, _FLOATS]), name
        )
        chosen = builder.bitcast(builder.trunc(word, ir.IntType(_LANES)), _BITS)
        found = builder.call(function, [builder.inttoptr(source, pointer), chosen, _NOTHING])
        builder.store(found, builder.inttoptr(target, _FLOATS.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.uint64, types.int64, types.int64), generate


@intrinsic
def _ones(typingctx: Any, word: Any) -> Any:
    """Return how many bits of a word are set."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


@intrinsic
def _word_at(typingctx: Any, address: Any) -> Any:
    """Read a 64-bit word at any address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load(pointer, align=1)

    return types.uint64(types.int64), generate


@inlined
def _word(support: Any, word: Any, start: Any, stop: Any) -> Any:
    """Return 64 bits of a support, without those before ``start`` and from ``stop`` on."""
    left = _word_at(support + 8 * word)
    first = 64 * word
    if first < start:
        left &= np.uint64(_WHOLE) << np.uint64(start - first)
    if first + 64 > stop:
        left &= (np.uint64(1) << np.uint64(stop - first)) - np.uint64(1)
    return left


@kernel
def count_between(support: int, start: int, stop: int) -> int:
    """Return how many bits are set from ``start`` to before ``stop``."""
    total = np.int64(0)
    for word in range(start >> 6, (stop + 63) >> 6):
        total += _ones(_word(support, word, start, stop))
    return int(total)


@kernel
def ranks(support: int, count: int, step: int, out: NDArray[np.int64]) -> None:
    """Write how many bits are set before every ``step``-th element; a step is a multiple of 64."""
    total = np.int64(0)
    for i in range(len(out)):
        out[i] = total
        total += count_between(support, i * step, min((i + 1) * step, count))


@kernel
def _weigh(
    masks: NDArray[np.int64], weights: NDArray[np.float32], rank: int, count: int,
    coefficients: NDArray[np.float32],
) -> None:  # fmt: skip
    """Add up, for ``count`` elements of the vector, the weights of the masks that keep each."""
    coefficients[:count] = 0
    at = coefficients.ctypes.data
    stop = (rank + count + 63) >> 6
    for j in range(len(masks)):
        for i in range(0, count, 64):
            first = (rank + i) >> 6
            shift = np.uint64((rank + i) & 63)
            bits = _word_at(masks[j] + 8 * first) >> shift
            if shift != 0 and first + 1 < stop:
                bits |= _word_at(masks[j] + 8 * first + 8) << (np.uint64(64) - shift)
            for part in range(4):
                place = at + 4 * (i + 16 * part)
                _add_where(bits >> np.uint64(16 * part), weights[j], place)


@kernel
def form(
    kind: int, base: int, support: int, values: int, masks: NDArray[np.int64],
    weights: NDArray[np.float32], start: int, count: int, rank: int, written: int, out: int,
    wide: bool,
) -> int:  # fmt: skip
    """Write elements ``start`` … of θ₀ + c∘τ★, rounded to ``kind`` and written as ``written``.

    c is the sum of the weights of the masks that keep an element; without masks it is 1. ``rank``
    elements of the vector lie before ``start``; returns how many lie before what follows. ``base``
    and ``out`` point at element ``start``, masks and support at the first; masks, support and
    what follows them can be read up to the next multiple of 8 bytes.
    """
    size_in, size_out = 4 if kind == F32 else 2, 4 if written == F32 else 2
    room = BLOCK + 64
    zero, change = np.empty(BLOCK, np.float32), np.empty(room, np.float32)
    packed, coefficients = np.empty(room, np.float32), np.empty(room, np.float32)
    source, target = packed.ctypes.data, change.ctypes.data
    for first in range(start, start + count, BLOCK):
        stop = min(first + BLOCK, start + count)
        size, offset, begin = stop - first, first & 63, first >> 6
        found = count_between(support, first, stop)
        load(kind, values, rank, found, packed)
        if len(masks):
            _weigh(masks, weights, rank, found, coefficients)
            for i in range(found):
                packed[i] *= coefficients[i]
        if not wide:
            change[: offset + size] = 0
        at = 0
        for word in range(begin, (stop + 63) >> 6):
            left, place = _word(support, word, first, stop), 64 * (word - begin)
            if wide:
                for part in range(4):
                    bits = (left >> np.uint64(16 * part)) & np.uint64(0xFFFF)
                    _spread(bits, source + 4 * at, target + 4 * (place + 16 * part))
                    at += _ones(bits)
            else:
                while left != 0:
                    change[place + trailing_zeros(left)] = packed[at]
                    left &= left - np.uint64(1)
                    at += 1
        rank += found
        load(kind, base + (first - start) * size_in, 0, size, zero)
        for i in range(size):
            zero[i] += change[offset + i]
        if written != kind:
            rounded(kind, zero, size)
        store(written, zero, size, out + (first - start) * size_out, 0)
    return rank


@kernel
def converted(kind: int, source: int, count: int, written: int, out: int) -> None:
    """Write elements of one format as another."""
    size_in, size_out = 4 if kind == F32 else 2, 4 if written == F32 else 2
    block = np.empty(BLOCK, np.float32)
    for first in range(0, count, BLOCK):
        size = min(BLOCK, count - first)
        load(kind, source + first * size_in, 0, size, block)
        store(written, block, size, out + first * size_out, 0)
