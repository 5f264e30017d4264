"""A repository at one commit: its files and its documents, checked before anything is made of them.

A repository is somebody else's word. Its file names become paths only through the one door for
names, its documents values only through the one door for documents, and how long each of them is
stands before it is fetched.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha1
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from omnireg.boundary.documents import parse_json, validated
from omnireg.boundary.files import read_text
from omnireg.boundary.names import part, together
from omnireg.checkpoints.checkpoint import INDEX, PACKAGE_INDEX, SINGLE, combine_digests
from omnireg.checkpoints.contents import NAME as ORIGIN
from omnireg.checkpoints.contents import parsed
from omnireg.checkpoints.digests import file_sha256
from omnireg.errors import CheckpointError, PublishError
from omnireg.hub.client import translated

#: people write shorter ones
LONGEST_CARD = 8 << 20
_LARGEST = 64 << 20
_WEIGHTS = ".safetensors"
_MEGABYTE = 1 << 20
_hex = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class Damaged(PublishError):
    """What a repository holds is not what it should be; the Hub itself is well."""


@dataclass(frozen=True)
class File:
    """A file as the Hub tells of it; any of these may be unknown.

    Attributes:
        size: in bytes.
        sha256: of its content; the Hub knows it of files in LFS.
        blob: the id of its git blob, of other files.
    """

    size: int | None = None
    sha256: str | None = None
    blob: str | None = None

    def differs(self, path: Path) -> bool:
        """Whether a file here is not this one."""
        if self.size is not None and path.stat().st_size != self.size:
            return True
        if self.sha256:
            return file_sha256(path) != self.sha256
        return self.blob is not None and blob_id(path) != self.blob


class _Index(BaseModel):
    """What is used of an index of weights."""

    weight_map: dict[str, str]


@dataclass(frozen=True)
class Repository:
    """A repository at one commit."""

    api: Any
    name: str
    commit: str
    files: Mapping[str, File]

    @property
    def url(self) -> str:
        """Where people look at the commit."""
        return f"{self.api.endpoint}/{self.name}/commit/{self.commit}"

    def where(self, path: str) -> str:
        """Return how a file of it is called in messages."""
        return f"{self.name}/{path}"

    def document(self, path: str, most: int = _LARGEST) -> Path:
        """Return a place of a small file, fetched.

        Raises:
            Damaged: it is too long to be read, or was changed since it was published.
            PublishError: it cannot be fetched.
        """
        size = self.files[path].size
        if size is not None and size > most:
            raise Damaged(
                f"{self.where(path)} has {size / _MEGABYTE:,.0f} MB, and at most"
                f" {most / _MEGABYTE:,.0f} MB are read; ask its authors"
            )
        with translated(self.name, "reading"):
            place = Path(self.api.hf_hub_download(self.name, path, revision=self.commit))
        wanted = self.digests.get(path) if path != ORIGIN else None
        if wanted is not None and file_sha256(place) != wanted:
            raise Damaged(
                f"{self.where(path)} was changed since it was published: {ORIGIN} has another"
                " sha256 of it; ask its authors"
            )
        return place

    def text(self, path: str, most: int = _LARGEST) -> str:
        """Return the text of a small file.

        Raises:
            Damaged: it is too long, or no text.
            PublishError: it cannot be fetched.
        """
        place = self.document(path, most)
        try:
            return read_text(place, most=most, error=Damaged)
        except Damaged as exc:
            raise Damaged(str(exc).replace(str(place), self.where(path))) from exc

    @cached_property
    def digests(self) -> Mapping[str, str]:
        """The sha256 that its ``omnireg.json`` has of its files; none if it has no such document.

        Raises:
            Damaged: the document is damaged, or was edited.
            PublishError: it cannot be fetched.
        """
        if ORIGIN not in self.files:
            return {}
        try:
            return parsed(self.text(ORIGIN).encode(), self.where(ORIGIN)).files
        except CheckpointError as exc:
            raise Damaged(str(exc)) from exc

    @property
    def changed(self) -> list[str]:
        """The files that, as the Hub says, are not what its own ``omnireg.json`` says."""
        known = {path: each.sha256 for path, each in self.files.items() if each.sha256}
        return sorted(p for p, digest in self.digests.items() if known.get(p, digest) != digest)

    @cached_property
    def weights(self) -> tuple[str, ...]:
        """The files that its fingerprint is made of; some may not be there.

        Raises:
            Damaged: its index is not one, or names what cannot be a file of a checkpoint.
            PublishError: the index cannot be fetched.
        """
        if PACKAGE_INDEX in self.files:
            return tuple(sorted(path for path in self.files if path.endswith(_WEIGHTS)))
        if INDEX not in self.files:
            return (SINGLE,) if SINGLE in self.files else ()
        where = self.where(INDEX)
        said = parse_json(self.text(INDEX), where, error=Damaged)
        named = validated(_Index, said, where, error=Damaged).weight_map.values()
        files = tuple(part(name, where, Damaged) for name in sorted(set(named)))
        other = next((name for name in files if not name.endswith(_WEIGHTS)), None)
        if other is not None:
            raise Damaged(f"{where} names {other}, which is no safetensors file; ask its authors")
        return files

    @cached_property
    def fingerprint(self) -> str | None:
        """The fingerprint of its weights as the Hub's digests say; None if they do not."""
        digests = {path: self.files.get(path, File()).sha256 for path in self.weights}
        if not digests or not all(digests.values()):
            return None
        return combine_digests((path, str(digest)) for path, digest in digests.items())


def read_repository(api: Any, name: str, revision: str | None = None) -> Repository:
    """Return a repository at the newest commit of a branch, or at a commit.

    Raises:
        Damaged: it has file names that could do harm.
        PublishError: it cannot be read.
    """
    with translated(name, "reading"):
        try:
            info = api.model_info(name, revision=revision, files_metadata=True)
            files = {each.rfilename: _file(each) for each in info.siblings or ()}
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError("it is no description of a repository") from exc
        if not isinstance(info.sha, str) or not _hex.fullmatch(info.sha):
            raise ValueError("it names no commit")
    together(files, name, Damaged)
    return Repository(api, name, info.sha, files)


def _file(said: Any) -> File:
    digest = said.lfs.sha256 if said.lfs else None
    blob = None if said.lfs else said.blob_id
    size = said.size if isinstance(said.size, int) else None
    return File(size, _known(digest), _known(blob))


def _known(digest: object) -> str | None:
    return digest if isinstance(digest, str) and _hex.fullmatch(digest) else None


def blob_id(path: Path) -> str:
    """Return the id that git gives a file."""
    digest = sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
