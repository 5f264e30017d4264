"""Backbone tensors of any routes, formed from the package when they are asked for."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from omnireg.package import Package
from omnireg.package.reading import KINDS, Arrays
from omnireg.routed.resident import STEP, Resident
from omnireg.routed.routes import Blend, Blended, Route
from omnireg.shards import DTYPE_SIZES
from omnireg.strategies.kernels import decoupling
from omnireg.strategies.thresholds import Kind

_WRITTEN = {
    torch.bfloat16: int(Kind.BF16), torch.float16: int(Kind.F16), torch.float32: int(Kind.F32)
}  # fmt: skip
CPU = torch.device("cpu")
#: the least number of elements that is worth a thread
_SHARE = 1 << 16


class Weights:
    """Forms parts of θ₀ + c∘τ★ in the dtype that the model computes in.

    Every weight is rounded to the package's dtype first, so it has the bits of an extraction. θ₀,
    τ★ and masks stay where they are: in the package's files, mapped. For weights that are wanted
    elsewhere than in the processor's memory they are kept there, see :class:`Resident`.
    """

    def __init__(self, package: Package, dtype: torch.dtype) -> None:
        """Open the package's vector; nothing is read yet."""
        self.package = package
        self.dtype = dtype
        self._threads = max(1, torch.get_num_threads())
        self._sources: dict[str, _Source] = {}
        self._residents: dict[tuple[str, torch.device], Resident] = {}
        self._room = torch.empty(0, dtype=dtype)

    def room(self, count: int, device: torch.device) -> torch.Tensor:
        """Return scratch memory of so many elements, the same at every call: fresh pages cost."""
        if len(self._room) < count or self._room.device != device:
            self._room = torch.empty(count, dtype=self.dtype, device=device)
        return self._room[:count]

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max(1, self._threads - 1))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a backbone tensor."""
        return self.package.vector[name].shape

    def form(
        self,
        name: str,
        route: Route,
        start: int = 0,
        stop: int | None = None,
        device: torch.device = CPU,
    ) -> torch.Tensor:
        """Return elements ``start`` to ``stop`` of a tensor of one route, flat."""
        stop = self.package.vector[name].numel if stop is None else stop
        out = torch.empty(stop - start, dtype=self.dtype, device=device)
        self.form_all(name, [route], start, stop, [out])
        return out

    def form_all(
        self,
        name: str,
        routes: Sequence[Route],
        start: int,
        stop: int,
        outs: Sequence[torch.Tensor],
    ) -> None:
        """Write elements ``start`` to ``stop`` of a tensor, flat, for every route in one pass.

        They are formed where ``outs`` are, all on one device.
        """
        source = self._source(name)
        blends = [source.blend(route) for route in routes]
        if (device := outs[0].device) != CPU:
            self._resident(name, device).write(blends, (start, stop), source.rank, outs)
            return
        masks = source.masks(blends)
        # more shares than threads: those of the matrix products may still be spinning
        share = max(_SHARE, -(-(stop - start) // (4 * self._threads)))
        shares = [
            (at, min(at + share, stop), [out[at - start :] for out in outs])
            for at in range(start, stop, share)
        ]
        jobs = iter(shares)

        def work() -> None:
            for job in jobs:
                source.write(blends, masks, *job)

        helpers = [self._pool.submit(work) for _ in range(min(self._threads, len(shares)) - 1)]
        work()
        for helper in helpers:
            helper.result()

    def rows(self, name: str, route: Route, numbers: Sequence[int]) -> torch.Tensor:
        """Return rows of a matrix of one route, (rows, width), formed by the processor."""
        width = self.shape(name)[1]
        out = torch.empty(len(numbers), width, dtype=self.dtype)
        source = self._source(name)
        source.write_rows(source.blend(route), np.array(numbers, np.int64) * width, out)
        return out

    def _source(self, name: str) -> "_Source":
        if name not in self._sources:
            factors = {m: model.factor(name) for m, model in self.package.models.items()}
            self._sources[name] = _Source(self.package.arrays(name), factors)
        return self._sources[name]

    def _resident(self, name: str, device: torch.device) -> Resident:
        if (name, device) not in self._residents:
            ranks = self._source(name).ranks
            self._residents[name, device] = Resident(self.package.arrays(name), ranks, device)
        return self._residents[name, device]


class _Source:
    """One tensor of the package, and where in its vector each stretch of elements begins."""

    def __init__(self, arrays: Arrays, factors: dict[str, float]) -> None:
        self._arrays = arrays
        self._factors = factors

    @cached_property
    def ranks(self) -> NDArray[np.int64]:
        """How many elements of the vector lie before every ``STEP``-th of the tensor."""
        found = np.empty(self._arrays.numel // STEP + 1, np.int64)
        decoupling.ranks(_at(self._arrays.support), self._arrays.numel, STEP, found)
        return found

    def rank(self, at: int) -> int:
        """Return how many elements of the vector lie before one of the tensor."""
        known = at // STEP
        between = decoupling.count_between(_at(self._arrays.support), known * STEP, at)
        return int(self.ranks[known]) + between

    def blend(self, route: Route) -> Blended:
        """Return which masks a route needs, with their weights."""
        if route.blend is Blend.BASE:
            return Blended(plain=True)
        if route.blend is Blend.MERGED:
            return Blended()
        factors = [self._factors[name] for name in route.models]
        if route.blend is Blend.UNION:
            return Blended(route.models, (sum(factors) / len(factors),), union=True)
        return Blended(route.models, tuple(factor / len(factors) for factor in factors))

    def masks(self, blends: Sequence[Blended]) -> list[NDArray[np.uint8]]:
        """Return one mask for each weight of some blends; whoever writes has to hold them."""
        found: list[NDArray[np.uint8]] = []
        for blend in blends:
            own = [self._arrays.masks[name] for name in blend.models]
            found += [np.bitwise_or.reduce(own)] if blend.union else own
        return found

    def write(
        self,
        blends: Sequence[Blended],
        masks: Sequence[NDArray[np.uint8]],
        start: int,
        stop: int,
        outs: Sequence[torch.Tensor],
    ) -> None:
        """Write elements ``start`` to ``stop`` of every blend to the front of its tensor."""
        arrays, kind, written = self._arrays, KINDS[self._arrays.dtype], _WRITTEN[outs[0].dtype]
        zero = _at(arrays.base) + start * DTYPE_SIZES[arrays.dtype]
        places = []
        for blend, out in zip(blends, outs, strict=True):
            if blend.plain:
                decoupling.converted(kind, zero, stop - start, written, out.data_ptr())
            else:
                places.append(out.data_ptr())
        changed = [blend for blend in blends if not blend.plain]
        if not changed:
            return
        weights = [weight for blend in changed for weight in blend.weights]
        bounds = np.cumsum([0, *(len(blend.weights) for blend in changed)])
        decoupling.form(
            kind, zero, _at(arrays.support), _at(arrays.values),
            np.array([_at(mask) for mask in masks], np.int64), np.array(weights, np.float32),
            bounds, start, stop - start, self.rank(start), written,
            np.array(places, np.int64), decoupling.WIDE,
        )  # fmt: skip

    def write_rows(self, blend: Blended, starts: NDArray[np.int64], out: torch.Tensor) -> None:
        """Write a row of elements from every start on."""
        arrays, masks = self._arrays, self.masks([blend])
        kind, written, count = KINDS[arrays.dtype], _WRITTEN[out.dtype], out.shape[1]
        if blend.plain:
            size = DTYPE_SIZES[arrays.dtype]
            for start, row in zip(starts.tolist(), out, strict=True):
                place = _at(arrays.base) + start * size
                decoupling.converted(kind, place, count, written, row.data_ptr())
            return
        decoupling.form_rows(
            kind, _at(arrays.base), _at(arrays.support), _at(arrays.values),
            np.array([_at(mask) for mask in masks], np.int64), np.array(blend.weights, np.float32),
            self.ranks, STEP, starts, count, written, out.data_ptr(), decoupling.WIDE,
        )  # fmt: skip


def _at(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)
