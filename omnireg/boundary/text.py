"""Text for people: what would move a cursor or turn the reading order is shown as an escape."""

import re
from reprlib import Repr

_repr = Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80

#: control characters, lone surrogates, separators that break a line, and characters that change the
#: direction in which the text around them is shown
_ODD = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_odd = re.compile(f"[{_ODD}]")
_odd_but_breaks = re.compile(f"(?![\n\t])[{_ODD}]")


def is_plain(text: str) -> bool:
    """Whether a text shows on one line as it is."""
    return _odd.search(text) is None


def shown(text: str, longest: int | None = None) -> str:
    r"""Return text that is safe to print: odd characters are escapes such as ``\x1b``.

    Args:
        text: anything; its line breaks and tabs stay.
        longest: longer text is cut, and its length is said.
    """
    if longest is not None and len(text) > longest:
        text = _cut(text, longest)
    return _odd_but_breaks.sub(_escape, text)


def one_line(text: str, longest: int | None = 200) -> str:
    r"""Return text as :func:`shown`, its line breaks and tabs as ``\n`` and ``\t``."""
    return shown(text, longest).replace("\n", "\\n").replace("\t", "\\t")


def quoted(value: object) -> str:
    """Return what somebody wrote as a message can name it: on one line, cut, whatever it is."""
    try:
        return one_line(_repr.repr(value))
    except (ValueError, RecursionError):  # whole numbers of thousands of digits have no text
        return f"a value of the type {type(value).__name__}"


def brief(text: str, *, longest: int = 4000, word: int = 1000) -> str:
    """Return a message that floods no terminal: of long words the beginning, of the rest both ends.

    Args:
        text: what is wrong stands at its beginning, what to do next at its end.
        longest: a longer message loses its middle.
        word: a longer run of characters without a space is a value that somebody gave.
    """
    text = re.sub(rf"\S{{{word + 1},}}", lambda found: _cut(found[0], word // 5), text)
    if len(text) <= longest:
        return text
    head, tail = longest * 5 // 8, longest * 2 // 8
    return f"{text[:head]}… ({len(text) - head - tail} characters left out) …{text[-tail:]}"


def json_text(document: str) -> str:
    r"""Return a JSON document with odd characters as ``\uXXXX``: the same values, safe to print.

    A document has such characters inside strings alone.
    """
    return _odd_but_breaks.sub(lambda found: f"\\u{ord(found[0]):04x}", document)


def _cut(text: str, longest: int) -> str:
    return f"{text[:longest]}… ({len(text)} characters)"


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
