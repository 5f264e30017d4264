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
    BF16,
    BLOCK,
    F32,
    inlined,
    intrinsic,
    kernel,
    load,
    long_at,
    rounded,
    store,
    to_bfloat,
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


def _chosen(builder: Any, word: Any) -> Any:
    """Return the lowest sixteen bits of a word as lanes."""
    return builder.bitcast(builder.trunc(word, ir.IntType(_LANES)), _BITS)


def _everywhere(builder: Any, number: Any) -> Any:
    """Return a number in all lanes."""
    undefined = ir.Constant(_FLOATS, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES)
    return builder.shuffle_vector(first, undefined, lanes)


@intrinsic
def _add_where(typingctx: Any, bits: Any, weight: Any, address: Any) -> Any:
    """Add a weight to those of sixteen floats whose bit is set."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word, weight, address = arguments
        pointer = builder.inttoptr(address, _FLOATS.as_pointer())
        added = builder.select(_chosen(builder, word), _everywhere(builder, weight), _NOTHING)
        builder.store(builder.fadd(builder.load(pointer, align=4), added), pointer, align=4)
        return context.get_dummy_value()

    return types.void(types.uint64, types.float32, types.int64), generate


@intrinsic
def _keep(typingctx: Any, bits: Any, weight: Any, source: Any, target: Any) -> Any:
    """Write sixteen floats: those of the source, weighted, whose bit is set, else 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word, weight, source, target = arguments
        found = builder.load(builder.inttoptr(source, _FLOATS.as_pointer()), align=4)
        weighted = builder.fmul(found, _everywhere(builder, weight))
        kept = builder.select(_chosen(builder, word), weighted, _NOTHING)
        builder.store(kept, builder.inttoptr(target, _FLOATS.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.uint64, types.float32, types.int64, types.int64), generate


@intrinsic
def _spread(typingctx: Any, bits: Any, source: Any, base: Any, target: Any) -> Any:
    """Write sixteen floats of the base; where a bit is set, with the source's next one added."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word, source, base, target = arguments
        pointer = ir.FloatType().as_pointer()
        name = f"llvm.masked.expandload.v{_LANES}f32"
        function = builder.module.globals.get(name) or ir.Function(
            builder.module, ir.FunctionType(_FLOATS, [pointer, _BITS, _FLOATS]), name
        )
        change = builder.call(
            function, [builder.inttoptr(source, pointer), _chosen(builder, word), _NOTHING]
        )
        found = builder.load(builder.inttoptr(base, _FLOATS.as_pointer()), align=4)
        total = builder.fadd(found, change)
        builder.store(total, builder.inttoptr(target, _FLOATS.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.uint64, types.int64, types.int64, types.int64), generate


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


@inlined
def _bits_from(mask: Any, rank: Any, stop: Any) -> Any:
    """Return 64 bits of a mask from any bit on; the mask ends with word ``stop``."""
    first, shift = rank >> 6, np.uint64(rank & 63)
    bits = _word_at(mask + 8 * first) >> shift
    if shift != 0 and first + 1 < stop:
        bits |= _word_at(mask + 8 * first + 8) << (np.uint64(64) - shift)
    return bits


@kernel
def _blend(
    masks: NDArray[np.int64], weights: NDArray[np.float32], rank: int, count: int,
    vector: NDArray[np.float32], coefficients: NDArray[np.float32], out: NDArray[np.float32],
) -> None:  # fmt: skip
    """Multiply ``count`` elements of the vector with the sum of the weights of their masks."""
    source, target, sums = vector.ctypes.data, out.ctypes.data, coefficients.ctypes.data
    stop = (rank + count + 63) >> 6
    if len(masks) == 1:
        for i in range(0, count, 64):
            bits = _bits_from(masks[0], rank + i, stop)
            for part in range(4):
                at = 4 * (i + 16 * part)
                _keep(bits >> np.uint64(16 * part), weights[0], source + at, target + at)
        return
    coefficients[:count] = 0
    for j in range(len(masks)):
        for i in range(0, count, 64):
            bits = _bits_from(masks[j], rank + i, stop)
            for part in range(4):
                at = 4 * (i + 16 * part)
                _add_where(bits >> np.uint64(16 * part), weights[j], sums + at)
    for i in range(count):
        # not -0 where nothing is kept: it would keep the sign of a zero of the base
        weighted = vector[i] * coefficients[i]
        out[i] = weighted if coefficients[i] != 0 else np.float32(0)


@kernel
def form(
    kind: int, base: int, support: int, values: int, masks: NDArray[np.int64],
    weights: NDArray[np.float32], bounds: NDArray[np.int64], start: int, count: int, rank: int,
    written: int, outs: NDArray[np.int64], wide: bool,
) -> int:  # fmt: skip
    """Write elements ``start`` … of several θ₀ + c∘τ★, rounded to ``kind``, as ``written``.

    Set i has the masks ``bounds[i]`` to ``bounds[i + 1]`` with their weights; c is the sum of the
    weights of those that keep an element. A set without masks has c = 1. ``rank`` elements of the
    vector lie before ``start``; returns how many lie before what follows. ``base`` and ``outs``
    point at element ``start``, masks, values and support at the first one. Support and masks can be
    read in words of eight bytes.
    """
    size_in, size_out = 4 if kind == F32 else 2, 4 if written == F32 else 2
    room = BLOCK + 128
    zero, total, packed = (
        np.zeros(room, np.float32), np.empty(room, np.float32), np.empty(room, np.float32),
    )  # fmt: skip
    vector, coefficients = np.empty(room, np.float32), np.empty(room, np.float32)
    for first in range(start, start + count, BLOCK):
        stop = min(first + BLOCK, start + count)
        size, offset, place = stop - first, first & 63, first - start
        found = count_between(support, first, stop)
        # all lie as they do in the words of the support
        load(kind, base + place * size_in, 0, size, zero[offset:])
        load(kind, values, rank, found, vector)
        for i in range(len(outs)):
            low, high = bounds[i], bounds[i + 1]
            if low == high:
                _spread_all(support, first, stop, vector, zero, total, wide)
            else:
                _blend(
                    masks[low:high], weights[low:high], rank, found, vector, coefficients, packed
                )
                _spread_all(support, first, stop, packed, zero, total, wide)
            made = total[offset:]
            if written == F32 and kind == BF16:
                _store_widened(made, size, outs[i] + place * size_out)
            else:
                if written != kind:
                    rounded(kind, made, size)
                store(written, made, size, outs[i] + place * size_out, 0)
        rank += found
    return rank


@kernel
def form_rows(
    kind: int, base: int, support: int, values: int, masks: NDArray[np.int64],
    weights: NDArray[np.float32], ranks: NDArray[np.int64], step: int, starts: NDArray[np.int64],
    count: int, written: int, out: int, wide: bool,
) -> None:  # fmt: skip
    """Write ``count`` elements from each start on, one after the other, of one θ₀ + c∘τ★.

    As :func:`form` does; ``ranks`` is how many elements of the vector lie before every ``step``-th,
    and ``base`` points at the first element.
    """
    size_in, size_out = 4 if kind == F32 else 2, 4 if written == F32 else 2
    bounds, place = np.array([0, len(masks)]), np.empty(1, np.int64)
    for i in range(len(starts)):
        start = starts[i]
        known = start // step
        rank = ranks[known] + count_between(support, known * step, start)
        place[0] = out + i * count * size_out
        form(
            kind, base + start * size_in, support, values, masks, weights, bounds, start, count,
            rank, written, place, wide,
        )  # fmt: skip


@kernel
def _store_widened(block: NDArray[np.float32], count: int, address: int) -> None:
    """Round to bfloat16 and write as float32."""
    bits, out = block.view(np.uint32), long_at(address, count)
    for i in range(count):
        out[i] = to_bfloat(bits[i]) << np.uint32(16)


@kernel
def _spread_all(
    support: int, start: int, stop: int, packed: NDArray[np.float32], zero: NDArray[np.float32],
    out: NDArray[np.float32], wide: bool,
) -> None:  # fmt: skip
    """Add a block's elements to the base at their places, counted from the first word's begin."""
    begin, at = start >> 6, 0
    source, base, target = packed.ctypes.data, zero.ctypes.data, out.ctypes.data
    if not wide:
        for i in range(stop - 64 * begin):
            out[i] = zero[i] + np.float32(0)
    for word in range(begin, (stop + 63) >> 6):
        left, place = _word(support, word, start, stop), 64 * (word - begin)
        if wide:
            for part in range(4):
                bits, lane = (left >> np.uint64(16 * part)) & np.uint64(0xFFFF), 16 * part + place
                _spread(bits, source + 4 * at, base + 4 * lane, target + 4 * lane)
                at += _ones(bits)
        else:
            while left != 0:
                lane = place + trailing_zeros(left)
                out[lane] = zero[lane] + packed[at]
                left &= left - np.uint64(1)
                at += 1


@kernel
def converted(kind: int, source: int, count: int, written: int, out: int) -> None:
    """Write elements of one format as another."""
    size_in, size_out = 4 if kind == F32 else 2, 4 if written == F32 else 2
    block = np.empty(BLOCK, np.float32)
    for first in range(0, count, BLOCK):
        size = min(BLOCK, count - first)
        load(kind, source + first * size_in, 0, size, block)
        store(written, block, size, out + first * size_out, 0)
