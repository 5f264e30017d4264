"""Task vectors of several models, read once, chunk by chunk, by a few threads.

Inputs lie in memory maps; a chunk of each is looked at where it lies, whatever its number format.
Sums are added up in the order of the elements, so the number of threads changes no bit.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnireg.backbones.sources import Source
from omnireg.checkpoints.shards import ByteReader
from omnireg.checkpoints.tensors import as_tensor
from omnireg.engine.ordered import in_order
from omnireg.engine.tensors import adjoined, nonfinite
from omnireg.errors import ConfigError
from omnireg.planning import Merged, Plan, plan
from omnireg.plugins.host import PluginHost
from omnireg.recipe import Recipe
from omnireg.strategies.kernels import faults
from omnireg.strategies.kernels.choose import KINDS
from omnireg.strategies.kernels.comparing import compare
from omnireg.strategies.kernels.fused import STORAGE
from omnireg.strategies.kernels.views import address, finite, width
from omnireg.strategies.task_vectors import SPAN
from omnireg.strategies.thresholds import Kind

Tick = Callable[[int, int], None]
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass
class Sums:
    """Sums over some elements of θ₀ and of τ₁ … τₙ.

    Attributes:
        numel: how many elements.
        absolute: (n,) Σ|τᵢ|.
        largest: (n,) max|τᵢ|.
        moved: (n,) how many elements are not where the base has them.
        products: (n + 1, n + 1) Σ of products of θ₀, τ₁ … τₙ; θ₀ with itself, and the lower
            triangle of the others.
        agree: (n, n) lower triangle: elements that both vectors move in the same direction.
        oppose: (n, n) lower triangle: elements that they move in opposite directions.
        shared: elements that any vector moves, and that some move up and others down.
    """

    numel: int
    absolute: Floats
    largest: Floats
    moved: Counts
    products: Floats
    agree: Counts
    oppose: Counts
    shared: Counts

    @classmethod
    def none(cls, models: int) -> "Sums":
        """Return the sums over nothing."""
        n = models
        return cls(
            0, np.zeros(n), np.zeros(n), np.zeros(n, np.int64), np.zeros((n + 1, n + 1)),
            np.zeros((n, n), np.int64), np.zeros((n, n), np.int64), np.zeros(2, np.int64),
        )  # fmt: skip

    def add(self, other: "Sums") -> None:
        """Take in the sums over other elements."""
        self.numel += other.numel
        self.largest = np.maximum(self.largest, other.largest)
        for name in ("absolute", "moved", "products", "agree", "oppose", "shared"):
            getattr(self, name)[...] += getattr(other, name)

    @property
    def delta_avg(self) -> Floats:
        """(n,) mean |θᵢ − θ₀| (arXiv 2506.01872, Eq. 3)."""
        return self.absolute / max(self.numel, 1)

    @property
    def norms(self) -> Floats:
        """(n,) ‖τᵢ‖₂."""
        found: Floats = np.sqrt(np.diag(self.products)[1:])
        return found

    @property
    def relative(self) -> Floats:
        """(n,) ‖τᵢ‖₂ / ‖θ₀‖₂; 0 where θ₀ is 0."""
        base = float(np.sqrt(self.products[0, 0]))
        return self.norms / base if base else np.zeros_like(self.norms)

    def cosine(self, one: int, other: int) -> float | None:
        """Return cos(τᵢ, τⱼ); None where one of them is 0."""
        high, low = max(one, other), min(one, other)
        length = self.norms[one] * self.norms[other]
        return float(self.products[high + 1, low + 1] / length) if length else None

    def sign_agreement(self, one: int, other: int) -> float | None:
        """Return the share of same directions among elements that both move; None without any."""
        high, low = max(one, other), min(one, other)
        same, opposite = int(self.agree[high, low]), int(self.oppose[high, low])
        return same / (same + opposite) if same + opposite else None

    @property
    def conflict(self) -> float:
        """The share, of the elements that anyone moves, of those moved up and down."""
        return float(self.shared[1] / max(self.shared[0], 1))


@dataclass(frozen=True)
class Vectors:
    """The task vectors of models that share a base.

    Attributes:
        plan: how they are lined up.
        models: in the order that they were named in.
    """

    plan: Plan
    models: tuple[str, ...]

    @classmethod
    def of(cls, base: str, models: Sequence[str], plugins: PluginHost | None = None) -> "Vectors":
        """Line models up with a base, from headers.

        Raises:
            ConfigError: a model is named twice.
            OmniregError: a checkpoint is missing or damaged, or they do not fit together.
        """
        for model in models:
            if list(models).count(model) > 1 or model == base:
                raise ConfigError(f"{model} is named twice; name each checkpoint once")
        recipe = Recipe.model_validate(
            {
                "merge_method": "delta_weighted",
                "base_model": base,
                "models": [{"model": model} for model in models],
            }
        )
        return cls(plan(recipe, plugins or PluginHost()), tuple(models))

    @cached_property
    def total(self) -> int:
        """Number of elements."""
        return sum(merged.sources[0].numel for merged in self.plan.merged.values())

    def sums(
        self, *, threads: int | None = None, tick: Tick = lambda done, total: None
    ) -> Iterator[tuple[str, Sums]]:
        """Yield every tensor's name and sums, in the order of the plan.

        Of a model that lacks a tensor, the vector is 0 there.

        Raises:
            CheckpointError: a tensor holds NaN or Inf.
        """
        done = 0
        for name, group in groupby(self._chunks(threads), key=itemgetter(0)):
            total = Sums.none(len(self.models))
            for _, found in group:
                total.add(found)
                done += found.numel
                tick(done, self.total)
            yield name, total

    def _chunks(self, threads: int | None) -> Iterator[tuple[str, Sums]]:
        """Yield the sums of every chunk in order, while threads look at the next few."""
        faults.guard()
        count, read = threads or os.cpu_count() or 1, ByteReader()
        with ThreadPoolExecutor(count, thread_name_prefix="omnireg-analysis") as pool:
            yield from in_order(pool, self._looks(read), count + 1)
        read.check()

    def _looks(self, read: ByteReader) -> Iterator[Callable[[], tuple[str, Sums]]]:
        for merged in self.plan.merged.values():
            numel = merged.sources[0].numel
            for start in range(0, numel, SPAN):
                yield partial(self._look, merged, start, min(start + SPAN, numel), read)

    def _look(self, merged: Merged, start: int, stop: int, read: ByteReader) -> tuple[str, Sums]:
        """Look at a chunk of every input."""
        of = {source.ref: source for source in merged.sources}
        base = self.plan.recipe.base_model or ""
        arrays, kinds = [], []
        for ref in (base, *self.models):
            kind, array = _elements(of.get(ref, of[base]), start, stop, read)
            if not finite(int(kind), array, stop - start):
                read.check()  # or is it that somebody writes to it?
                raise nonfinite(ref, merged.name)
            arrays.append(array)
            kinds.append(int(kind))
        found = Sums.none(len(self.models))
        found.numel = stop - start
        sizes = [(stop - start) * width(kind) for kind in kinds]
        places = [address(array, size) for array, size in zip(arrays, sizes, strict=True)]
        compare(
            np.array(kinds, np.int64), np.array(places, np.int64), stop - start, found.absolute,
            found.largest, found.moved, found.products, found.agree, found.oppose, found.shared,
        )  # fmt: skip
        return merged.name, found


def _elements(source: Source, start: int, stop: int, read: ByteReader) -> tuple[Kind, Any]:
    """Return some elements of an input as they lie on disk; odd formats as float32."""
    kind = KINDS.get(source.dtype)
    if kind is not None and source.uniform:
        return kind, adjoined(source.pieces(read, start, stop), STORAGE[kind])
    found = []
    for span in source.spans:
        low, high = max(start, span.start), min(stop, span.stop)
        if low < high:
            piece = span.bytes(read, low, high)
            found.append(as_tensor(piece, span.header.flat(high - low)).float().numpy())
    return Kind.F32, np.concatenate(found)
