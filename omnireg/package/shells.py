"""What of a host's files is its own, beside the backbone that it shares."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from omnireg.checkpoints.shards import TensorHeader, lay_out
from omnireg.package import layout
from omnireg.package.layout import HostFile, Part, Piece
from omnireg.planning.output import Computed, Copied, OutputFile
from omnireg.planning.output import Piece as FilePiece


class Shell:
    """What of a host's files is its own, and the files with parts that point there."""

    def __init__(self, files: Iterable[OutputFile]) -> None:
        self.files: list[HostFile] = []
        self._runs: dict[str, tuple[TensorHeader, list[tuple[int, int]]]] = {}
        for file in files:
            pieces = tuple(
                Piece(p.name, p.dtype, p.nbytes, tuple(self._part(part) for part in p.parts))
                for p in file.pieces
            )
            self.files.append(HostFile(file.name, file.header, pieces))
        signatures = {n: (h.dtype, self._shape(h, runs)) for n, (h, runs) in self._runs.items()}
        self._layout = lay_out(Path(layout.SHELL), signatures)
        self.header = self._layout.header

    def _part(self, part: Copied | Computed) -> Part:
        if isinstance(part, Computed):
            return Part(False, part.name, part.start, part.stop)
        header, runs = self._runs.setdefault(part.header.name, (part.header, []))
        done = sum(stop - start for start, stop in runs)
        runs.append((part.start, part.stop))
        return Part(True, header.name, done, done + part.stop - part.start)

    @staticmethod
    def _shape(header: TensorHeader, runs: list[tuple[int, int]]) -> tuple[int, ...]:
        kept = sum(stop - start for start, stop in runs)
        if kept == header.nbytes:
            return header.shape
        row = header.nbytes // header.shape[0]
        return (kept // row, *header.shape[1:])

    @property
    def tensors(self) -> Iterator[tuple[TensorHeader, list[tuple[int, int]]]]:
        """The tensors in the order of the file, with the runs of bytes that are kept of each."""
        for name in self._layout.tensors:
            yield self._runs[name]

    @property
    def pieces(self) -> tuple[FilePiece, ...]:
        """The tensors as pieces of a file."""
        return tuple(
            FilePiece(n, t.dtype, t.start, t.nbytes, ()) for n, t in self._layout.tensors.items()
        )
