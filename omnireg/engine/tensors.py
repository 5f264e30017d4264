"""Merged tensors one at a time: by a compiled pass over chunks, or by the method's torch code."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from threading import Lock
from typing import Any, cast

import numpy as np
import torch
from mergekit.merge_methods import MergeMethod, PerInputValues

from omnireg.backbones.alignment import VOCABULARY
from omnireg.checkpoints.shards import ByteReader
from omnireg.checkpoints.tensors import TORCH_DTYPES
from omnireg.engine.ordered import given
from omnireg.engine.results import Like, checked_rescaling, checked_side_outputs
from omnireg.engine.seeded import seeded
from omnireg.engine.translated import translated
from omnireg.errors import CheckpointError, MergeError, OmniregError
from omnireg.hookspecs import Surveyed
from omnireg.planning import Merged, Plan
from omnireg.planning.parameters import Bound
from omnireg.strategies.kernels.choose import KINDS, Tensor, fuse
from omnireg.strategies.kernels.fused import STORAGE, Chunk, Fused
from omnireg.strategies.kernels.views import finite
from omnireg.strategies.task_vectors import SPAN

Call = Callable[[], Any]


def _one_by_one(calls: Iterable[Call]) -> Iterator[Any]:
    return (call() for call in calls)


@dataclass(frozen=True)
class Settings:
    """What all tensors of a merge have in common."""

    plan: Plan
    read: ByteReader
    seed: int = 0
    device: str = "cpu"
    allow_nonfinite: bool = False
    side_outputs: bool = False

    @cached_property
    def method(self) -> MergeMethod:
        """The merge method."""
        return self.plan.strategy.load()

    def ask(self, whom: Any, what: str, *arguments: Any) -> Any:
        """Call what a method has beside mergekit's interface; others' code is translated."""
        if self.plan.strategy.origin.is_ours:
            return getattr(whom, what)(*arguments)
        with translated(self.plan.recipe.merge_method):
            return getattr(whom, what)(*arguments)

    @cached_property
    def refs(self) -> tuple[str, ...]:
        """All inputs, in the order of the recipe."""
        return tuple(item.ref for item in self.plan.inputs)

    @property
    def base(self) -> str | None:
        """The base's reference."""
        return self.plan.recipe.base_model

    @cached_property
    def models(self) -> tuple[str, ...]:
        """The inputs that are not the base."""
        return tuple(ref for ref in self.refs if ref != self.base)


