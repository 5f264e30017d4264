"""Score a model of the family by greedy generation and exact match, offline."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    LlavaForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
    Qwen2AudioForConditionalGeneration,
    Qwen2ForCausalLM,
    WhisperFeatureExtractor,
)

from omnireg.demo import speech
from omnireg.demo.tasks import Array, Item

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


class Reader(Protocol):
    """Turns the media of one modality into what its model takes."""

    token: str

    def read(self, media: Sequence[Array]) -> tuple[dict[str, Tensor], list[int]]:
        """Model inputs with one row per medium, and the placeholder tokens each one needs."""


class ImageReader:
    """Images for LLaVA, through the image processor saved with the model."""

    def __init__(self, folder: Path, config: Any) -> None:
        """Take the settings from a checkpoint folder and the model's configuration."""
        self.token = "<image>"
        self._processor = AutoImageProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]
        vision = config.vision_config
        self._tokens = (vision.image_size // vision.patch_size) ** 2

    def read(self, media: Sequence[Array]) -> tuple[dict[str, Tensor], list[int]]:
        """See `Reader.read`."""
        images = [Image.fromarray(array).convert("RGB") for array in media]
        pixels = self._processor(images=images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels}, [self._tokens] * len(media)


class AudioReader:
    """Waveforms for Qwen2-Audio, through the feature extractor saved with the model."""

    def __init__(self, folder: Path, config: Any) -> None:
        """Take the settings from a checkpoint folder and the model's configuration."""
        self.token = "<|AUDIO|>"
        self._extractor = WhisperFeatureExtractor.from_pretrained(folder)

    def read(self, media: Sequence[Array]) -> tuple[dict[str, Tensor], list[int]]:
        """See `Reader.read`."""
        features = self._extractor(
            list(media),
            sampling_rate=speech.SAMPLE_RATE,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = features["attention_mask"]
        # The encoder halves the frames twice: a strided convolution, then a pooling.
        tokens = ((mask.sum(-1) - 1) // 2 - 1) // 2 + 1
        inputs = {"input_features": features["input_features"], "feature_attention_mask": mask}
        return inputs, tokens.tolist()


class VideoReader:
    """Videos for LLaVA-OneVision, as its video processor would prepare them.

    The transformers class needs torchvision, so its saved settings are followed with numpy;
    the frames already have the model's size, which leaves scaling and normalising.
    """

    def __init__(self, folder: Path, config: Any) -> None:
        """Take the settings from a checkpoint folder and the model's configuration."""
        self.token = "<video>"
        saved = json.loads((folder / "video_preprocessor_config.json").read_text("utf-8"))
        self._size = (saved["size"]["height"], saved["size"]["width"])
        self._factor = saved["rescale_factor"]
        self._mean = np.array(saved["image_mean"], np.float32)
        self._std = np.array(saved["image_std"], np.float32)
        side = config.vision_config.image_size // config.vision_config.patch_size
        self._tokens_per_frame = ((side + 1) // 2) ** 2

    def read(self, media: Sequence[Array]) -> tuple[dict[str, Tensor], list[int]]:
        """See `Reader.read`."""
        videos = np.stack(list(media))
        if videos.shape[2:] != self._size:
            raise ValueError(f"frames of {videos.shape[2:]} pixels, expected {self._size}")
        scaled = videos[..., None].astype(np.float32) * self._factor
        pixels = torch.from_numpy((scaled - self._mean) / self._std).permute(0, 1, 4, 2, 3)
        # One more token ends the video, LLaVA-OneVision's learnt newline.
        tokens = videos.shape[1] * self._tokens_per_frame + 1
        return {"pixel_values_videos": pixels.contiguous()}, [tokens] * len(media)


_READERS: dict[str, Callable[[Path, Any], Reader]] = {
    "llava": ImageReader,
    "qwen2_audio": AudioReader,
    "llava_onevision": VideoReader,
}


@dataclass(frozen=True)
class Subject:
    """A model with all it takes to put items to it."""

    model: Any
    tokenizer: Any
    reader: Reader | None

    def inputs(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """A left-padded batch of prompts with their media."""
        media = [array for item in items for array in item.media]
        features: dict[str, Tensor] = {}
        prompts = [item.prompt for item in items]
        if media:
            if self.reader is None:
                raise ValueError("a text model takes no media")
            features, counts = self.reader.read(media)
            counter = iter(counts)
            prompts = [expand(prompt, self.reader.token, counter) for prompt in prompts]
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


def expand(prompt: str, token: str, counts: Iterator[int]) -> str:
    """Repeat each placeholder as often as its medium has features."""
    first, *others = prompt.split(token)
    return first + "".join(token * next(counts) + other for other in others)


def load(folder: Path | str) -> Subject:
    """Load a checkpoint of the family, in float32 as the fastest type on a CPU."""
    folder = Path(folder)
    config = AutoConfig.from_pretrained(folder)
    model = _MODELS[config.model_type].from_pretrained(folder, dtype=torch.float32).eval()
    reader = _READERS.get(config.model_type)
    return Subject(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        reader=reader(folder, config) if reader else None,
    )


def score(
    subject: Subject | Path | str,
    items: Sequence[Item],
    *,
    batch_size: int = 256,
    on_progress: Callable[[int], None] | None = None,
) -> Score:
    """Put the items to a model (or to the checkpoint in a folder) and count right answers.

    `on_progress` is told after each batch how many items it had.
    """
    if not isinstance(subject, Subject):
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
