"""Train the family from scratch: ``python -m omnireg.demo.train OUT``.

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
import json
import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    PreTrainedModel,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    SiglipVisionConfig,
    WhisperFeatureExtractor,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from omnireg.demo import questions, speech, tasks
from omnireg.demo.corpus import Corpus, Reading
from omnireg.demo.tasks import Modality
from omnireg.subjects import open_subject

SEED = 20

_LOG = logging.getLogger(__name__)

MERGED_TOKENS = 800
PADDING_ROWS = 2
BASE_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
HOST_SPECIALS = {
    "image": ("<image>",),
    "audio": ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"),
    "video": ("<image>", "<video>"),
}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}\n"
    "{% if message['role'] == 'assistant' %}<|endoftext|>{% endif %}{% endfor %}"
)

IMAGE_SIZE = 12
PATCH = 4
MELS = 32
MEL_HOP = 400


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


# --- tokenizer ------------------------------------------------------------------------------


def base_tokenizer() -> Any:
    """A byte-level BPE tokenizer of the family's text, split the way Qwen2 splits."""
    raw = Tokenizer(tokenizer_models.BPE())
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MERGED_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(_corpus(), trainer)
    learnt = json.loads(raw.to_str())["model"]
    vocab = dict(learnt["vocab"])
    vocab.update({token: len(vocab) + n for n, token in enumerate(BASE_SPECIALS)})
    merges: Any = [tuple(pair) for pair in learnt["merges"]]
    return Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        extra_special_tokens=list(BASE_SPECIALS[1:]),
        chat_template=CHAT_TEMPLATE,
        model_max_length=256,
    )


def _corpus() -> list[str]:
    text = []
    for modality in tasks.MODALITIES:
        for item in tasks.items(modality, "train"):
            prompt = item.prompt.replace(tasks.PLACEHOLDERS.get(modality, "\0"), "")
            text.append(prompt + item.answer)
    return text


def host_tokenizer(folder: Path, modality: Modality) -> Any:
    """The base tokenizer with the host's own tokens in the ids after its end."""
    tokenizer = Qwen2Tokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens(
        {"extra_special_tokens": [*BASE_SPECIALS[1:], *HOST_SPECIALS[modality]]}
    )
    return tokenizer


# --- models ---------------------------------------------------------------------------------


def text_config(rows: int) -> Qwen2Config:
    """The backbone that all four share, but for the number of embedding rows."""
    return Qwen2Config(
        vocab_size=rows,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
    )


def image_model(text: Qwen2Config, tokenizer: Any) -> PreTrainedModel:
    """LLaVA with a tiny CLIP vision tower."""
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        projection_dim=64,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(IMAGE_SIZE // PATCH) ** 2,
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config)