@dataclass
class Job:
    """One merged tensor, and how it is computed.

    ``number`` counts the chunks that were surveyed before it, where the whole model was.
    """

    merged: Merged
    settings: Settings
    found: Any = None
    number: int = 0
    _seen: set[int] = field(default_factory=set)
    _lock: Lock = field(default_factory=Lock)

    @cached_property
    def numel(self) -> int:
        """Number of elements."""
        return self.merged.sources[0].numel

    @property
    def chunks(self) -> int:
        """In how many chunks it is computed."""
        return -(-self.numel // SPAN) if self.fused else 1

    @cached_property
    def bound(self) -> Bound:
        """Its parameters."""
        return self.settings.plan.resolver.bind(self.merged.name, self.merged.position)

    @cached_property
    def fused(self) -> Fused | None:
        """The compiled pass, where there is one for these inputs.

        It is made by the processor whatever the device: it waits for files, and a GPU made it wait
        for copies as well.
        """
        plan, sources = self.settings.plan, self.merged.sources
        dtypes = {source.dtype for source in sources} | {self.merged.dtype}
        code = self.merged.dtype
        if len(dtypes) > 1 or code not in KINDS or not all(s.uniform for s in sources):
            return None
        if plan_dtype(plan) not in (None, TORCH_DTYPES()[code]):
            return None
        if self.settings.allow_nonfinite:
            return None
        tensor = Tensor(
            KINDS[code],
            self.numel,
            tuple(source.ref for source in sources),
            self.settings.refs,
            self.settings.base,
            self.bound.shared,
            self.bound.per_input,
            self.settings.side_outputs,
        )
        return fuse(self.settings.method, tensor)

    # chunks

    def survey(self, run: Callable[[Iterable[Call]], Iterable[Any]] = _one_by_one) -> None:
        """Make the passes over all chunks that the compiled pass needs first, unless they are made.

        Rows of one tensor may be asked for by several threads; the first one surveys for all.
        ``run`` makes calls and yields their results in order.
        """
        with self._lock:
            found = self.found
            while self.found is None and self.fused and (survey := self.fused.survey(found)):
                for observation in run(self.looks(survey)):
                    survey.add(observation)
                found = survey.result()
            self.found = found

    def looks(self, survey: Any) -> Iterator[Call]:
        """Yield what observes each chunk; a method's own code is run at once, outside any pool."""
        for chunk in range(self.chunks):
            call = partial(self.observe, survey, chunk)
            yield call if self.fused else given(call())

    def observe(self, survey: Any, chunk: int) -> Any:
        """Look at a chunk for a survey, with the compiled pass or with the method's own code."""
        if self.fused:
            return self.fused.observe(survey, self.chunk(chunk))
        method: Any = self.settings.method
        with self._own_code():
            return method.observe(survey, self._group(), self._known, self._parameters())

    def emit(self, chunk: int) -> memoryview:
        """Return the bytes of a finished chunk."""
        assert self.fused
        view = self.chunk(chunk)
        (merged,) = self.fused.emit(view, self.found, self.number + chunk)
        self.check_emitted(view, merged)
        return merged.data.cast("B")

    def check_emitted(self, chunk: Chunk, made: Any) -> None:
        """Refuse a merged chunk with NaN or Inf: sums that overflow the dtype.

        Raises:
            MergeError: names the method and the tensor.
        """
        if not finite(chunk.kind, made, chunk.count):
            raise made_nonfinite(self.settings.plan.recipe.merge_method, self.merged.name)

    def chunk(self, number: int) -> Chunk:
        """Return a chunk of every input, where it lies.

        Raises:
            CheckpointError: an input holds NaN or Inf.
            InputChanged: an input is no longer what was planned with.
        """
        start = number * SPAN
        stop = min(start + SPAN, self.numel)
        kind, sources, settings = KINDS[self.merged.dtype], self.merged.sources, self.settings
        arrays = tuple(
            adjoined(source.pieces(settings.read, start, stop), STORAGE[kind]) for source in sources
        )
        refs = [source.ref for source in sources]
        places = None
        if self.found is not None or len(refs) < len(settings.refs):
            places = tuple(settings.models.index(ref) for ref in refs if ref != settings.base)
        base = refs.index(settings.base) if settings.base in refs else None
        chunk = Chunk(kind, stop - start, arrays, base, places)
        if number not in self._seen:
            self._seen.add(number)
            for odd in chunk.nonfinite():
                settings.read.check()  # or is it that somebody writes to it?
                raise nonfinite(refs[odd], self.merged.name)
        return chunk

    # the method's own code

    @property
    def _known(self) -> Surveyed:
        return Surveyed(self.settings.models, self.found, self.number)

    @contextmanager
    def _own_code(self) -> Iterator[None]:
        name = self.merged.name
        with (
            translated(self.settings.plan.recipe.merge_method, name),
            seeded(self.settings.seed, name),
        ):
            yield

    def tensor(self) -> torch.Tensor:
        """Return the merged tensor, computed by the method's own code."""
        method, name = self.settings.plan.recipe.merge_method, self.merged.name
        with self._own_code():
            inputs = self._inputs()
            like = Like.of(inputs.values())
            result = self._task().execute(tensors=inputs)
            if result is None:
                raise MergeError(f"{method} left out tensor {name}")
            merged = like.merged(result)
        made = merged.to(device="cpu", dtype=TORCH_DTYPES()[self.merged.dtype])
        self._check_made(made)
        return made

    def side_outputs(self) -> tuple[torch.Tensor, dict[str, Any], int | None]:
        """Return τ★, how each model is decoupled, and the power of its norm if it is rescaled."""
        method, parameters = cast(Any, self.settings.method), self._parameters()
        with self._own_code():
            group = self._group()
            like = Like.of(group.tensors)
            models = [str(entry.id) for entry in group.non_base]
            merged, found = method.side_outputs(group, parameters, self._known)
            merged, parts = checked_side_outputs(like, models, merged, found)
            rescaling = checked_rescaling(method.rescaling(parameters))
        self._check_made(merged, *(part.vector for part in parts.values()))
        return merged, parts, rescaling.power if rescaling else None

    def _check_made(self, *tensors: torch.Tensor) -> None:
        if not self.settings.allow_nonfinite and not all(map(is_finite, tensors)):
            raise made_nonfinite(self.settings.plan.recipe.merge_method, self.merged.name)

    def _inputs(self) -> dict[Any, torch.Tensor]:
        """Return copies of the inputs, which a method may write to; files are read-only."""
        from mergekit.common import ModelReference

        named = plan_dtype(self.settings.plan)
        found = {}
        for source in self.merged.sources:
            tensor = source.tensor(self.settings.read)
            if not self.settings.allow_nonfinite:
                check_finite(source.ref, self.merged.name, tensor)
            wanted = named if named and tensor.is_floating_point() else tensor.dtype
            ref = ModelReference.model_validate(source.ref)
            found[ref] = tensor.to(device=self.settings.device, dtype=wanted, copy=True)
        return found

    def _task(self) -> Any:
        """Return mergekit's own task for this tensor, so that its policies apply."""
        from mergekit.architecture import WeightInfo
        from mergekit.common import ImmutableMap, ModelReference
        from mergekit.io.tasks import GatherTensors
        from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask

        refs = {ref: ModelReference.model_validate(ref) for ref in self.settings.refs}
        name, base = self.merged.name, self.settings.base
        shared = dict(self.bound.shared)
        if self.found is not None:
            shared["surveyed"] = self._known
        return ExecuteMergeMethodTask(
            method_name=self.settings.method.spec.name,
            gather_tensors=GatherTensors(weight_info=ImmutableMap(data={})),
            model_order=tuple(refs.values()),
            base_model=refs[base] if base else None,
            output_weight=WeightInfo(
                name=name,
                optional=name in self.settings.plan.optional,
                vocabulary_axis=0 if name in VOCABULARY else None,
            ),
            parameters=ImmutableMap(data=shared),
            input_parameters=ImmutableMap(
                data={refs[r]: ImmutableMap(data=dict(v)) for r, v in self.bound.per_input.items()}
            ),
        )

    def _group(self) -> Any:
        from mergekit.merge_methods import TensorEntry, TensorGroup
        from mergekit.merge_methods.dtype import align_dtype

        entries = tuple(
            TensorEntry(str(ref), tensor, str(ref) == self.settings.base)
            for ref, tensor in self._inputs().items()
        )
        return align_dtype(TensorGroup(entries))

    def _parameters(self) -> Mapping[str, Any]:
        return parameters_of(self.bound, self.settings.method, self.settings.models)


def parameters_of(bound: Bound, method: MergeMethod, models: tuple[str, ...]) -> dict[str, Any]:
    """Return parameters as ``merge_group`` gets them, per-input values by reference."""
    found = dict(bound.shared)
    for parameter in method.spec.input_parameters:
        wanted = models if parameter.scope == "non_base" else tuple(bound.per_input)
        values = [(ref, bound.per_input[ref][parameter.name]) for ref in wanted]
        found[parameter.name] = PerInputValues(values)
    return found


def plan_dtype(plan: Plan) -> torch.dtype | None:
    """The dtype in which a recipe wants its inputs."""
    return getattr(torch, plan.recipe.dtype) if plan.recipe.dtype else None


def check_finite(ref: str, name: str, tensor: torch.Tensor) -> None:
    """Refuse NaN and Inf.

    Raises:
        CheckpointError: names the tensor.
    """
    if tensor.is_floating_point() and not is_finite(tensor):
        raise nonfinite(ref, name)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor Inf."""
    return bool(torch.isfinite(tensor).all())


def made_nonfinite(method: str, name: str) -> OmniregError:
    """Return the error about a method that makes NaN or Inf itself."""
    return MergeError(
        f"{method} makes NaN or Inf of finite inputs, in tensor {name}; look at its parameters, or"
        " pass --allow-nonfinite"
    )


def nonfinite(ref: str, name: str) -> OmniregError:
    """Return the error about a tensor with NaN or Inf."""
    return CheckpointError(
        f"{ref}: tensor {name} holds NaN or Inf; fix the checkpoint, or merge it with"
        " --allow-nonfinite"
    )


def adjoined(pieces: Iterable[memoryview], storage: Any) -> Any:
    """Return the elements of adjoining pieces, as a view where there is only one."""
    arrays = [np.frombuffer(piece, np.uint8) for piece in pieces]
    data = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    if data.ctypes.data % np.dtype(storage).itemsize:
        data = data.copy()
    return data.view(storage)
