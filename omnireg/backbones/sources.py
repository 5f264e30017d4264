"""Where every input of a merged tensor lies on disk, in the layout of the merge.

A tensor of an input is a run of bytes in one file, or several: vocabulary rows whose token only one
side knows are taken from the reference, so that their task vector is zero.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from omnireg.backbones.alignment import VOCABULARY, Alignment
from omnireg.checkpoints.shards import DTYPE_SIZES, ByteReader, TensorHeader
from omnireg.checkpoints.tensors import TORCH_DTYPES, as_bytes, as_tensor

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Span:
    """Elements ``start`` … ``stop`` of a tensor, found in ``header`` from element ``first`` on."""

    start: int
    stop: int
    header: TensorHeader
    first: int

    def bytes(self, read: ByteReader, start: int, stop: int) -> memoryview:
        """Return the bytes of some of the span's elements, without a copy."""
        size = DTYPE_SIZES[self.header.dtype]
        begin = (self.first + start - self.start) * size
        return read(self.header)[begin : begin + (stop - start) * size]

    def tensor(self, read: ByteReader) -> "torch.Tensor":
        """Return the span's elements in one dimension."""
        data = self.bytes(read, self.start, self.stop)
        return as_tensor(data, self.header.flat(self.stop - self.start))


@dataclass(frozen=True)
class Source:
    """One input of one merged tensor.

    Attributes:
        ref: the input, as the recipe names it.
        dtype: in which it enters the merge.
        spans: its elements, in order and without gaps.
    """

    ref: str
    dtype: str
    shape: tuple[int, ...]
    spans: tuple[Span, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def on_disk(self) -> str:
        """The tensor's name in the input's own files."""
        return max(self.spans, key=lambda span: span.stop - span.start).header.name

    @property
    def uniform(self) -> bool:
        """Whether every span is stored in the dtype the tensor enters the merge in."""
        return all(span.header.dtype == self.dtype for span in self.spans)

    def pieces(self, read: ByteReader, start: int, stop: int) -> Iterator[memoryview]:
        """Yield the bytes of elements ``start`` … ``stop``, span by span."""
        for span in self.spans:
            low, high = max(start, span.start), min(stop, span.stop)
            if low < high:
                yield span.bytes(read, low, high)

    def tensor(self, read: ByteReader) -> "torch.Tensor":
        """Return the whole tensor; a view of the file where it lies in one piece."""
        import torch

        dtype = TORCH_DTYPES()[self.dtype]
        parts = [span.tensor(read).to(dtype) for span in self.spans]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(self.shape)

    def bytes(self, read: ByteReader) -> "bytes | memoryview":
        """Return the whole tensor's bytes; a view of the file where it lies in one piece."""
        if len(self.spans) == 1 and self.uniform:
            return self.spans[0].bytes(read, 0, self.numel)
        return as_bytes(self.tensor(read))


def source(ref: str, header: TensorHeader) -> Source:
    """Return a tensor that lies in one piece."""
    return Source(ref, header.dtype, header.shape, (Span(0, header.numel, header, 0),))


def aligned(ref: str, alignment: Alignment, name: str) -> Source:
    """Return a backbone tensor of one input by its canonical name, rows matched by token."""
    own, base = alignment.model.header(name), alignment.base.header(name)
    if name not in VOCABULARY or alignment.same_rows:
        return source(ref, own)
    dtype = own.dtype if own.dtype == base.dtype else "F32"
    width = prod(base.shape[1:])
    spans, done = [], 0
    for run in alignment.rows:
        start, stop = run.start * width, run.stop * width
        if done < start:
            spans.append(Span(done, start, base, done))
        spans.append(Span(start, stop, own, start))
        done = stop
    if done < base.numel:
        spans.append(Span(done, base.numel, base, done))
    return Source(ref, dtype, base.shape, tuple(spans))
