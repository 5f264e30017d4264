"""``omnireg.json``: what a folder that we wrote was made of, and a digest of every file in it.

The fingerprint of a checkpoint is of its weights. What a model says is decided by more: its config,
its tokenizer, and in a package the names and factors of its models. So each file's sha256 is
written down, and the document seals itself: ``seal`` is the sha256 of all that it says.
"""

import json
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from omnireg.boundary.documents import parse_json, validated
from omnireg.boundary.files import read_bytes
from omnireg.boundary.names import relative
from omnireg.checkpoints.digests import file_sha256, fresh_sha256
from omnireg.errors import CheckpointError

NAME = "omnireg.json"
FORMAT = 2
#: the journal of a merge that is not finished
JOURNAL = "journal.jsonl"
#: a folder with this file is a package
PACKAGE_INDEX = "vector.safetensors.index.json"
#: what loading a checkpoint reads; a file of such a name that nobody wrote down may change a model
_READ = (".safetensors", ".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")
_ALSO_READ = ("spk_dict.pt",)
_INSIDE = ("additional_chat_templates",)
_INSIDE_PACKAGE = ("base", "hosts")

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Ours(BaseModel):
    """Part of a document that only omnireg writes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Parent(Ours):
    """What a folder was made of."""

    ref: str
    role: str
    fingerprint: str


class Extracted(Ours):
    """Which model of a package a folder holds."""

    modality: str
    model: dict[str, str]


class Added(Ours):
    """Which model a package was extended by."""

    modality: str
    ref: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class Told(Ours):
    """What ``omnireg.json`` says; format 1 had no digests."""

    format: Literal[1, 2]
    recipe_digest: str | None = None
    strategy: str | None = None
    strategy_distribution: str | None = None
    strategy_version: str | None = None
    engine: str | None = None
    seed: int | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    parents: list[Parent] = Field(default_factory=list)
    extracted: Extracted | None = None
    added: Added | None = None
    package: dict[str, Any] | None = None
    files: dict[str, Digest] = Field(default_factory=dict)
    seal: Digest | None = None

    @model_validator(mode="after")
    def _sealed(self) -> Self:
        if (self.format == 2) != (self.seal is not None) or (self.format == 1 and self.files):
            raise ValueError("it has to be sealed in format 2, and cannot be in format 1")
        return self

    @property
    def is_sealed(self) -> bool:
        """Whether it has digests."""
        return self.seal is not None


def is_told(folder: Path) -> bool:
    """Whether a folder says what it was made of."""
    try:
        return (folder / NAME).is_file()
    except OSError:  # a name that is too long, say
        return False


def write(folder: Path, said: Mapping[str, Any], known: Mapping[str, str] | None = None) -> None:
    """Write ``omnireg.json`` into a folder that has all its other files.

    Args:
        folder: the folder.
        said: what it was made of, without digests.
        known: sha256 by relative name of files that were hashed while they were written.
    """
    names = sorted(_every(folder))
    digests = {n: (known or {}).get(n) or fresh_sha256(folder / n) for n in names}
    whole = {**said, "format": FORMAT, "files": digests}
    text = json.dumps({**whole, "seal": _seal(whole)}, indent=2, ensure_ascii=False) + "\n"
    (folder / NAME).write_text(text, encoding="utf-8")


def read(folder: Path, *, trust: bool = False) -> Told | None:
    """Return what a folder says of itself, None if it says nothing.

    ``trust`` accepts a document that was edited.

    Raises:
        CheckpointError: the document is damaged, or was edited.
    """
    place = folder / NAME
    return parsed(read_bytes(place), place, trust=trust) if is_told(folder) else None


def parsed(raw: bytes, place: object, *, trust: bool = False) -> Told:
    """Return what the bytes of ``omnireg.json`` say, see :func:`read`.

    Raises:
        CheckpointError: the document is damaged, or was edited.
    """
    data = parse_json(raw, place, unique=True)
    if isinstance(data, dict) and isinstance(data.get("format"), int) and data["format"] > FORMAT:
        raise CheckpointError(
            f"{place} has format {data['format']}, this omnireg reads {FORMAT}: upgrade omnireg"
        )
    told = validated(Told, data, place)
    for name in told.files:
        relative(name, place)
    if told.is_sealed and not trust and _seal(data) != told.seal:
        raise CheckpointError(
            f"{place} was edited: what it says does not fit its seal; bring the old one back"
        )
    return told


def _seal(said: Mapping[str, Any]) -> str:
    whole = {key: value for key, value in said.items() if key != "seal"}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return sha256(text.encode()).hexdigest()


def made_as(folder: Path, said: Mapping[str, Any]) -> bool:
    """Whether a folder is whole, and was made of what ``said`` says (some keys of the document)."""
    try:
        told = read(folder)
        if told is None or not told.is_sealed or list(differences(folder, told.files)):
            return False
        data = parse_json(read_bytes(folder / NAME), folder / NAME)
    except CheckpointError:
        return False
    return all(data.get(key) == value for key, value in json.loads(json.dumps(said)).items())


def resealed(folder: Path, more: Mapping[str, bytes] | None = None) -> bytes | None:
    """Return ``omnireg.json`` with the digests that its files have now; None if there is none.

    Files that were changed on purpose can so be published with a document that holds true, and so
    can ``more`` files, which are written beside them.

    Raises:
        CheckpointError: the document is damaged, or a file that it names is gone.
    """
    told = read(folder)
    if told is None:
        return None
    if not told.is_sealed:
        return read_bytes(folder / NAME)
    data = parse_json(read_bytes(folder / NAME), folder / NAME)
    added = {name: sha256(content).hexdigest() for name, content in (more or {}).items()}
    known = [name for name in told.files if name not in added]
    data["files"] = {name: file_sha256(folder / name) for name in known} | added
    data["files"] = dict(sorted(data["files"].items()))
    return (json.dumps({**data, "seal": _seal(data)}, indent=2, ensure_ascii=False) + "\n").encode()


def digests(folder: Path, *, fresh: bool = False) -> dict[str, str]:
    """Return the sha256 of every file that decides what a model says, by relative name.

    ``omnireg.json`` is one of them. ``fresh`` reads every byte again.
    """
    names = {*deciding(folder), *((NAME,) if (folder / NAME).is_file() else ())}
    hashed = fresh_sha256 if fresh else file_sha256
    return {name: hashed(folder / name) for name in sorted(names)}


def deciding(folder: Path) -> Iterator[str]:
    """Yield the names of the files that loading a checkpoint or a package reads."""
    inside = (*_INSIDE, *(_INSIDE_PACKAGE if (folder / PACKAGE_INDEX).is_file() else ()))
    for name in _every(folder, inside):
        if name.endswith(_READ) or Path(name).name in _ALSO_READ:
            yield name


def _every(folder: Path, inside: tuple[str, ...] | None = None) -> Iterator[str]:
    """Yield the relative names of all files but ``omnireg.json``; hidden ones decide nothing."""
    for path in folder.rglob("*") if inside is None else _at(folder, inside):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in name.split("/"))
        if path.is_file() and not hidden and name not in (NAME, JOURNAL):
            yield name


def _at(folder: Path, inside: tuple[str, ...]) -> Iterator[Path]:
    yield from folder.glob("*")
    for name in inside:
        yield from (folder / name).rglob("*")


def differences(
    folder: Path,
    recorded: Mapping[str, str],
    *,
    fresh: bool = False,
    added: bool = True,
    weights: bool = True,
) -> Iterator[str]:
    """Yield what is not as it was written down, one line per file.

    Args:
        folder: the folder.
        recorded: sha256 by relative name.
        fresh: read every byte again.
        weights: look at ``*.safetensors`` too, which takes a while.
        added: tell also of files that nobody wrote down and that loading would read.
    """
    hashed = fresh_sha256 if fresh else file_sha256
    for name, digest in sorted(recorded.items()):
        if not weights and name.endswith(".safetensors"):
            continue
        place = folder / name
        if not place.is_file():
            yield f"{name} is missing"
        elif hashed(place) != digest:
            yield f"{name} was changed"
    for name in sorted({*deciding(folder)} - {*recorded, NAME}) if added else ():
        yield f"{name} was added"


def check(folder: Path, told: Told, *, weights: bool = True) -> None:
    """Make sure that files are what they were when they were written, where digests were.

    ``weights`` looks at ``*.safetensors`` too, which takes a while.

    Raises:
        CheckpointError: names what differs.
    """
    if told.is_sealed and (wrong := list(differences(folder, told.files, weights=weights))):
        raise CheckpointError(
            f"{folder} is not what it was when it was written: {', '.join(wrong[:8])}; download or"
            " copy it again, or pass --trust if the change is yours"
        )
