"""Which |τ| a trim keeps, from counts of magnitudes that chunks and threads take on their own.

A float's magnitude orders like its bits. A first count of the upper 15 bits of every |τ| tells the
bin in which the k-th largest lies, a second one of the lower 16 bits of what is in that bin tells
the magnitude itself: an exact top-k without a sort. Values that were rounded to bfloat16 or
float16 have 15 bits in all, so one count is enough. Equal magnitudes are kept in index order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

UPPER_BINS = 1 << 15
LOWER_BINS = 1 << 16
#: a quota that every equal magnitude fits into
ALL = np.iinfo(np.int64).max
_NOTHING = 0x7FFFFFFF

Counts = NDArray[np.uint32]
Integers = NDArray[np.int64]


class Kind(IntEnum):
    """Number formats, as kernels tell them apart."""

    BF16 = 0
    F16 = 1
    F32 = 2


@dataclass(frozen=True)
class Thresholds:
    """Per model: the smallest magnitude that is kept, and how many equal ones each chunk keeps.

    Attributes:
        magnitudes: bits of a float32, one per model.
        wanted: how many elements of exactly that magnitude are kept in all.
        equal: per model, how many of them each chunk has.
    """

    magnitudes: Integers
    wanted: Integers
    equal: tuple[Integers, ...]

    def quotas(self, chunk: int) -> Integers:
        """Return how many elements at the threshold each model keeps in one chunk."""
        found = self.wanted.copy()
        for model, (wanted, equal) in enumerate(zip(self.wanted, self.equal, strict=True)):
            if wanted not in (0, ALL):
                left = max(0, int(wanted) - int(equal[:chunk].sum()))
                found[model] = ALL if left >= equal[chunk] else left
        return found


@dataclass(frozen=True)
class Bins:
    """Between the two counts: the bin of every model's threshold, and how many of it to keep."""

    kept: tuple[int | None, ...]
    bins: Integers
    wanted: Integers


class UpperCounts:
    """First count: in which of 32 768 bins does the k-th largest magnitude lie?"""

    def __init__(self, densities: Sequence[float], kind: Kind = Kind.F32) -> None:
        """Look for the top ``density`` of each model's values, rounded to ``kind``."""
        self._densities, self._kind = densities, kind
        self._total = np.zeros((len(densities), UPPER_BINS), np.int64)
        self._chunks: list[_Sparse] = []

    def room(self) -> Counts:
        """Return empty counts (models, bins) for one chunk."""
        return np.zeros(self._total.shape, np.uint32)

    def add(self, counts: Counts) -> None:
        """Take in the next chunk's counts, in the order of the elements."""
        self._total += counts
        if self._kind is not Kind.F32:
            self._chunks.append(_Sparse(counts))

    def result(self) -> Bins | Thresholds:
        """Return the thresholds, or the bins they lie in."""
        kept = tuple(
            _kept(density, int(row.sum()))
            for density, row in zip(self._densities, self._total, strict=True)
        )
        bins, wanted = _kth_largest(self._total, kept)
        found = Bins(kept, bins, wanted)
        if self._kind is Kind.F32:
            return found
        magnitudes = np.array([_widened(int(b), self._kind) for b in bins], np.int64)
        return _thresholds(found, magnitudes, wanted, _equal(self._chunks, bins))


class LowerCounts:
    """Second count: the lower 16 bits of what lies in the bins."""

    def __init__(self, bins: Bins) -> None:
        """Look into the bins that the first count found."""
        self.bins = bins
        self._total = np.zeros((len(bins.bins), LOWER_BINS), np.int64)
        self._chunks: list[_Sparse] = []

    def room(self) -> Counts:
        """Return empty counts (models, bins) for one chunk."""
        return np.zeros(self._total.shape, np.uint32)

    def add(self, counts: Counts) -> None:
        """Take in the next chunk's counts, in the order of the elements."""
        self._total += counts
        self._chunks.append(_Sparse(counts))

    def result(self) -> Thresholds:
        """Return the thresholds."""
        low, wanted = _kth_largest(self._total, [int(w) or None for w in self.bins.wanted])
        magnitudes = (self.bins.bins << 16) | np.maximum(low, 0)
        return _thresholds(self.bins, magnitudes, wanted, _equal(self._chunks, low))


def next_count(
    found: Any, densities: Sequence[float], kind: Kind = Kind.F32
) -> UpperCounts | LowerCounts | None:
    """Return the count that follows what the last one found; None after the thresholds."""
    if found is None:
        return UpperCounts(densities, kind)
    return LowerCounts(found) if isinstance(found, Bins) else None


def magnitudes(vector: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return the bits of |x|, which order like it."""
    return np.ascontiguousarray(vector).reshape(-1).view(np.uint32) & np.uint32(0x7FFFFFFF)


def count(survey: UpperCounts | LowerCounts, vectors: Mapping[int, NDArray[np.float32]]) -> Counts:
    """Count the magnitudes of float32 task vectors, by the place of their model."""
    counts = survey.room()
    for place, vector in vectors.items():
        found = magnitudes(vector)
        if isinstance(survey, LowerCounts):
            found = found[found >> 16 == survey.bins.bins[place]] & np.uint32(0xFFFF)
        else:
            found = found >> np.uint32(16)
        counts[place] = np.bincount(found, minlength=counts.shape[1])
    return counts


def _kept(density: float, size: int) -> int | None:
    """Return how many elements a density keeps; None is all of them."""
    kept = max(1, int(density * size)) if density > 0 else 0
    return None if kept >= size else kept


def _kth_largest(counts: Integers, kept: Sequence[int | None]) -> tuple[Integers, Integers]:
    """Return per model the bin of the k-th largest (-1: none) and how many of that bin are kept."""
    bins, wanted = np.full(len(kept), -1, np.int64), np.zeros(len(kept), np.int64)
    for model, k in enumerate(kept):
        if k:
            above = np.cumsum(counts[model, ::-1])
            place = int(np.searchsorted(above, k))
            bins[model] = counts.shape[1] - 1 - place
            wanted[model] = k - (above[place - 1] if place else 0)
    return bins, wanted


def _thresholds(
    found: Bins, magnitudes: Integers, wanted: Integers, equal: tuple[Integers, ...]
) -> Thresholds:
    """Fill in the models of which everything or nothing is kept."""
    for model, kept in enumerate(found.kept):
        if not kept:
            magnitudes[model], wanted[model] = (0, ALL) if kept is None else (_NOTHING, 0)
    return Thresholds(magnitudes, wanted, equal)


def _widened(magnitude: int, kind: Kind) -> int:
    """Return the float32 bits of a 15-bit magnitude."""
    if kind is Kind.BF16:
        return max(magnitude, 0) << 16
    half = np.array(max(magnitude, 0), np.uint16).view(np.float16)
    return int(half.astype(np.float32).view(np.uint32))


def _equal(chunks: Sequence["_Sparse"], places: Integers) -> tuple[Integers, ...]:
    return tuple(
        np.array([chunk.at(model, int(place)) for chunk in chunks], np.int64)
        for model, place in enumerate(places)
    )


class _Sparse:
    """Counts of one chunk, most of which are zero."""

    def __init__(self, counts: Counts) -> None:
        places = [np.flatnonzero(row).astype(np.uint16) for row in counts]
        self._rows = [(p, row[p]) for p, row in zip(places, counts, strict=True)]

    def at(self, model: int, place: int) -> int:
        """Return one count."""
        places, counts = self._rows[model]
        found = int(np.searchsorted(places, place)) if place >= 0 else len(places)
        return int(counts[found]) if found < len(places) and places[found] == place else 0
