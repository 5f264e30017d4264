"""Backbone tensors of any routes, formed from the package when they are asked for."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from omnireg.package import Package
from omnireg.routed.device_cache import Resident
from omnireg.routed.routes import STEP, Blend, Blended, Route
from omnireg.strategies.kernels.views import Stored
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
        self.package.read.check()

    def rows(self, name: str, route: Route, numbers: Sequence[int]) -> torch.Tensor:
        """Return rows of a matrix of one route, (rows, width), formed by the processor."""
        width = self.shape(name)[1]
        out = torch.empty(len(numbers), width, dtype=self.dtype)
        source = self._source(name)
        source.write_rows(source.blend(route), np.array(numbers, np.int64) * width, out)
        self.package.read.check()
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

    def __init__(self, stored: Stored, factors: dict[str, float]) -> None:
        self._stored = stored
        self._factors = factors

    @cached_property
    def ranks(self) -> NDArray[np.int64]:
        """How many elements of the vector lie before every ``STEP``-th of the tensor."""
        return self._stored.ranks(STEP)

    def rank(self, at: int) -> int:
        """Return how many elements of the vector lie before one of the tensor."""
        return self._stored.rank_from(at, self.ranks, STEP)

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

    def masks(self, blends: Sequence[Blended]) -> list[list[NDArray[np.uint8]]]:
        """Return the masks of each blend, one for each of its weights."""
        found: list[list[NDArray[np.uint8]]] = []
        for blend in blends:
            own = [self._stored.masks[name] for name in blend.models]
            found.append([np.bitwise_or.reduce(own)] if blend.union else own)
        return found

    def write(
        self,
        blends: Sequence[Blended],
        masks: Sequence[Sequence[NDArray[np.uint8]]],
        start: int,
        stop: int,
        outs: Sequence[torch.Tensor],
    ) -> None:
        """Write elements ``start`` to ``stop`` of every blend to the front of its tensor."""
        written = _WRITTEN[outs[0].dtype]
        places, sets = [], []
        for blend, own, out in zip(blends, masks, outs, strict=True):
            if blend.plain:
                self._stored.plain(start, stop, written, _array(out))
            else:
                places.append(_array(out))
                sets.append(list(zip(own, blend.weights, strict=True)))
        if sets:
            self._stored.form(sets, start, stop, self.rank(start), written, places)

    def write_rows(self, blend: Blended, starts: NDArray[np.int64], out: torch.Tensor) -> None:
        """Write a row of elements from every start on."""
        written, count = _WRITTEN[out.dtype], out.shape[1]
        if blend.plain:
            for start, row in zip(starts.tolist(), out, strict=True):
                self._stored.plain(start, start + count, written, _array(row))
            return
        [own] = self.masks([blend])
        weighted = list(zip(own, blend.weights, strict=True))
        self._stored.form_rows(weighted, self.ranks, STEP, starts, count, written, _array(out))


def _array(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """Return the memory of a tensor."""
    found: NDArray[np.uint8] = tensor.view(-1).view(torch.uint8).numpy()
    return found
