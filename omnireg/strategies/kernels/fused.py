"""Merge methods as passes over chunks of their inputs: what the streaming engine runs.

A fused method reads each chunk of every input where it lies, and returns the finished elements. If
it needs to know something of all chunks first (a threshold, a sum), it asks for surveys: chunks are
observed in any order, by any thread; the observations are taken in one at a time, in the order of
the elements.
"""

from dataclasses import dataclass
from functools import cached_property
from math import fsum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from omnireg.hookspecs import Survey
from omnireg.strategies.delta_weighted import Shifts, softmax
from omnireg.strategies.kernels import arithmetic, averaging, selection, ties
from omnireg.strategies.kernels.views import addresses, finite, single, singles, width
from omnireg.strategies.thresholds import (
    ALL,
    Integers,
    Kind,
    LowerCounts,
    Thresholds,
    UpperCounts,
    next_count,
)

Bytes = NDArray[Any]
#: how numpy holds the elements of each kind
STORAGE = {Kind.BF16: np.uint16, Kind.F16: np.uint16, Kind.F32: np.float32}


@dataclass(frozen=True)
class Chunk:
    """The same run of elements of every input, where they lie.

    Attributes:
        kind: their number format.
        count: how many elements.
        arrays: each input's elements, in the recipe's order; kept alive by the chunk.
        base: which of them is the base; None without one.
        places: which of all surveyed models the others are; all of them when None.

    Raises:
        CheckpointError: an input has fewer elements.
    """

    kind: Kind
    count: int
    arrays: tuple[Bytes, ...]
    base: int | None
    places: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Look behind every address before a kernel gets it."""
        _ = self.inputs

    @cached_property
    def inputs(self) -> Integers:
        """Where each input's first element lies."""
        size = width(self.kind)
        return addresses(self.arrays, self.count * size, size)

    @property
    def models(self) -> Integers:
        """Where those lie that are not the base."""
        return self.inputs if self.base is None else np.delete(self.inputs, self.base)

    @property
    def zero(self) -> int:
        """Where the base lies."""
        return int(self.inputs[self.base or 0])

    def nonfinite(self) -> list[int]:
        """Return which inputs hold NaN or Inf here."""
        return [
            i for i, array in enumerate(self.arrays) if not finite(self.kind, array, self.count)
        ]

    def room(self) -> Bytes:
        """Return uninitialised room for one output."""
        return np.empty(self.count, STORAGE[self.kind])


class Fused(Protocol):
    """A merge method bound to one tensor's parameters."""

    def survey(self, found: Any) -> Survey | None:
        """Return the next survey of this tensor that is needed, given what the last one found."""

    def observe(self, survey: Any, chunk: Chunk) -> Any:
        """Look at a chunk for a survey; called by any thread, in any order."""

    def emit(self, chunk: Chunk, found: Any, number: int) -> tuple[Bytes, ...]:
        """Return the finished elements of a chunk, one array per output."""


class _NoSurvey:
    def survey(self, found: Any) -> None:
        return None

    def observe(self, survey: Any, chunk: Chunk) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Mean(_NoSurvey):
    """``average``, normalised: an offset from the first input, so equal inputs come back."""

    weights: tuple[float, ...]
    with_base: bool

    def emit(self, chunk: Chunk, found: Any, number: int) -> tuple[Bytes, ...]:
        """See :class:`Fused`."""
        out = chunk.room()
        inputs = chunk.inputs if self.with_base else chunk.models
        total = np.float32(sum(self.weights))
        averaging.mean(chunk.kind, inputs, singles(self.weights), total, chunk.count, _at(out))
        return (out,)


@dataclass(frozen=True)
class WeightedSum(_NoSurvey):
    """``linear``, and ``average`` without normalisation."""

    weights: tuple[float, ...]
    with_base: bool
    from_zero: bool
    fuse: bool
    total: float | None

    def emit(self, chunk: Chunk, found: Any, number: int) -> tuple[Bytes, ...]:
        """See :class:`Fused`."""
        out = chunk.room()
        averaging.weighted_sum(
            chunk.kind, chunk.inputs if self.with_base else chunk.models, singles(self.weights),
            self.from_zero, self.fuse, self.total is not None, np.float32(self.total or 1),
            chunk.count, _at(out),
        )  # fmt: skip
        return (out,)


@dataclass(frozen=True)
class DeltaWeighted:
    """``delta_weighted``: one survey for the models' shifts."""

    alpha0: float
    temperature: float

    def survey(self, found: Any) -> Shifts | None:
        """See :class:`Fused`."""
        return Shifts() if found is None else None

    def observe(self, survey: Shifts, chunk: Chunk) -> Any:
        """See :class:`Fused`."""
        models = chunk.models
        lanes = np.zeros((len(models), averaging.LANES))
        averaging.absolute_sums(chunk.kind, chunk.zero, models, chunk.count, lanes)
        sums = ([fsum(row.tolist())] for row in lanes)
        return {place: (chunk.count, s) for place, s in zip(_places(chunk), sums, strict=True)}

    def emit(self, chunk: Chunk, found: Any, number: int) -> tuple[Bytes, ...]:
        """See :class:`Fused`."""
        alphas = softmax([found[place] for place in _places(chunk)], self.temperature)
        shares = singles([(1 - self.alpha0) * alpha for alpha in alphas])
        out = chunk.room()
        averaging.shifted(chunk.kind, chunk.zero, chunk.models, shares, chunk.count, _at(out))
        return (out,)


