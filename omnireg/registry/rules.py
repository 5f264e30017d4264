"""What the registry accepts: each rule returns the value to store or says what is wrong with it."""

import json
import math
import operator
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, SupportsFloat, SupportsIndex, TypeVar

from omnireg.boundary.names import relative
from omnireg.boundary.text import is_plain
from omnireg.errors import RegistryError, did_you_mean
from omnireg.registry.tables import LONGEST_NAME

SHORTEST_PREFIX = 8
LARGEST_INTEGER = 2**63 - 1
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
            f"{what} {value!r} holds a control character, or one that turns the reading order:"
            " remove it"
        )
    return value


def optional_text(value: str | None, what: str) -> str | None:
    """Accept free text that every database can store; empty is absent."""
    return text(value, what) if value else None


def text(value: str, what: str) -> str:
    """Accept text of several lines that every database can store."""
    try:
        str(value).encode()
    except UnicodeEncodeError as exc:
        raise RegistryError(f"{what} is not valid Unicode: {exc}: correct the text") from exc
    if "\0" in str(value):
        raise RegistryError(f"{what} holds a NUL character: remove it")
    return str(value)


def is_fingerprint(value: str) -> bool:
    """Return whether a text is a fingerprint or a long enough prefix of one."""
    return _HEX.fullmatch(value.lower()) is not None


def fingerprint(value: str | None) -> str | None:
    """Accept a fingerprint in either case and store it in lower case."""
    if value is None:
        return None
    if not isinstance(value, str) or not is_fingerprint(value):
        raise RegistryError(
            f"fingerprint {value!r} is not {SHORTEST_PREFIX} to 64 hexadecimal digits:"
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
            f"unknown {what} {value!r}{did_you_mean(str(value), known)}: use {', '.join(known)}"
        ) from None


def finite(value: SupportsFloat, what: str) -> float:
    """Accept a number that is neither NaN nor infinite."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as exc:
        raise RegistryError(f"{what} {value!r} is not a number: give a finite number") from exc
    if not math.isfinite(number):
        raise RegistryError(f"{what} {number} is not finite: a failed measurement has no score")
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
        raise RegistryError(f"{what} {value!r} is not a whole number: give an integer") from exc
    if not 0 <= number <= LARGEST_INTEGER:
        raise RegistryError(f"{what} {number} is out of range: use 0 to {LARGEST_INTEGER}")
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
            raise RegistryError(f"files: {digest!r} of {name_!r} is no sha256: compute it anew")
    return dict(sorted(value.items()))


def document(value: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Accept what JSON can hold, which leaves out NaN and infinity."""
    try:
        return dict(json.loads(json.dumps(dict(value), allow_nan=False)))
    except (TypeError, ValueError) as exc:
        raise RegistryError(f"{what} cannot be stored as JSON: {exc}: use plain values") from exc
