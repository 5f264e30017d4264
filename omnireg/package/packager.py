"""Write a package: the base, what is each host's own, and the task vector with its masks.

Each tensor is merged, coded and written in one pass over the inputs. How many elements of a task
vector are not zero is known when it is computed, so a file of it begins with room for its header,
which is written last.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from omnireg.checkpoints import contents
from omnireg.checkpoints.checkpoint import INDEX
from omnireg.checkpoints.digests import file_sha256
from omnireg.checkpoints.outputs import copy_files
from omnireg.checkpoints.shards import FLOATS
from omnireg.checkpoints.tensors import as_bytes, as_tensor
from omnireg.engine.journal import Journal
from omnireg.engine.options import Options
from omnireg.engine.ordered import given, in_order
from omnireg.engine.results import checked_rescaling
from omnireg.engine.running import fingerprint, streamed
from omnireg.engine.tensors import Job, Settings, check_finite, parameters_of
from omnireg.engine.writer import write_file
from omnireg.errors import ConfigError, InputChanged
from omnireg.hookspecs import Scope
from omnireg.package import layout
from omnireg.package.coder import STORAGE, Coded, Coder
from omnireg.package.layout import NORMS
from omnireg.package.shells import Shell
from omnireg.package.vector import VectorWriter, scale_of
from omnireg.planning import Engine, Plan, Shape
from omnireg.planning.output import Output, OutputFile
from omnireg.planning.provenance import describe
from omnireg.plugins import PluginHost
from omnireg.progress import Progress
from omnireg.strategies.task_vectors import span_sums, working

Data = bytes | memoryview
Tick = Callable[[int, int], None]


class Packager:
    """Writes the files of a package into a folder that is not complete yet."""

    def __init__(self, plan: Plan, settings: Settings, journal: Journal, threads: int) -> None:
        """Prepare; nothing is written yet."""
        self._plan = plan
        self._settings = settings
        self._journal, self._folder, self._threads = journal, journal.folder, threads
        #: reference → the name of its mask and its folder: the first modality it stands for
        self.names: dict[str, str] = {}
        for sense, ref in plan.senses.items():
            self.names.setdefault(ref, sense)
        self._vector = VectorWriter(self._folder, list(self.names.values()))

    def write(self, jobs: Mapping[str, Job], max_bytes: int, tick: Tick) -> None:
        """Write everything but the manifest."""
        self._write_base()
        for ref in self.names:
            self._write_host(ref)
        self._write_vector(jobs, max_bytes, tick)

    # base and hosts

    def _write_base(self) -> None:
        if self._plan.recipe.omnireg.base != "embed":
            return
        base, place = self._plan.reference.checkpoint, self._folder / layout.BASE
        place.mkdir(exist_ok=True)
        for file in base.weight_files:
            name = f"{layout.BASE}/{file.name}"
            if name not in self._journal.finished:
                made = _Copy(name, file.stat().st_size)
                digest = write_file(self._folder, made, _pieces(file), lambda size: None)
                if digest != file_sha256(file):
                    raise InputChanged(f"{file} was changed while it was copied; start again")
                self._journal.enter(name, digest)
        index = base.folder / INDEX
        copy_files([*base.text_files, *([index] if index.exists() else [])], place)

    def _write_host(self, ref: str) -> None:
        """Keep what is a host's own, and how its files are put together."""
        model = next(item.model for item in self._plan.inputs if item.ref == ref)
        place = self._folder / layout.HOSTS / self.names[ref]
        place.mkdir(parents=True, exist_ok=True)
        files = Output(replace(self._plan, shape=Shape.HOST, host=model, senses={})).files
        shell = Shell(files)
        name = f"{layout.HOSTS}/{self.names[ref]}/{layout.SHELL}"
        if name not in self._journal.finished:
            made = OutputFile(name, shell.header, shell.pieces)
            digest = write_file(self._folder, made, self._own(shell, ref), lambda size: None)
            self._journal.enter(name, digest)
        text = json.dumps(layout.to_json(shell.files), ensure_ascii=False)
        (place / layout.FILES).write_text(text, encoding="utf-8")
        index = model.checkpoint.folder / INDEX
        copy_files([*model.checkpoint.side_files, *([index] if index.exists() else [])], place)

    def _own(self, shell: "Shell", ref: str) -> Iterator[Data]:
        for header, runs in shell.tensors:
            data = self._settings.read(header)
            if not self._settings.allow_nonfinite and header.dtype in FLOATS:
                check_finite(ref, header.name, as_tensor(data, header))
            for start, stop in runs:
                yield data[start:stop]

    # the task vector and its masks

    def _write_vector(self, jobs: Mapping[str, Job], max_bytes: int, tick: Tick) -> None:
        total, done = sum(job.numel for job in jobs.values()), 0

        def coded(names: Sequence[str]) -> Iterator[Coded]:
            nonlocal done
            with ThreadPoolExecutor(self._threads, thread_name_prefix="omnireg-code") as pool:
                calls = self._calls(jobs[name] for name in names)
                for tensor in in_order(pool, calls, self._threads):
                    yield tensor
                    done += math.prod(tensor.shape)
                    tick(done, total)

        self._vector.write(self._plan.tensors, max_bytes, coded, self._journal)

    def _calls(self, jobs: Iterable[Job]) -> Iterator[Callable[[], Coded]]:
        for job in jobs:
            yield partial(self._compiled, job) if job.fused else given(self._by_torch(job))

    def _compiled(self, job: Job) -> Coded:
        """Make the compiled passes over one tensor."""
        job.survey()
        assert job.fused
        present = [s.ref for s in job.merged.sources if s.ref != self._settings.base]
        code = Coder(
            job.merged, job.numel, [self.names[ref] for ref in present], list(self.names.values())
        )
        for chunk in range(job.chunks):
            view = job.chunk(chunk)
            vector, *masks = job.fused.emit(view, job.found, job.number + chunk)
            job.check_emitted(view, vector)
            code.append(vector, masks, view.count)
            code.measure(view, vector, masks)
        return code.finished()

    def _by_torch(self, job: Job) -> Coded:
        """Run the method's own code over one tensor."""
        merged, found, power = job.side_outputs()
        present = [self.names[ref] for ref in found]
        code = Coder(job.merged, job.numel, present, list(self.names.values()))
        bits = np.frombuffer(as_bytes(merged.reshape(-1)), STORAGE[job.merged.dtype])
        masks = [
            np.packbits(part.mask.reshape(-1).numpy(), bitorder="little") for part in found.values()
        ]
        code.append(bits, masks, job.numel)
        for ref, part in found.items():
            change = torch.where(part.mask, working(merged), 0)
            left = (part.vector - change).abs().sum(dtype=torch.float64)
            whole = part.vector.abs().sum(dtype=torch.float64)
            code.lanes[self.names[ref]][:, 0] += (float(whole), float(left))
        made = code.finished()
        if power is not None:
            wide = working(merged).reshape(-1)
            for ref, part in found.items():
                masked = torch.where(part.mask.reshape(-1), wide, 0)
                sums = [span_sums(part.vector.reshape(-1), power), span_sums(masked, power)]
                made.norms[self.names[ref]] = np.array(sums, np.float64)
        return made

    # the manifest

    def manifest(self) -> dict[str, Any]:
        """Return what ``omnireg.json`` says of the package itself."""
        plan = self._plan
        base = plan.reference.checkpoint
        scales, recovered = self._scales(), self._vector.recovered()
        models = {
            name: {
                "ref": ref,
                "fingerprint": plan.checkpoint(ref).fingerprint,
                "architecture": plan.checkpoint(ref).architecture,
                "l1_recovered": recovered[name],
                **({"scale": scales[name]} if name in scales else {}),
            }
            for ref, name in self.names.items()
        }
        return {
            "format": layout.FORMAT,
            "version": layout.VERSION,
            "base": {
                "ref": base.ref,
                "fingerprint": base.fingerprint,
                "embedded": plan.recipe.omnireg.base == "embed",
            },
            "models": models,
            "modalities": {sense: self.names[ref] for sense, ref in plan.senses.items()},
            "parameters": plan.recipe.parameters or {},
        }

    def _scales(self) -> dict[str, Any]:
        """Return every model's factor of its masked vector, from the norms in the files."""
        settings = self._settings
        bound = settings.plan.resolver.bind(next(iter(self._plan.merged)), 0.0)
        parameters = parameters_of(bound, settings.method, settings.models)
        rescaling = checked_rescaling(settings.ask(settings.method, "rescaling", parameters))
        if rescaling is None:
            return {}
        power, sums = rescaling.power, self._vector.sums(NORMS)
        if rescaling.scope is Scope.TENSOR:
            return {
                model: {tensor: scale_of([both], power) for tensor, both in parts.items()}
                for model, parts in sums.items()
            }
        return {model: scale_of(list(parts.values()), power) for model, parts in sums.items()}


