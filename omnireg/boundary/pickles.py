"""Files that can run code when they are read: told by their names, and by what is in them.

A pickle is a program. So are the formats that are made of pickles (PyTorch's, joblib's, NumPy's
arrays of objects), and some that keep code beside numbers (Keras, R). A name can lie in either
direction, so files are also looked into: what Python's unpickler would run from the first byte on
is a pickle, whatever the file is called, and so is what is packed or archived around one.
"""

import bz2
import gzip
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import IO, Any

from omnireg.boundary.files import open_regular
from omnireg.boundary.opcodes import DAMAGED, is_pickle
from omnireg.errors import CheckpointError, OmniregError

_TORCH, _PICKLE = "PyTorch's pickle", "a pickle"
_KERAS, _R = "a Keras model, whose layers can hold code", "a workspace of R, which can hold code"
#: endings, and what a file of such a name is. Data alone, so not here: ``.safetensors``, ``.gguf``,
#: ``.onnx``, ``.msgpack`` (Flax), ``.npy`` and ``.npz`` (unless there are objects inside)
ENDINGS = {
    ".bin": _TORCH, ".pt": _TORCH, ".pth": _TORCH, ".th": _TORCH, ".ckpt": _TORCH,
    ".pt2": _TORCH, ".ptl": _TORCH, ".jit": _TORCH, ".torchscript": _TORCH,
    ".pkl": _PICKLE, ".pickle": _PICKLE, ".pck": _PICKLE, ".pcl": _PICKLE, ".dill": _PICKLE,
    ".cloudpickle": _PICKLE, ".joblib": "joblib's pickle",
    ".pdparams": "Paddle's pickle", ".pdopt": "Paddle's pickle", ".pdmodel": "Paddle's program",
    ".mar": "TorchServe's archive of code and pickles", ".nemo": "NeMo's archive of pickles",
    ".h5": _KERAS, ".hdf5": _KERAS, ".keras": _KERAS,
    ".rds": _R, ".rda": _R, ".rdata": _R,
}  # fmt: skip
_PACKED = (".gz", ".bz2", ".xz", ".lzma", ".z", ".zst", ".lz4", ".zip")
_INSIDE = ("data.pkl", "pickle")
_START, _MEMBERS, _LARGEST_DICTIONARY = 1 << 16, 100_000, 1 << 27
_objects = re.compile(rb"['\"][|<>=]?O\d*['\"]")


def of_name(name: str) -> str | None:
    """Return what a file of this name is if reading it can run code, else None."""
    lower = name.lower()
    while lower.endswith(_PACKED):
        lower = lower.rpartition(".")[0]
    return ENDINGS.get(os.path.splitext(lower)[1])  # noqa: PTH122 - no path of this machine


def of_file(path: Path, error: type[OmniregError] = CheckpointError) -> str | None:
    """Return what a file holds if reading it can run code, whatever its name; else None.

    Raises:
        OmniregError: of the class ``error``; it cannot be read.
    """
    try:
        with open(open_regular(path, error), "rb") as stream:  # noqa: PTH123 - a descriptor
            return _of_stream(stream)
    except OSError as exc:
        raise error(f"cannot read {path}: {exc.strerror or exc}") from exc


def _of_stream(stream: IO[bytes]) -> str | None:
    head = stream.read(_START)
    stream.seek(0)
    if head.startswith(b"PK\x03\x04"):
        return _looked_into("a zip", lambda: _in_zip(stream))
    if head[257:262] == b"ustar":
        return _looked_into("a tar archive", lambda: _in_tar(stream))
    unpack = _unpacker(head)
    if unpack is None:
        size = os.fstat(stream.fileno()).st_size
        return _PICKLE if is_pickle(stream, size) else _of_array(head)

    def again() -> Any:
        stream.seek(0)
        return unpack(stream)

    return _looked_into("a packed file", lambda: _of_packed(again))


def _looked_into(what: str, look: Callable[[], str | None]) -> str | None:
    try:
        found = look()
    except Exception:
        # whatever a damaged or encrypted file makes its reader raise, nobody knows what is in it
        return f"{what} that cannot be looked into"
    return f"{what} with {found}" if found else None


def _of_packed(opened: Callable[[], IO[bytes]]) -> str | None:
    """Return what is packed in a file, which is read from its start each time it is opened."""
    if is_pickle(opened()):
        return _PICKLE
    try:
        return _of_array(opened().read(_START))
    except DAMAGED:
        return None


def _of_array(head: bytes) -> str | None:
    """Return what a NumPy file is if its elements are Python objects, which are pickled."""
    if not head.startswith(b"\x93NUMPY"):
        return None
    end = 10 if head[6:7] == b"\x01" else 12
    header = head[end : end + int.from_bytes(head[8:end], "little")]
    return "a NumPy array of Python objects" if _objects.search(header) else None


# archives


def _in_zip(stream: IO[bytes]) -> str | None:
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        if len(members) > _MEMBERS or any(m.compress_type not in (0, 8) for m in members):
            raise ValueError("it is too large, or packed in an unusual way")
        for member in members:
            found = _of_member(member.filename, partial(archive.open, member))
            if found:
                return found
    return None


def _in_tar(stream: IO[bytes]) -> str | None:
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        for count, member in enumerate(archive):
            if count >= _MEMBERS:
                raise ValueError("it is too large")
            if member.isfile():
                found = _of_member(member.name, partial(archive.extractfile, member))
                if found:
                    return found
    return None


def _of_member(name: str, opened: Callable[[], Any]) -> str | None:
    last = name.rpartition("/")[2]
    return _PICKLE if last.lower() in _INSIDE else of_name(last) or _of_packed(opened)


# packed files


def _unpacker(head: bytes) -> Callable[[IO[bytes]], Any] | None:
    """Return what unpacks a file that begins so, as those who read such files do."""
    if head.startswith(b"\x1f\x8b"):
        return lambda stream: gzip.GzipFile(fileobj=stream)
    if head.startswith(b"BZh"):
        return bz2.BZ2File
    if head.startswith((b"\xfd7zXZ\x00", b"]\x00\x00")):
        return _unpack_lzma
    if head.startswith((b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")):
        return lambda stream: BufferedReader(_Inflating(stream))
    return None


def _unpack_lzma(stream: IO[bytes]) -> IO[bytes]:
    try:
        lzma.LZMADecompressor(memlimit=_LARGEST_DICTIONARY).decompress(stream.read(_START), 1)
    except lzma.LZMAError as exc:
        if "Memory" in str(exc):
            raise MemoryError from exc
    stream.seek(0)
    return lzma.LZMAFile(stream)


class _Inflating(RawIOBase):
    """What zlib packed."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._machine = stream, zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data and not self._machine.eof:
            packed = self._machine.unconsumed_tail or self._stream.read(_START)
            if not packed:
                break
            data = self._machine.decompress(packed, min(len(buffer), 512))
        buffer[: len(data)] = data
        return len(data)
