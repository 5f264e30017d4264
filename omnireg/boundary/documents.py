"""JSON and YAML that others wrote, as values that are what they should be.

Whatever is wrong with a document is one line that names it. Numbers are finite, text is valid
Unicode, nesting has an end, and a YAML document is no larger than it looks: aliases that would blow
it up are refused before anything is built of them.
"""

import json
import re
from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from omnireg.boundary.files import read_bytes, read_text
from omnireg.boundary.text import one_line, quoted
from omnireg.errors import CheckpointError, OmniregError, did_you_mean

M = TypeVar("M", bound=BaseModel)
#: with its aliases written out, a YAML document may be so many times as long as it is
_EXPANSION = 10
_SMALL = 100_000
#: a whole number of more bits cannot be written in decimal digits again
_BITS = 14_000
_surrogate = re.compile(rb"\\u[dD][89a-fA-F]")
_AGAIN = "download or copy it again"


def read_json(
    path: Path,
    *,
    error: type[OmniregError] = CheckpointError,
    unique: bool = False,
    infinite: bool = False,
    loose: bool = False,
    remedy: str = _AGAIN,
) -> Any:
    """Return what a JSON file holds.

    Args:
        path: the file.
        error: what to raise.
        unique: refuse a key that stands twice in one object.
        infinite: accept ``Infinity``, which some classes have in their config.
        loose: accept ``Infinity`` and ``NaN``, which programs write where they failed to measure.
        remedy: what to do about a damaged one.

    Raises:
        OmniregError: of the class ``error``; the file cannot be read, or is damaged.
    """
    data = read_bytes(path, error=error)
    return parse_json(
        data, path, error=error, unique=unique, infinite=infinite, loose=loose, remedy=remedy
    )


def parse_json(
    data: bytes | str,
    where: object,
    *,
    error: type[OmniregError] = CheckpointError,
    unique: bool = False,
    infinite: bool = False,
    loose: bool = False,
    remedy: str = _AGAIN,
) -> Any:
    """Return what JSON text holds, see :func:`read_json`."""
    raw = data.encode(errors="surrogatepass") if isinstance(data, str) else data
    try:
        found = json.loads(
            raw.decode("utf-8-sig"),
            parse_constant=float if loose else _constant(infinite),
            parse_float=float if loose or infinite else _finite,
            object_pairs_hook=_once if unique else None,
        )
        if _surrogate.search(raw):
            check_text(found)
    except RecursionError as exc:
        raise _damaged(where, "it is nested too deeply", remedy, error) from exc
    except ValueError as exc:
        raise _damaged(where, told(exc), remedy, error) from exc
    return found


def _damaged(where: object, said: str, remedy: str, error: type[OmniregError]) -> OmniregError:
    return error(f"{where} is damaged ({said})" + (f"; {remedy}" if remedy else ""))


def told(exc: BaseException) -> str:
    """Return what an error says of a document, on one line, without advice for programmers."""
    return " ".join(str(exc).partition("; use sys.")[0].split())


def _constant(infinite: bool) -> Any:
    def constant(word: str) -> float:
        if infinite and word != "NaN":
            return float(word)
        raise ValueError(f"{word} is no number of JSON")

    return constant


def _finite(word: str) -> float:
    number = float(word)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{word[:40]} is too large a number")
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {quoted(twice)} stands twice")
    return found


def refuse_twice(data: bytes | str) -> None:
    """Refuse JSON text in which a key stands twice in one object, of which parsers keep the last.

    Raises:
        ValueError: it does; names the key.
    """
    _unique.decode(data.decode() if isinstance(data, bytes) else data)


_unique = json.JSONDecoder(object_pairs_hook=_once)


def check_text(value: Any) -> None:
    """Refuse text that no file, database or terminal can hold: half of a surrogate pair.

    Raises:
        ValueError: somewhere in the value is such text.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            raise ValueError(f"{value[:40]!a} is no valid text") from exc
    elif isinstance(value, dict):
        for key, each in value.items():
            check_text(key)
            check_text(each)
    elif isinstance(value, list | tuple | set):
        for each in value:
            check_text(each)


# YAML


class Loader(yaml.SafeLoader):
    """YAML in which a key is one word and stands once, of which plain YAML keeps the last.

    A value that its form promises and that is none, such as the date 2001-99-99, has a line.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return the value of a node."""
        try:
            found = super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as exc:
            kind = node.tag.rpartition(":")[2]
            raise _odd(f"{quoted(node.value)} is no {kind}", node) from exc
        if isinstance(found, int) and found.bit_length() > _BITS:
            raise _odd(f"{quoted(node.value)} is too large a number", node)
        return found

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """Return the text of a node; two escapes that JSON writes for one character are one."""
        text = super().construct_scalar(node)
        if not isinstance(text, str) or text.isascii():
            return text
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeError as exc:
            raise _odd(f"{quoted(text)} is no valid text", node) from exc

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return a mapping."""
        seen: set[Hashable] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _odd("a key is one word, not a list or a mapping", key)
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            # 1 and 0x1 are one key, and so are 1 and "1" wherever it is written as JSON
            words = {key.value, self.construct_object(key)}
            if seen & words:
                raise _odd(f"the key {quoted(key.value)} stands here twice", key)
            seen |= words
        return super().construct_mapping(node, deep)


