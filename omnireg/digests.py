"""sha256 of files, remembered as long as a file's path, size, mtime and inode stay the same."""

import os
import sqlite3
from contextlib import closing, suppress
from hashlib import sha256
from pathlib import Path

_SCHEMA = """CREATE TABLE IF NOT EXISTS digests (
    path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, inode INTEGER, sha256 TEXT NOT NULL)"""


def file_sha256(file: Path) -> str:
    """Return the hex sha256 of a file, from the cache when the file has not changed."""
    real = file.resolve()
    status = real.stat()
    key = (str(real), status.st_size, status.st_mtime_ns, status.st_ino)
    known = _recall(key)
    if known is None:
        with real.open("rb") as stream:
            digest = sha256()
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
        known = digest.hexdigest()
        _remember(key, known)
    return known


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


def _recall(key: tuple[str, int, int, int]) -> str | None:
    query = "SELECT sha256 FROM digests WHERE path=? AND size=? AND mtime_ns=? AND inode=?"
    with suppress(OSError, sqlite3.Error), closing(_open()) as connection:
        row = connection.execute(query, key).fetchone()
        return str(row[0]) if row else None
    return None


def _remember(key: tuple[str, int, int, int], digest: str) -> None:
    with suppress(OSError, sqlite3.Error), closing(_open()) as connection, connection:
        connection.execute("INSERT OR REPLACE INTO digests VALUES (?,?,?,?,?)", (*key, digest))
