"""Number formats on disk, and float32 blocks to compute in.

A kernel reads its inputs in blocks small enough to stay in the processor's cache, widens them to
float32, computes, and rounds to the nearest even. Inputs lie in different memory maps, so kernels
take their addresses: any number of inputs, one compiled kernel. Whoever calls a kernel keeps the
memory behind the addresses alive.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import intrinsic as _intrinsic
from numpy.typing import NDArray

from omnireg.checkpoints.digests import cache_folder
from omnireg.strategies.thresholds import Kind

# compiled code sees plain numbers
BF16: Final = int(Kind.BF16)
F16: Final = int(Kind.F16)
F32: Final = int(Kind.F32)
BLOCK: Final = 1024

F = TypeVar("F", bound=Callable[..., Any])
#: compiled code calls these without the typing context of their definition
intrinsic: Callable[..., Any] = _intrinsic


def kernel(function: F) -> F:
    """Compile on first use, keep the machine code on disk, and run without Python's lock.

    numba looks for changes in a function's own file alone, not in what it calls; so the code is
    kept in a folder named after all sources of this package.
    """
    with _kept():
        compiled: Any = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    return cast(F, compiled)


def callback(signature: Any, function: Callable[..., Any]) -> Any:
    """Compile what C code may call, and keep the machine code on disk."""
    with _kept():
        return numba.cfunc(signature, cache=True)(function)


@contextmanager
def _kept() -> Iterator[None]:
    config: Any = numba.config
    before, config.CACHE_DIR = config.CACHE_DIR, str(_code_folder())
    try:
        yield
    finally:
        config.CACHE_DIR = before


@cache
def _code_folder() -> Path:
    """Return where machine code is kept: in ``$NUMBA_CACHE_DIR``, or in omnireg's cache."""
    digest = sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    top = os.environ.get("NUMBA_CACHE_DIR")
    folder = Path(top) if top else cache_folder() / "kernels"
    return folder / digest.hexdigest()[:16]


def inlined(function: F) -> F:
    """Compile into every caller."""
    compiled: Any = numba.njit(inline="always", error_model="numpy")(function)
    return cast(F, compiled)


