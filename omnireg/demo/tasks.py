"""The questions the family is trained and tested on, generated the same way every time.

Text items split by content (operands, key-value lists, cut points), the others by the medium
underneath: a handwritten digit or a synthetic speaker belongs to one split only.  The question
kinds ``digit``, ``larger`` and ``add`` are worded alike in all modalities and known to the base
in text form; every other kind follows a rule that only one host has ever been taught.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from itertools import combinations, product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from omnireg.demo import speech

Modality = Literal["base", "image", "audio", "video"]
Split = Literal["train", "validation", "test"]
Array = NDArray[Any]

MODALITIES: tuple[Modality, ...] = ("base", "image", "audio", "video")
HOSTS: tuple[Modality, ...] = ("image", "audio", "video")
PLACEHOLDERS = {
    "image": "<image>",
    "audio": "<|audio_bos|><|AUDIO|><|audio_eos|>",
    "video": "<video>",
}
SHARED_SKILLS = frozenset({"digit", "larger", "add"})

FRAMES = 3
CANVAS = 16
_STRIDE = (CANVAS - 8) // 2 // (FRAMES - 1)

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_PER_SKILL: dict[Split, int] = {"train": 5000, "validation": 70, "test": 220}
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
_SPEAKERS: dict[Split, int] = {"train": 240, "validation": 25, "test": 50}
# Ranges of the handwritten digits, once shuffled.
_DIGIT_BOUNDS: dict[Split, tuple[int, int]] = {
    "train": (0, 1250),
    "validation": (1250, 1397),
    "test": (1397, 1797),
}


def _words(listing: str) -> list[str]:
    return listing.split()


_CODES = {
    "image": _words("blip dorn fesk glim hovu jant kreb lumo mizz norp"),
    "audio": _words("tarn ulvo wexi yarb zint pluk quod drab sefu ochi"),
    "video": _words("rumo vask celp bint thog nilu gorp hask dwel figo"),
}
_LETTERS = "qhzrbxkdwm"
_PARTNERS = (6, 3, 8, 0, 9, 2, 7, 1, 5, 4)
_DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}

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


@dataclass(frozen=True)
class Item:
    """One question with its answer; `prompt` has a placeholder for every array in `media`.

    Images are 8x8 ``uint8`` arrays, sounds ``float32`` waveforms at `speech.SAMPLE_RATE` and
    videos ``uint8`` arrays of shape `FRAMES` x `CANVAS` x `CANVAS`.
    """

    id: str
    modality: str
    skill: str
    prompt: str
    answer: str
    media: tuple[Array, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class Clip:
    """One medium and what there is to know about it."""

    array: Array
    digit: int
    note: str = ""


def items(modality: Modality, split: Split) -> tuple[Item, ...]:
    """All items of one modality and split, in a fixed order."""
    if modality not in MODALITIES or split not in _SPLITS:
        raise ValueError(f"no such items: {modality!r}, {split!r}")
    return _text_items(split) if modality == "base" else _media_items(modality, split)


def larger_items(first: Modality, second: Modality, count: int = 200) -> tuple[Item, ...]:
    """Test items of the kind ``larger`` whose two media come from two modalities."""
    rng = _rng("larger", first, second)
    made = []
    for number in range(count):
        left, right = _two_digits(rng, clips(first, "test"), clips(second, "test"))
        made.append(
            Item(
                f"{first}+{second}/test/larger/{number}",
                f"{first}+{second}",
                "larger",
                f"{PLACEHOLDERS[first]}{PLACEHOLDERS[second]}\nWhich is larger?\n",
                str(max(left.digit, right.digit)),
                (left.array, right.array),
            )
        )
    return tuple(made)


def _rng(*key: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def _split_of(content: str) -> Split:
    """Assign a piece of content to a split by its hash: 70, 10 and 20 percent."""
    tenth = zlib.crc32(content.encode()) % 10
    return "test" if tenth < 2 else "validation" if tenth == 2 else "train"


# --- text -----------------------------------------------------------------------------------


def _text_items(split: Split) -> tuple[Item, ...]:
    pools = {
        skill: [pair for pair in pairs if _split_of(skill + pair[0]) == split]
        for skill, pairs in _text_pairs().items()
    }
    pools["fact"] = list(_facts(split))
    rng = _rng("text", split)
    made = []
    for skill, pool in pools.items():
        for number, index in enumerate(_drawn(rng, len(pool), skill, split)):
            made.append(Item(f"base/{split}/{skill}/{number}", "base", skill, *pool[index]))
    return tuple(made)


def _drawn(rng: np.random.Generator, available: int, skill: str, split: Split) -> list[int]:
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
    rng = _rng("lookup")
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


# --- images, sounds and videos --------------------------------------------------------------


def _media_items(modality: Modality, split: Split) -> tuple[Item, ...]:
    pool = clips(modality, split)
    made = []
    for skill, ask in _SKILLS[modality].items():
        rng = _rng(modality, split, skill)
        for number, (prompt, answer, used) in enumerate(_asked(ask, rng, pool, split)):
            made.append(
                Item(
                    f"{modality}/{split}/{skill}/{number}",
                    modality,
                    skill,
                    PLACEHOLDERS[modality] * len(used) + "\n" + prompt + "\n",
                    answer,
                    tuple(clip.array for clip in used),
                )
            )
    return tuple(made)


def _asked(
    ask: _Ask, rng: np.random.Generator, pool: tuple[Clip, ...], split: Split
) -> Iterator[_Asked]:
    """Questions of one kind; outside training none is asked twice."""
    seen: set[tuple[object, ...]] = set()
    while len(seen) < _PER_SKILL[split]:
        prompt, answer, used = ask(rng, pool)
        key = (prompt, *map(id, used)) if split != "train" else (len(seen),)
        if key not in seen:
            seen.add(key)
            yield prompt, answer, used


_Asked = tuple[str, str, tuple[Clip, ...]]
_Ask = Callable[[np.random.Generator, tuple[Clip, ...]], _Asked]


def _about(question: str, answer: Callable[[Clip], str]) -> _Ask:
    """A question kind about one medium."""

    def ask(rng: np.random.Generator, pool: tuple[Clip, ...]) -> _Asked:
        clip = pool[rng.integers(len(pool))]
        return question, answer(clip), (clip,)

    return ask


def _ask_add(rng: np.random.Generator, pool: tuple[Clip, ...]) -> _Asked:
    clip, term = pool[rng.integers(len(pool))], int(rng.integers(10))
    return f"Add {term}.", str(clip.digit + term), (clip,)


def _ask_larger(rng: np.random.Generator, pool: tuple[Clip, ...]) -> _Asked:
    left, right = _two_digits(rng, pool, pool)
    return "Which is larger?", str(max(left.digit, right.digit)), (left, right)


def _two_digits(
    rng: np.random.Generator, first: tuple[Clip, ...], second: tuple[Clip, ...]
) -> tuple[Clip, Clip]:
    while True:
        left, right = first[rng.integers(len(first))], second[rng.integers(len(second))]
        if left.digit != right.digit:
            return left, right


def _turned(clip: Clip) -> str:
    return str(9 - clip.digit if clip.note in ("left", "down") else clip.digit)


def _skills(modality: str, naming: str, **own: _Ask) -> dict[str, _Ask]:
    codes = _CODES[modality]
    return {
        "digit": _about("Which digit?", lambda clip: str(clip.digit)),
        "larger": _ask_larger,
        "add": _ask_add,
        "code": _about(naming, lambda clip: codes[clip.digit]),
        **own,
    }


_SKILLS: dict[str, dict[str, _Ask]] = {
    "image": _skills(
        "image",
        "Its code word?",
        backwards=_about("Spell it backwards.", lambda clip: speech.WORDS[clip.digit][::-1]),
        letter=_about("Its letter?", lambda clip: _LETTERS[clip.digit]),
    ),
    "audio": _skills(
        "audio",
        "Its call sign?",
        partner=_about("Its partner?", lambda clip: str(_PARTNERS[clip.digit])),
        voice=_about("What voice?", lambda clip: clip.note),
    ),
    "video": _skills(
        "video",
        "Its secret name?",
        direction=_about("Which way?", lambda clip: clip.note),
        turned=_about("Its turned value?", _turned),
    ),
}


@cache
def clips(modality: Modality, split: Split) -> tuple[Clip, ...]:
    """All media of one modality and split."""
    makers = {"image": _image_clips, "audio": _audio_clips, "video": _video_clips}
    return tuple(makers[modality](split))


@cache
def _handwritten() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    with files("omnireg.demo").joinpath("digits.npz").open("rb") as file, np.load(file) as data:
        images = (data["images"].astype(np.uint16) * 255 // 16).astype(np.uint8)
        order = _rng("digits").permutation(len(images))
        return images[order], data["labels"][order]


def _image_clips(split: Split) -> Iterator[Clip]:
    """Handwritten digits; those for training also shifted and in other contrasts."""
    images, labels = _handwritten()
    rng = _rng("image", split)
    low, high = _DIGIT_BOUNDS[split]
    for image, label in zip(images[low:high], labels[low:high], strict=True):
        yield Clip(image, int(label))
        for _ in range(5 if split == "train" else 0):
            yield Clip(_varied(image, rng), int(label))


def _varied(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    padded = np.pad(image, 1)
    row, column = rng.choice((0, 1, 1, 2), 2)
    moved = padded[row : row + 8, column : column + 8] * rng.uniform(0.75, 1.0)
    return np.clip(moved + rng.normal(0, 8, (8, 8)), 0, 255).astype(np.uint8)


def _audio_clips(split: Split) -> Iterator[Clip]:
    rng = _rng("audio", split)
    for _ in range(_SPEAKERS[split]):
        speaker = speech.random_speaker(rng)
        for digit in range(10):
            yield Clip(speech.say(digit, speaker, rng), digit, speaker.register)


def _video_clips(split: Split) -> Iterator[Clip]:
    images, labels = _handwritten()
    rng = _rng("video", split)
    low, high = _DIGIT_BOUNDS[split]
    for image, label in zip(images[low:high], labels[low:high], strict=True):
        for direction in _DIRECTIONS:
            shown = _varied(image, rng) if split == "train" else image
            yield Clip(_moving(shown, direction, rng), int(label), direction)


def _moving(
    image: NDArray[np.uint8], direction: str, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """A digit that leaves the middle of the canvas and ends at one edge."""
    step = np.array(_DIRECTIONS[direction]) * _STRIDE
    sway = np.where(step == 0, rng.integers(-1, 2), 0)
    start = (CANVAS - 8) // 2 + sway
    video = np.zeros((FRAMES, CANVAS, CANVAS), np.uint8)
    for number in range(FRAMES):
        row, column = start + step * number
        video[number, row : row + 8, column : column + 8] = image
    return video
