"""An unfinished merge: ``OUT.partial`` with a journal of the files that are complete.

A file is entered after its bytes are on the disk, so a killed merge goes on with the first file
that is not in the journal. The journal's first line says what is being made of what; a merge that
is not the same in every respect is refused, never mixed in.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict

from omnireg.boundary.documents import parse_json, validated
from omnireg.boundary.files import reason
from omnireg.boundary.names import place
from omnireg.checkpoints.contents import JOURNAL
from omnireg.checkpoints.digests import fresh_sha256
from omnireg.checkpoints.outputs import check_free, other_file
from omnireg.errors import InputChanged, MergeError, OmniregError


class _Finished(BaseModel):
    """A line about a file that is complete."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    file: str
    sha256: str


class _Begun(BaseModel):
    """The first line: what is being made of what."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    merge: dict[str, Any]


class Journal:
    """The finished files of a partial folder, and the lock on it.

    A file is only believed to be finished after ``check`` found its inputs unchanged.
    """

    def __init__(self, folder: Path, stream: IO[str], check: Callable[[], None]) -> None:
        self.folder, self._stream, self._check = folder, stream, check
        self.finished: dict[str, str] = {}

    def enter(self, name: str, digest: str) -> None:
        """Note that a file is complete and on the disk.

        Raises:
            InputChanged: an input is no longer what the file was made of.
        """
        self._check()
        self.finished[name] = digest
        self._write({"file": name, "sha256": digest})

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Write the first line."""
        self._write({"merge": identity})

    def _write(self, line: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())


def partial_folder(out: Path) -> Path:
    """Return where a merge into ``out`` is kept until it is complete."""
    return out.with_name(f"{out.name}.partial")


@contextmanager
def unfinished(
    out: Path, identity: Mapping[str, Any], *, resume: bool, check: Callable[[], None]
) -> Iterator[Journal]:
    """Yield the journal of a merge into ``out``, an earlier one's if it is the same merge.

    The folder becomes ``out`` when the block ends well. It is kept when the block is interrupted,
    the disk refuses, or an input changed, and removed with another error of ours: running again
    would end the same way.

    Args:
        out: the folder to make.
        identity: everything that its bytes depend on.
        resume: go on with what is there.
        check: finds out whether the inputs are still what they were.

    Raises:
        InputChanged: an input changed; what was finished before is kept.
        MergeError: ``out`` exists or cannot be written, another process is at it, or the folder
            is of another merge; says what differs.
    """
    check_free(out)
    folder = partial_folder(out)
    try:
        if not resume and folder.exists():
            _check_ours(folder)
            with (folder / JOURNAL).open("a", encoding="utf-8") as stream:
                _lock(stream, out)
                shutil.rmtree(folder)
        _make(folder)
        _check_ours(folder)
        with (folder / JOURNAL).open("a+", encoding="utf-8") as stream:
            _lock(stream, out)
            journal = Journal(folder, stream, check)
            _go_on(journal, stream, identity, out)
            try:
                yield journal
                check()
            except InputChanged:
                raise
            except OmniregError:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            check_free(out)
            folder.rename(out)
            # not before: without it, what is left by a killed process is nobody's
            (out / JOURNAL).unlink()
            _sync(out.parent)
    except OSError as exc:
        if other := other_file(exc, folder, out):
            raise MergeError(
                f"cannot use {other}; bring it back, and run the same command again: what is"
                f" finished is kept in {folder}"
            ) from exc
        raise MergeError(
            f"cannot write {folder}: {reason(exc)}; what is finished is kept there: make room or"
            " mend it, and run the same command again"
        ) from exc


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise MergeError(
            f"cannot write to {folder.parent}: {exc.strerror}; choose another folder"
        ) from exc


def _check_ours(folder: Path) -> None:
    if folder.is_symlink() or (any(folder.iterdir()) and not (folder / JOURNAL).is_file()):
        raise MergeError(f"{folder} is in the way and not an unfinished merge; move it elsewhere")


def _lock(stream: IO[str], out: Path) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise MergeError(f"another process is merging into {out}; wait for it to end") from exc


def _go_on(journal: Journal, stream: IO[str], identity: Mapping[str, Any], out: Path) -> None:
    stream.seek(0)
    where = journal.folder / JOURNAL
    try:
        lines = list(_lines(stream.read(), where))
        begun = validated(_Begun, lines[0], where, error=MergeError) if lines else None
        finished = [validated(_Finished, line, where, error=MergeError) for line in lines[1:]]
        places = [place(journal.folder, said.file, where, MergeError) for said in finished]
    except (MergeError, UnicodeDecodeError) as exc:
        raise MergeError(f"{where} is damaged: start over with --no-resume") from exc
    if begun is None:
        stream.truncate(0)
        journal.begin(identity)
        return
    differences = list(_differences(begun.merge, _plain(identity)))
    if differences:
        raise MergeError(
            f"{journal.folder} holds an unfinished merge that differs: {'; '.join(differences)}."
            " Bring that back to go on with it, or start over with --no-resume"
        )
    for said, path in zip(finished, places, strict=True):
        if path.is_file() and fresh_sha256(path) == said.sha256:
            journal.finished[said.file] = said.sha256


def _lines(text: str, where: Path) -> Iterator[Any]:
    """Yield the journal's lines; the last one may have been cut off."""
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            yield parse_json(line, where, error=MergeError, unique=True)


def _differences(before: Any, now: Any) -> Iterator[str]:
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            changed = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
            said = [
                k if key == "inputs" else f"{k} was {old.get(k)}, is {new.get(k)}"
                for k in changed[:3]
            ]
            yield f"{key} changed ({', '.join(said)})"
        else:
            yield f"{key} was {old}, is {new}"


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
