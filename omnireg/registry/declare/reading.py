"""Manifest files as a stream of items, each with the file and line that declares it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from omnireg.boundary.documents import Loader, compose_yaml, construct_yaml, refuse_twice
from omnireg.boundary.files import open_regular, read_text, reason
from omnireg.boundary.text import one_line, quoted
from omnireg.errors import RegistryError, did_you_mean
from omnireg.registry.declare.manifest import (
    VERSION,
    AnalysisItem,
    BenchmarkItem,
    CheckpointItem,
    Column,
    Item,
    Line,
    RunItem,
    ScoreItem,
    TableItem,
)

_SECTIONS: dict[str, type[Item]] = {
    "benchmarks": BenchmarkItem,
    "checkpoints": CheckpointItem,
    "runs": RunItem,
    "scores": ScoreItem,
    "tables": TableItem,
    "analyses": AnalysisItem,
}
_LINES = (".jsonl", ".ndjson")
#: bytes; nothing that may be declared is longer
_LONGEST_LINE = 1 << 26
_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is declared."""

    file: str
    line: int

    def __str__(self) -> str:
        """Return ``file:line``."""
        return f"{self.file}:{self.line}"


Declared = tuple[Item, Place]


def read(files: Iterable[Path]) -> Iterator[Declared]:
    """Yield every item of the files in order; tables are taken apart into scores.

    Raises:
        RegistryError: a file cannot be read, or says what the format has no word for; names the
            file and the line.
    """
    for file in files:
        yield from _lines(file) if file.suffix in _LINES else _yaml(file)


# JSON Lines


def _lines(file: Path) -> Iterator[Declared]:
    empty = True
    for number, text in enumerate(_texts(file), 1):
        if not text.strip():
            continue
        place = Place(str(file), number)
        try:
            line = Line.model_validate_json(text)
            refuse_twice(text)
        except ValidationError as exc:
            raise _refused(exc, Line, place) from exc
        except ValueError as exc:
            raise RegistryError(f"{place}: {exc}: correct it") from exc
        if empty and line.omnireg is None:
            raise _no_version(file, f'begin it with {{"omnireg": {VERSION}}}')
        empty = False
        for item in (line.benchmark, line.checkpoint, line.run, line.score, line.analysis):
            if item is not None:
                yield item, place
    if empty:
        raise _no_version(file, f'begin it with {{"omnireg": {VERSION}}}')


def _texts(file: Path) -> Iterator[bytes]:
    """Yield the lines of a file, none of which may fill the memory."""
    handle = open_regular(file, RegistryError)
    number = 0
    try:
        with open(handle, "rb") as stream:  # noqa: PTH123 - a descriptor
            while text := stream.readline(_LONGEST_LINE + 1):
                number += 1
                if len(text) > _LONGEST_LINE:
                    raise RegistryError(
                        f"{file}:{number}: the line is longer than {_LONGEST_LINE:,} bytes: write"
                        " one item a line"
                    )
                yield text.removeprefix(_MARK) if number == 1 else text
    except OSError as exc:
        raise RegistryError(f"cannot read {file}: {reason(exc)}: check the path") from exc


# YAML


def _yaml(file: Path) -> Iterator[Declared]:
    text = read_text(file, error=RegistryError)
    loader, node = compose_yaml(text, file, error=RegistryError)
    try:
        if not isinstance(node, yaml.MappingNode):
            raise _no_version(file, f"begin it with `omnireg: {VERSION}`")
        # all at once: whatever is no value, wherever it stands, is told before anything is applied
        construct_yaml(loader, node, file, error=RegistryError)
        yield from _sections(loader, node, file)
    finally:
        loader.dispose()


def _sections(loader: Loader, root: yaml.MappingNode, file: Path) -> Iterator[Declared]:
    sections = {str(key.value): (key, value) for key, value in root.value}
    _check_version(loader, sections, file)
    for name, (key, value) in sections.items():
        if name not in _SECTIONS:
            known = did_you_mean(name, _SECTIONS)
            raise RegistryError(f"{file}:{_line(key)}: unknown key {quoted(name)}{known}")
        if isinstance(value, yaml.ScalarNode) and loader.construct_object(value) is None:
            continue
        if not isinstance(value, yaml.SequenceNode):
            raise RegistryError(f"{file}:{_line(value)}: {name} is a list: begin items with `-`")
        for node in value.value:
            yield from _item(loader, node, _SECTIONS[name], Place(str(file), _line(node)))


