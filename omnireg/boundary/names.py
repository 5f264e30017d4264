"""Names that a file gives and that become paths.

A name in a package, an index, a manifest or a repository is somebody else's word. It becomes a path
through :func:`place` alone: relative, below the folder, without a symbolic link on the way.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from omnireg.boundary.text import is_plain
from omnireg.errors import CheckpointError, OmniregError

#: what file systems take for one part of a path, in bytes
LONGEST_PART = 255
_LONGEST = 4096
#: devices on some systems, whatever ending follows
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)


def relative(name: object, where: object, error: type[OmniregError] = CheckpointError) -> str:
    """Return a name that stays below the folder that it is relative to.

    Args:
        name: what a file says, with ``/`` between its parts.
        where: the file that says so, for the message.
        error: what to raise.

    Raises:
        OmniregError: of the class ``error``; says what is wrong with the name.
    """
    if said := fault(name):
        raise error(f"{where} names the file {said}; do not trust where it came from")
    return str(name)


def part(name: object, where: object, error: type[OmniregError] = CheckpointError) -> str:
    """Return a name that is one file or folder, without any ``/`` in it.

    Raises:
        OmniregError: of the class ``error``; says what is wrong with the name.
    """
    if said := fault(name, alone=True):
        raise error(f"{where} names the file {said}; do not trust where it came from")
    return str(name)


def place(
    folder: Path, name: object, where: object, error: type[OmniregError] = CheckpointError
) -> Path:
    """Return where a name leads below a folder, without following a symbolic link.

    Raises:
        OmniregError: of the class ``error``; the name leaves the folder, or a link stands on the
            way, whether or not anything is there yet.
    """
    path = folder
    for each in relative(name, where, error).split("/"):
        path = path / each
        if path.is_symlink():
            raise error(f"{path} is a symbolic link; copy the file itself there (named by {where})")
    return path


def together(
    names: Iterable[object], where: object, error: type[OmniregError] = CheckpointError
) -> list[str]:
    """Return names of files that can lie in one folder, whatever the file system.

    Raises:
        OmniregError: of the class ``error``; one of them cannot be (see :func:`relative`), is part
            of a git repository, is another one's folder, or is another one written in other case.
    """
    found = [relative(name, where, error) for name in names]
    known: dict[str, str] = {}
    for name in found:
        folded = _folded(name)
        if ".git" in folded.split("/"):
            raise error(f"{where} names {_short(name)}, which would be git's; do not trust it")
        other = known.setdefault(folded, name)
        if other is not name:
            raise error(
                f"{where} names both {_short(other)} and {_short(name)}, which are one file on some"
                " systems; rename one of them"
            )
    for folded, name in known.items():
        above = next((each for each in _above(folded) if each in known), None)
        if above is not None:
            raise error(
                f"{where} names {_short(known[above])}, and {_short(name)} in it: a file cannot be"
                " a folder"
            )
    return found


def _folded(name: str) -> str:
    """Return a name as file systems that tell little apart take it."""
    plain = "".join(c for c in name if unicodedata.category(c) != "Cf")
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", plain).casefold())


def _above(name: str) -> Iterator[str]:
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def fault(name: object, *, alone: bool = False) -> str | None:
    """Return a name and what is wrong with it, None if it stays below its folder.

    ``alone`` also takes a ``/`` for wrong.
    """
    wrong = _wrong(name)
    if wrong is None and alone and "/" in str(name):
        wrong = "is a path where a plain name is expected"
    return f"{_short(name)}, which {wrong}" if wrong else None


def _wrong(name: object) -> str | None:
    if not isinstance(name, str) or not name:
        return "is no name"
    if not is_plain(name):
        return "holds a control or bidirectional character"
    if "\\" in name or name.startswith("/") or PurePosixPath(name).is_absolute():
        return "is not relative"
    parts = name.split("/")
    if any(each in ("", ".", "..") for each in parts):
        return "would leave the folder"
    if len(name) > _LONGEST or any(len(each.encode()) > LONGEST_PART for each in parts):
        return f"is longer than {LONGEST_PART} bytes in one part"
    if any(_DEVICES.fullmatch(each) or each[-1] in ". " or ":" in each for each in parts):
        return "is reserved on some systems"
    return None


def _short(name: object, most: int = 80) -> str:
    text = ascii(name)
    return text if len(text) <= most else f"{text[:most]}…"
