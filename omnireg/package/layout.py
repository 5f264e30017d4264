"""How a package lies on disk, and how a host's files are put together from it again.

What is a host's own is kept in ``shell.safetensors``; ``files.json`` says of every file of the host
which bytes precede its tensors and where each tensor's bytes come from: the shell, or the decoupled
backbone.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from omnireg.checkpoint import PACKAGE_INDEX

FORMAT = "omnireg package"
VERSION = 1
MANIFEST = "omnireg.json"
BASE = "base"
HOSTS = "hosts"
SHELL = "shell.safetensors"
FILES = "files.json"
VECTOR = PACKAGE_INDEX

#: suffixes of a tensor's arrays in the files of the task vector
VALUES, SUPPORT, MASK, NORMS, L1 = ".values", ".support", ".mask.", ".norms.", ".l1."


@dataclass(frozen=True)
class Part:
    """Some of a tensor: bytes of a tensor in the shell, or elements of a backbone tensor."""

    own: bool
    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Piece:
    """One tensor of a host's file; its parts follow each other without gaps."""

    name: str
    dtype: str
    nbytes: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class HostFile:
    """A file of a host: the text of its header, then its pieces in order."""

    name: str
    header: bytes
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return len(self.header) + sum(piece.nbytes for piece in self.pieces)


def to_json(files: Iterable[HostFile]) -> list[dict[str, Any]]:
    """Return files as plain data; a part is ``[own, name, start, stop]``."""
    return [
        {
            "name": file.name,
            "header": file.header[8:].decode(),
            "pieces": [
                [p.name, p.dtype, p.nbytes, [[q.own, q.name, q.start, q.stop] for q in p.parts]]
                for p in file.pieces
            ],
        }
        for file in files
    ]


def from_json(data: Iterable[Any]) -> Iterator[HostFile]:
    """Yield files from plain data."""
    for file in data:
        text = file["header"].encode()
        pieces = (
            Piece(name, dtype, nbytes, tuple(Part(*part) for part in parts))
            for name, dtype, nbytes, parts in file["pieces"]
        )
        yield HostFile(file["name"], len(text).to_bytes(8, "little") + text, tuple(pieces))


def padded(bits: int) -> int:
    """Return how many bytes so many bits take, in whole words of eight bytes."""
    return -(-bits // 64) * 8