def _pointer_to(element: types.Type) -> Any:
    pointers = types.CPointer(element)  # type: ignore[no-untyped-call]

    @intrinsic
    def pointer(typingctx: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return pointers(types.int64), generate

    return pointer


_uint8_at = _pointer_to(types.uint8)
_uint16_at = _pointer_to(types.uint16)
_uint32_at = _pointer_to(types.uint32)
_uint64_at = _pointer_to(types.uint64)


@kernel
def bytes_at(address: int, length: int) -> NDArray[np.uint8]:
    """View memory as bytes."""
    return carray(_uint8_at(address), length)


@kernel
def short_at(address: int, length: int) -> NDArray[np.uint16]:
    """View memory as 16-bit words."""
    return carray(_uint16_at(address), length)


@kernel
def long_at(address: int, length: int) -> NDArray[np.uint32]:
    """View memory as 32-bit words."""
    return carray(_uint32_at(address), length)


@kernel
def word_at(address: int, length: int) -> NDArray[np.uint64]:
    """View memory as 64-bit words."""
    return carray(_uint64_at(address), length)


@intrinsic
def trailing_zeros(typingctx: Any, word: Any) -> Any:
    """Return the place of the lowest set bit of a 64-bit word that is not zero."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], context.get_constant(types.boolean, True))

    return types.int64(types.uint64), generate


@kernel
def load(kind: int, address: int, start: int, count: int, block: NDArray[np.float32]) -> None:
    """Widen ``count`` elements from ``start`` on into a float32 block."""
    bits = block.view(np.uint32)
    if kind == BF16:
        short = carray(_uint16_at(address + 2 * start), count)
        for i in range(count):
            bits[i] = np.uint32(short[i]) << np.uint32(16)
    elif kind == F16:
        short = carray(_uint16_at(address + 2 * start), count)
        for i in range(count):
            bits[i] = _from_half(np.uint32(short[i]))
    else:
        whole = carray(_uint32_at(address + 4 * start), count)
        for i in range(count):
            bits[i] = whole[i]


@kernel
def difference(
    kind: int, address: int, start: int, size: int, zero: NDArray[np.float32],
    vector: NDArray[np.float32],
) -> None:  # fmt: skip
    """Load a block of a model and take the base's block ``zero`` off it."""
    load(kind, address, start, size, vector)
    for i in range(size):
        vector[i] -= zero[i]


@kernel
def store(kind: int, block: NDArray[np.float32], count: int, address: int, start: int) -> None:
    """Round a float32 block to the nearest even and write it from element ``start`` on."""
    bits = block.view(np.uint32)
    if kind == BF16:
        short = carray(_uint16_at(address + 2 * start), count)
        for i in range(count):
            short[i] = np.uint16(to_bfloat(bits[i]))
    elif kind == F16:
        short = carray(_uint16_at(address + 2 * start), count)
        for i in range(count):
            short[i] = np.uint16(to_half(bits[i]))
    else:
        whole = carray(_uint32_at(address + 4 * start), count)
        for i in range(count):
            whole[i] = bits[i]


@kernel
def rounded(kind: int, block: NDArray[np.float32], count: int) -> None:
    """Round a float32 block in place to values that the format holds."""
    bits = block.view(np.uint32)
    if kind == BF16:
        for i in range(count):
            bits[i] = to_bfloat(bits[i]) << np.uint32(16)
    elif kind == F16:
        for i in range(count):
            bits[i] = _from_half(to_half(bits[i]))


@kernel
def all_finite(kind: int, address: int, count: int) -> bool:
    """Whether no element is NaN or infinite: whether the largest magnitude is a number."""
    if kind == F32:
        most = np.uint32(0)
        whole = carray(_uint32_at(address), count)
        for i in range(count):
            most = max(most, np.uint32(whole[i] & np.uint32(0x7FFFFFFF)))
        return bool(most < np.uint32(0x7F800000))
    top = np.uint16(0)
    short = carray(_uint16_at(address), count)
    for i in range(count):
        top = max(top, np.uint16(short[i] & np.uint16(0x7FFF)))
    return bool(top < np.uint16(0x7F80 if kind == BF16 else 0x7C00))


@inlined
def to_bfloat(bits: Any) -> Any:
    """Round the bits of a float32 to those of a bfloat16."""
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    near = (bits + np.uint32(0x7FFF) + even) >> np.uint32(16)
    return np.uint32(0x7FC0) if nan else near


@inlined
def to_half(bits: Any) -> Any:
    """Round the bits of a float32 to those of a float16."""
    sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
    size = bits & np.uint32(0x7FFFFFFF)
    # Normal halves: move the exponent's bias, round the 13 bits that are cut off.
    even = (size >> np.uint32(13)) & np.uint32(1)
    normal = (size - np.uint32(0x38000000) + np.uint32(0xFFF) + even) >> np.uint32(13)
    # Subnormal halves are multiples of 2**-24: let a float addition do the rounding.
    tiny = _as_bits(_as_float(size) + np.float32(0.5)) - np.uint32(0x3F000000)
    half = tiny if size < np.uint32(0x38800000) else normal
    half = np.uint32(0x7C00) if size >= np.uint32(0x477FF000) else half
    half = np.uint32(0x7E00) if size > np.uint32(0x7F800000) else half
    return half | sign


@inlined
def _from_half(half: Any) -> Any:
    sign = (half & np.uint32(0x8000)) << np.uint32(16)
    size = half & np.uint32(0x7FFF)
    normal = (size << np.uint32(13)) + np.uint32(0x38000000)
    tiny = _as_bits(np.float32(size) * np.float32(2.0**-24))
    infinite = (size << np.uint32(13)) + np.uint32(0x70000000)
    whole = tiny if size < np.uint32(0x400) else normal
    whole = infinite if size >= np.uint32(0x7C00) else whole
    return whole | sign


@intrinsic
def _as_bits(typingctx: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.uint32))

    return types.uint32(types.float32), generate


@intrinsic
def _as_float(typingctx: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), generate


@intrinsic
def multiply_add(typingctx: Any, left: Any, right: Any, added: Any) -> Any:
    """Return left · right + added with one rounding."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate
