"""What the registry accepts: each rule returns the value to store or says what is wrong with it."""

import json
import math
import operator
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, SupportsFloat, SupportsIndex, TypeVar

from omnireg.boundary.documents import check_text, told
from omnireg.boundary.names import relative
from omnireg.boundary.text import is_plain, quoted
from omnireg.errors import RegistryError, did_you_mean
from omnireg.registry.tables import LONGEST_NAME

SHORTEST_PREFIX = 8
LARGEST_INTEGER = 2**63 - 1
LONGEST_TEXT = 1_000_000
#: bytes of a document as JSON
LARGEST_DOCUMENT = 1_000_000
LARGEST_RESULT = 16_000_000
#: seconds
LONGEST_SPAN = 86_400
#: what is nested deeper could not be read again as YAML
DEEPEST = 64
#: the years that every database, and every program that reads one, can hold in any time zone
YEARS = range(1900, 9999)
S = TypeVar("S", bound=StrEnum)

_DIGEST = re.compile(r"[0-9a-f]{64}")
_HEX = re.compile(r"[0-9a-f]{8,64}")


def name(value: str, what: str = "name", longest: int = LONGEST_NAME) -> str:
    """Accept any text on one line; quotes, slashes and SQL in it are only text."""
    if not isinstance(value, str) or not value.strip():
        raise RegistryError(f"a {what} cannot be empty: give it at least one visible character")
    if len(value) > longest:
        raise RegistryError(
            f"a {what} of {len(value)} characters is too long: use at most {longest}"
        )
    if not is_plain(value):
        raise RegistryError(
            f"{what} {quoted(value)} holds a control character, or one that turns the reading"
            " order: remove it"
        )
    return str(value)


def optional_text(value: str | os.PathLike[str] | None, what: str) -> str | None:
    """Accept free text that every database can store; empty is absent."""
    return text(value, what) if value else None


def text(value: str | os.PathLike[str], what: str, longest: int = LONGEST_TEXT) -> str:
    """Accept text of several lines that every database can store."""
    said = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(said, str):
        raise RegistryError(f"{what} {quoted(said)} is no text: put it into quotes")
    try:
        said.encode()
    except UnicodeEncodeError as exc:
        raise RegistryError(f"{what} is not valid Unicode: {exc}: correct the text") from exc
    if "\0" in said:
        raise RegistryError(f"{what} holds a NUL character: remove it")
    if len(said) > longest:
        raise RegistryError(
            f"{what} of {len(said):,} characters is too long: use at most {longest:,}"
        )
    return str(said)


def asked(value: str, what: str) -> str:
    """Accept text that the registry is searched for."""
    return text(value, what, LONGEST_NAME)


def moment(value: datetime, what: str = "time") -> datetime:
    """Accept a time, in UTC where it names no zone, in a year that all programs know."""
    try:
        found = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except (OverflowError, ValueError) as exc:
        raise RegistryError(f"{what} {value} is out of range: {exc}") from exc
    if found.year not in YEARS:
        raise RegistryError(
            f"{what} {found:%Y-%m-%d} is out of range: use the years {YEARS[0]} to {YEARS[-1]}"
        )
    return found


def is_fingerprint(value: str) -> bool:
    """Return whether a text is a fingerprint or a long enough prefix of one."""
    return _HEX.fullmatch(value.lower()) is not None


def fingerprint(value: str | None) -> str | None:
    """Accept a fingerprint in either case and store it in lower case."""
    if value is None:
        return None
    if not isinstance(value, str) or not is_fingerprint(value):
        raise RegistryError(
            f"fingerprint {quoted(value)} is not {SHORTEST_PREFIX} to 64 hexadecimal digits:"
            " compute it from the checkpoint's files"
        )
    return value.lower()


def state(states: type[S], value: str, what: str) -> S:
    """Accept one of a closed set of words."""
    try:
        return states(value)
    except ValueError:
        known = [str(member) for member in states]
        raise RegistryError(
            f"unknown {what} {quoted(value)}{did_you_mean(str(value), known)}:"
            f" use {', '.join(known)}"
        ) from None


