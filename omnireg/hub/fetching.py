"""Which files of a repository are fetched, and whether what came is what the Hub says."""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from omnireg.boundary import pickles
from omnireg.boundary.text import shown
from omnireg.checkpoints import contents
from omnireg.checkpoints.digests import remember_sha256
from omnireg.errors import CheckpointError, PublishError
from omnireg.hub.client import translated
from omnireg.hub.files import CARD
from omnireg.hub.repository import Repository
from omnireg.package import fingerprint_of

#: what Python imports; other programs, such as shell scripts and notebooks, run only if people run
#: them, and nothing that is fetched can be executed
_CODE = (".py", ".pyc", ".pyo", ".pyw", ".pyd", ".so", ".dll", ".dylib")
#: where the client of the Hub keeps its own notes
_NOTES = ".cache"
_ALLOWING = "if you trust its authors: --allow-pickle"


@dataclass(frozen=True)
class Choice:
    """The files to fetch.

    Attributes:
        repo: where they are.
        wanted: by their paths.
        left_out: the others.
        allow_pickle: whether pickles may be among them.
    """

    repo: Repository
    wanted: frozenset[str]
    left_out: tuple[str, ...]
    allow_pickle: bool

    @property
    def lines(self) -> list[str]:
        """What to say of those that are left out."""
        if not self.left_out:
            return []
        return [
            f"{self.repo.name}: {_some(self.left_out)} left out, since it is code that Python would"
            " run when the model is loaded with trust_remote_code; if you trust its authors:"
            " --trust-remote-code"
        ]


def choose(repo: Repository, *, allow_pickle: bool, trust_remote_code: bool) -> Choice:
    """Return which files to fetch.

    Raises:
        PublishError: some are pickles by their names, and none are allowed.
    """
    paths = sorted(path for path in repo.files if not _is_note(path))
    code = [] if trust_remote_code else [path for path in paths if path.lower().endswith(_CODE)]
    found = {path: what for path in paths if (what := pickles.of_name(path))}
    if found and not allow_pickle:
        first = next(iter(found))
        raise PublishError(
            f"{repo.name} holds {_some(found)}, which can run code when read ({first} is"
            f" {found[first]} by its name); {_ALLOWING}"
        )
    return Choice(repo, frozenset(paths) - frozenset(code), tuple(code), allow_pickle)


def fetch(choice: Choice, folder: Path) -> None:
    """Fetch the files into an empty folder.

    Raises:
        PublishError: the Hub says no, or hands out other files than it said.
    """
    repo = choice.repo
    endings = [] if not choice.left_out else [f"*{_any_case(ending)}" for ending in _CODE]
    notes = _any_case(_NOTES)
    if choice.wanted:
        with translated(repo.name, "fetching"):
            repo.api.snapshot_download(
                repo.name, revision=repo.commit, local_dir=folder,
                ignore_patterns=[*endings, notes, f"{notes}/*"],
            )  # fmt: skip
    shutil.rmtree(folder / _NOTES, ignore_errors=True)
    wrong = difference(choice, folder)
    if wrong:
        raise PublishError(f"{repo.name}: {wrong}: the files are not what the Hub says; try again")


def difference(choice: Choice, folder: Path) -> str | None:
    """Return how a folder differs from what was to be fetched into it; None if it does not."""
    there = {}
    for path, place in _files(folder):  # of which there may be millions
        if path not in choice.wanted:
            return f"{shown(path, 200)} is no file of it"
        there[path] = place
    for path in sorted(choice.wanted):
        if path not in there:
            return f"{path} is missing"
        is_file = there[path].is_file() and not there[path].is_symlink()
        if not is_file or choice.repo.files[path].differs(there[path]):
            return f"{path} differs"
    return None


@dataclass(frozen=True)
class Checked:
    """What was found in a folder that was fetched.

    Attributes:
        fingerprint: of its weights; None if they are not all there.
        files: the sha256 of every file that decides what a model says.
    """

    fingerprint: str | None
    files: Mapping[str, str]


def check(choice: Choice, folder: Path) -> Checked:
    """Look at what was fetched, before it is recorded and used; this is the one place.

    Raises:
        PublishError: something in it can run code when it is read, whatever it is called; it is
            not what its own ``omnireg.json`` says; or weights are damaged.
    """
    if not choice.allow_pickle:
        for path in sorted(choice.wanted):
            if what := pickles.of_file(folder / path, PublishError):
                raise PublishError(
                    f"{choice.repo.where(path)} is {what}, which can run code when read;"
                    f" {_ALLOWING}"
                )
    _check_told(choice, folder)
    return Checked(_fingerprint(choice.repo, folder), contents.digests(folder))


def _check_told(choice: Choice, folder: Path) -> None:
    """Compare a folder that omnireg wrote with the digests that were written then."""
    repo = choice.repo
    try:
        told = contents.read(folder)
    except CheckpointError as exc:
        raise PublishError(shown(str(exc).replace(str(folder), repo.name), 500)) from exc
    # people may edit the card
    others = {*choice.left_out, CARD}
    files = {n: d for n, d in told.files.items() if n not in others} if told else {}
    wrong = list(contents.differences(folder, files, added=False))
    if wrong:
        raise PublishError(
            f"{repo.name} is not what its {contents.NAME} says: {', '.join(wrong[:3])}; it was"
            " changed without publishing anew, so ask its authors"
        )


def _fingerprint(repo: Repository, folder: Path) -> str | None:
    """Return what the bytes say; None if the files of the weights are not all there."""
    weights = repo.weights
    if not weights or not all((folder / path).is_file() for path in weights):
        return None
    try:
        return fingerprint_of(folder)
    except CheckpointError as exc:
        reason = str(exc).replace(str(folder), repo.name)
        raise PublishError(f"{repo.name}: {shown(reason, 500)}") from exc


def remember(choice: Choice, folder: Path) -> None:
    """Keep the digests of a folder that was renamed, so that weights are not read again."""
    for path, file in choice.repo.files.items():
        if file.sha256 and path in choice.wanted:
            remember_sha256(folder / path, file.sha256)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for place, folders, names in os.walk(folder):
        links = [each for each in folders if Path(place, each).is_symlink()]
        for name in [*names, *links]:
            path = Path(place, name)
            yield path.relative_to(folder).as_posix(), path


def _is_note(path: str) -> bool:
    return path.partition("/")[0].lower() == _NOTES


def _any_case(text: str) -> str:
    """Return a pattern of text in upper or lower case."""
    return "".join(f"[{c}{c.upper()}]" if c.isalpha() else escape(c) for c in text)


def _some(paths: Iterable[str]) -> str:
    named = list(paths)
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return ", ".join(named[:3]) + more
