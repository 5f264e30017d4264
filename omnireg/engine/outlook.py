"""What a merge would read, do and write, told from headers alone."""

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from omnireg.checkpoints.shards import DTYPE_SIZES, SHARD_BYTES, ByteReader
from omnireg.engine.tensors import Job, Settings
from omnireg.planning import Engine, Merged, Plan, Shape
from omnireg.planning.output import Computed, Output, OutputFile, Piece
from omnireg.strategies.task_vectors import SPAN

#: what the process holds before it merges: interpreter, torch, compiled kernels
_PROCESS_BYTES = 260_000_000
#: counters of a trim, per model and chunk at work: two rows of 65 536 four-byte counts
_COUNTER_BYTES = 2 * 4 * 65_536


@dataclass(frozen=True)
class Outlook:
    """A plan with everything that follows from it."""

    plan: Plan
    output: Output
    threads: int

    @property
    def fused(self) -> int:
        """How many merged tensors have a compiled pass."""
        return sum(job.fused is not None for job in self._jobs.values())

    @property
    def absent(self) -> list[str]:
        """Tensors that some input explainably lacks, as ``reference: name``."""
        return [f"{i.ref}: {name}" for i in self.plan.inputs for name in i.alignment.absent]

    @property
    def peak_memory_bytes(self) -> int:
        """Private memory that the merge will need at most, as an estimate from above."""
        sizes = [self._working(job) for job in self._jobs.values()]
        return _PROCESS_BYTES + max(sizes, default=0)

    @cached_property
    def _jobs(self) -> dict[str, Job]:
        settings = Settings(self.plan, ByteReader())
        return {name: Job(tensor, settings) for name, tensor in self.plan.merged.items()}

    def _working(self, job: Job) -> int:
        tensor, inputs = job.merged, len(job.merged.sources)
        if self.plan.engine is Engine.MERGEKIT or not job.fused:
            # the method's own code: copies in the dtype it computes in, and as many temporaries
            return (2 * inputs + 3) * job.numel * max(4, DTYPE_SIZES[tensor.dtype])
        chunk = min(SPAN, job.numel) * DTYPE_SIZES[tensor.dtype]
        at_work = 2 * self.threads + 2
        return at_work * (2 * chunk + inputs * (chunk // 4 + _COUNTER_BYTES))

    def to_json(self) -> dict[str, Any]:
        """Return the plan as ``omnireg plan --json`` prints it."""
        plan, package = self.plan, self.plan.shape is Shape.PACKAGE
        inputs = [
            {"ref": ref, "fingerprint": plan.checkpoint(ref).known_fingerprint, "role": role}
            for ref, role, _ in plan.parents
        ]
        return {
            "engine": str(plan.engine),
            "strategy": plan.strategy.name,
            "digest": plan.recipe.digest,
            "inputs": inputs,
            "tensors": {
                "merged": len(plan.merged),
                "fused": self.fused,
                "carried": 0 if package else len(self.output.carried),
                "absent": self.absent,
            },
            "output": {"bytes": self.output_bytes, "shards": len(self.files)},
            "peak_memory_bytes": self.peak_memory_bytes,
            "files": self.files,
        }

    @property
    def output_bytes(self) -> int:
        """Size of the weights that are written; of a package at most."""
        if self.plan.shape is not Shape.PACKAGE:
            return self.output.size
        models = len(set(self.plan.senses.values()))
        elements = [(job.numel, DTYPE_SIZES[job.merged.dtype]) for job in self._jobs.values()]
        coded = sum(numel * size + (1 + models) * -(-numel // 8) for numel, size in elements)
        base = self.plan.reference.checkpoint.weight_files
        embedded = self.plan.recipe.omnireg.base == "embed"
        return coded + (sum(file.stat().st_size for file in base) if embedded else 0)

    @property
    def files(self) -> list[dict[str, Any]]:
        """The files that are written; of a package none, since their sizes are not known."""
        if self.plan.shape is Shape.PACKAGE:
            return []
        return [self._file(file) for file in self.output.files]

    def _file(self, file: OutputFile) -> dict[str, Any]:
        tensors = [self._tensor(file, piece) for piece in file.pieces]
        return {"name": file.name, "bytes": file.size, "tensors": tensors}

    def _tensor(self, file: OutputFile, piece: Piece) -> dict[str, Any]:
        merged = self.merged_into(piece)
        sources = merged.sources if merged else ()
        return {
            "name": piece.name,
            "dtype": piece.dtype,
            "offset": piece.start,
            "bytes": piece.nbytes,
            "inputs": {source.ref: source.on_disk for source in sources},
        }

    def merged_into(self, piece: Piece) -> Merged | None:
        """Return the merged tensor that a piece of the output holds; None for a carried one."""
        names = [part.name for part in piece.parts if isinstance(part, Computed)]
        return self.plan.merged[names[0]] if names else None


def outlook(plan: Plan, *, max_bytes: int = SHARD_BYTES, threads: int | None = None) -> Outlook:
    """Return what a plan comes to."""
    return Outlook(plan, Output(plan, max_bytes), threads or os.cpu_count() or 1)
