"""The test questions as files of items, which any evaluator of files can read."""

import json
import wave
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from omnireg.demo import speech, tasks
from omnireg.demo.clips import Array
from omnireg.evaluation.items import Item, Items, Medium, read_items
from omnireg.evaluation.model import Subject
from omnireg.hookspecs import Conduct, Result

#: answers are one or two words
CONDUCT = Conduct(chat_template=False, batch_size=256, max_new_tokens=8)
_AUDIO = "<|AUDIO|>"
_MEDIA = "media"


def questions(items: Iterable[tasks.Item]) -> tuple[Item, ...]:
    """Return items as they are put to a checkpoint; prompts are all that it reads."""
    return tuple(_question(item) for item in items)


def _question(item: tasks.Item) -> Item:
    senses = item.modality.split("+")
    return Item(
        id=item.id,
        prompt=item.prompt.replace(_AUDIO, "<audio>"),
        answers=(item.answer,),
        media=tuple(
            Medium(senses[number % len(senses)], array) for number, array in enumerate(item.media)
        ),
        category=item.skill,
    )


def asked(modality: str) -> tuple[tasks.Item, ...]:
    """Return the test items of a modality, or of two joined by ``+``."""
    first, _, second = modality.partition("+")
    if second:
        return tasks.larger_items(first, second)  # type: ignore[arg-type]
    return tasks.items(modality, "test")  # type: ignore[arg-type]


def file_of(folder: Path, modality: str) -> Path:
    """Return the file of a modality's questions in a folder of questions."""
    return folder / f"tiny-{modality}.jsonl"


def write(folder: Path, modalities: Iterable[str]) -> None:
    """Write the test questions of every modality into a folder, with their media beside them."""
    (folder / _MEDIA).mkdir(parents=True, exist_ok=True)
    for modality in modalities:
        lines = (json.dumps(line) + "\n" for line in _lines(folder, modality))
        file_of(folder, modality).write_text("".join(lines), encoding="utf-8")


def _lines(folder: Path, modality: str) -> Iterator[dict[str, Any]]:
    for item in questions(asked(modality)):
        media: dict[str, list[str]] = {}
        for medium in item.media:
            media.setdefault(medium.modality, []).append(_written(folder, medium))
        beside = {"media": media} if media else {}
        yield {
            "id": item.id,
            "prompt": item.prompt,
            **beside,
            "answer": item.answers[0],
            "category": item.category,
        }


def _written(folder: Path, medium: Medium) -> str:
    """Write a medium, once, and return its name seen from the file of questions."""
    array: Array = medium.content
    digest = sha256(array.tobytes()).hexdigest()[:16]
    name = f"{_MEDIA}/{digest}.{_ENDINGS[medium.modality]}"
    file = folder / name
    if not file.exists():
        match medium.modality:
            case "image":
                Image.fromarray(array).save(file)
            case "audio":
                _write_sound(file, array)
            case _:
                np.save(file, array)
    return name


_ENDINGS = {"image": "png", "audio": "wav", "video": "npy"}


def _write_sound(file: Path, samples: Array) -> None:
    """Write a waveform with 32 bits a sample, so that reading it back changes no feature."""
    numbers = np.clip(np.round(samples.astype(np.float64) * 2**31), -(2**31), 2**31 - 1)
    with wave.open(str(file), "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(4)
        opened.setframerate(speech.SAMPLE_RATE)
        opened.writeframes(numbers.astype("<i4").tobytes())


@cache
def read(file: Path) -> Items:
    """Return a file's questions; they are read once."""
    return read_items(file)


def score(subject: Subject, items: Iterable[tasks.Item], *, batch_size: int = 256) -> Result:
    """Put items to a checkpoint and return the share of right answers."""
    from omnireg.evaluation.generative import measure

    chosen = Items(questions(items), "")
    conduct = replace(CONDUCT, batch_size=batch_size)
    (result,) = measure(subject, "tiny", chosen, conduct)
    return result
