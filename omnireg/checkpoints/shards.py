"""The safetensors container: read and write shard headers, and reach a tensor's bytes.

A shard is an 8-byte little-endian length, that many bytes of JSON, and the tensors' data. Reading
checks the whole header against the file's size before anyone touches the data. Writing is ours
because equal content must be equal bytes: names sorted, the one metadata entry ``format: pt``,
data in order of element size (so that every tensor is aligned) and then of name.
"""

import json
import math
import mmap
import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from omnireg.boundary.documents import parse_json
from omnireg.boundary.files import State, open_regular, reason
from omnireg.checkpoints.digests import file_sha256
from omnireg.errors import CheckpointError

#: Bytes per element of every dtype the format knows and omnireg reads.
DTYPE_SIZES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2,
    "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
#: dtypes that can hold NaN and Inf, of those that torch code computes with
FLOATS = ("F64", "F32", "F16", "BF16")
#: shards are cut at this size unless asked otherwise
SHARD_BYTES = 5_000_000_000
_MAX_HEADER = 100_000_000
#: told of the address and length of every map, and of its end with a length of 0
watch: Callable[[int, int], None] | None = None
_ALIGN = 8


@dataclass(frozen=True)
class TensorHeader:
    """Where one tensor lives: dtype, shape, and byte range inside a shard file.

    ``state`` is that of the file when its header was read.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int
    state: State | None = field(default=None, compare=False, repr=False)

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return self.end - self.start

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def flat(self, count: int) -> "TensorHeader":
        """Return a header for ``count`` of the elements, in one dimension."""
        return replace(self, shape=(count,))


def read_header(file: Path) -> dict[str, TensorHeader]:
    """Return the tensors of a shard by name, after checking every range against the file.

    Raises:
        CheckpointError: the file is missing, truncated or not safetensors.
    """
    handle = open_regular(file)
    try:
        state = State.of(handle)
        raw, data_start = _header_bytes(handle, state.size, file)
    except OSError as exc:
        raise CheckpointError(f"cannot read {file}: {reason(exc)}") from exc
    finally:
        os.close(handle)
    header = parse_json(raw, f"the header of {file}", unique=True)
    try:
        if not isinstance(header, dict):
            raise ValueError("not an object")
        header.pop("__metadata__", None)
        tensors = {n: _tensor(n, entry, file, data_start, state) for n, entry in header.items()}
    except (ValueError, KeyError, TypeError) as exc:
        raise _damaged(file, f"its header cannot be read ({exc})") from exc
    _check_ranges(tensors.values(), file, data_start, state.size)
    return tensors


def _header_bytes(handle: int, size: int, file: Path) -> tuple[bytes, int]:
    length = int.from_bytes(os.pread(handle, 8, 0), "little")
    if size < 8 or length > min(_MAX_HEADER, size - 8):
        raise _damaged(file, f"{size} bytes cannot hold the {length}-byte header it announces")
    return os.pread(handle, length, 8), 8 + length


def _tensor(
    name: str, entry: Any, file: Path, data_start: int, state: State | None = None
) -> TensorHeader:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        raise ValueError(f"bad shape or offsets of {name}")
    dtype = entry["dtype"]
    if not isinstance(dtype, str):
        raise ValueError(f"bad dtype of {name}")
    return TensorHeader(name, dtype, shape, file, data_start + begin, data_start + end, state)


def _check_ranges(tensors: Iterable[TensorHeader], file: Path, data_start: int, size: int) -> None:
    position = data_start
    for tensor in sorted(tensors, key=lambda t: (t.start, t.end)):
        if tensor.dtype not in DTYPE_SIZES:
            raise CheckpointError(
                f"{file}: tensor {tensor.name} has dtype {tensor.dtype}, which omnireg cannot read"
            )
        if tensor.start != position or tensor.nbytes != tensor.numel * DTYPE_SIZES[tensor.dtype]:
            raise _damaged(file, f"the byte range of {tensor.name} does not fit its shape")
        position = tensor.end
    if position != size:
        raise _damaged(file, f"its header promises {position} bytes, the file has {size}")


def _damaged(file: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{file} is truncated or not a safetensors file: {why}; download or copy it again"
    )


@dataclass(frozen=True)
class ShardLayout:
    """The exact bytes that precede a shard's data, and where each tensor will start."""

    file: Path
    header: bytes
    tensors: dict[str, TensorHeader]

    @property
    def size(self) -> int:
        """Size of the finished file in bytes."""
        return max((t.end for t in self.tensors.values()), default=len(self.header))


