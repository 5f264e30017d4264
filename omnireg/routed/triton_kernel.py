"""θ₀ + c∘τ★ in one pass of a GPU, by a kernel that Triton compiles.

As :func:`omnireg.strategies.kernels.decoupling.form` writes it, to the bit. Importing this module
takes Triton, which torch for GPUs brings along.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnireg.routed.routes import STEP


@triton.jit  # type: ignore[untyped-decorator]
def _form(  # type: ignore[no-untyped-def]
    base, support, ranks, values, masks, stride, rows, weights, out, start, stop,
    step: tl.constexpr, count: tl.constexpr, union: tl.constexpr,
) -> None:  # fmt: skip
    """Write elements ``start`` to ``stop`` of one set, kept by ``count`` masks.

    Triton takes no annotation but its own.
    """
    number = start // step + tl.program_id(0).to(tl.int64)
    places = number * step + tl.arange(0, step)
    inside = (places >= start) & (places < stop)
    # before ``start`` too: ranks count from the program's first element
    bits = (tl.load(support + places // 8, mask=places < stop, other=0) >> (places % 8)) & 1
    bits = bits.to(tl.int32)
    rank = tl.load(ranks + number) + tl.cumsum(bits, 0) - bits
    has = inside & (bits != 0)
    change = tl.load(values + rank, mask=has, other=0).to(tl.float32)
    if count > 0:
        kept = has & False
        share = tl.zeros_like(change)
        for i in tl.static_range(count):
            row = masks + tl.load(rows + i) * stride
            bit = has & (((tl.load(row + rank // 8, mask=has, other=0) >> (rank % 8)) & 1) != 0)
            kept = kept | bit
            if not union:
                share += tl.where(bit, tl.load(weights + i), 0.0)
        if union:
            share += tl.load(weights)
        if count > 1 and not union:
            kept = share != 0
        # not -0 where nothing is kept: it would keep the sign of a zero of the base
        change = tl.where(kept, change * share, 0.0)
    zero = tl.load(base + places, mask=inside, other=0)
    whole = (zero.to(tl.float32) + change).to(base.dtype.element_ty)
    tl.store(out + places - start, whole.to(out.dtype.element_ty), mask=inside)


def form(
    base: Tensor,
    support: Tensor,
    ranks: Tensor,
    values: Tensor,
    masks: Tensor,
    blend: tuple[Tensor, Tensor],
    union: bool,
    span: tuple[int, int],
    out: Tensor,
) -> None:
    """Write a span of elements of one set to the front of ``out``.

    Args:
        base: (n,) θ₀ in the package's dtype.
        support: bytes; bit i says whether τ★ has an element for element i.
        ranks: (⌈n / STEP⌉,) int64, how many bits are set before every ``STEP``-th element.
        values: those of τ★, in the package's dtype.
        masks: (models, bytes) one bit for every value.
        blend: rows of ``masks``, int64, and the float32 weight of each; none for all of τ★.
        union: the first weight is of everything that any of the masks keeps.
        span: first element, and the one after the last.
        out: in the dtype to compute in.
    """
    start, stop = span
    rows, weights = blend
    programs = (stop - 1) // STEP - start // STEP + 1
    with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
        _form[(programs,)](
            base, support, ranks, values, masks, masks.stride(0), rows, weights, out, start, stop,
            step=STEP, count=len(rows), union=union, num_warps=8, enable_fp_fusion=False,
        )  # fmt: skip
