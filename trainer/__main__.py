"""Train the family from scratch: ``python -m trainer OUT``.

A base language model learns arithmetic, look-ups and text continuation.  Each host starts from
it, first learns to see, hear or watch with the language model frozen, then is trained as a
whole on its own modality only, which is what makes it forget some of the base and lets the
three language models drift apart.

A base takes about 5 minutes and a host 2 to 4, on one thread. Seeds are fixed and every model has
its own, so that a second run on the same kind of processor gives the same bytes. Recipes were
compared on the validation split alone.
"""

from __future__ import annotations

import argparse
import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, GenerationConfig, Qwen2ForCausalLM

from omnireg.demo import questions, tasks
from omnireg.demo.clips import Modality, clips
from omnireg.evaluation.opening import open_subject
from trainer.building import (
    PADDING_ROWS,
    base_tokenizer,
    host_from_base,
    host_tokenizer,
    save_reader,
    text_config,
)
from trainer.corpus import Corpus, Reading

SEED = 20

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phase:
    """One stretch of training with its own set of trainable weights."""

    name: str
    steps: int
    rate: float
    batch: int = 64
    decay: float = 0.01
    epsilon: float = 1e-8
    skills: frozenset[str] | None = None
    projector_only: bool = False


BASE_PHASES = (Phase("text", 3000, 3e-3, batch=80, decay=0.1),)
ENCODER = Phase("encoder", 800, 2e-3, batch=96)
ALIGN = Phase("align", 300, 3e-3, skills=tasks.SHARED_SKILLS, projector_only=True)
TUNE = {
    "image": Phase("tune", 600, 2e-3, decay=0.0, epsilon=1e-4),
    "audio": Phase("tune", 500, 2e-3, decay=0.0, epsilon=1e-4),
    "video": Phase("tune", 900, 2e-3, decay=0.0, epsilon=1e-4),
}


# --- training -------------------------------------------------------------------------------


def pretrain_encoder(host: Any, modality: Modality, reading: Reading, seed: int) -> None:
    """Teach the encoder to tell its media apart, through a linear probe thrown away after."""
    media = clips(modality, "train")
    features, _ = reading.read([clip.array for clip in media])
    notes = sorted({clip.note for clip in media})
    digits = torch.tensor([clip.digit for clip in media])
    kinds = torch.tensor([notes.index(clip.note) for clip in media])
    width = _pooled(host, modality, {name: rows[:1] for name, rows in features.items()}).shape[1]
    probe = nn.Linear(width, 10 + len(notes))
    encoder = [weight for weight in _encoder(host, modality).parameters() if weight.requires_grad]
    rng = np.random.default_rng(seed)

    def loss() -> Any:
        chosen = rng.integers(len(media), size=ENCODER.batch).tolist()
        picked = {name: rows[chosen] for name, rows in features.items()}
        scores = probe(_pooled(host, modality, picked))
        which = nn.functional.cross_entropy(scores[:, :10], digits[chosen])
        return which + nn.functional.cross_entropy(scores[:, 10:], kinds[chosen])

    _descend([*encoder, *probe.parameters()], ENCODER, loss)


def _encoder(host: Any, modality: Modality) -> Any:
    return host.model.audio_tower if modality == "audio" else host.model.vision_tower


def _pooled(host: Any, modality: Modality, features: dict[str, Tensor]) -> Tensor:
    """Mean features of the layer the projector reads; those of a video's frames side by side."""
    encoder = _encoder(host, modality)
    if modality == "audio":
        return encoder(features["input_features"]).last_hidden_state.mean(1)  # type: ignore[no-any-return]
    if modality == "image":
        pixels = features["pixel_values"]
        return encoder(pixels, output_hidden_states=True).hidden_states[-1][:, 1:].mean(1)  # type: ignore[no-any-return]
    pixels = features["pixel_values_videos"]
    states = encoder(pixels.flatten(0, 1), output_hidden_states=True).hidden_states[-1]
    return states.mean(1).reshape(len(pixels), -1)  # type: ignore[no-any-return]


