"""The streaming engine: read by memory map, merge in chunks, write each file in order.

Chunks are computed ahead by a few threads; one thread takes them in the order of the file, writes
and hashes them. Only a handful are in memory at a time, whatever the size of the model.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from omnireg.checkpoints.shards import DTYPE_SIZES, FLOATS
from omnireg.checkpoints.tensors import TORCH_DTYPES, as_bytes, as_tensor
from omnireg.engine.ordered import given, in_order
from omnireg.engine.tensors import Call, Job, Settings, check_finite, parameters_of
from omnireg.errors import ConfigError
from omnireg.hookspecs import Surveyed
from omnireg.planning.output import Computed, Copied, Output, OutputFile, refuse_lost
from omnireg.strategies.kernels import faults
from omnireg.strategies.task_vectors import SPAN

Data = bytes | memoryview
#: tensors of up to so many chunks are one task; larger ones are shared out chunk by chunk
_ONE_TASK = 2


@dataclass
class Streamer:
    """Computes the content of output files, a few chunks ahead of whoever writes them."""

    output: Output
    settings: Settings
    pool: ThreadPoolExecutor
    window: int

    def __post_init__(self) -> None:
        """Prepare a job for every merged tensor; nothing is read yet."""
        merged = self.output.plan.merged
        self.jobs = {name: Job(tensor, self.settings) for name, tensor in merged.items()}
        self._last: tuple[Job, Any] | None = None

    # surveys

    def survey(self, tick: Callable[[int, int], None]) -> None:
        """Make the first passes over the whole model that the method asks for.

        Raises:
            ConfigError: one is asked for, but parameters differ from tensor to tensor.
        """
        method: Any = self.settings.method
        if not hasattr(method, "survey"):
            return
        known = Surveyed(self.settings.models)
        order = [self.jobs[name] for name in sorted(self.jobs)]
        parameters, *others = self._parameters(order)
        ask = self.settings.ask
        if others and any(ask(method, "survey", known, each) for each in (parameters, *others)):
            raise _differing(parameters, others)
        total = sum(job.chunks for job in order)
        while survey := ask(method, "survey", known, parameters):
            for done, observation in enumerate(self._ordered(_looks(order, survey))):
                ask(survey, "add", observation)
                tick(done, total)
            known = Surveyed(self.settings.models, ask(survey, "result"))
            for job in order:
                job.found = known.found

    def _parameters(self, jobs: Iterable[Job]) -> list[dict[str, Any]]:
        """The parameters of all tensors, equal ones once: one set unless a recipe has filters."""
        settings = self.settings
        found: list[dict[str, Any]] = []
        for bound in {id(job.bound): job.bound for job in jobs}.values():
            each = parameters_of(bound, settings.method, settings.models)
            if each not in found:
                found.append(each)
        return found

    # content

    def content(self, file: OutputFile) -> Iterator[Data]:
        """Yield the bytes of a file after its header, in order."""
        for ready in self._ordered(self._calls(file)):
            yield from ready

    def _calls(self, file: OutputFile) -> Iterator[Call]:
        for piece in file.pieces:
            for part in piece.parts:
                if isinstance(part, Copied):
                    yield from self._copies(part)
                else:
                    yield from self._computations(part, piece.dtype)

    def _copies(self, part: Copied) -> Iterator[Call]:
        size = SPAN * DTYPE_SIZES[part.header.dtype]
        for start in range(part.start, part.stop, size):
            yield partial(self._copy, part, start, min(start + size, part.stop))

    def _copy(self, part: Copied, start: int, stop: int) -> list[Data]:
        data = self.settings.read(part.header)[start:stop]
        if not self.settings.allow_nonfinite and part.header.dtype in FLOATS:
            count = len(data) // DTYPE_SIZES[part.header.dtype]
            tensor = as_tensor(data, part.header.flat(count))
            check_finite(self._owner(part), part.header.name, tensor)
        return [data]

    def _owner(self, part: Copied) -> str:
        host = self.output.plan.host
        return host.checkpoint.ref if host else str(part.header.file)

    def _computations(self, part: Computed, dtype: str) -> Iterator[Call]:
        job = self.jobs[part.name]
        if job.fused is None or dtype != job.merged.dtype:
            yield given([self._whole(job, part, dtype)])
        elif job.chunks <= _ONE_TASK:
            yield partial(self._compute, job, part)
        else:
            job.survey(self._ordered)
            for chunk in _chunks(part):
                yield partial(self._emit, job, part, chunk)

    def _compute(self, job: Job, part: Computed) -> list[Data]:
        job.survey()
        return [data for chunk in _chunks(part) for data in self._emit(job, part, chunk)]

    def _emit(self, job: Job, part: Computed, chunk: int) -> list[Data]:
        size, first = DTYPE_SIZES[job.merged.dtype], chunk * SPAN
        start, stop = max(part.start - first, 0), min(part.stop - first, SPAN)
        return [job.emit(chunk)[start * size : stop * size]]

    def _whole(self, job: Job, part: Computed, dtype: str) -> Data:
        if self._last is None or self._last[0] is not job:
            self._last = (job, job.tensor().reshape(-1))
        return as_bytes(self._last[1][part.start : part.stop].to(TORCH_DTYPES()[dtype]))

    def check_nothing_lost(self) -> None:
        """Refuse to leave out merged biases that the host has no place for, unless they are zero.

        Raises:
            PlanError: names them.
        """
        lost = [t.name for t in self.output.lost if self.jobs[t.name].tensor().any()]
        refuse_lost(self.output, lost)

    def _ordered(self, calls: Iterable[Call]) -> Iterator[Any]:
        return in_order(self.pool, calls, self.window)


def _differing(parameters: Mapping[str, Any], others: list[dict[str, Any]]) -> ConfigError:
    odd = next(p for other in others for p in other if other[p] != parameters[p])
    return ConfigError(
        f"{odd}: a whole-model scope needs one value for all tensors; drop its filters and"
        " gradients"
    )


def _looks(jobs: Iterable[Job], survey: Any) -> Iterator[Call]:
    """Yield what observes every chunk of every tensor, and number them in that order."""
    number = 0
    for job in jobs:
        job.number = number
        number += job.chunks
        yield from job.looks(survey)


def _chunks(part: Computed) -> range:
    return range(part.start // SPAN, -(-part.stop // SPAN))


@contextmanager
def streaming(output: Output, settings: Settings, threads: int) -> Iterator[Streamer]:
    """Yield a streamer with ``threads`` workers."""
    faults.guard()
    with ThreadPoolExecutor(threads, thread_name_prefix="omnireg-merge") as pool:
        yield Streamer(output, settings, pool, window=threads + 1)
