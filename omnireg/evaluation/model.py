"""What can be asked: questions in, answers and the first token's logits out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnireg.errors import EvaluationError, did_you_mean
from omnireg.evaluation.items import Item, Medium

Tick = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Response:
    """What was answered.

    Attributes:
        text: the answer, without special tokens.
        logits: (vocabulary,) of its first token, in float32.
    """

    text: str
    logits: Tensor


class Subject(ABC):
    """A loaded checkpoint.

    Attributes:
        folder: where it is.
        model: what generates.
        tokenizer: of its texts.
        placeholders: what stands for a medium of each modality that it takes in.
    """

    folder: Path
    model: Any
    tokenizer: Any
    placeholders: dict[str, str]

    @abstractmethod
    def inputs(self, items: Sequence[Item], *, chat: bool) -> dict[str, Any]:
        """Return the model's inputs for a batch, filled up on the left."""

    @property
    def has_chat_template(self) -> bool:
        """Whether its makers say how a conversation is written."""
        return bool(self.tokenizer.chat_template)

    def respond(
        self,
        items: Sequence[Item],
        *,
        max_new_tokens: int = 32,
        chat: bool | None = None,
        batch_size: int = 16,
        tick: Tick = lambda done, total: None,
    ) -> list[Response]:
        """Answer every question greedily.

        Args:
            items: the questions.
            max_new_tokens: where to stop.
            chat: put prompts into the chat template; if there is one, when None.
            batch_size: how many at once.
            tick: called with how many are done, and of how many.

        Raises:
            EvaluationError: a question has media that the checkpoint does not take in.
        """
        self._check(items)
        wanted = self.has_chat_template if chat is None else chat
        if wanted and not self.has_chat_template:
            raise EvaluationError(f"{self.folder} has no chat template; ask it without one")
        found: list[Response | None] = [None] * len(items)
        done = 0
        for batch in _batches(items, batch_size):
            inputs = self.inputs([items[i] for i in batch], chat=wanted)
            answers = self.answer(inputs, max_new_tokens)
            for place, answer in zip(batch, answers, strict=True):
                found[place] = answer
            done += len(batch)
            tick(done, len(items))
        return [response for response in found if response is not None]

    def _check(self, items: Sequence[Item]) -> None:
        for item in items:
            for modality in item.modalities:
                if modality not in self.placeholders:
                    known = ", ".join(self.placeholders) or "text alone"
                    raise EvaluationError(
                        f"item {item.id} has {modality}, which {self.folder} does not take in"
                        f"{did_you_mean(modality, self.placeholders)}: it takes in {known}"
                    )
            for modality in self.placeholders:
                if f"<{modality}>" in item.prompt and modality not in item.modalities:
                    raise EvaluationError(
                        f"item {item.id} has <{modality}> in its prompt and no {modality}; add it,"
                        " or take the placeholder out"
                    )

    def answer(self, inputs: dict[str, Any], max_new_tokens: int) -> list[Response]:
        """Answer a batch of prepared inputs greedily."""
        with torch.inference_mode():
            made = self.model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                output_logits=True,
                return_dict_in_generate=True,
            )
        new = made.sequences[:, inputs["input_ids"].shape[1] :]
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        first = made.logits[0].float().cpu()
        return [Response(text, row) for text, row in zip(texts, first, strict=True)]

    def texts(self, items: Sequence[Item], *, chat: bool) -> list[str]:
        """Return the prompts as the model reads them, one placeholder for each medium."""
        if not chat:
            return [self._plain(item) for item in items]
        return [self._in_chat(item) for item in items]

    def _plain(self, item: Item) -> str:
        return "".join(
            self.placeholders[part.modality] if isinstance(part, Medium) else part
            for part in item.parts
        )

    @property
    def _template(self) -> Any:
        """What applies the chat template."""
        return self.tokenizer

    def _in_chat(self, item: Item) -> str:
        content: Any = self._plain(item)
        if self._takes_parts:
            content = [
                {"type": part.modality}
                if isinstance(part, Medium)
                else {"type": "text", "text": part}
                for part in item.parts
            ]
        return self._render(content)

    def _render(self, content: Any) -> str:
        turn = [{"role": "user", "content": content}]
        found = self._template.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        return str(found)

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether the chat template wants text and media as parts rather than as one text."""
        try:
            parts = self._render([{"type": "text", "text": "omnireg"}])
        except Exception:  # a template raises whatever it likes
            return False
        return "'type'" not in parts and "omnireg" in parts


def _batches(items: Sequence[Item], size: int) -> list[list[int]]:
    """Put questions about the same modalities together, shorter prompts before longer ones."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for place, item in enumerate(items):
        alike.setdefault(item.modalities, []).append(place)
    found = []
    for places in alike.values():
        places.sort(key=lambda place: len(items[place].prompt))
        found += [places[start : start + size] for start in range(0, len(places), size)]
    return found
