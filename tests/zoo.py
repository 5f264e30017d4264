"""Tiny, deterministic models of every class people merge, in every on-disk form they have had.

Each :class:`Species` is one transformers class with a two-layer config and an input that reaches
its encoders. :func:`house` writes it in one of its layouts, with a tokenizer, a chat template and
a preprocessor config beside the weights.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

ROWS = 272
HOST_ROWS = 280
#: every base token; the last three are added ones. Rows after them are the base's padding.
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("t h", "th e", "i n", "a n", "e r", "an d")
_LEARNED = 256 + len(MERGES)
#: hosts put their placeholders into the ids right after the base's tokens
PLACEHOLDERS = ("<image>", "<video>", "<audio>", "<vision_start>", "<vision_end>")
IMAGE, VIDEO, AUDIO, VISION_START, VISION_END = range(
    _LEARNED + len(SPECIAL), _LEARNED + len(SPECIAL) + len(PLACEHOLDERS)
)
WIDTH = 32

Tensors = dict[str, torch.Tensor]


def _text(**changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": ROWS, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "bos_token_id": None, "eos_token_id": _LEARNED, "pad_token_id": None,
        "tie_word_embeddings": False, "rms_norm_eps": 1e-6, **changes,
    }  # fmt: skip


def _words(placeholders: list[int], before: int = 3, after: int = 4) -> torch.Tensor:
    ids = [*range(70, 70 + before), *placeholders, *range(90, 90 + after)]
    return torch.tensor([ids])


def _noise(*shape: int, seed: int = 7) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _vit(**changes: Any) -> dict[str, Any]:
    return {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 8, "patch_size": 4, **changes,
    }  # fmt: skip


@dataclass(frozen=True)
class Species:
    """A class, how to configure it for a text config, and an input for it.

    Attributes:
        base: the text class its language model is one of.
        config: keyword arguments of the config class, from those of its text config.
        media: names of the inputs that hold pictures, videos or sounds.
        forms: on-disk forms that only this class has, see :data:`FORMS`.
    """

    architecture: str
    base: str
    config: Callable[[dict[str, Any]], dict[str, Any]]
    inputs: Callable[[], Tensors] = lambda: {"input_ids": _words([])}
    media: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()

    @property
    def cls(self) -> Any:
        """The transformers class."""
        return getattr(transformers, self.architecture)

    @property
    def is_host(self) -> bool:
        """Whether it takes in anything but text."""
        return bool(self.media)

    @property
    def layouts(self) -> tuple[str, ...]:
        """Every on-disk form of the class."""
        return ("legacy", *(("memory",) if self.is_host else ()), "tied", *self.forms)

    def text_config(self, **changes: Any) -> dict[str, Any]:
        """Return keyword arguments for the config of its language model."""
        head_dim = {"head_dim": 16} if self.base == "Qwen3ForCausalLM" else {}
        rows = HOST_ROWS if self.is_host else ROWS
        return _text(vocab_size=rows, **head_dim) | changes

    def build(self, *, speaks: bool = False, **text: Any) -> Any:
        """Return the model in evaluation mode; every parameter matters to its logits."""
        arguments = self.config(self.text_config(**text))
        if speaks:
            arguments["enable_audio_output"] = True
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.cls(self.cls.config_class(**arguments)).eval()
            return perturbed(model, lambda name: True)

    def logits(self, model: Any, inputs: Tensors | None = None) -> torch.Tensor:
        """Return the model's answer to its own kind of input, or to another."""
        reader = getattr(model, "thinker", model)
        with torch.no_grad():
            answer: torch.Tensor = reader(**(inputs or self.inputs())).logits
        return answer

    def load(self, folder: Path) -> Any:
        """Load a checkpoint of this class; nothing may be missing or left over."""
        return load(self.cls, folder)


def perturbed(model: Any, chosen: Callable[[str], bool], *, scale: float = 0.1) -> Any:
    """Add noise to the chosen parameters, in place."""
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if chosen(name):
                parameter.add_(torch.randn_like(parameter) * scale)
    return model


