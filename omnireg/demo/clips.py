"""The media that the family is trained and tested on: handwritten digits, speech, moving digits.

A handwritten digit or a synthetic speaker belongs to one split only.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from omnireg.demo import speech

Modality = Literal["base", "image", "audio", "video"]
Split = Literal["train", "validation", "test"]
Array = NDArray[Any]

FRAMES = 3
CANVAS = 16
_STRIDE = (CANVAS - 8) // 2 // (FRAMES - 1)

_SPEAKERS: dict[Split, int] = {"train": 240, "validation": 25, "test": 50}
# Ranges of the handwritten digits, once shuffled.
_DIGIT_BOUNDS: dict[Split, tuple[int, int]] = {
    "train": (0, 1250),
    "validation": (1250, 1397),
    "test": (1397, 1797),
}
_DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}


def generator(*key: object) -> np.random.Generator:
    """Return a generator of its own for every key."""
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


@dataclass(frozen=True, eq=False)
class Clip:
    """One medium and what there is to know about it."""

    array: Array
    digit: int
    note: str = ""


@cache
def clips(modality: Modality, split: Split) -> tuple[Clip, ...]:
    """All media of one modality and split."""
    makers = {"image": _image_clips, "audio": _audio_clips, "video": _video_clips}
    return tuple(makers[modality](split))


@cache
def _handwritten() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    with files("omnireg.demo").joinpath("digits.npz").open("rb") as file, np.load(file) as data:
        images = (data["images"].astype(np.uint16) * 255 // 16).astype(np.uint8)
        order = generator("digits").permutation(len(images))
        return images[order], data["labels"][order]


def _image_clips(split: Split) -> Iterator[Clip]:
    """Handwritten digits; those for training also shifted and in other contrasts."""
    images, labels = _handwritten()
    rng = generator("image", split)
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
    rng = generator("audio", split)
    for _ in range(_SPEAKERS[split]):
        speaker = speech.random_speaker(rng)
        for digit in range(10):
            yield Clip(speech.say(digit, speaker, rng), digit, speaker.register)


def _video_clips(split: Split) -> Iterator[Clip]:
    images, labels = _handwritten()
    rng = generator("video", split)
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
