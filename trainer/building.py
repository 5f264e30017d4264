"""What the family is made of: tokenizers, tiny models of real classes, processors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
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

from omnireg.demo import speech, tasks
from omnireg.demo.clips import CANVAS, Modality

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
        image_size=CANVAS,
        patch_size=PATCH,
        vision_use_head=False,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[CANVAS, CANVAS]],
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


# --- processors -----------------------------------------------------------------------------


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
            "num_image_tokens": (CANVAS // PATCH) ** 2,
            "vision_feature_select_strategy": "full",
        }
    _write_json(folder / "processor_config.json", settings)


def _save_video_settings(folder: Path) -> None:
    """Also the video processor's, written by hand: its class needs torchvision."""
    size = {"height": CANVAS, "width": CANVAS}
    pinpoints = [[CANVAS, CANVAS]]
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