def load(cls: Any, folder: Path, **config: Any) -> Any:
    """Load a checkpoint, which must be exactly what the class expects."""
    # not cls.from_pretrained: Qwen2_5Omni's own cannot report what it found
    read = vars(transformers.PreTrainedModel)["from_pretrained"].__func__
    model, info = read(cls, folder, output_loading_info=True, **config)
    left = {n for n in info["unexpected_keys"] if not n.endswith(("inv_freq", "position_ids"))}
    assert (info["missing_keys"], info["mismatched_keys"], left) == (set(), set(), set())
    return model.eval()


def text_prefix(model: Any) -> str:
    """Return where the language model stands inside a model in memory."""
    found = [n for n in model.state_dict() if re.search(r"(^|\.)embed_tokens\.weight$", n)]
    (name,) = (n for n in found if not n.startswith("talker."))
    return str(name).removesuffix("embed_tokens.weight")


def put_text(model: Any, text: Tensors) -> None:
    """Give a model in memory the language model of a text model's ``state_dict``."""
    prefix = text_prefix(model)
    outer = prefix.split("model.")[0]
    placed = {
        outer + n if n == "lm_head.weight" else prefix + n.removeprefix("model."): t
        for n, t in text.items()
    }
    assert model.load_state_dict(placed, strict=False).unexpected_keys == []


def _rope(**changes: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 5000.0, **changes}


def _text_model(text: dict[str, Any]) -> dict[str, Any]:
    return {**text, "rope_parameters": _rope()}


def _llava(text_type: str, vision: dict[str, Any], **changes: Any) -> Callable[..., dict[str, Any]]:
    def config(text: dict[str, Any]) -> dict[str, Any]:
        return {
            "text_config": {**text, "model_type": text_type, "rope_parameters": _rope()},
            "vision_config": vision, "image_token_index": IMAGE,
            "tie_word_embeddings": text["tie_word_embeddings"], **changes,
        }  # fmt: skip

    return config


def _onevision(text: dict[str, Any]) -> dict[str, Any]:
    vision = _vit(model_type="siglip_vision_model", vision_use_head=False)
    grid = {"image_grid_pinpoints": [[8, 8], [8, 16]], "video_token_index": VIDEO}
    return _llava("qwen2", vision, **grid)(text)


def _qwen_vl(
    vision: dict[str, Any], mrope: list[int], **more: Any
) -> Callable[..., dict[str, Any]]:
    def config(text: dict[str, Any]) -> dict[str, Any]:
        rope = _rope(mrope_section=mrope, **more)
        return {
            "text_config": {**text, "rope_parameters": rope},
            "vision_config": {
                "depth": 2, "patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2,
                **vision,
            },
            "image_token_id": IMAGE, "video_token_id": VIDEO,
            "vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END,
            "tie_word_embeddings": text["tie_word_embeddings"],
        }  # fmt: skip

    return config


_VISION_25 = {
    "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": WIDTH,
    "window_size": 16, "fullatt_block_indexes": [1],
}  # fmt: skip
_VISION_2 = {"embed_dim": 16, "num_heads": 2, "hidden_size": WIDTH, "mlp_ratio": 2}
_VISION_3 = {
    "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": WIDTH,
    "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
}  # fmt: skip


def _thinker(text: dict[str, Any]) -> dict[str, Any]:
    return {
        "text_config": {**text, "rope_parameters": _rope(mrope_section=[1, 1, 2])},
        "vision_config": {
            "depth": 2, "patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2,
            **_VISION_25,
        },
        "audio_config": {
            "num_mel_bins": 8, "encoder_layers": 2, "encoder_attention_heads": 2,
            "encoder_ffn_dim": 24, "d_model": 16, "max_source_positions": 20, "n_window": 10,
            "output_dim": WIDTH,
        },
        "image_token_index": IMAGE, "video_token_index": VIDEO, "audio_token_index": AUDIO,
        "vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END,
        "audio_start_token_id": VISION_START, "audio_end_token_id": VISION_END,
        "tie_word_embeddings": text["tie_word_embeddings"],
    }  # fmt: skip


def _omni(text: dict[str, Any]) -> dict[str, Any]:
    return {
        "thinker_config": _thinker(text), "talker_config": _TALKER, "token2wav_config": _VOICE,
        "enable_audio_output": False,
    }  # fmt: skip


