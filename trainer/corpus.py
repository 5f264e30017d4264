"""What a model of the family is trained on: items as tokens, with every medium read once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnireg.demo.clips import Array, Modality
from omnireg.demo.tasks import Item
from omnireg.routed.readers import HostReader

#: modality → what the host's processor calls its media, and the placeholder of one
_MEDIA = {
    "image": ("images", "<image>"),
    "audio": ("audio", "<|AUDIO|>"),
    "video": ("videos", "<video>"),
}


class Reading:
    """A tokenizer, and what reads the media of a host."""

    def __init__(
        self, tokenizer: Any, folder: Path | None = None, modality: Modality | None = None
    ) -> None:
        """Take a text model's tokenizer, or a host's with where the host is."""
        self.tokenizer = tokenizer
        argument, self.placeholder = _MEDIA.get(modality or "", ("", "\0"))
        self._reader = HostReader(folder, argument, self.placeholder) if folder else None

    def read(self, media: Sequence[Array]) -> tuple[dict[str, Tensor], list[int]]:
        """Return model inputs with one row per medium, and how many tokens each one needs."""
        if not media:
            return {}, []
        if self._reader is None:
            raise ValueError("a text model takes no media")
        features = self._reader(media)
        del features["input_ids"]
        return features, features.pop("attention_mask").sum(1).tolist()


@dataclass(frozen=True)
class Example:
    """A tokenised item; `media` are positions in the stacked features."""

    prompt: list[int]
    answer: list[int]
    media: list[int]


class Corpus:
    """The training items of one modality, with every medium read once."""

    def __init__(self, items: Sequence[Item], reading: Reading) -> None:
        """Tokenise the items and read their media with what goes with the model."""
        media = list({id(array): array for item in items for array in item.media}.values())
        place = {id(array): index for index, array in enumerate(media)}
        self.features, counts = reading.read(media)
        self.pad: int = reading.tokenizer.pad_token_id
        eos: int = reading.tokenizer.eos_token_id
        prompts, used = [], []
        for item in items:
            used.append([place[id(array)] for array in item.media])
            lengths = iter(counts[index] for index in used[-1])
            prompts.append(expand(item.prompt, reading.placeholder, lengths))
        asked = reading.tokenizer(prompts)["input_ids"]
        told = reading.tokenizer([item.answer for item in items])["input_ids"]
        self.examples = [
            Example(*parts) for parts in zip(asked, [[*t, eos] for t in told], used, strict=True)
        ]

    def draw(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        """A random batch."""
        return self._batch(rng.integers(len(self.examples), size=size).tolist())

    def _batch(self, chosen: Sequence[int]) -> dict[str, Tensor]:
        """Model inputs with labels on the answers, padded on the right."""
        examples = [self.examples[index] for index in chosen]
        width = max(len(example.prompt) + len(example.answer) for example in examples)
        ids = torch.full((len(examples), width), self.pad)
        labels = torch.full((len(examples), width), -100)
        mask = torch.zeros((len(examples), width), dtype=torch.long)
        for row, example in enumerate(examples):
            start, end = len(example.prompt), len(example.prompt) + len(example.answer)
            ids[row, :end] = torch.tensor(example.prompt + example.answer)
            labels[row, start:end] = ids[row, start:end]
            mask[row, :end] = 1
        used = [index for example in examples for index in example.media]
        features = {name: tensor[used] for name, tensor in self.features.items()}
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, **features}


def expand(prompt: str, token: str, counts: Iterator[int]) -> str:
    """Repeat each placeholder as often as its medium has features."""
    first, *others = prompt.split(token)
    return first + "".join(token * next(counts) + other for other in others)
