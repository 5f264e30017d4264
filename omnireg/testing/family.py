"""Tiny checkpoints of one base, in every form that makes merging hard."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnireg.checkpoints.loading import quiet

TOKENS, ROWS, MORE_ROWS = 60, 64, 72
WIDTH = 16
_PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class Family:
    """Folders of checkpoints that were made of one base, by small random changes.

    Attributes:
        base: a text model with a head of its own.
        models: three text models of it; of each task vector some elements are zero.
        same: three copies of the base: all task vectors are zero.
        prefixed: a host with an encoder, whose language model lies under another prefix, and whose
            vocabulary has more rows.
        larger: a text model with more vocabulary rows, one of them for a token of its own.
        cut: what the base and the larger model share of it: the base's rows, and of those that mean
            something else the base's values.
        lacking: a text model without a head, where the base has one.
        tied_base: a text model whose head is its embedding.
        tied_models: two text models of it.
    """

    base: Path
    models: tuple[Path, Path, Path]
    same: tuple[Path, Path, Path]
    prefixed: Path
    larger: Path
    cut: Path
    lacking: Path
    tied_base: Path
    tied_models: tuple[Path, Path]


def make_family(folder: Path, dtype: str = "float32") -> Family:
    """Write the family into a folder, the same every time.

    Args:
        folder: where; a subfolder for each checkpoint.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
    """
    kind: torch.dtype = getattr(torch, dtype)
    with quiet():
        base, tied = _text(tie=False, seed=1), _text(tie=True, seed=1)

        def save(name: str, model: Any, *, placeholder: bool = False) -> Path:
            place = folder / name
            model.to(kind).save_pretrained(place)
            _write_tokenizer(place, placeholder)
            return place

        def changed(model: Any, seed: int) -> Any:
            return _changed(model, seed, kind)

        larger = changed(_larger(base), 50)
        return Family(
            base=save("base", base),
            models=_three(lambda n: save(f"model-{n}", changed(base, 10 + n))),
            same=_three(lambda n: save(f"same-{n}", _changed(base, 0, kind, size=0.0))),
            prefixed=save("prefixed", changed(_host(base), 20), placeholder=True),
            larger=save("larger", larger, placeholder=True),
            cut=save("cut", _cut(larger, base)),
            lacking=save("lacking", changed(tied, 30)),
            tied_base=save("tied-base", tied),
            tied_models=(
                save("tied-0", changed(tied, 40)),
                save("tied-1", changed(tied, 41)),
            ),
        )


def _three(make: Callable[[int], Path]) -> tuple[Path, Path, Path]:
    return make(0), make(1), make(2)


def _text_config(*, tie: bool, rows: int = ROWS) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=rows, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        tie_word_embeddings=tie, bos_token_id=None, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip


def _text(*, tie: bool, seed: int, rows: int = ROWS) -> Any:
    from transformers import Qwen2ForCausalLM

    model = Qwen2ForCausalLM(_text_config(tie=tie, rows=rows))
    _fill(model, seed)
    return model


def _larger(base: Any) -> Any:
    """Return a text model with more rows than the base, and its values where both have some."""
    model = _text(tie=False, seed=3, rows=MORE_ROWS)
    with torch.no_grad():
        for name, tensor in base.named_parameters():
            model.get_parameter(name)[: len(tensor)].copy_(tensor)
    return model


def _cut(larger: Any, base: Any) -> Any:
    """Return the larger model with as many rows as the base, whose value its own token gets."""
    from copy import deepcopy

    made = deepcopy(base)
    with torch.no_grad():
        for name, tensor in made.named_parameters():
            tensor.copy_(larger.get_parameter(name)[: len(tensor)])
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            made.get_parameter(name)[TOKENS] = base.get_parameter(name)[TOKENS]
    return made


def _host(base: Any) -> Any:
    """Return a host around the base's language model, whose new vocabulary rows are its own."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=1,
        image_size=8, patch_size=4,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=_text_config(tie=False, rows=MORE_ROWS),
        image_token_index=TOKENS, vision_feature_layer=-1, tie_word_embeddings=False,
    )  # fmt: skip
    model: Any = LlavaForConditionalGeneration(config)
    _fill(model, 2)
    with torch.no_grad():
        own = model.model.language_model.state_dict()
        for name, tensor in base.model.state_dict().items():
            own[name][: len(tensor)].copy_(tensor)
        model.lm_head.weight[:ROWS].copy_(base.lm_head.weight)
    return model


def _fill(model: Any, seed: int) -> None:
    """Give every weight a value that does not depend on how the class begins."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, tensor in sorted(model.named_parameters()):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))


def _changed(model: Any, seed: int, kind: torch.dtype, *, size: float = 0.02) -> Any:
    """Return a copy whose weights, as they are stored, moved a little; one in four did not."""
    from copy import deepcopy

    made, generator = deepcopy(model).to(kind), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, tensor in sorted(made.named_parameters()):
            noise = size * torch.randn(tensor.shape, generator=generator)
            still = torch.rand(tensor.shape, generator=generator) < 0.25
            moved: Tensor = tensor.float() + torch.where(still, 0.0, noise)
            tensor.copy_(moved)
    return made


def _write_tokenizer(folder: Path, placeholder: bool) -> None:
    """Write a tokenizer of made-up words; a host's placeholder takes the first free row."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    raw = Tokenizer(WordLevel({f"w{i}": i for i in range(TOKENS)}, unk_token="w0"))
    if placeholder:
        raw.add_special_tokens([_PLACEHOLDER])
    raw.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0"}', encoding="utf-8"
    )