_TALKER = {
    "vocab_size": 64, "embedding_size": WIDTH, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "mrope_section": [1, 1, 2]},
}  # fmt: skip
_VOICE = {
    "dit_config": {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ff_mult": 1,
        "emb_dim": 8, "head_dim": 8, "num_embeds": 16, "mel_dim": 8, "enc_emb_dim": 8,
        "enc_dim": 8, "enc_channels": [8, 8, 8, 8, 24], "enc_attention_channels": 4,
        "enc_res2net_scale": 2, "enc_se_channels": 4, "look_ahead_layers": [0],
        "look_backward_layers": [0],
    },
    "bigvgan_config": {
        "mel_dim": 8, "upsample_initial_channel": 8, "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3, 5]], "upsample_rates": [2],
        "upsample_kernel_sizes": [4],
    },
}  # fmt: skip


def _audio(text: dict[str, Any]) -> dict[str, Any]:
    return {
        "text_config": {**text, "model_type": "qwen2", "rope_parameters": _rope()},
        "audio_config": {
            "model_type": "qwen2_audio_encoder", "num_mel_bins": 8, "encoder_layers": 2,
            "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "d_model": 16,
            "max_source_positions": 20,
        },
        "audio_token_index": AUDIO,
    }  # fmt: skip


def _picture(count: int) -> Callable[[], Tensors]:
    return lambda: {"input_ids": _words([IMAGE] * count), "pixel_values": _noise(1, 3, 8, 8)}


def _tiles(count: int) -> Tensors:
    return {
        "input_ids": _words([IMAGE] * count),
        "pixel_values": _noise(1, 2, 3, 8, 8),
        "image_sizes": torch.tensor([[8, 8]]),
    }


def _tiles_and_film() -> Tensors:
    found = _tiles(10)
    return found | {
        "input_ids": _words([*[IMAGE] * 10, 75, *[VIDEO] * 3]),
        "pixel_values_videos": _noise(1, 2, 3, 8, 8, seed=8),
    }


def _grids() -> Tensors:
    image = [VISION_START, *[IMAGE] * 4, VISION_END]
    video = [VISION_START, *[VIDEO] * 4, VISION_END]
    ids = _words([*image, *video])
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int(),
        "pixel_values": _noise(16, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "pixel_values_videos": _noise(16, 3 * 2 * 4 * 4, seed=8),
        "video_grid_thw": torch.tensor([[1, 4, 4]]),
    }


def _sound(frames: int, tokens: int) -> Tensors:
    return {
        "input_ids": _words([AUDIO] * tokens),
        "input_features": _noise(1, 8, frames, seed=9),
        "feature_attention_mask": torch.ones(1, frames, dtype=torch.long),
    }


def _everything() -> Tensors:
    found = _grids()
    del found["mm_token_type_ids"]
    sound = _sound(40, 10)
    ids = [
        *[VISION_START, *[IMAGE] * 4, VISION_END],
        *[VISION_START, *[VIDEO] * 4, VISION_END],
        *[VISION_START, *[AUDIO] * 10, VISION_END],
    ]
    return sound | found | {"input_ids": _words(ids)}


