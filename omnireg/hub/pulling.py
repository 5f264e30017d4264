"""Read lineage back from the Hub: what a repository says becomes rows, and its files a folder.

A pull is one step. Everything is read, checked and fetched beside its place first; then, in one
transaction of the registry, the rows are written and the folder appears, as the last act before the
commit. So whatever fails leaves neither. A process that is killed between the two leaves a folder
that holds what the commit does, and the same command records it.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnireg.boundary.files import reason
from omnireg.checkpoints.outputs import appearing, check_free, scratch_folder
from omnireg.errors import CheckpointError, MergeError, RegistryError
from omnireg.hub.claims import Claims, from_manifest, named, record
from omnireg.hub.client import check_name, client
from omnireg.hub.family import from_cards
from omnireg.hub.fetching import Checked, Choice, check, choose, difference, fetch, remember
from omnireg.hub.files import MANIFEST
from omnireg.hub.repository import Repository, read_repository
from omnireg.registry import Registry


@dataclass(frozen=True)
class Pulled:
    """What was read and recorded.

    Attributes:
        repo: the repository.
        commit: the commit that was read.
        name: of the checkpoint in the registry.
        fingerprint: of its weights, from the Hub's digests or the fetched bytes; None if neither
            says it.
        recorded: the names that were added.
        folder: where the files are, if they were fetched.
        url: of the commit.
        files: how many were fetched.
        left_out: the files that were not.
        warnings: what was left out or is not known, and why.
    """

    repo: str
    commit: str
    name: str
    fingerprint: str | None
    recorded: tuple[str, ...]
    folder: Path | None
    url: str
    files: int
    left_out: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``omnireg pull``."""
        return {
            "repo": self.repo,
            "commit": self.commit,
            "url": self.url,
            "name": self.name,
            "fingerprint": self.fingerprint,
            "recorded": list(self.recorded),
            "folder": str(self.folder) if self.folder else None,
            "files": self.files,
            "left_out": list(self.left_out),
            "warnings": list(self.warnings),
        }


