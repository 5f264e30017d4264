"""sha256 of files, remembered as long as a file's state stays the same.

Part of the state is when the file was last changed, which nobody can set back. Its clock is coarse:
a file that was changed this very moment is waited for, or a second change could go unnoticed.
"""

import os
import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from hashlib import sha256
from pathlib import Path

from omnireg.boundary.files import State, open_regular, reason
from omnireg.errors import CheckpointError

_SCHEMA = """CREATE TABLE IF NOT EXISTS states (
    path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, inode INTEGER,
    device INTEGER, sha256 TEXT NOT NULL)"""
#: two changes within so many nanoseconds may leave the same time
_TICK = 20_000_000


def file_sha256(file: Path, state: State | None = None) -> str:
    """Return the hex sha256 of a file, from the cache when the file has not changed.

    Raises:
        CheckpointError: it cannot be read.
        InputChanged: it is not in the ``state`` that is given, or changed while it was read.
    """
    return known_sha256(file, state) or fresh_sha256(file, state)


def known_sha256(file: Path, state: State | None = None) -> str | None:
    """Return the sha256 that the cache has for a file as it is now, None if it must be read.

    Raises:
        InputChanged: the file is not in the ``state`` that is given.
    """
    try:
        real = file.resolve()
        now = State.of(real)
    except OSError as exc:
        raise CheckpointError(f"cannot read {file}: {reason(exc)}") from exc
    (state or now).refuse_other(now, file)
    return _recall(real, now)


def fresh_sha256(file: Path, state: State | None = None) -> str:
    """Return the sha256 of a file's bytes, read now, and remember it.

    Raises:
        CheckpointError: it cannot be read.
        InputChanged: it is not in the ``state`` that is given, or changed while it was read.
    """
    digest = sha256()
    handle = open_regular(file)
    try:
        before = _settled(handle)
        (state or before).refuse_other(before, file)
        while chunk := os.read(handle, 1 << 22):
            digest.update(chunk)
        before.refuse_other(State.of(handle), file)
    except OSError as exc:
        raise CheckpointError(f"cannot read {file}: {reason(exc)}") from exc
    finally:
        os.close(handle)
    _remember(file.resolve(), before, digest.hexdigest())
    return digest.hexdigest()


def remember_sha256(file: Path, digest: str) -> None:
    """Remember the sha256 of a file that we wrote, for as long as it does not change."""
    with suppress(OSError):
        _remember(file.resolve(), _settled(file), digest)


def _settled(file: Path | int) -> State:
    """Return a file's state, once another change would show in it."""
    state = State.of(file)
    for _ in range(5):
        if not 0 <= time.time_ns() - state.ctime_ns < _TICK:
            break
        time.sleep(_TICK / 1e9)
        state = State.of(file)
    return state


def combine_digests(files: Iterable[tuple[str, str]]) -> str:
    """Return the fingerprint of (file name, sha256) pairs."""
    lines = sorted((name, f"{digest}  {name}\n") for name, digest in files)
    return sha256("".join(line for _, line in lines).encode()).hexdigest()


def cache_folder() -> Path:
    """Return ``$OMNIREG_CACHE``, or the user's cache folder."""
    home = os.environ.get("OMNIREG_CACHE")
    if home:
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "omnireg"


def _open() -> sqlite3.Connection:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(folder / "digests.sqlite", timeout=5)
    connection.execute(_SCHEMA)
    return connection


# A cache that cannot be used costs time, never a result: its errors are not the user's.


def _recall(real: Path, state: State) -> str | None:
    query = (
        "SELECT sha256 FROM states WHERE path=? AND size=? AND mtime_ns=? AND ctime_ns=?"
        " AND inode=? AND device=?"
    )
    with suppress(OSError, sqlite3.Error), closing(_open()) as connection:
        row = connection.execute(query, (str(real), *_row(state))).fetchone()
        return str(row[0]) if row else None
    return None


def _remember(real: Path, state: State, digest: str) -> None:
    change = "INSERT OR REPLACE INTO states VALUES (?,?,?,?,?,?,?)"
    with suppress(OSError, sqlite3.Error), closing(_open()) as connection, connection:
        connection.execute(change, (str(real), *_row(state), digest))


def _row(state: State) -> tuple[int, ...]:
    # inode and device numbers may be larger than SQLite's integers
    signed = (state.inode, state.device)
    return (
        state.size, state.mtime_ns, state.ctime_ns,
        *(number - (1 << 64) if number >= 1 << 63 else number for number in signed),
    )  # fmt: skip
