"""Ask a package one question about files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from omnireg.errors import ConfigError
from omnireg.routed.model import OmniModel, load


@dataclass(frozen=True)
class Answer:
    """What was asked and answered.

    Attributes:
        prompt: the text with placeholders, as the model read it.
        text: the answer.
        prompt_tokens: by modality.
        new_tokens: number of generated tokens.
    """

    prompt: str
    text: str
    prompt_tokens: dict[str, int]
    new_tokens: int

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``mmer generate``."""
        return {
            "text": self.text,
            "prompt": self.prompt,
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
        }


def ask(
    package: Path | str,
    prompt: str,
    files: Sequence[tuple[str, Path]] = (),
    *,
    max_new_tokens: int = 64,
    chat: bool = True,
    **how: Any,
) -> Answer:
    """Load a package and let it answer, greedily.

    Args:
        package: its folder.
        prompt: what to ask; media whose placeholder it lacks are put before it.
        files: (modality, file) of every medium, in the order of their placeholders.
        max_new_tokens: where to stop.
        chat: put the prompt into the tokenizer's chat template, if it has one.
        how: see :func:`omnireg.load`.

    Raises:
        CheckpointError: no package, or a damaged one.
        ConfigError: a file cannot be read, or media do not fit the prompt.
    """
    if not prompt.strip():
        raise ConfigError("the prompt is empty: ask something")
    model = load(package, **how)
    processor = model.processor
    media: dict[str, Any] = {}
    for modality, file in files:
        media.setdefault(modality, []).append(processor.reader(modality).open(file))
    text = _with_placeholders(prompt, {m: len(found) for m, found in media.items()}, model)
    if chat and processor.tokenizer.chat_template:
        turn = [{"role": "user", "content": text}]
        text = processor.tokenizer.apply_chat_template(
            turn, tokenize=False, add_generation_prompt=True
        )
    inputs = processor(text, **media).to(model.device)
    with torch.inference_mode():
        made = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    new = made[:, inputs["input_ids"].shape[1] :]
    kinds = model.modalities_of(inputs["input_ids"]).flatten().tolist()
    names = ["text", *model.vocabulary.modalities]
    return Answer(
        text,
        processor.batch_decode(new, skip_special_tokens=True)[0],
        {name: kinds.count(i) for i, name in enumerate(names) if i in kinds},
        new.shape[1],
    )


def _with_placeholders(prompt: str, counts: dict[str, int], model: OmniModel) -> str:
    """Put the placeholders of media before a prompt that has none of their kind."""
    before = ""
    for modality, count in counts.items():
        token = model.processor.placeholders.get(modality, "")
        if token and token not in prompt:
            before += token * count
    return f"{before}\n{prompt}" if before else prompt