@dataclass(frozen=True)
class Trim:
    """The surveys of a trim by density; values are rounded to ``round_to`` before they compare.

    ``densities`` are those of all surveyed models.
    """

    densities: tuple[float, ...]
    round_to: Kind = Kind.F32

    @cached_property
    def everything(self) -> Thresholds | None:
        """Thresholds that need no survey, where every model is kept whole."""
        if min(self.densities, default=1) < 1:
            return None
        n = len(self.densities)
        none = (np.zeros(0, np.int64),) * n
        return Thresholds(np.zeros(n, np.int64), np.full(n, ALL), none)

    def survey(self, found: Any) -> UpperCounts | LowerCounts | None:
        """Return the next count that is needed."""
        return None if self.everything else next_count(found, self.densities, self.round_to)

    def observe(self, survey: UpperCounts | LowerCounts, chunk: Chunk) -> Any:
        """Count magnitudes of a chunk."""
        models, places = chunk.models, list(_places(chunk))
        counts = survey.room()
        mine = counts if len(places) == len(counts) else counts[places]
        if isinstance(survey, UpperCounts):
            selection.count_upper(chunk.kind, self.round_to, chunk.zero, models, chunk.count, mine)
        else:
            bins = survey.bins.bins[places]
            selection.count_lower(chunk.kind, chunk.zero, models, bins, chunk.count, mine)
        counts[places] = mine
        return counts

    def quotas(
        self, chunk: Chunk, found: Thresholds | None, number: int
    ) -> tuple[Integers, Integers]:
        """Return the magnitudes kept, and how many equal ones of each, in one chunk."""
        thresholds = self.everything or found
        assert thresholds is not None
        places = list(_places(chunk))
        return thresholds.magnitudes[places], thresholds.quotas(number)[places]


@dataclass(frozen=True)
class Ties:
    """``omni_ties``."""

    trim: Trim
    weights: tuple[float, ...]
    normalize: bool
    scale: float

    def survey(self, found: Any) -> Survey | None:
        """See :class:`Fused`."""
        return self.trim.survey(found)

    def observe(self, survey: Any, chunk: Chunk) -> Any:
        """See :class:`Fused`."""
        return self.trim.observe(survey, chunk)

    def emit(self, chunk: Chunk, found: Any, number: int) -> tuple[Bytes, ...]:
        """See :class:`Fused`."""
        out = chunk.room()
        ties.merged(
            chunk.kind, chunk.zero, chunk.models, singles(self.weights), self.normalize,
            single(self.scale), *self.trim.quotas(chunk, found, number), chunk.count, _at(out),
        )  # fmt: skip
        return (out,)


@dataclass(frozen=True)
class Mmer:
    """``mmer``: θ₀ + mᵢ∘τ★, or τ★ and every mask, in one pass.

    Attributes:
        chosen: whose mask the merged output uses; None for θ₀ + τ★.
        side_outputs: return τ★ and the models' masks, eight elements a byte, instead.
    """

    trim: Trim
    weights: tuple[float, ...]
    normalize: bool
    scale: float
    rule: int
    lambdas: tuple[float, ...]
    directional: bool
    chosen: int | None = None
    side_outputs: bool = False

    def survey(self, found: Any) -> Survey | None:
        """See :class:`Fused`."""
        return self.trim.survey(found)

    def observe(self, survey: Any, chunk: Chunk) -> Any:
        """See :class:`Fused`."""
        return self.trim.observe(survey, chunk)

    def emit(self, chunk: Chunk, found: Any, number: int) -> tuple[Bytes, ...]:
        """See :class:`Fused`."""
        n = len(self.weights)
        out = chunk.room()
        masks = [np.empty((chunk.count + 7) // 8, np.uint8) for _ in range(n)]
        aside = self.side_outputs
        ties.decoupled(
            chunk.kind, chunk.zero, chunk.models, singles(self.weights), self.normalize,
            single(self.scale), *self.trim.quotas(chunk, found, number), self.rule,
            singles(self.lambdas), self.directional, -1 if self.chosen is None else self.chosen,
            chunk.count, _at(out) if aside else 0,
            np.array([_at(mask) if aside else 0 for mask in masks], np.int64),
            0 if aside else _at(out),
        )  # fmt: skip
        return (out, *masks) if aside else (out,)


@dataclass(frozen=True)
class Arithmetic:
    """mergekit's ``task_arithmetic`` (no consensus) and ``ties``; scalars rounded to the dtype."""

    trim: Trim | None
    weights: tuple[float, ...]
    consensus: bool
    normalize: bool
    scale: float
    divisor: float

    def survey(self, found: Any) -> Survey | None:
        """See :class:`Fused`."""
        return self.trim.survey(found) if self.trim else None

    def observe(self, survey: Any, chunk: Chunk) -> Any:
        """See :class:`Fused`."""
        assert self.trim
        return self.trim.observe(survey, chunk)

    def emit(self, chunk: Chunk, found: Any, number: int) -> tuple[Bytes, ...]:
        """See :class:`Fused`."""
        n = len(self.weights)
        kept = (np.full(n, -1, np.int64), np.zeros(n, np.int64))
        if self.trim:
            kept = self.trim.quotas(chunk, found, number)
        out = chunk.room()
        arithmetic.merged(
            chunk.kind, chunk.zero, chunk.models, singles(self.weights), self.consensus,
            self.normalize, single(self.scale), single(self.divisor), *kept, chunk.count,
            _at(out),
        )  # fmt: skip
        return (out,)


def _places(chunk: Chunk) -> tuple[int, ...]:
    return tuple(range(len(chunk.models))) if chunk.places is None else chunk.places


def _at(array: Bytes) -> int:
    return int(array.ctypes.data)