_CLIP = _vit(model_type="clip_vision_model", projection_dim=16)
TEXTS = (
    Species("Qwen2ForCausalLM", "Qwen2ForCausalLM", _text_model, forms=("both",)),
    Species("Qwen3ForCausalLM", "Qwen3ForCausalLM", _text_model),
    Species("LlamaForCausalLM", "LlamaForCausalLM", _text_model, forms=("buffers", "shards")),
    Species("MistralForCausalLM", "MistralForCausalLM", _text_model),
)
HOSTS = (
    Species(
        "LlavaForConditionalGeneration", "LlamaForCausalLM", _llava("llama", _CLIP),
        _picture(4), ("pixel_values",), ("hub", "buffers", "shards"),
    ),
    Species(
        "LlavaNextForConditionalGeneration", "MistralForCausalLM",
        _llava("mistral", _CLIP, image_grid_pinpoints=[[8, 8], [8, 16]]),
        lambda: _tiles(10), ("pixel_values",), ("hub",),
    ),
    Species(
        "LlavaOnevisionForConditionalGeneration", "Qwen2ForCausalLM", _onevision,
        _tiles_and_film, ("pixel_values", "pixel_values_videos"), ("hub",),
    ),
    Species(
        "InternVLForConditionalGeneration", "Qwen2ForCausalLM",
        lambda text: _llava("qwen2", _vit(image_size=[8, 8], patch_size=[2, 2]))(text)
        | {"image_token_id": IMAGE, "image_seq_length": 4},
        _picture(4), ("pixel_values",),
    ),
    Species(
        "Qwen2VLForConditionalGeneration", "Qwen2ForCausalLM",
        _qwen_vl(_VISION_2, [1, 1, 2]), _grids, ("pixel_values", "pixel_values_videos"),
        ("both", "flat", "shards"),
    ),
    Species(
        "Qwen2_5_VLForConditionalGeneration", "Qwen2ForCausalLM",
        _qwen_vl(_VISION_25, [1, 1, 2]), _grids, ("pixel_values", "pixel_values_videos"),
    ),
    Species(
        "Qwen3VLForConditionalGeneration", "Qwen3ForCausalLM",
        _qwen_vl(_VISION_3, [4, 2, 2], mrope_interleaved=True), _grids,
        ("pixel_values", "pixel_values_videos"),
    ),
    Species(
        "Qwen2AudioForConditionalGeneration", "Qwen2ForCausalLM", _audio,
        lambda: _sound(40, 10), ("input_features",),
    ),
    Species(
        "Qwen2_5OmniThinkerForConditionalGeneration", "Qwen2ForCausalLM", _thinker,
        _everything, ("pixel_values", "pixel_values_videos", "input_features"), ("thinker",),
    ),
    Species(
        "Qwen2_5OmniForConditionalGeneration", "Qwen2ForCausalLM", _omni,
        _everything, ("pixel_values", "pixel_values_videos", "input_features"), ("talker",),
    ),
    Species(
        "Idefics3ForConditionalGeneration", "LlamaForCausalLM",
        lambda text: _llava("llama", _vit())(text) | {"image_token_id": IMAGE, "scale_factor": 2},
        lambda: {"input_ids": _words([IMAGE]), "pixel_values": _noise(1, 1, 3, 8, 8)},
        ("pixel_values",),
    ),
)  # fmt: skip

SPECIES = {species.architecture: species for species in (*TEXTS, *HOSTS)}
#: every (class, on-disk form) of the zoo
HOUSES = [(name, form) for name, species in SPECIES.items() for form in species.layouts]
HOST_HOUSES = [(name, form) for name, form in HOUSES if SPECIES[name].is_host]

#: forms that Hub checkpoints have and ``save_pretrained`` no longer writes: how to rename the
#: legacy form
FORMS: Mapping[str, tuple[tuple[str, str], ...]] = {
    # CLIP and SigLIP towers had one more level
    "hub": ((r"^vision_tower\.", "vision_tower.vision_model."),),
    # the thinker, as it stands in a whole Qwen2.5-Omni
    "thinker": ((r"^", "thinker."),),
}