def finite(value: SupportsFloat, what: str) -> float:
    """Accept a number that is neither NaN nor infinite."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as exc:
        raise RegistryError(
            f"{what} {quoted(value)} is not a number: give a finite number"
        ) from exc
    if not math.isfinite(number):
        raise RegistryError(f"{what} {number} is not finite: a failed measurement has no score")
    return number


def seconds(value: SupportsFloat, what: str) -> float:
    """Accept a time span that is more than none, and at most a day."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number <= LONGEST_SPAN:
        raise RegistryError(
            f"{what} {quoted(value)} is out of range: give seconds, at most {LONGEST_SPAN:,}"
        )
    return number


def optional_finite(value: SupportsFloat | None, what: str) -> float | None:
    """Accept a finite number or nothing."""
    return None if value is None else finite(value, what)


def error_bar(value: SupportsFloat | None) -> float | None:
    """Accept a standard error, which has no sign."""
    number = optional_finite(value, "stderr")
    if number is not None and number < 0:
        raise RegistryError(f"stderr {number} is negative: give its size")
    return number


def count(value: SupportsIndex | None, what: str) -> int | None:
    """Accept a whole number from 0 up to what a database integer holds, or nothing."""
    if value is None:
        return None
    try:
        number = operator.index(value)
    except TypeError as exc:
        raise RegistryError(
            f"{what} {quoted(value)} is not a whole number: give an integer"
        ) from exc
    if not 0 <= number <= LARGEST_INTEGER:
        raise RegistryError(f"{what} {quoted(number)} is out of range: use 0 to {LARGEST_INTEGER}")
    return number


def limit(value: int | None, what: str = "limit") -> int | None:
    """Accept how many or how far, where nothing means without end."""
    return count(value, what)


def files(value: Mapping[str, Any] | None) -> dict[str, str] | None:
    """Accept sha256 by relative file name, sorted by name."""
    if value is None:
        return None
    for name_, digest in value.items():
        relative(name_, "files", RegistryError)
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise RegistryError(
                f"files: {quoted(digest)} of {name_!r} is no sha256: compute it anew"
            )
    return dict(sorted(value.items()))


def document(value: Mapping[str, Any], what: str, most: int = LARGEST_DOCUMENT) -> dict[str, Any]:
    """Accept what JSON can hold and every database, file and terminal can show again.

    That leaves out NaN and infinity, half characters, NUL, keys that are one as text, and what is
    deep or large.
    """
    if not isinstance(value, Mapping):
        raise RegistryError(f"{what} {quoted(value)} is no mapping: give names with values")
    try:
        written = json.dumps(dict(value), allow_nan=False)
        found: dict[str, Any] = _decoder.decode(written)
        size = len(written)
        if "\\u" in written:
            check_text(found)
            size = len(json.dumps(found, ensure_ascii=False).encode())
            _refuse_nul(found)
        if written.count("{") + written.count("[") > DEEPEST:
            _refuse_deep(found, DEEPEST)
    except RecursionError as exc:
        raise RegistryError(f"{what} is nested too deeply: write it flat") from exc
    except (TypeError, ValueError) as exc:
        raise RegistryError(
            f"{what} cannot be stored as JSON: {told(exc)}: use plain values"
        ) from exc
    if size > most:
        raise RegistryError(
            f"{what} of {size:,} bytes as JSON is too large: keep it in a file and name that here"
            f" (at most {most:,} bytes)"
        )
    return found


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("two keys of one mapping are the same as text")
    return found


_decoder = json.JSONDecoder(object_pairs_hook=_each_once)


def _refuse_nul(value: Any) -> None:
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError(f"{quoted(value)} holds a NUL character")
    elif isinstance(value, dict | list):
        for part in (*value, *value.values()) if isinstance(value, dict) else value:
            _refuse_nul(part)


def _refuse_deep(value: Any, left: int) -> None:
    if isinstance(value, dict | list):
        if not left:
            raise RecursionError
        for part in value.values() if isinstance(value, dict) else value:
            _refuse_deep(part, left - 1)
