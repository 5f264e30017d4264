"""The streaming engine: read by memory map, merge in chunks, write each file in order.

Chunks are computed ahead by a few threads; one thread takes them in the order of the file, writes
and hashes them. Only a handful are in memory at a time, whatever the size of the model.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from omnireg.engine.tensors import Job, Settings, check_finite, parameters_of
from omnireg.errors import ConfigError
from omnireg.hookspecs import Surveyed
from omnireg.planning.output import Computed, Copied, Output, OutputFile, refuse_lost
from omnireg.shards import DTYPE_SIZES, FLOATS
from omnireg.strategies.task_vectors import SPAN
from omnireg.tensors import TORCH_DTYPES, as_bytes, as_tensor

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
        """Make the first passes over the whole model that the method asks for."""
        method: Any = self.settings.method
        if not hasattr(method, "survey"):
            return
        order = [self.jobs[name] for name in sorted(self.jobs)]
        parameters = self._common_parameters(order)
        known = Surveyed(self.settings.models)
        while survey := method.survey(known, parameters):
            for done, observation in enumerate(self._ordered(self._looks(order, survey))):
                survey.add(observation)
                tick(done, sum(job.chunks for job in order))
            known = Surveyed(self.settings.models, survey.result())
            for job in order:
                job.found = known.found

    def _common_parameters(self, jobs: list[Job]) -> dict[str, Any]:
        """The parameters that all tensors have in common; a survey has no use for others."""
        method = self.settings.method
        every = [parameters_of(j.bound, method, self.settings.models) for j in jobs]
        if method.survey(Surveyed(self.settings.models), every[0]):
            odd = next(
                (p for other in every for p in other if _plain(other[p]) != _plain(every[0][p])),
                None,
            )
            if odd:
                raise ConfigError(
                    f"{odd}: a whole-model scope needs one value for all tensors; drop its filters"
                    " and gradients"
                )
        return every[0]

    def _looks(self, jobs: Iterable[Job], survey: Any) -> Iterator[Callable[[], Any]]:
        number = 0
        for job in jobs:
            job.number = number
            number += job.chunks
            if job.fused:
                yield from (partial(job.observe, survey, chunk) for chunk in range(job.chunks))
            else:
                yield partial(_given, job.observe(survey, 0))

    def _survey_alone(self, job: Job) -> None:
        """Make the passes over one large tensor that its own scope needs, chunks shared out."""
        found = job.found
        while job.found is None and job.fused and (survey := job.fused.survey(found)):
            for observation in self._ordered(self._looks([job], survey)):
                survey.add(observation)
            found = survey.result()
        job.found = found

    # content

    def content(self, file: OutputFile) -> Iterator[Data]:
        """Yield the bytes of a file after its header, in order."""
        for ready in self._ordered(self._calls(file)):
            yield from ready

    def _calls(self, file: OutputFile) -> Iterator[Callable[[], list[Data]]]:
        for piece in file.pieces:
            for part in piece.parts:
                if isinstance(part, Copied):
                    yield from self._copies(part)
                else:
                    yield from self._computations(part, piece.dtype)

    def _copies(self, part: Copied) -> Iterator[Callable[[], list[Data]]]:
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

    def _computations(self, part: Computed, dtype: str) -> Iterator[Callable[[], list[Data]]]:
        job = self.jobs[part.name]
        if job.fused is None or dtype != job.merged.dtype:
            # torch code has its own threads, and its results may depend on them: not in the pool
            yield partial(_given, [self._whole(job, part, dtype)])
        elif job.chunks <= _ONE_TASK:
            yield partial(self._compute, job, part)
        else:
            self._survey_alone(job)
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

    def _ordered(self, calls: Iterable[Callable[[], Any]]) -> Iterator[Any]:
        """Yield the results of calls in order, while the pool works on the next few."""
        waiting: deque[Future[Any]] = deque()
        try:
            for call in calls:
                waiting.append(self.pool.submit(call))
                if len(waiting) > self.window:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _given(value: Any) -> Any:
    return value


def _chunks(part: Computed) -> range:
    return range(part.start // SPAN, -(-part.stop // SPAN))


@contextmanager
def streaming(output: Output, settings: Settings, threads: int) -> Iterator[Streamer]:
    """Yield a streamer with ``threads`` workers."""
    with ThreadPoolExecutor(threads, thread_name_prefix="omnireg-merge") as pool:
        yield Streamer(output, settings, pool, window=threads + 1)
