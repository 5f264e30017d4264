"""Output folders appear whole, by rename, or not at all."""

import errno
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from omnireg.boundary.files import reason
from omnireg.errors import MergeError

#: what file systems take, less what is added for unfinished work
_LONGEST_NAME = 200
#: what a system says when there is no room, whatever file it names beside
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_free(out: Path) -> None:
    """Make sure ``out`` can be created, before any work starts.

    Raises:
        MergeError: it exists, or its parent cannot be written to.
    """
    if out == Path():
        raise MergeError("the folder to write has no name; name a new one")
    try:
        taken = out.exists() or out.is_symlink()
    except OSError as exc:
        raise MergeError(f"cannot use {out}: {exc.strerror}; choose another folder") from exc
    if taken:
        raise MergeError(f"{out} already exists; choose another folder or remove it first")
    if len(os.fsencode(out.name)) > _LONGEST_NAME:
        raise MergeError(
            f"{out.name[:40]}… is too long for a folder; use at most {_LONGEST_NAME} bytes"
        )
    parent = nearest(out.parent)
    if not is_open(parent):
        raise MergeError(f"cannot write to {parent}; choose another folder")


def is_open(place: Path) -> bool:
    """Whether a folder can be written to."""
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)


def nearest(folder: Path) -> Path:
    """Return a folder, or the first one above it that exists."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def scratch_folder(out: Path) -> Path:
    """Make a hidden folder beside ``out``, after removing those that killed processes left."""
    machine = platform.node()
    for left in out.parent.glob(f".{escape(out.name)}.*.{escape(machine)}.*"):
        owner = left.name.removeprefix(f".{out.name}.").partition(".")[0]
        if owner.isdecimal() and not _alive(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    prefix = f".{out.name}.{os.getpid()}.{machine}."
    return Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """Yield a hidden sibling folder that becomes ``out`` if the block succeeds.

    Raises:
        MergeError: ``out`` cannot be created, or the disk is full.
    """
    check_free(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = scratch_folder(out)
    except OSError as exc:
        raise MergeError(f"cannot write to {out.parent}: {exc.strerror}") from exc
    try:
        scratch.chmod(0o755)
        yield scratch
        check_free(out)
        scratch.rename(out)
    except OSError as exc:
        if other := other_file(exc, out, scratch):
            raise MergeError(f"cannot use {other}; nothing was left at {out}") from exc
        raise MergeError(f"cannot write {out}: {reason(exc)}; nothing was left there") from exc
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def other_file(exc: OSError, *own: Path) -> str | None:
    """Return the file that is to blame, and why, if it is none of what is being written.

    Args:
        exc: what came up while something was written, and perhaps read.
        own: the file or folder that is written, and where it is prepared.
    """
    if exc.errno in _NO_ROOM or not isinstance(exc.filename, str | bytes | os.PathLike):
        return None
    file = Path(os.fsdecode(exc.filename)).absolute()
    places = [place.absolute() for place in own]
    scratch = tuple(f".{place.name}.{os.getpid()}." for place in places)
    for place in places:
        above = file == place.parent or place in (file, *file.parents)
        beside = place.parent in file.parents
        if above or (beside and file.relative_to(place.parent).parts[0].startswith(scratch)):
            return None
    return f"{os.fsdecode(exc.filename)}: {reason(exc)}"


def copy_files(files: Iterable[Path], folder: Path, *, overwrite: bool = True) -> None:
    """Copy small files beside the weights."""
    for file in files:
        if overwrite or not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
