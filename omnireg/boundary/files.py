"""Files that others made: only regular ones are read, none without an end; whole ones are written.

A file on a command line may also be a pipe that a shell made (``<(…)``, ``/dev/stdin``). Anything
else that is no regular file could wait for ever, or never end.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import IO, Self

from omnireg.errors import CheckpointError, ConfigError, InputChanged, OmniregError

#: documents are kept in memory whole; longer ones are refused
LARGEST_DOCUMENT = 1 << 30
_STANDARD = {"/dev/stdout": 1, "/dev/stderr": 2}
_DESCRIPTOR = re.compile(r"/dev/std(?:out|err)|(?:/dev|/proc/self)/fd/([0-9]+)")
_PIPES = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")


@dataclass(frozen=True, slots=True)
class State:
    """What tells a file from what it was before: a change of its bytes changes one of these."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, file: Path | int) -> Self:
        """Return the state of a path, or of an open descriptor."""
        found = os.fstat(file) if isinstance(file, int) else file.stat()
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)

    def refuse_other(self, now: "State", file: Path) -> None:
        """Refuse a file that is in another state now.

        Raises:
            InputChanged: says how it changed, and what to do.
        """
        if now == self:
            return
        how = "was replaced" if now.inode != self.inode else "was changed"
        if now.size < self.size:
            how = f"was shortened from {self.size:,} to {now.size:,} bytes"
        raise InputChanged(
            f"{file} {how} while it was used; wait until nobody writes to it, and start again"
        )


def open_regular(path: Path, error: type[OmniregError] = CheckpointError) -> int:
    """Return a descriptor of a regular file, open for reading.

    Raises:
        OmniregError: of the class ``error``; it is missing, cannot be read, or is a folder, a pipe
            or a device.
    """
    try:
        # without O_NONBLOCK a pipe would wait here for somebody to write into it
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as exc:
        raise error(f"cannot read {path}: {reason(exc)}") from exc
    kind = os.fstat(handle).st_mode
    if not stat.S_ISREG(kind):
        os.close(handle)
        raise error(f"cannot read {path}: it is {_kind(kind)}, not a file")
    return handle


def read_bytes(
    path: Path, *, most: int = LARGEST_DOCUMENT, error: type[OmniregError] = CheckpointError
) -> bytes:
    """Return what is in a file.

    Raises:
        OmniregError: of the class ``error``; it cannot be read, or is longer than ``most`` bytes.
    """
    if str(path).startswith(_PIPES):
        return _read_pipe(path, most, error)
    handle = open_regular(path, error)
    try:
        with open(handle, "rb") as stream:  # noqa: PTH123 - a descriptor
            data = stream.read(most + 1)
    except OSError as exc:
        raise error(f"cannot read {path}: {reason(exc)}") from exc
    return _checked(data, path, most, error)


def read_text(
    path: Path, *, most: int = LARGEST_DOCUMENT, error: type[OmniregError] = CheckpointError
) -> str:
    """Return a file's text, which is UTF-8.

    Raises:
        OmniregError: of the class ``error``; it cannot be read, is too long, or is no text.
    """
    try:
        return read_bytes(path, most=most, error=error).decode()
    except UnicodeDecodeError as exc:
        raise error(f"{path} is not UTF-8 text: byte {exc.start} does not fit") from exc


def _read_pipe(path: Path, most: int, error: type[OmniregError]) -> bytes:
    try:
        with path.open("rb") as stream:
            return _checked(stream.read(most + 1), path, most, error)
    except OSError as exc:
        raise error(f"cannot read {path}: {reason(exc)}") from exc


def _checked(data: bytes, path: Path, most: int, error: type[OmniregError]) -> bytes:
    if len(data) > most:
        raise error(f"{path} is longer than {most:,} bytes; nothing that is read here needs that")
    return data


@contextmanager
def replacing(path: Path, error: type[OmniregError] = ConfigError) -> Iterator[IO[bytes]]:
    """Yield a stream for a file that appears whole when the block ends, or stays as it was.

    What is a link leads on to its file. A pipe, a terminal or another device of characters is
    written to as it is, and so is what this process has open (``/dev/stdout``, ``/dev/fd/63``).

    Raises:
        OmniregError: of the class ``error``; it cannot be written, is a folder, a socket or a disk,
            or is a pipe that nobody reads from.
    """
    try:
        with _beside(path.resolve()) if _is_replaced(path, error) else _through(path) as stream:
            yield stream
    except OSError as exc:
        raise error(f"cannot write {path}: {_unwritten(path, exc)}") from exc


def _is_replaced(path: Path, error: type[OmniregError]) -> bool:
    """Whether a file is made anew, not written to as it is."""
    if _open_already(path) is not None:
        return False
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        return True
    if stat.S_ISREG(kind):
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return True
    if not (stat.S_ISFIFO(kind) or stat.S_ISCHR(kind)):
        raise error(f"cannot write {path}: it is {_kind(kind)}; name a file")
    return False


@contextmanager
def _beside(target: Path) -> Iterator[IO[bytes]]:
    partial = target.with_name(f".{os.getpid()}.{token_hex(4)}.partial")
    try:
        with partial.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if target.exists():
            before = target.stat()
            with suppress(OSError):  # another's file stays another's, where that is allowed
                os.chown(partial, before.st_uid, before.st_gid)
            partial.chmod(stat.S_IMODE(before.st_mode))
        partial.replace(target)
    finally:
        with suppress(OSError):  # what hindered writing may hinder this too
            partial.unlink(missing_ok=True)


@contextmanager
def _through(path: Path) -> Iterator[IO[bytes]]:
    own = _open_already(path)
    if own is not None:
        handle = os.dup(own)  # opened anew, a file would be written from its beginning
    else:
        # without O_NONBLOCK a pipe would wait for somebody to read from it
        handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        os.set_blocking(handle, True)
    with open(handle, "wb") as stream:  # noqa: PTH123 - a descriptor
        yield stream


def _open_already(path: Path) -> int | None:
    """Return the descriptor that a path stands for."""
    found = _DESCRIPTOR.fullmatch(str(path))
    return (int(found[1]) if found[1] else _STANDARD[found[0]]) if found else None


def _unwritten(path: Path, exc: OSError) -> str:
    if exc.errno == errno.ENXIO and path.is_fifo():
        return "nobody reads from this pipe; start its reader first"
    return reason(exc)


def write_text(path: Path, text: str, error: type[OmniregError] = ConfigError) -> None:
    """Write a file whole, see :func:`replacing`.

    Raises:
        OmniregError: of the class ``error``; it cannot be written.
    """
    with replacing(path, error) as stream:
        stream.write(text.encode())


def reason(exc: BaseException) -> str:
    """Return what the system says of a failure, without the path that a message names anyway."""
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc) or type(exc).__name__


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "no file")
