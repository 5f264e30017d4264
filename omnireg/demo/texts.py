"""The text questions, known to the base; they split by content: operands, lists, cut points."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import cache
from itertools import combinations, product

import numpy as np

from omnireg.demo import speech
from omnireg.demo.clips import Split, generator

_TEXT_PER_SKILL: dict[Split, int] = {"validation": 70, "test": 240}
_TEXT_TRAINING = {
    "digit": 4000,
    "larger": 8000,
    "add": 12_000,
    "subtract": 12_000,
    "lookup": 10_000,
    "next": 16_000,
    "saying": 8000,
    "fact": 8000,
}


def _words(listing: str) -> list[str]:
    return listing.split()


_NOUNS = _words(
    "cat dog fox owl hen cow bee ant bat elk car bus van jet cup pan box hat key map pen bag"
)
_WINDS = ("north", "east", "south", "west")
_CYCLES = (
    _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    _words("January February March April May June July August September October November December"),
    _words("spring summer autumn winter"),
    list("abcdefghijklmnopqrstuvwxyz"),
    list(speech.WORDS),
)
_SAYINGS = (
    "a stitch in time saves nine",
    "the early bird catches the worm",
    "still waters run deep",
    "all that glitters is not gold",
    "look before you leap",
    "many hands make light work",
    "a rolling stone gathers no moss",
    "actions speak louder than words",
    "better late than never",
    "birds of a feather flock together",
    "every cloud has a silver lining",
    "fortune favours the bold",
    "practice makes perfect",
    "the pen is mightier than the sword",
    "when in Rome do as the Romans do",
    "you cannot teach an old dog new tricks",
    "two wrongs do not make a right",
    "no man is an island",
    "haste makes waste",
    "time and tide wait for no man",
)
_FACTS = {
    "capital": (
        "France Paris Italy Rome Spain Madrid Japan Tokyo Egypt Cairo Peru Lima Cuba Havana "
        "Kenya Nairobi Norway Oslo Greece Athens Chile Santiago China Beijing Russia Moscow "
        "Austria Vienna Poland Warsaw Ireland Dublin Portugal Lisbon Iran Tehran Ghana Accra "
        "Iraq Baghdad"
    ),
    "opposite": (
        "hot cold big small fast slow wet dry old new up down left right light dark hard soft "
        "rich poor full empty early late near far thick thin open shut strong weak clean dirty "
        "deep shallow loud quiet sweet sour"
    ),
    "sound": (
        "cat meow dog woof cow moo sheep baa duck quack owl hoot pig oink lion roar snake hiss "
        "bee buzz horse neigh frog croak wolf howl hen cluck mouse squeak crow caw"
    ),
}
_FACT_FORMS = (
    "The {r} of {x}?\n",
    "What is the {r} of {x}?\n",
    "Name the {r} of {x}.\n",
    "For {x}, what is the {r}?\n",
    "Tell me the {r} of {x}.\n",
    "Given {x}, name the {r}.\n",
    "Which is the {r} of {x}?\n",
    "Of {x} the {r} is?\n",
)


def drawn(split: Split) -> Iterator[tuple[str, int, str, str]]:
    """Yield (skill, number, prompt, answer) of every item of a split, in a fixed order."""
    pools = {
        skill: [pair for pair in pairs if _split_of(skill + pair[0]) == split]
        for skill, pairs in _text_pairs().items()
    }
    pools["fact"] = list(_facts(split))
    rng = generator("text", split)
    for skill, pool in pools.items():
        for number, index in enumerate(_chosen(rng, len(pool), skill, split)):
            yield skill, number, *pool[index]


def _chosen(rng: np.random.Generator, available: int, skill: str, split: Split) -> list[int]:
    """Positions in a pool: with repetition for training, else each at most once."""
    if split == "train":
        return [int(index) for index in rng.integers(available, size=_TEXT_TRAINING[skill])]
    return sorted(int(index) for index in rng.permutation(available)[: _TEXT_PER_SKILL[split]])


@cache
def _text_pairs() -> dict[str, list[tuple[str, str]]]:
    """All prompts with their answers, by skill."""
    return {
        "digit": list(_named_digits()),
        "larger": list(_comparisons()),
        "add": [(f"{a}\nAdd {b}.\n", str(a + b)) for a, b in product(range(90), range(10))],
        "subtract": [
            (f"{a}\nSubtract {b}.\n", str(a - b))
            for a, b in product(range(99), range(10))
            if a >= b
        ],
        "lookup": list(_lookups()),
        "next": list(_sequences()),
        "saying": list(_cut_sayings()),
    }


def _named_digits() -> Iterator[tuple[str, str]]:
    for digit, noun in product(range(10), ("", *_NOUNS)):
        for name in (str(digit), speech.WORDS[digit]):
            yield f"{name} {noun}".rstrip() + "\nWhich digit?\n", str(digit)


def _comparisons() -> Iterator[tuple[str, str]]:
    for a, b in product(range(50), range(50)):
        if a != b:
            yield f"{a} {b}\nWhich is larger?\n", str(max(a, b))


def _lookups() -> Iterator[tuple[str, str]]:
    rng = generator("lookup")
    for _ in range(30_000):
        values = rng.integers(10, size=len(_WINDS))
        listed = " ".join(f"{wind}={value}" for wind, value in zip(_WINDS, values, strict=True))
        asked = int(rng.integers(len(_WINDS)))
        yield f"Let {listed}\nThen {_WINDS[asked]}=", str(values[asked])


def _sequences() -> Iterator[tuple[str, str]]:
    for start, step, length in product(range(90), (1, 2, 10), (2, 3, 4)):
        shown = " ".join(str(start + step * place) for place in range(length))
        yield f"Continue: {shown}\n", str(start + length * step)
    for cycle in _CYCLES:
        for start, length in product(range(len(cycle)), range(1, 6)):
            shown = " ".join(cycle[(start + place) % len(cycle)] for place in range(length))
            yield f"Continue: {shown}\n", cycle[(start + length) % len(cycle)]


def _cut_sayings() -> Iterator[tuple[str, str]]:
    for saying in _SAYINGS:
        words = saying.split()
        for begin, end in combinations(range(len(words)), 2):
            if end - begin < 2:
                continue
            yield f"Continue: {' '.join(words[begin:end])}\n", words[end]


def _facts(split: Split) -> Iterator[tuple[str, str]]:
    """Every fact is taught in some forms and asked in others."""
    for relation, listing in _FACTS.items():
        words = listing.split()
        for subject, value in zip(words[::2], words[1::2], strict=True):
            turn = zlib.crc32(f"{relation}{subject}".encode())
            for place, form in enumerate(_FACT_FORMS):
                held = {0: "test", 1: "validation"}.get((place + turn) % len(_FACT_FORMS), "train")
                if held == split:
                    yield form.format(r=relation, x=subject), value


def _split_of(content: str) -> Split:
    """Assign a piece of content to a split by its hash: 70, 10 and 20 percent."""
    tenth = zlib.crc32(content.encode()) % 10
    return "test" if tenth < 2 else "validation" if tenth == 2 else "train"