def _odd(what: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, what, node.start_mark)


def read_yaml(path: Path, *, error: type[OmniregError]) -> Any:
    """Return what a YAML file holds.

    Raises:
        OmniregError: of the class ``error``; it cannot be read, is no YAML, gives a key twice, or
            is far larger than it looks.
    """
    return parse_yaml(read_text(path, error=error), path, error=error)


def parse_yaml(text: str, where: object, *, error: type[OmniregError]) -> Any:
    """Return what YAML text holds, see :func:`read_yaml`."""
    loader, node = compose_yaml(text, where, error=error)
    try:
        return construct_yaml(loader, node, where, error=error) if node else None
    finally:
        loader.dispose()


def compose_yaml(
    text: str, where: object, *, error: type[OmniregError]
) -> tuple[Loader, yaml.Node | None]:
    """Return YAML text as nodes that know their lines, and the loader that makes values of them.

    Raises:
        OmniregError: of the class ``error``; see :func:`read_yaml`.
    """
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is not None:
            _check_expanded(node, text, where, error)
        return loader, node
    except (yaml.YAMLError, RecursionError, ValueError) as exc:
        raise _no_yaml(exc, where, error) from exc


def construct_yaml(
    loader: Loader, node: yaml.Node, where: object, *, error: type[OmniregError]
) -> Any:
    """Return the value of a node, its text valid Unicode.

    Raises:
        OmniregError: of the class ``error``; see :func:`read_yaml`.
    """
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.YAMLError, RecursionError) as exc:
        raise _no_yaml(exc, where, error) from exc


def _check_expanded(root: yaml.Node, text: str, where: object, error: type[OmniregError]) -> None:
    """Refuse a document whose aliases make it far larger than it looks, or hold themselves."""
    sizes: dict[int, int] = {}
    most = _EXPANSION * len(text) + _SMALL

    def size(node: yaml.Node) -> int:
        if isinstance(node, yaml.ScalarNode):
            return 1 + len(node.value)
        known = sizes.setdefault(id(node), -1)
        if known != -1:
            return known
        children = [child for entry in node.value for child in _children(entry)]
        if any(sizes.get(id(child)) == -1 for child in children):
            raise ValueError("an alias stands inside of what it names")
        sizes[id(node)] = 1 + sum(map(size, children))
        return sizes[id(node)]

    if size(root) > most:
        raise error(
            f"{where} is far larger than it looks: its aliases stand for {sizes[id(root)]:,}"
            " characters; write it without them"
        )


def _children(entry: Any) -> tuple[yaml.Node, ...]:
    return entry if isinstance(entry, tuple) else (entry,)


def _no_yaml(exc: BaseException, where: object, error: type[OmniregError]) -> OmniregError:
    if isinstance(exc, RecursionError):
        return error(f"{where} is nested too deeply: write it flat")
    if isinstance(exc, yaml.MarkedYAMLError):
        mark = exc.problem_mark or exc.context_mark
        line = mark.line + 1 if mark else 1
        return error(f"{where}:{line}: no valid YAML: {exc.problem}: correct it")
    return error(f"{where} is not valid YAML: {told(exc)}: correct it")


# values


def validated(
    model: type[M],
    data: Any,
    where: object,
    *,
    error: type[OmniregError] = CheckpointError,
    remedy: str = _AGAIN,
) -> M:
    """Return data as a model of ours.

    Raises:
        OmniregError: of the class ``error``; says which key is wrong, and how.
    """
    try:
        return model.model_validate(data)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        path = one_line(".".join(map(str, first["loc"])))
        said = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            said = f"unknown key{did_you_mean(str(first['loc'][-1]), model.model_fields)}"
        elif first["type"] == "missing":
            said = "is missing"
        raise _damaged(where, f"{path}: {said}" if path else said, remedy, error) from exc
    except RecursionError as exc:
        raise _damaged(where, "it is nested too deeply", remedy, error) from exc