def house(species: Species, form: str, folder: Path, **text: Any) -> Path:
    """Write a model of the class in one of its on-disk forms.

    Forms: ``legacy`` and ``memory`` (what ``save_pretrained`` writes, with and without the old
    names), ``tied``, ``both`` (tied, yet with a head on disk), ``buffers`` (rotary frequencies and
    position ids among the weights), ``shards`` (several files and an index), ``flat`` (text
    settings at the top of the config), ``talker`` (speech decoder included), and those in
    :data:`FORMS`.
    """
    if form in ("tied", "both"):
        text = {"tie_word_embeddings": True, **text}
    model = species.build(speaks=form == "talker", **text)
    save(model, folder, memory=form == "memory", sharded=form == "shards")
    if form in FORMS:
        rewrite(folder, lambda tensors: renamed(tensors, *FORMS[form]))
    elif form == "buffers":
        rewrite(folder, _with_buffers)
    elif form == "both":
        rewrite(folder, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"].clone()})
    elif form == "flat":
        _flatten_config(folder)
    write_side_files(folder, species)
    return folder


def in_llava_code(folder: Path) -> Path:
    """Turn a text checkpoint into one of LLaVA's own code, as LLaVA-Video is published."""
    beside = {
        "model.image_newline": _noise(WIDTH),
        "model.mm_projector.0.weight": _noise(WIDTH, 8),
        "model.mm_projector.0.bias": _noise(WIDTH),
        "model.vision_tower.vision_tower.vision_model.embeddings.patch_embedding.weight": _noise(
            8, 3, 4, 4
        ),
    }
    rewrite(folder, lambda tensors: tensors | beside)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "architectures": ["LlavaQwenForCausalLM"], "model_type": "llava_qwen",
        "mm_projector_type": "mlp2x_gelu", "mm_vision_tower": "google/siglip-so400m-patch14-384",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def save(model: Any, folder: Path, *, memory: bool = False, sharded: bool = False) -> None:
    """Write a model as transformers does."""
    most = "20KB" if sharded else "5GB"
    model.save_pretrained(folder, save_original_format=not memory, max_shard_size=most)


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Rewrite the weights of a checkpoint of one file."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def renamed(tensors: Tensors, *rules: tuple[str, str]) -> Tensors:
    """Return tensors with every (pattern, replacement) applied to their names."""
    for pattern, replacement in rules:
        tensors = {re.sub(pattern, replacement, name): t for name, t in tensors.items()}
    return tensors


def read_weights(folder: Path) -> Tensors:
    """Return every tensor of a checkpoint, of one file or of several."""
    found: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def _with_buffers(tensors: Tensors) -> Tensors:
    norms = [n for n in tensors if re.search(r"layers\.\d\.input_layernorm\.weight$", n)]
    for norm in norms:
        name = norm.replace("input_layernorm.weight", "self_attn.rotary_emb.inv_freq")
        tensors[name] = torch.ones(4)
    if any(name.startswith("vision_tower.") for name in tensors):
        tensors["vision_tower.embeddings.position_ids"] = torch.arange(5)[None]
    return tensors


def _flatten_config(folder: Path) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    scaling = {"rope_theta": rope["rope_theta"]}
    scaling["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    file.write_text(json.dumps({**text, **scaling, **config}))


def write_side_files(folder: Path, species: Species) -> None:
    """Write the tokenizer, and beside a host what its processor would read."""
    write_tokenizer(folder, PLACEHOLDERS if species.is_host else ())
    if species.is_host:
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        (folder / "preprocessor_config.json").write_text('{"size": 8}')
        (folder / "processor_config.json").write_text('{"image_token": "<image>"}')
    if species.architecture == "Qwen2_5OmniForConditionalGeneration":
        torch.save({}, folder / "spk_dict.pt")


_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def write_tokenizer(folder: Path, placeholders: tuple[str, ...] = ()) -> None:
    """Write a byte-level BPE ``tokenizer.json`` that every model of the zoo shares.

    A host's placeholders take the ids after the base's tokens: rows that are the base's padding.
    """
    alphabet = sorted(bytes_to_unicode().values())
    words = [*alphabet, *(merge.replace(" ", "") for merge in MERGES)]
    added = [*SPECIAL, *placeholders]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [
            {
                "id": _LEARNED + i, "content": token, "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False, "special": True,
            }
            for i, token in enumerate(added)
        ],
        "pre_tokenizer": _BYTES, "post_processor": None, "decoder": _BYTES,
        "model": {
            "type": "BPE", "vocab": {word: i for i, word in enumerate(words)},
            "merges": [merge.split(" ") for merge in MERGES],
        },
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def bytes_to_unicode() -> dict[int, str]:
    """Return the printable character that byte-level BPE writes for each byte."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in kept]
    return {b: chr(b) for b in kept} | {b: chr(256 + i) for i, b in enumerate(others)}


class Zoo:
    """Built folders, each made once and shared; copy one before changing it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(self, architecture: str, form: str = "legacy", **text: Any) -> Path:
        """Return the folder of a class in an on-disk form, with changes to its text config."""
        changes = "".join(f"-{key}={value}" for key, value in sorted(text.items()))
        folder = self._root / f"{architecture}-{form}{changes}"
        if not folder.exists():
            house(SPECIES[architecture], form, folder, **text)
        return folder

    def copy(self, folder: Path, to: Path) -> Path:
        """Copy a folder, so that it can be changed."""
        return Path(shutil.copytree(folder, to))
