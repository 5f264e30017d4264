"""Questions about media with their answers, as JSON Lines.

A line is an object: ``prompt`` with a placeholder such as ``<image>`` for every medium, ``media``
as files by modality in the order of their placeholders, ``answer`` (one, or all that are right),
and optionally ``metric``, ``options``, ``category`` and ``id``.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from omnireg.boundary.documents import parse_json
from omnireg.boundary.files import read_bytes
from omnireg.boundary.text import one_line
from omnireg.errors import EvaluationError, did_you_mean


@dataclass(frozen=True, eq=False)
class Medium:
    """An image, a sound or a video: a file, or what a file would hold."""

    modality: str
    content: Any


@dataclass(frozen=True, eq=False)
class Item:
    """One question.

    Attributes:
        id: tells it from the other questions of its file.
        prompt: the question; ``<modality>`` stands for a medium. Media whose placeholder it lacks
            come before it.
        answers: all that are right.
        media: in the order of their placeholders.
        metric: how an answer is judged; see :mod:`omnireg.evaluation.metrics`.
        options: what may be answered, for questions with options.
        category: what the question is about.
    """

    id: str
    prompt: str
    answers: tuple[str, ...] = ()
    media: tuple[Medium, ...] = ()
    metric: str = "exact_match"
    options: tuple[str, ...] = ()
    category: str | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities of its media, each once, in alphabetical order."""
        return tuple(sorted({medium.modality for medium in self.media}))

    @cached_property
    def parts(self) -> tuple[str | Medium, ...]:
        """The prompt with its media in their places.

        Raises:
            EvaluationError: there are more or fewer placeholders than media of a modality.
        """
        waiting: dict[str, list[Medium]] = {}
        for medium in self.media:
            waiting.setdefault(medium.modality, []).append(medium)
        for modality, media in waiting.items():
            found = self.prompt.count(f"<{modality}>")
            if found not in (0, len(media)):
                raise EvaluationError(
                    f"item {self.id}: {found} <{modality}> in the prompt, but {len(media)} media;"
                    f" write one <{modality}> for each, or none"
                )
        front = [m for m in self.media if f"<{m.modality}>" not in self.prompt]
        placed = [modality for modality in waiting if f"<{modality}>" in self.prompt]
        pattern = "|".join(f"<{re.escape(modality)}>" for modality in placed)
        words = re.split(f"({pattern})", self.prompt) if pattern else [self.prompt]
        parts: list[str | Medium] = [*front, *(["\n"] if front else [])]
        for word in words:
            if word.startswith("<") and word[1:-1] in placed:
                parts.append(waiting[word[1:-1]].pop(0))
            elif word:
                parts.append(word)
        return tuple(parts)


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, Field(min_length=1)]
    answer: str | list[str] | None = None
    media: dict[str, str | list[str]] = Field(default_factory=dict)
    metric: str | None = None
    options: list[str] = Field(default_factory=list)
    category: str | None = None
    id: str | int | None = None


@dataclass(frozen=True)
class Items:
    """The questions of a file.

    Attributes:
        items: in the order of the file.
        sha256: of the file and of every medium in it.
    """

    items: tuple[Item, ...]
    sha256: str

    def __iter__(self) -> Iterator[Item]:
        """Go through the questions."""
        return iter(self.items)

    def __len__(self) -> int:
        """Return how many questions there are."""
        return len(self.items)


def read_items(file: Path) -> Items:
    """Read the questions of a JSON Lines file; media lie where they say, seen from the file.

    Raises:
        EvaluationError: the file, a line or a medium cannot be read; names file and line.
    """
    raw = read_bytes(file, error=EvaluationError)
    try:
        lines = raw.decode().split("\n")
    except UnicodeDecodeError as exc:
        raise EvaluationError(f"{file} is not UTF-8 text; save it as UTF-8") from exc
    items = [_item(line, file, number) for number, line in enumerate(lines, 1) if line.strip()]
    if not items:
        raise EvaluationError(f"{file} has no items; write one JSON object a line")
    digest = sha256(raw)
    for path in sorted({medium.content for item in items for medium in item.media}):
        digest.update(_content(path))
    return Items(tuple(items), digest.hexdigest())


def _item(line: str, file: Path, number: int) -> Item:
    where = f"{file}:{number}"
    data = parse_json(line, where, error=EvaluationError, remedy="write one JSON object a line")
    try:
        said = _Line.model_validate(data)
    except ValidationError as exc:
        found = exc.errors(include_url=False)
        error = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
        key = one_line(".".join(map(str, error["loc"]))) or "line"
        hint = ""
        if error["type"] == "extra_forbidden":
            hint = did_you_mean(key, _Line.model_fields)
        raise EvaluationError(f"{where}: {key}: {error['msg']}{hint}") from exc
    answers = [said.answer] if isinstance(said.answer, str) else said.answer or []
    item = Item(
        id=str(number if said.id is None else said.id),
        prompt=said.prompt,
        answers=tuple(answers),
        media=tuple(_media(said.media, file, where)),
        metric=said.metric or "exact_match",
        options=tuple(said.options),
        category=said.category,
    )
    try:
        _ = item.parts
    except EvaluationError as exc:
        raise EvaluationError(f"{where}: {exc}") from exc
    return item


def _media(said: Mapping[str, str | list[str]], file: Path, where: str) -> Iterator[Medium]:
    for modality, files in said.items():
        for name in [files] if isinstance(files, str) else files:
            path = file.parent / name
            if not path.exists():
                raise EvaluationError(f"{where}: there is no {modality} file {path}")
            yield Medium(modality, path)


def _content(path: Path) -> bytes:
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    return b"".join(read_bytes(file, error=EvaluationError) for file in files)
