"""What a plan writes: every file, every tensor in it, and where each byte comes from."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

from omnireg.backbones.alignment import EMBEDDING, HEAD, VOCABULARY, Alignment, align
from omnireg.checkpoints.shards import (
    DTYPE_SIZES,
    SHARD_BYTES,
    TensorHeader,
    group_into_shards,
    lay_out,
    shard_names,
)
from omnireg.errors import PlanError
from omnireg.planning.plans import Merged, Plan


@dataclass(frozen=True)
class Copied:
    """Bytes ``start`` … ``stop`` of a tensor of an input."""

    header: TensorHeader
    start: int
    stop: int


@dataclass(frozen=True)
class Computed:
    """Elements ``start`` … ``stop`` of a merged tensor."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Piece:
    """One tensor of an output file; its parts follow each other without gaps."""

    name: str
    dtype: str
    start: int
    nbytes: int
    parts: tuple[Copied | Computed, ...]


@dataclass(frozen=True)
class OutputFile:
    """A safetensors file to write: its header, then its pieces in order."""

    name: str
    header: bytes
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return len(self.header) + sum(piece.nbytes for piece in self.pieces)


@dataclass(frozen=True)
class Output:
    """All weights that a plan writes."""

    plan: Plan
    max_bytes: int = SHARD_BYTES

    @cached_property
    def files(self) -> tuple[OutputFile, ...]:
        """The files, in the order of their names."""
        return tuple(_of_host(self.plan) if self.plan.host else self._shards())

    @property
    def size(self) -> int:
        """Size of all files in bytes."""
        return sum(file.size for file in self.files)

    @cached_property
    def index(self) -> dict[str, str]:
        """The file of every tensor, by name."""
        return {piece.name: file.name for file in self.files for piece in file.pieces}

    @property
    def carried(self) -> list[str]:
        """Names of the tensors that are an input's own, byte for byte."""
        pieces = (piece for file in self.files for piece in file.pieces)
        return [p.name for p in pieces if all(isinstance(part, Copied) for part in p.parts)]

    @cached_property
    def lost(self) -> list[Merged]:
        """Merged tensors that no file has a place for: biases of a kind that the host lacks."""
        pieces = (piece for file in self.files for piece in file.pieces)
        placed = {p.name for piece in pieces for p in piece.parts if isinstance(p, Computed)}
        return [t for n, t in self.plan.merged.items() if n not in placed and n != HEAD]

    def _shards(self) -> Iterator[OutputFile]:
        groups = group_into_shards(self.plan.tensors, self.max_bytes)
        for name, group in zip(shard_names(len(groups)), groups, strict=True):
            layout = lay_out(Path(name), group)
            yield OutputFile(
                name,
                layout.header,
                tuple(
                    Piece(n, t.dtype, t.start, t.nbytes, (Computed(n, 0, t.numel),))
                    for n, t in layout.tensors.items()
                ),
            )


def _of_host(plan: Plan) -> Iterator[OutputFile]:
    """The host's own files: headers verbatim, mapped tensors merged, everything else copied."""
    assert plan.host is not None
    alignment = align(plan.host, plan.reference)
    mapped = {header.name: name for name, header in plan.host.tensors.items()}
    for file in plan.host.checkpoint.weight_files:
        inside = [t for t in plan.host.checkpoint.tensors.values() if t.file == file]
        inside.sort(key=lambda t: t.start)
        first = inside[0].start if inside else file.stat().st_size
        with file.open("rb") as stream:
            header = stream.read(first)
        pieces = (
            Piece(t.name, t.dtype, t.start, t.nbytes, tuple(_parts(plan, t, mapped, alignment)))
            for t in inside
        )
        yield OutputFile(file.name, header, tuple(pieces))


def _parts(
    plan: Plan, header: TensorHeader, mapped: dict[str, str], alignment: Alignment
) -> Iterator[Copied | Computed]:
    name = mapped.get(header.name, header.name)
    if name == HEAD and HEAD not in plan.merged:
        name = EMBEDDING
    if name not in plan.merged:
        yield Copied(header, 0, header.nbytes)
    elif name not in VOCABULARY or alignment.same_rows:
        yield Computed(name, 0, header.numel)
    else:
        yield from _rows(name, header, alignment)


def _rows(name: str, header: TensorHeader, alignment: Alignment) -> Iterator[Copied | Computed]:
    """Shared rows are merged, the others stay with the host."""
    width = prod(header.shape[1:])
    row_bytes = width * DTYPE_SIZES[header.dtype]
    done = 0
    for run in alignment.rows:
        if done < run.start:
            yield Copied(header, done * row_bytes, run.start * row_bytes)
        yield Computed(name, run.start * width, run.stop * width)
        done = run.stop
    if done < header.shape[0]:
        yield Copied(header, done * row_bytes, header.nbytes)


def refuse_lost(output: Output, lost: list[str]) -> None:
    """Refuse to leave out merged tensors that are not zero.

    Raises:
        PlanError: names them.
    """
    if lost:
        host = output.plan.host
        raise PlanError(
            f"{host.checkpoint.ref if host else 'the result'} has no place for"
            f" {', '.join(lost[:4])}, which the models do have and which are not zero; carry a"
            " host that has them, or write the backbone (omnireg.output: backbone)"
        )
