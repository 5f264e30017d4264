"""Manifest files as a stream of items, each with the file and line that declares it."""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

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
        try:
            yield from _lines(file) if file.suffix in _LINES else _yaml(file)
        except OSError as exc:
            raise RegistryError(f"cannot read {file}: {exc.strerror}: check the path") from exc
        except UnicodeDecodeError as exc:
            raise RegistryError(f"{file} is not UTF-8 text: save it as UTF-8") from exc


# JSON Lines


def _lines(file: Path) -> Iterator[Declared]:
    empty = True
    with file.open("rb") as stream:
        for number, text in enumerate(stream, 1):
            if not text.strip():
                continue
            place = Place(str(file), number)
            try:
                line = Line.model_validate_json(text)
            except ValidationError as exc:
                raise _refused(exc, Line, place) from exc
            if empty and line.omnireg is None:
                raise _no_version(file, f'begin it with {{"omnireg": {VERSION}}}')
            empty = False
            for item in (line.benchmark, line.checkpoint, line.run, line.score, line.analysis):
                if item is not None:
                    yield item, place
    if empty:
        raise _no_version(file, f'begin it with {{"omnireg": {VERSION}}}')


# YAML


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands once, and times and words are what they look like."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is one word, not a list or a mapping", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands here twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _yaml(file: Path) -> Iterator[Declared]:
    loader = _Loader(file.read_text(encoding="utf-8"))
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise _no_version(file, f"begin it with `omnireg: {VERSION}`")
        loader.construct_mapping(node)  # refuses keys that stand twice, or are not words
        yield from _sections(loader, node, file)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line = mark.line + 1 if mark else 1
        raise RegistryError(f"{file}:{line}: no valid YAML: {exc.problem}: correct it") from exc
    except RecursionError as exc:
        raise RegistryError(f"{file} is nested too deeply: write it flat") from exc
    finally:
        loader.dispose()


def _sections(loader: _Loader, root: yaml.MappingNode, file: Path) -> Iterator[Declared]:
    sections = {str(key.value): (key, value) for key, value in root.value}
    _check_version(loader, sections, file)
    for name, (key, value) in sections.items():
        if name not in _SECTIONS:
            known = did_you_mean(name, _SECTIONS)
            raise RegistryError(f"{file}:{_line(key)}: unknown key {name!r}{known}")
        if isinstance(value, yaml.ScalarNode) and loader.construct_object(value) is None:
            continue
        if not isinstance(value, yaml.SequenceNode):
            raise RegistryError(f"{file}:{_line(value)}: {name} is a list: begin items with `-`")
        for node in value.value:
            yield from _item(loader, node, _SECTIONS[name], Place(str(file), _line(node)))


def _check_version(loader: _Loader, sections: dict[str, Any], file: Path) -> None:
    if "omnireg" not in sections:
        raise _no_version(file, f"begin it with `omnireg: {VERSION}`")
    key, value = sections.pop("omnireg")
    found = loader.construct_object(value, deep=True)
    if found != VERSION:
        raise RegistryError(
            f"{file}:{_line(key)}: format version {found!r} is not known: this omnireg reads"
            f" version {VERSION}"
        )


def _item(loader: _Loader, node: yaml.Node, kind: type[Item], place: Place) -> Iterator[Declared]:
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
    where = f" {'.'.join(path)}:" if path else ""
    said, hint = error["msg"].removeprefix("Value error, "), ""
    if error["type"] == "extra_forbidden":
        said = f"unknown key {path[-1]!r}"
        where = f" {'.'.join(path[:-1])}:" if path[:-1] else ""
        hint = did_you_mean(path[-1], _fields(model, path[:-1]))
    elif error["type"] in ("enum", "literal_error"):
        known = str(error.get("ctx", {}).get("expected", "")).replace("'", "")
        said = f"{error['input']!r} is none of {known.replace(' or ', ', ')}"
        hint = did_you_mean(str(error["input"]), known.replace(" or ", ", ").split(", "))
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