def _check_version(loader: Loader, sections: dict[str, Any], file: Path) -> None:
    if "omnireg" not in sections:
        raise _no_version(file, f"begin it with `omnireg: {VERSION}`")
    key, value = sections.pop("omnireg")
    found = loader.construct_object(value, deep=True)
    if isinstance(found, bool) or found != VERSION:
        raise RegistryError(
            f"{file}:{_line(key)}: format version {quoted(found)} is not known: this omnireg reads"
            f" version {VERSION}"
        )


def _item(loader: Loader, node: yaml.Node, kind: type[Item], place: Place) -> Iterator[Declared]:
    data = loader.construct_object(node, deep=True)
    try:
        item = kind.model_validate(data)
    except ValidationError as exc:
        at = _line_of(node, exc.errors(include_url=False)[0]["loc"])
        raise _refused(exc, kind, Place(place.file, at)) from exc
    if isinstance(item, TableItem):
        yield from _cells(item, node, place)
    else:
        yield item, place


def _cells(table: TableItem, node: yaml.Node, place: Place) -> Iterator[Declared]:
    shared = table.model_dump(exclude={"columns", "rows"}, exclude_none=True)
    columns = [
        {**shared, **column.model_dump(exclude_none=True)}
        if isinstance(column, Column)
        else {**shared, "benchmark": column}
        for column in table.columns
    ]
    lines = _row_lines(node)
    for checkpoint, values in table.rows.items():
        at = Place(place.file, lines.get(checkpoint, place.line))
        if len(values) != len(columns):
            raise RegistryError(
                f"{at}: {len(values)} values for {len(columns)} columns: write null for none"
            )
        for column, value in zip(columns, values, strict=True):
            if value is not None:
                yield ScoreItem(checkpoint=checkpoint, value=value, **column), at


def _row_lines(table: yaml.Node) -> dict[str, int]:
    assert isinstance(table, yaml.MappingNode)
    rows = next(value for key, value in table.value if key.value == "rows")
    return {str(key.value): _line(key) for key, _ in rows.value}


def _line_of(node: yaml.Node, path: Iterable[int | str]) -> int:
    """Return the line of what a path of keys and places leads to, as far as it leads."""
    line = _line(node)
    for part in path:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if pair is None:
                break
            line, node = _line(pair[0]), pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = _line(node)
    return line


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


# errors


def _no_version(file: Path, how: str) -> RegistryError:
    return RegistryError(f"{file} is no manifest, since it names no format version: {how}")


def _refused(exc: ValidationError, model: type[BaseModel], place: Place) -> RegistryError:
    """Say what is wrong with an item in one line, and suggest the key or word that was meant."""
    error = exc.errors(include_url=False)[0]
    path = [str(part) for part in error["loc"]]
    said, hint = error["msg"].removeprefix("Value error, "), ""
    if error["type"] == "extra_forbidden":
        *path, key = path
        said, hint = f"unknown key {quoted(key)}", did_you_mean(key, _fields(model, path))
    elif error["type"] in ("enum", "literal_error"):
        known = str(error.get("ctx", {}).get("expected", "")).replace("'", "")
        said = f"{quoted(error['input'])} is none of {known.replace(' or ', ', ')}"
        if isinstance(error["input"], str):
            hint = did_you_mean(error["input"], known.replace(" or ", ", ").split(", "))
    where = f" {one_line('.'.join(path))}:" if path else ""
    return RegistryError(f"{place}:{where} {said}{hint}")


def _fields(model: Any, path: list[str]) -> list[str]:
    """Return the keys that a nested model takes."""
    for part in path:
        if part in getattr(model, "model_fields", {}):
            model = _model_in(model.model_fields[part].annotation)
    return list(getattr(model, "model_fields", ()))


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(part) for part in getattr(annotation, "__args__", ()))
    return next((model for model in inner if model is not None), None)
