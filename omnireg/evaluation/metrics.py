"""Whether an answer is right; each metric takes the answer and all right ones, and returns 0 or 1.

White space around answers never counts.
"""

import re
from collections.abc import Callable, Mapping, Sequence

Metric = Callable[[str, Sequence[str]], float]

_NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:[eE][-+]?\d+)?")
_LETTER = re.compile(r"(?<![A-Za-z])([A-Z])(?![A-Za-z])")
#: relative difference up to which two numbers are one
_SAME = 1e-6


def exact_match(answer: str, right: Sequence[str]) -> float:
    """Whether the answer is one of the right ones."""
    return float(answer.strip() in {each.strip() for each in right})


def relaxed_match(answer: str, right: Sequence[str]) -> float:
    """Whether the answer is a right one, whatever its case, punctuation and articles."""
    return float(_relaxed(answer) in {_relaxed(each) for each in right})


def contains(answer: str, right: Sequence[str]) -> float:
    """Whether a right answer stands anywhere in the answer, in any case."""
    found = answer.casefold()
    return float(any(each.strip().casefold() in found for each in right))


def choice(answer: str, right: Sequence[str]) -> float:
    """Whether the first capital letter that stands alone is the right option's."""
    found = _LETTER.search(answer)
    return float(bool(found) and found[1] in {each.strip() for each in right} if found else False)


def number(answer: str, right: Sequence[str]) -> float:
    """Whether the last number in the answer equals a right one."""
    found = _NUMBER.findall(answer)
    if not found:
        return 0.0
    value = _value(found[-1])
    wanted = [_value(match[-1]) for each in right if (match := _NUMBER.findall(each))]
    return float(any(abs(value - one) <= _SAME * max(abs(one), 1) for one in wanted))


METRICS: Mapping[str, Metric] = {
    metric.__name__: metric for metric in (exact_match, relaxed_match, contains, choice, number)
}


def _relaxed(text: str) -> str:
    words = re.sub(r"[^\w\s]", " ", text.casefold()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def _value(text: str) -> float:
    return float(text.replace(",", ""))
