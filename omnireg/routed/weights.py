"""Backbone tensors of any route, formed from the package when they are asked for."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from omnireg.package import Package
from omnireg.package.reading import KINDS, Arrays
from omnireg.routed.routes import Blend, Route
from omnireg.shards import DTYPE_SIZES
from omnireg.strategies.kernels import decoupling
from omnireg.strategies.thresholds import Kind

_WRITTEN = {torch.bfloat16: Kind.BF16, torch.float16: Kind.F16, torch.float32: Kind.F32}
#: the least number of elements that is worth a thread
_SHARE = 1 << 16


class Weights:
    """Forms parts of θ₀ + c∘τ★ in the dtype that the model computes in.

    Every weight is rounded to the package's dtype first, so it has the bits of an extraction. θ₀,
    τ★ and masks stay where they are: in the package's files, mapped.
    """

    def __init__(self, package: Package, dtype: torch.dtype) -> None:
        """Open the package's vector; nothing is read yet."""
        self.package = package
        self.dtype = dtype
        self._threads = max(1, torch.get_num_threads())
        self._sources: dict[str, _Source] = {}

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._threads)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a backbone tensor."""
        return self.package.vector[name].shape

    def form(
        self,
        name: str,
        route: Route,
        start: int = 0,
        stop: int | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return elements ``start`` to ``stop`` of a tensor, flat; into the front of ``out``."""
        source = self._source(name)
        stop = source.arrays.numel if stop is None else stop
        if out is None:
            out = torch.empty(stop - start, dtype=self.dtype)
        out = out[: stop - start]
        how = source.blended(route)
        share = max(_SHARE, -(-(stop - start) // self._threads))
        parts = [(at, min(at + share, stop)) for at in range(start, stop, share)]
        jobs = [(first, last, out[first - start :]) for first, last in parts]
        if len(jobs) == 1:
            source.write(how, *jobs[0])
        else:
            list(self._pool.map(lambda job: source.write(how, *job), jobs))
        return out

    def _source(self, name: str) -> "_Source":
        if name not in self._sources:
            factors = {m: model.factor(name) for m, model in self.package.models.items()}
            self._sources[name] = _Source(self.package.arrays(name), factors)
        return self._sources[name]


@dataclass(frozen=True)
class _How:
    """Masks and their weights; ``plain`` is θ₀ alone."""

    masks: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    weights: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    plain: bool = False
    #: what the addresses point into
    held: tuple[Any, ...] = ()


class _Source:
    """One tensor of the package, and where in its vector each stretch of elements begins."""

    _STEP = 4096

    def __init__(self, arrays: Arrays, factors: dict[str, float]) -> None:
        self.arrays = arrays
        self._factors = factors

    @cached_property
    def _ranks(self) -> NDArray[np.int64]:
        found = np.empty(self.arrays.numel // self._STEP + 1, np.int64)
        decoupling.ranks(_at(self.arrays.support), self.arrays.numel, self._STEP, found)
        return found

    def blended(self, route: Route) -> _How:
        """Return which masks a route needs, with their weights."""
        if route.blend is Blend.BASE:
            return _How(plain=True)
        if route.blend is Blend.MERGED:
            return _How()
        masks = [self.arrays.masks[name] for name in route.models]
        factors = [self._factors[name] for name in route.models]
        if route.blend is Blend.UNION:
            masks = [np.bitwise_or.reduce(masks)]
            factors = [sum(factors) / len(factors)]
        shares = np.array(factors, np.float32) / np.float32(len(masks))
        return _How(np.array([_at(mask) for mask in masks]), shares, held=tuple(masks))

    def write(self, how: _How, start: int, stop: int, out: torch.Tensor) -> None:
        """Write elements ``start`` to ``stop`` to the front of ``out``."""
        arrays, kind, written = self.arrays, KINDS[self.arrays.dtype], _WRITTEN[out.dtype]
        place = out.data_ptr()
        zero = _at(arrays.base) + start * DTYPE_SIZES[arrays.dtype]
        if how.plain:
            decoupling.converted(kind, zero, stop - start, written, place)
            return
        known = start // self._STEP
        support = _at(arrays.support)
        rank = int(self._ranks[known])
        rank += decoupling.count_between(support, known * self._STEP, start)
        decoupling.form(
            kind, zero, support, _at(arrays.values), how.masks, how.weights, start, stop - start,
            rank, written, place, decoupling.WIDE,
        )  # fmt: skip


def _at(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)