def write_package(
    planned: Plan, out: Path, how: Options, plugins: PluginHost, progress: Progress
) -> tuple[str, int]:
    """Write a package; return its fingerprint and how many files were kept of an earlier run.

    Raises:
        ConfigError: another engine than the streaming one is asked for.
        MergeError: ``out`` cannot be written.
    """
    if planned.engine is Engine.MERGEKIT:
        raise ConfigError("only the stream engine writes packages; use --engine auto")
    output = Output(planned, how.shard_bytes)
    with streamed(output, out, how, plugins, side_outputs=True) as (journal, streamer):
        resumed = len(journal.finished)
        streamer.survey(lambda done, total: progress("surveying", done, total, "chunks"))
        packager = Packager(planned, streamer.settings, journal, how.workers)
        packager.write(
            streamer.jobs,
            how.shard_bytes,
            lambda done, total: progress("coding", done, total, "elements"),
        )
        said = describe(planned, how.seed, how.fixed, {"package": packager.manifest()})
        contents.write(journal.folder, said, journal.finished)
    return fingerprint(out, journal.finished), resumed


@dataclass(frozen=True)
class _Copy:
    """A file that is copied as it is."""

    name: str
    size: int
    header: bytes = b""


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while data := stream.read(1 << 23):
            yield data
