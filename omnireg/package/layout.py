"""How a package lies on disk, and how a host's files are put together from it again.

What is a host's own is kept in ``shell.safetensors``; ``files.json`` says of every file of the host
which bytes precede its tensors and where each tensor's bytes come from: the shell, or the decoupled
backbone.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from omnireg.boundary.documents import parse_json
from omnireg.boundary.names import fault
from omnireg.checkpoints.contents import PACKAGE_INDEX, Digest, Ours
from omnireg.checkpoints.shards import DTYPE_SIZES
from omnireg.errors import CheckpointError

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


def _part(name: object) -> str:
    if said := fault(name, alone=True):
        raise ValueError(f"it names {said}")
    return str(name)


#: a name that becomes one file or folder
Part_ = Annotated[str, BeforeValidator(_part)]
Size = Annotated[int, Field(strict=True, ge=0, le=1 << 62)]
Dtype = Literal["BF16", "F16", "F32"]


class BaseSaid(Ours):
    """The base of a package."""

    ref: str
    fingerprint: Digest
    embedded: bool


class ModelSaid(Ours):
    """A model of a package; see :class:`omnireg.package.reading.Model`."""

    ref: str
    fingerprint: Digest
    architecture: str
    l1_recovered: float
    scale: float | dict[str, float] = 1.0
    stands_in: str | None = None


class PackageSaid(Ours):
    """What ``omnireg.json`` says of a package itself."""

    format: Literal["omnireg package"]
    version: int
    base: BaseSaid
    models: dict[Part_, ModelSaid]
    modalities: dict[Part_, str]
    parameters: dict[str, Any]

    @model_validator(mode="after")
    def _known(self) -> Self:
        for sense, model in self.modalities.items():
            if model not in self.models:
                raise ValueError(f"modality {sense!r} is of a model {model!r} that is not there")
        if not self.models:
            raise ValueError("it has no models")
        return self


class _Lists(Ours):
    """JSON has lists alone, so these may stand for tuples."""

    model_config = ConfigDict(strict=False)


class VectorSaid(_Lists):
    """The index of a task vector: its files, and every tensor's dtype and shape."""

    files: list[Part_]
    tensors: dict[str, tuple[Dtype, tuple[Size, ...]]]


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


class _FileSaid(_Lists):
    name: Part_
    header: str
    pieces: list[tuple[str, str, Size, list[tuple[StrictBool, str, Size, Size]]]]


_FILES: TypeAdapter[list[_FileSaid]] = TypeAdapter(list[_FileSaid])


def from_json(data: Any, where: object) -> Iterator[HostFile]:
    """Yield files from plain data.

    Raises:
        CheckpointError: the data is not what :func:`to_json` returns, a name would leave the
            folder, or a header does not fit the pieces after it.
    """
    try:
        found = _FILES.validate_python(data)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        path = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        raise _damaged(where, f"{path}: {said}") from exc
    names = [file.name for file in found]
    if len(set(names)) < len(names):
        raise _damaged(where, "a file stands there twice")
    for file in found:
        text = file.header.encode()
        pieces = tuple(
            Piece(name, dtype, nbytes, tuple(Part(*each) for each in parts))
            for name, dtype, nbytes, parts in file.pieces
        )
        _check_header(file, pieces, where)
        yield HostFile(file.name, len(text).to_bytes(8, "little") + text, pieces)


def _check_header(file: _FileSaid, pieces: tuple[Piece, ...], where: object) -> None:
    """Refuse a header that does not announce exactly the pieces that follow it."""
    if not file.name.endswith(".safetensors"):
        raise _damaged(where, f"{file.name} is no safetensors file")
    header = parse_json(file.header, f"the header of {file.name} in {where}", unique=True)
    announced: dict[str, Any] = dict(header) if isinstance(header, dict) else {}
    announced.pop("__metadata__", None)
    offset = 0
    for piece in pieces:
        entry = announced.pop(piece.name, None)
        stop = offset + piece.nbytes
        if not isinstance(entry, dict) or not _fits(entry, piece, [offset, stop]):
            raise _damaged(where, f"the header of {file.name} does not fit {piece.name}")
        offset = stop
    if announced:
        raise _damaged(where, f"{file.name} lacks {', '.join(sorted(announced)[:3])}")


def _fits(entry: dict[str, Any], piece: Piece, offsets: list[int]) -> bool:
    shape, size = entry.get("shape"), DTYPE_SIZES.get(piece.dtype)
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        return False
    said = (entry.get("dtype"), entry.get("data_offsets"))
    return (
        said == (piece.dtype, offsets) and size is not None and prod(shape) * size == (piece.nbytes)
    )


def _damaged(where: object, what: str) -> CheckpointError:
    return CheckpointError(f"{where} is damaged ({what}); download or copy the package again")