def audio_model(text: Qwen2Config, tokenizer: Any) -> PreTrainedModel:
    """Qwen2-Audio with a tiny Whisper-style encoder."""
    frames = int(speech.MAX_SECONDS * speech.SAMPLE_RATE) // MEL_HOP
    encoder = Qwen2AudioEncoderConfig(
        num_mel_bins=MELS,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=128,
        d_model=64,
        max_source_positions=frames // 2,
    )
    config = Qwen2AudioConfig(
        audio_config=encoder,
        text_config=text,
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    model = Qwen2AudioForConditionalGeneration(config)
    positions = model.model.audio_tower.embed_positions.weight
    positions.data.copy_(_sinusoids(*positions.shape))
    return model


def _sinusoids(length: int, width: int) -> Tensor:
    """Whisper's fixed position embeddings, which Qwen2-Audio leaves to the checkpoint."""
    rates = torch.exp(-math.log(10_000) / (width // 2 - 1) * torch.arange(width // 2))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def video_model(text: Qwen2Config, tokenizer: Any) -> PreTrainedModel:
    """LLaVA-OneVision with a tiny SigLIP vision tower."""
    vision = SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=tasks.CANVAS,
        patch_size=PATCH,
        vision_use_head=False,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[tasks.CANVAS, tasks.CANVAS]],
    )
    return LlavaOnevisionForConditionalGeneration(config)


_BUILDERS: dict[str, Callable[[Qwen2Config, Any], PreTrainedModel]] = {
    "image": image_model,
    "audio": audio_model,
    "video": video_model,
}


def host_from_base(base: Qwen2ForCausalLM, tokenizer: Any, modality: Modality) -> Any:
    """A fresh host around the base; rows the base lacks keep their random start."""
    base_rows = base.config.vocab_size
    rows = base_rows if len(tokenizer) <= base_rows else math.ceil(len(tokenizer) / 16) * 16
    host: Any = _BUILDERS[modality](text_config(rows), tokenizer)
    own = {**host.model.language_model.state_dict(prefix="model.")}
    own["lm_head.weight"] = host.lm_head.weight
    with torch.no_grad():
        for name, tensor in base.state_dict().items():
            own[name][: tensor.shape[0]].copy_(tensor)
    return host


# --- training -------------------------------------------------------------------------------


def pretrain_encoder(host: Any, modality: Modality, reading: Reading, seed: int) -> None:
    """Teach the encoder to tell its media apart, through a linear probe thrown away after."""
    clips = tasks.clips(modality, "train")
    features, _ = reading.read([clip.array for clip in clips])
    notes = sorted({clip.note for clip in clips})
    digits = torch.tensor([clip.digit for clip in clips])
    kinds = torch.tensor([notes.index(clip.note) for clip in clips])
    width = _pooled(host, modality, {name: rows[:1] for name, rows in features.items()}).shape[1]
    probe = nn.Linear(width, 10 + len(notes))
    encoder = [weight for weight in _encoder(host, modality).parameters() if weight.requires_grad]
    rng = np.random.default_rng(seed)

    def loss() -> Any:
        chosen = rng.integers(len(clips), size=ENCODER.batch).tolist()
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


def save_reader(modality: Modality, folder: Path) -> None:
    """Write the settings that turn media into model inputs, and the processor's own."""
    settings: dict[str, Any] = {}
    if modality == "image":
        size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        CLIPImageProcessorPil(size=size, crop_size=size).save_pretrained(folder)
        settings = {
            "processor_class": "LlavaProcessor",
            "patch_size": PATCH,
            "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": "default",
        }
    elif modality == "audio":
        WhisperFeatureExtractor(  # type: ignore[no-untyped-call]
            feature_size=MELS,
            sampling_rate=speech.SAMPLE_RATE,
            hop_length=MEL_HOP,
            n_fft=2 * MEL_HOP,
            chunk_length=int(speech.MAX_SECONDS),
            return_attention_mask=True,
        ).save_pretrained(folder)
        settings = {"processor_class": "Qwen2AudioProcessor"}
    elif modality == "video":
        _save_video_settings(folder)
        settings = {
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": (tasks.CANVAS // PATCH) ** 2,
            "vision_feature_select_strategy": "full",
        }
    _write_json(folder / "processor_config.json", settings)


def _save_video_settings(folder: Path) -> None:
    """Also the video processor's, written by hand: its class needs torchvision."""
    size = {"height": tasks.CANVAS, "width": tasks.CANVAS}
    pinpoints = [[tasks.CANVAS, tasks.CANVAS]]
    processor = LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=pinpoints)
    processor.save_pretrained(folder)
    settings = {
        "video_processor_type": "LlavaOnevisionVideoProcessor",
        "processor_class": "LlavaOnevisionProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": size,
        "resample": int(processor.resample),
        "do_rescale": True,
        "rescale_factor": processor.rescale_factor,
        "do_normalize": True,
        "image_mean": list(processor.image_mean),
        "image_std": list(processor.image_std),
    }
    _write_json(folder / "video_preprocessor_config.json", settings)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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
    parser = argparse.ArgumentParser(description="Train the demo family from scratch.")
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
