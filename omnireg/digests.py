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
    return known_sha256(file) or fresh_sha256(file)


def known_sha256(file: Path) -> str | None:
    """Return the sha256 that the cache has for a file as it is now, None if it must be read."""
    return _recall(_key(file))


def fresh_sha256(file: Path) -> str:
    """Return the sha256 of a file's bytes, read now, and remember it."""
    digest = sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    remember_sha256(file, digest.hexdigest())
    return digest.hexdigest()


def remember_sha256(file: Path, digest: str) -> None:
    """Remember the sha256 of a file, for as long as it does not change."""
    _remember(_key(file), digest)


def _key(file: Path) -> tuple[str, int, int, int]:
    real = file.resolve()
    status = real.stat()
    return str(real), status.st_size, status.st_mtime_ns, status.st_ino


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