def lay_out(file: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> ShardLayout:
    """Plan a shard holding ``tensors`` (name → dtype, shape)."""
    entries: dict[str, Any] = {}
    offset = 0
    for name in sorted(tensors, key=lambda n: (-DTYPE_SIZES[tensors[n][0]], n)):
        dtype, shape = tensors[name]
        end = offset + math.prod(shape) * DTYPE_SIZES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    named = {"__metadata__": {"format": "pt"}, **dict(sorted(entries.items()))}
    text = json.dumps(named, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGN)
    header = len(text).to_bytes(8, "little") + text
    placed = {n: _tensor(n, entry, file, len(header)) for n, entry in entries.items()}
    return ShardLayout(file, header, placed)


def group_into_shards(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], max_bytes: int
) -> list[dict[str, tuple[str, tuple[int, ...]]]]:
    """Cut tensors, in name order, into runs of ``max_bytes``; a larger tensor stands alone."""
    shards: list[dict[str, tuple[str, tuple[int, ...]]]] = []
    room = 0
    for name in sorted(tensors):
        dtype, shape = tensors[name]
        need = math.prod(shape) * DTYPE_SIZES[dtype]
        if not shards or need > room:
            shards.append({})
            room = max_bytes
        shards[-1][name] = tensors[name]
        room -= need
    return shards


def shard_names(count: int) -> list[str]:
    """Return the file names transformers expects for ``count`` shards."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def write_index(folder: Path, where: Mapping[str, str], total: int) -> None:
    """Write ``model.safetensors.index.json``: the file of every tensor, and all their bytes."""
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class ByteReader:
    """Read-only views of tensors' bytes, one memory map per shard file.

    A file is opened once and held: it is the one whose header was read, and it stays as it was, or
    reading from it is refused. A merge calls :meth:`check` before it believes what it read.
    """

    def __init__(self, digests: Mapping[Path, str] | None = None) -> None:
        """Open nothing yet; ``digests`` are the sha256 that files have to have, by path."""
        self._digests = digests or {}
        self._files: dict[Path, _Held] = {}
        self._lock = Lock()

    def __call__(self, tensor: TensorHeader) -> memoryview:
        """Return the bytes of a tensor without copying them.

        Raises:
            CheckpointError: the file cannot be read, or has another digest.
            InputChanged: it changed since its header was read.
        """
        held = self._files.get(tensor.file) or self._open(tensor)
        held.check()
        return held.view[tensor.start : tensor.end]

    def check(self) -> None:
        """Make sure that no file changed since it was opened.

        Raises:
            InputChanged: names the file.
        """
        for held in list(self._files.values()):
            held.check()

    def _open(self, tensor: TensorHeader) -> "_Held":
        with self._lock:
            if tensor.file not in self._files:
                held = _Held(tensor.file, tensor.state)
                wanted = self._digests.get(tensor.file)
                if wanted is not None and file_sha256(tensor.file, held.state) != wanted:
                    raise CheckpointError(
                        f"{tensor.file} is not what it was when it was written: it has another"
                        " sha256; download or copy it again"
                    )
                self._files[tensor.file] = held
        return self._files[tensor.file]


class _Held:
    """An open file with its map; closed when nobody needs it any more."""

    def __init__(self, file: Path, state: State | None) -> None:
        self._file = file
        self._handle = open_regular(file)
        _when_gone(self, os.close, self._handle)
        self.state = state or State.of(self._handle)
        self.check()
        try:
            found = mmap.mmap(self._handle, self.state.size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as exc:
            raise CheckpointError(f"cannot read {file}: {reason(exc)}") from exc
        self.view = memoryview(found)
        if watch:
            place = int(np.frombuffer(self.view, np.uint8).ctypes.data)
            watch(place, self.state.size)
            _when_gone(self, watch, place, 0)

    def check(self) -> None:
        """Refuse a file that changed."""
        self.state.refuse_other(State.of(self._handle), self._file)


def _when_gone(owner: object, act: Callable[..., Any], *arguments: int) -> None:
    """Call something when an object goes, unless that is because the process ends."""
    weakref.finalize(owner, act, *arguments).atexit = False


def write_shards(
    folder: Path,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    content: Callable[[str], bytes | memoryview],
    *,
    max_bytes: int = SHARD_BYTES,
) -> None:
    """Write a checkpoint's weights and, for several shards, their index.

    ``content`` is asked once for the bytes of each tensor, in the order they are written.
    """
    groups = group_into_shards(tensors, max_bytes)
    names = shard_names(len(groups))
    layouts = [lay_out(folder / name, group) for name, group in zip(names, groups, strict=True)]
    for layout in layouts:
        with layout.file.open("wb") as stream:
            stream.write(layout.header)
            for name in layout.tensors:
                stream.write(content(name))
            stream.flush()
            os.fsync(stream.fileno())
    if len(layouts) > 1:
        where = {name: layout.file.name for layout in layouts for name in layout.tensors}
        write_index(folder, where, sum(t.nbytes for x in layouts for t in x.tensors.values()))
