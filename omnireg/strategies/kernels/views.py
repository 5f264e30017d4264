"""Memory that a kernel may read or write: what it is, how much there is, and who keeps it.

A kernel takes addresses and believes them. An address is only handed out here, after what lies
behind it was found to be as long as the kernel will read.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnireg.errors import CheckpointError
from omnireg.strategies.kernels import coding, decoupling
from omnireg.strategies.kernels.formats import F32, all_finite
from omnireg.strategies.thresholds import Kind

Array = NDArray[Any]
Bytes = NDArray[np.uint8]
#: bits are stored in words of so many
_WORD = 64


def width(kind: int) -> int:
    """Return how many bytes an element of a number format takes."""
    return 4 if kind == F32 else 2


def padded(bits: int) -> int:
    """Return how many bytes so many bits take, in whole words of eight bytes."""
    return -(-bits // _WORD) * (_WORD // 8)


def address(array: Array, size: int, align: int = 1) -> int:
    """Return where an array lies, once at least ``size`` bytes lie there in one piece.

    Raises:
        CheckpointError: there are fewer, or not where words of ``align`` bytes can be read.
    """
    place = int(array.ctypes.data)
    if array.nbytes < size or not array.flags.c_contiguous or place % align:
        raise CheckpointError(
            f"{array.nbytes:,} bytes lie where {size:,} are needed; the files do not fit together:"
            " download or copy them again"
        )
    return place


def addresses(arrays: Iterable[Array], size: int, align: int = 1) -> NDArray[np.int64]:
    """Return where arrays lie, see :func:`address`."""
    return np.array([address(array, size, align) for array in arrays], np.int64)


def singles(values: Sequence[float]) -> NDArray[np.float32]:
    """Return numbers in single precision; one that is too large shows in what is made of it."""
    with np.errstate(over="ignore"):
        return np.array(values, np.float32)


def single(value: float) -> np.float32:
    """Return one number in single precision, see :func:`singles`."""
    return np.float32(singles([value])[0])


def finite(kind: int, array: Array, count: int) -> bool:
    """Whether the first ``count`` elements hold neither NaN nor Inf."""
    return bool(all_finite(kind, address(array, count * width(kind), width(kind)), count))


@dataclass(frozen=True)
class Stored:
    """A tensor as a package keeps it: θ₀, and a sparse vector with masks within its support.

    Attributes:
        kind: number format of base and values.
        numel: how many elements, zeros included.
        base: θ₀; None where only the vector is wanted.
        support: one bit per element, in whole words.
        values: the elements whose bit is set.
        masks: one bit per value, in whole words, by model.
    """

    kind: int
    numel: int
    base: Array | None
    support: Bytes
    values: Array
    masks: dict[str, Bytes]

    def __post_init__(self) -> None:
        """Make sure that the arrays are as long as their contents say.

        Raises:
            CheckpointError: they are not.
        """
        size = width(self.kind)
        if self.base is not None:
            address(self.base, self.numel * size, size)
        kept = self.values.nbytes // size
        place = address(self.support, padded(self.numel))
        if decoupling.count_between(place, 0, self.numel) != kept:
            raise CheckpointError(
                f"a task vector keeps {kept:,} elements, its support another number; download or"
                " copy the package again"
            )
        for mask in self.masks.values():
            address(mask, padded(kept))

    @property
    def dtype(self) -> str:
        """The number format's name in safetensors."""
        return Kind(self.kind).name

    @property
    def kept(self) -> int:
        """How many elements the vector keeps."""
        return self.values.nbytes // width(self.kind)

    # Addresses keep nothing alive: the arrays stay fields of this object while a kernel runs.

    def expanded(self, start: int = 0, stop: int | None = None) -> Array:
        """Return elements of the vector, zeros included, as unsigned integers of their bits."""
        stop = self.numel if stop is None else stop
        self._check_span(start, stop)
        out: Array = np.empty(stop - start, np.uint32 if self.kind == F32 else np.uint16)
        coding.expand(
            self.kind, self._support, self._values, start, stop - start, address(out, 0),
            self.rank(start),
        )  # fmt: skip
        return out

    def rank(self, at: int) -> int:
        """Return how many elements the vector keeps before one of the tensor."""
        self._check_span(0, at)
        return int(decoupling.count_between(self._support, 0, at))

    def ranks(self, step: int) -> NDArray[np.int64]:
        """Return the rank of every ``step``-th element; a step is a multiple of 64."""
        found = np.empty(self.numel // step + 1, np.int64)
        decoupling.ranks(self._support, self.numel, step, found)
        return found

    def rank_from(self, at: int, ranks: NDArray[np.int64], step: int) -> int:
        """Return the rank of an element, given those of every ``step``-th."""
        self._check_span(0, at)
        known = at // step
        return int(ranks[known]) + int(decoupling.count_between(self._support, known * step, at))

    def plain(self, start: int, stop: int, written: int, out: Array) -> None:
        """Write elements of θ₀ as another number format."""
        self._check_span(start, stop)
        decoupling.converted(
            self.kind, self._base + start * width(self.kind), stop - start, written,
            address(out, (stop - start) * width(written)),
        )  # fmt: skip

    def form(
        self, sets: Sequence[Sequence[tuple[Bytes, float]]], start: int, stop: int, rank: int,
        written: int, outs: Sequence[Array],
    ) -> None:  # fmt: skip
        """Write elements of several θ₀ + c∘τ★.

        Args:
            sets: masks with their weights; c is the sum of the weights of the masks that keep an
                element, and 1 for a set without masks.
            start: the first element.
            stop: the one after the last.
            rank: of the first element.
            written: number format of what is written.
            outs: where each set goes.
        """
        self._check_span(start, stop)
        if not 0 <= rank <= self.kept:
            raise ValueError(f"rank {rank} of {self.kept}")
        masks, weights = self._weighted(sets)
        bounds = np.cumsum([0, *map(len, sets)])
        places = addresses(outs, (stop - start) * width(written))
        decoupling.form(
            self.kind, self._base + start * width(self.kind), self._support, self._values,
            masks, weights, bounds, start, stop - start, rank, written, places, decoupling.WIDE,
        )  # fmt: skip

    def form_rows(
        self, masks: Sequence[tuple[Bytes, float]], ranks: NDArray[np.int64], step: int,
        starts: NDArray[np.int64], count: int, written: int, out: Array,
    ) -> None:  # fmt: skip
        """Write ``count`` elements from each start on, one after the other, of one set."""
        for start in starts.tolist():
            self._check_span(start, start + count)
        places, weights = self._weighted([masks])
        decoupling.form_rows(
            self.kind, self._base, self._support, self._values, places, weights, ranks, step,
            starts, count, written, address(out, len(starts) * count * width(written)),
            decoupling.WIDE,
        )  # fmt: skip

    def _weighted(
        self, sets: Sequence[Sequence[tuple[Bytes, float]]]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        every = [pair for each in sets for pair in each]
        masks = addresses((mask for mask, _ in every), padded(self.kept))
        return masks, singles([weight for _, weight in every])

    def _check_span(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.numel:
            raise ValueError(f"elements {start} to {stop} of {self.numel}")

    @cached_property
    def _support(self) -> int:
        return address(self.support, padded(self.numel))

    @cached_property
    def _values(self) -> int:
        return address(self.values, self.kept * width(self.kind), width(self.kind))

    @cached_property
    def _base(self) -> int:
        if self.base is None:
            raise ValueError("there is no base to form a tensor with")
        return address(self.base, self.numel * width(self.kind), width(self.kind))


def count_set(bits: Bytes, count: int) -> int:
    """Return how many of the first ``count`` bits are set."""
    return int(coding.count_set(address(bits, (count + 7) // 8), count)) if count else 0