def pull(
    book: Registry,
    repo: str,
    *,
    to: Path | None = None,
    metadata_only: bool = False,
    depth: int = 10,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Pulled:
    """Record what a repository says of its checkpoint and of its family, and fetch its files.

    All of it happens, or nothing. Where the folder is there already and holds what the commit does,
    as after a pull that was killed, it is recorded.

    Args:
        book: the registry to record in.
        repo: ``org/name``, with ``@revision`` if not the newest.
        to: the folder to make; the repository's name here when None.
        metadata_only: fetch no weights.
        depth: how many generations of ``base_model`` to follow where there is no manifest.
        allow_pickle: fetch pickled files as well.
        trust_remote_code: fetch Python code as well.

    Raises:
        PublishError: the Hub says no, or the repository claims what is not so.
        RegistryError: a name means something else in the registry.
        MergeError: the folder exists and holds something else, or cannot be made.
    """
    name, _, revision = repo.partition("@")
    check_name(name)
    folder = None if metadata_only else (to or Path(name.partition("/")[2]))
    if folder is not None and not folder.is_dir():
        check_free(folder)
    found = read_repository(client(), name, revision or None)
    choice = None
    if folder is not None:
        choice = choose(found, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    claims = _claims(book, found, depth)
    claims.compare(found.fingerprint, "the Hub says")
    if folder is None or choice is None:
        place = f"{name}@{found.commit}"
        own, added = record(book, claims, found.fingerprint, place)
        return _pulled(claims, own, added, found.fingerprint)
    fingerprint, own, added = _made(book, claims, choice, folder)
    return _pulled(claims, own, added, fingerprint, choice, folder)


def _claims(book: Registry, found: Repository, depth: int) -> Claims:
    if MANIFEST in found.files:
        return from_manifest(found)
    exists = book.exists()
    return from_cards(found, depth, lambda base: exists and named(book, base) is not None)


def _pulled(
    claims: Claims, own: str, added: list[str], fingerprint: str | None,
    choice: Choice | None = None, folder: Path | None = None,
) -> Pulled:  # fmt: skip
    repo = claims.repo
    lines = [*claims.lines, *(choice.lines if choice else ())]
    if fingerprint is None:
        lines.append(f"{repo.name}: no fingerprint is recorded: {_why_unknown(repo)}")
    return Pulled(
        repo.name, repo.commit, own, fingerprint, tuple(added), folder, repo.url,
        len(choice.wanted) if choice else 0, choice.left_out if choice else (), tuple(lines),
    )  # fmt: skip


def _why_unknown(repo: Repository) -> str:
    if not repo.weights:
        return "it has no weights in safetensors"
    missing = [path for path in repo.weights if path not in repo.files]
    if missing:
        return f"its index names {missing[0]}, which is not there"
    return (
        "the Hub has no sha256 of its weights, which are not in LFS; it is worked out when they are"
        " fetched, without --metadata-only"
    )


# the folder and the rows, in one step


def _made(
    book: Registry, claims: Claims, choice: Choice, folder: Path
) -> tuple[str | None, str, list[str]]:
    """Fetch, record and have the folder appear; return fingerprint, name and what was added."""
    place = str(folder.resolve())
    if folder.is_dir():
        # left by a pull that was killed, or here from before
        _check_holds(choice, folder)
        found = _checked(claims, choice, folder)
        own, added = record(book, claims, found.fingerprint, place, files=found.files)
        return found.fingerprint, own, added
    _rehearse(book, claims, place)
    with _without_new_parents(folder), ExitStack() as making:
        partial = making.enter_context(appearing(folder))
        fetch(choice, partial)
        found = _checked(claims, choice, partial)
        with _taken_back(folder, partial, book, claims, found), book.transaction():
            own, added = record(book, claims, found.fingerprint, place, files=found.files)
            making.close()
    remember(choice, folder)
    return found.fingerprint, own, added


def _checked(claims: Claims, choice: Choice, folder: Path) -> Checked:
    found = check(choice, folder)
    claims.compare(found.fingerprint, "its files are")
    return found


def _check_holds(choice: Choice, folder: Path) -> None:
    try:
        wrong = difference(choice, folder)
    except (OSError, CheckpointError) as exc:
        wrong = f"it cannot be read: {reason(exc)}"
    if wrong:
        repo = choice.repo
        raise MergeError(
            f"{folder} already exists and does not hold {repo.name}@{repo.commit[:12]} ({wrong});"
            " choose another folder or remove it first"
        )


class _TakenBack(Exception):
    """A rehearsal is over."""


def _rehearse(book: Registry, claims: Claims, place: str) -> None:
    """Find out whether all of it can be recorded, before anything is fetched; nothing is.

    Raises:
        RegistryError: it cannot.
    """
    with tempfile.TemporaryDirectory(prefix="omnireg-") as scratch:
        # the first write makes a file, but never a database on a server
        is_there = "://" in book.where or book.exists()
        trial = book if is_there else Registry(Path(scratch) / "registry.db")
        with suppress(_TakenBack), trial.transaction():
            record(trial, claims, claims.repo.fingerprint, place, trial=True)
            raise _TakenBack


@contextmanager
def _taken_back(
    folder: Path, partial: Path, book: Registry, claims: Claims, found: Checked
) -> Iterator[None]:
    """Take the folder away if it appears in the block and the block fails after that."""
    number = partial.stat().st_ino
    try:
        yield
    except BaseException:
        with suppress(OSError):
            is_ours = folder.stat().st_ino == number
            if is_ours and not _is_recorded(book, claims, found, folder):
                aside = scratch_folder(folder)
                folder.rename(aside / folder.name)
                shutil.rmtree(aside, ignore_errors=True)
        raise


def _is_recorded(book: Registry, claims: Claims, found: Checked, folder: Path) -> bool:
    """Whether all was written before the block failed: an interrupt may come that late."""
    commit = (claims.repo.name, claims.repo.commit)
    with suppress(RegistryError):
        same = book.by_fingerprint(found.fingerprint) if found.fingerprint else []
        return any(
            row is not None
            and row.source == str(folder.resolve())
            and commit in {(each.repo, each.commit) for each in book.publications(row.name)}
            for row in (named(book, claims.own.name), *same)
        )
    return False


@contextmanager
def _without_new_parents(folder: Path) -> Iterator[None]:
    """Remove the folders that were made on the way to one that did not appear."""
    new = [place for place in folder.absolute().parents if not place.exists()]
    try:
        yield
    except BaseException:
        for place in new:
            with suppress(OSError):
                place.rmdir()
        raise
