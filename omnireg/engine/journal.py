"""An unfinished merge: ``OUT.partial`` with a journal of the files that are complete.

A file is entered after its bytes are on the disk, so a killed merge goes on with the first file
that is not in the journal. The journal's first line says what is being made of what; a merge that
is not the same in every respect is refused, never mixed in.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from omnireg.boundary.files import reason
from omnireg.digests import fresh_sha256
from omnireg.errors import MergeError, OmniregError
from omnireg.outputs import check_free, other_file

_JOURNAL = "journal.jsonl"


class Journal:
    """The finished files of a partial folder, and the lock on it."""

    def __init__(self, folder: Path, stream: IO[str]) -> None:
        self.folder, self._stream = folder, stream
        self.finished: dict[str, str] = {}

    def enter(self, name: str, digest: str) -> None:
        """Note that a file is complete and on the disk."""
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
def unfinished(out: Path, identity: Mapping[str, Any], *, resume: bool) -> Iterator[Journal]:
    """Yield the journal of a merge into ``out``, an earlier one's if it is the same merge.

    The folder becomes ``out`` when the block ends well. It is kept when the block is interrupted or
    the disk refuses, and removed with an error of ours: running again would end the same way.

    Raises:
        MergeError: ``out`` exists or cannot be written, another process is at it, or the folder
            is of another merge; says what differs.
    """
    check_free(out)
    folder = partial_folder(out)
    try:
        if not resume and folder.exists():
            _check_ours(folder)
            with (folder / _JOURNAL).open("a", encoding="utf-8") as stream:
                _lock(stream, out)
                shutil.rmtree(folder)
        _make(folder)
        _check_ours(folder)
        with (folder / _JOURNAL).open("a+", encoding="utf-8") as stream:
            _lock(stream, out)
            journal = Journal(folder, stream)
            _go_on(journal, stream, identity, out)
            try:
                yield journal
            except OmniregError:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            (folder / _JOURNAL).unlink()
            check_free(out)
            folder.rename(out)
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
    if any(folder.iterdir()) and not (folder / _JOURNAL).is_file():
        raise MergeError(f"{folder} is in the way and not an unfinished merge; move it elsewhere")


def _lock(stream: IO[str], out: Path) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise MergeError(f"another process is merging into {out}; wait for it to end") from exc


def _go_on(journal: Journal, stream: IO[str], identity: Mapping[str, Any], out: Path) -> None:
    stream.seek(0)
    lines = list(_lines(stream.read()))
    if not lines or "merge" not in lines[0]:
        stream.truncate(0)
        journal.begin(identity)
        return
    differences = list(_differences(lines[0]["merge"], _plain(identity)))
    if differences:
        raise MergeError(
            f"{journal.folder} holds an unfinished merge that differs: {'; '.join(differences)}."
            " Bring that back to go on with it, or start over with --no-resume"
        )
    for line in lines[1:]:
        path = journal.folder / line["file"]
        if path.is_file() and fresh_sha256(path) == line["sha256"]:
            journal.finished[line["file"]] = line["sha256"]


def _lines(text: str) -> Iterator[Any]:
    """Yield the journal's lines; the last one may have been cut off."""
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


def _differences(before: Any, now: Any) -> Iterator[str]:
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            changed = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
            said = [
                k if isinstance(old.get(k), list) else f"{k} was {old.get(k)}, is {new.get(k)}"
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
