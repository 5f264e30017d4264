"""The questions the family is trained and tested on, generated the same way every time.

The question kinds ``digit``, ``larger`` and ``add`` are worded alike in all modalities and known to
the base in text form; every other kind follows a rule that only one host has ever been taught.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from omnireg.demo import speech, texts
from omnireg.demo.clips import Array, Clip, Modality, Split, clips, generator

MODALITIES: tuple[Modality, ...] = ("base", "image", "audio", "video")
HOSTS: tuple[Modality, ...] = ("image", "audio", "video")
PLACEHOLDERS = {
    "image": "<image>",
    "audio": "<|audio_bos|><|AUDIO|><|audio_eos|>",
    "video": "<video>",
}
SHARED_SKILLS = frozenset({"digit", "larger", "add"})

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_PER_SKILL: dict[Split, int] = {"train": 5000, "validation": 70, "test": 220}
_CODES = {
    "image": "blip dorn fesk glim hovu jant kreb lumo mizz norp",
    "audio": "tarn ulvo wexi yarb zint pluk quod drab sefu ochi",
    "video": "rumo vask celp bint thog nilu gorp hask dwel figo",
}
_LETTERS = "qhzrbxkdwm"
_PARTNERS = (6, 3, 8, 0, 9, 2, 7, 1, 5, 4)


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


def items(modality: Modality, split: Split) -> tuple[Item, ...]:
    """All items of one modality and split, in a fixed order."""
    if modality not in MODALITIES or split not in _SPLITS:
        raise ValueError(f"no such items: {modality!r}, {split!r}")
    return _text_items(split) if modality == "base" else _media_items(modality, split)


def larger_items(first: Modality, second: Modality, count: int = 200) -> tuple[Item, ...]:
    """Test items of the kind ``larger`` whose two media come from two modalities."""
    rng = generator("larger", first, second)
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


def _text_items(split: Split) -> tuple[Item, ...]:
    return tuple(
        Item(f"base/{split}/{skill}/{number}", "base", skill, prompt, answer)
        for skill, number, prompt, answer in texts.drawn(split)
    )


def _media_items(modality: Modality, split: Split) -> tuple[Item, ...]:
    pool = clips(modality, split)
    made = []
    for skill, ask in _SKILLS[modality].items():
        rng = generator(modality, split, skill)
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
    codes = _CODES[modality].split()
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