def run_phase(model: Any, corpus: Corpus, phase: Phase, seed: int) -> None:
    """Train a model on its items for one phase."""
    rng = np.random.default_rng(seed)
    model.train()
    _descend(
        _trainable(model, phase),
        phase,
        lambda: model(**corpus.draw(rng, phase.batch), use_cache=False).loss,
    )
    model.eval()


def _descend(trained: list[nn.Parameter], phase: Phase, loss_of_batch: Callable[[], Any]) -> None:
    """Take the steps of a phase with AdamW, a short warm-up and a cosine decay."""
    optimiser = torch.optim.AdamW(
        trained,
        lr=phase.rate,
        betas=(0.9, 0.98),
        eps=phase.epsilon,
        weight_decay=phase.decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _scale(step, phase))
    for step in range(phase.steps):
        loss = loss_of_batch()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 99:
            _LOG.info(
                "%s: step %d of %d, loss %.3f", phase.name, step + 1, phase.steps, loss.item()
            )


def _trainable(model: Any, phase: Phase) -> list[nn.Parameter]:
    """Freeze what the phase freezes and return the rest."""
    chosen = []
    for name, parameter in model.named_parameters():
        in_projector = "multi_modal_projector" in name or "newline" in name
        trained = in_projector or not phase.projector_only
        trained = trained and "audio_tower.embed_positions" not in name
        parameter.requires_grad_(trained)
        if trained:
            chosen.append(parameter)
    return chosen


def _scale(step: int, phase: Phase) -> float:
    warm = min(1.0, (step + 1) / (0.05 * phase.steps))
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / phase.steps)))


# --- saving ---------------------------------------------------------------------------------


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write weights in bfloat16 with tokenizer and generation settings."""
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = model.config.get_text_config()
    text.eos_token_id, text.pad_token_id = ids["eos_token_id"], ids["pad_token_id"]
    model.generation_config = GenerationConfig(do_sample=False, **ids)  # type: ignore[no-untyped-call]
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# --- the script -----------------------------------------------------------------------------


def train_base(folder: Path) -> None:
    """Train and save the base."""
    tokenizer = base_tokenizer()
    _seed(SEED)
    model = Qwen2ForCausalLM(text_config(len(tokenizer) + PADDING_ROWS))
    corpus = Corpus(tasks.items("base", "train"), Reading(tokenizer))
    for phase in BASE_PHASES:
        run_phase(model, corpus, phase, SEED)
    save(model, tokenizer, folder)


def train_host(modality: Modality, base_folder: Path, folder: Path) -> None:
    """Train and save one host, starting from the saved base."""
    tokenizer = host_tokenizer(base_folder, modality)
    base = Qwen2ForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    seed = SEED + 1 + tasks.HOSTS.index(modality)
    _seed(seed)
    model = host_from_base(base, tokenizer, modality)
    save(model, tokenizer, folder)
    save_reader(modality, folder)
    reading = Reading(AutoTokenizer.from_pretrained(folder), folder, modality)
    model = model.float()
    pretrain_encoder(model, modality, reading, seed)
    for phase in (ALIGN, TUNE[modality]):
        items = tasks.items(modality, "train")
        wanted = [item for item in items if not phase.skills or item.skill in phase.skills]
        run_phase(model, Corpus(wanted, reading), phase, seed)
    save(model, tokenizer, folder)


def _seed(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is asked for and report its validation scores."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer", description="Train the demo family from scratch."
    )
    parser.add_argument("out", type=Path, help="folder for the four checkpoints")
    parser.add_argument("--only", choices=tasks.MODALITIES, help="train this one, given the base")
    parser.add_argument("--threads", type=int, default=1, help="changes the last bits (default: 1)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    for modality in tasks.MODALITIES:
        if options.only in (None, modality):
            folder = options.out / modality
            if modality == "base":
                train_base(folder)
            else:
                train_host(modality, options.out / "base", folder)
            subject = open_subject(folder, dtype="float32")
            found = questions.score(subject, tasks.items(modality, "validation"))
            _LOG.info("%s: %.3f of validation, %s", modality, found.value, found.details)


if __name__ == "__main__":
    main()
