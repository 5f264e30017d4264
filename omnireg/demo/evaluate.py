"""Score a model of the family by greedy generation and exact match, offline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    LlavaForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
    Qwen2AudioForConditionalGeneration,
    Qwen2ForCausalLM,
)

from omnireg.demo.tasks import Array, Item
from omnireg.routed import OmniModel
from omnireg.routed.readers import HostReader

MAX_NEW_TOKENS = 8

_MODELS: dict[str, Any] = {
    "qwen2": Qwen2ForCausalLM,
    "llava": LlavaForConditionalGeneration,
    "qwen2_audio": Qwen2AudioForConditionalGeneration,
    "llava_onevision": LlavaOnevisionForConditionalGeneration,
}


@dataclass(frozen=True)
class Score:
    """How many answers were right, in all and by skill as (right, asked)."""

    correct: int
    n: int
    by_skill: Mapping[str, tuple[int, int]]

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.correct / self.n

    @property
    def stderr(self) -> float:
        """The binomial standard error of `accuracy`."""
        return float((self.accuracy * (1 - self.accuracy) / self.n) ** 0.5)

    def to_json(self) -> dict[str, Any]:
        """Return the score with its counts."""
        return {
            "value": self.accuracy,
            "stderr": self.stderr,
            "correct": self.correct,
            "n": self.n,
        }


#: class → what its processor calls its media, and the placeholder of one
_MEDIA = {
    "llava": ("images", "<image>"),
    "qwen2_audio": ("audio", "<|AUDIO|>"),
    "llava_onevision": ("videos", "<video>"),
}


@dataclass(frozen=True)
class Subject:
    """A model with all it takes to put items to it."""

    model: Any
    tokenizer: Any
    reader: HostReader | None
    #: of one medium; a text model takes none, and has one that occurs nowhere
    placeholder: str = "\0"

    def read(self, media: Sequence[Array]) -> tuple[dict[str, Tensor], list[int]]:
        """Return model inputs with one row per medium, and how many tokens each one needs."""
        if not media:
            return {}, []
        if self.reader is None:
            raise ValueError("a text model takes no media")
        features = self.reader(media)
        del features["input_ids"]
        return features, features.pop("attention_mask").sum(1).tolist()

    def inputs(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """A left-padded batch of prompts with their media."""
        features, counts = self.read([array for item in items for array in item.media])
        counter = iter(counts)
        prompts = [expand(item.prompt, self.placeholder, counter) for item in items]
        encoded = self.tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        return {"input_ids": ids, "attention_mask": mask, **features}

    def answers(self, items: Sequence[Item]) -> list[str]:
        """Greedy answers to one batch of items."""
        inputs = self.inputs(items)
        with torch.inference_mode():
            output = self.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        answers: list[str] = self.tokenizer.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return answers


class Answering(Protocol):
    """Whatever answers a batch of items."""

    def answers(self, items: Sequence[Item]) -> list[str]:
        """Answers to one batch of items."""


@dataclass(frozen=True)
class Routed:
    """The routed model of a package; a batch may mix items of all senses."""

    model: OmniModel

    def answers(self, items: Sequence[Item]) -> list[str]:
        """Greedy answers to one batch of items."""
        media: dict[str, Any] = {}
        for item in items:
            senses = item.modality.split("+")
            for number, array in enumerate(item.media):
                media.setdefault(senses[number % len(senses)], []).append(array)
        inputs = self.model.processor([item.prompt for item in items], **media)
        with torch.inference_mode():
            output = self.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        return self.model.processor.batch_decode(new, skip_special_tokens=True)


def expand(prompt: str, token: str, counts: Iterator[int]) -> str:
    """Repeat each placeholder as often as its medium has features."""
    first, *others = prompt.split(token)
    return first + "".join(token * next(counts) + other for other in others)


def load(folder: Path | str) -> Subject:
    """Load a checkpoint of the family, in float32 as the fastest type on a CPU."""
    folder = Path(folder)
    config = AutoConfig.from_pretrained(folder)
    model = _MODELS[config.model_type].from_pretrained(folder, dtype=torch.float32).eval()
    argument, placeholder = _MEDIA.get(config.model_type, ("", "\0"))
    return Subject(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        reader=HostReader(folder, argument, placeholder) if argument else None,
        placeholder=placeholder,
    )


def score(
    subject: Answering | Path | str,
    items: Sequence[Item],
    *,
    batch_size: int = 256,
    on_progress: Callable[[int], None] | None = None,
) -> Score:
    """Put the items to a model (or to the checkpoint in a folder) and count right answers.

    `on_progress` is told after each batch how many items it had.
    """
    if isinstance(subject, Path | str):
        subject = load(subject)
    asked = Counter(item.skill for item in items)
    right: Counter[str] = Counter()
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        for item, answer in zip(batch, subject.answers(batch), strict=True):
            right[item.skill] += answer == item.answer
        if on_progress:
            on_progress(len(batch))
    by_skill = {skill: (right[skill], n) for skill, n in asked.items()}
    return Score(right.total(), len(items), by_skill)
