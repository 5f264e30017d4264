"""A synthetic family for benchmarks: a base and models that differ from it by small noise."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from omnireg.checkpoints.shards import write_shards
from omnireg.checkpoints.tensors import as_bytes

WIDTH, INNER, ROWS, KEY_VALUE = 896, 4864, 32_000, 128
#: parameters in billions → layers
LAYERS = {0.1: 5, 0.3: 18, 0.6: 38}


def shapes(layers: int, inner: int = INNER) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a Qwen2 language model with a tied head."""
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (ROWS, WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    for layer in range(layers):
        at = f"model.layers.{layer}."
        found |= {
            at + "input_layernorm.weight": (WIDTH,),
            at + "post_attention_layernorm.weight": (WIDTH,),
            at + "self_attn.o_proj.weight": (WIDTH, WIDTH),
            at + "mlp.gate_proj.weight": (inner, WIDTH),
            at + "mlp.up_proj.weight": (inner, WIDTH),
            at + "mlp.down_proj.weight": (WIDTH, inner),
        }
        for part, rows in (("q", WIDTH), ("k", KEY_VALUE), ("v", KEY_VALUE)):
            found[at + f"self_attn.{part}_proj.weight"] = (rows, WIDTH)
            found[at + f"self_attn.{part}_proj.bias"] = (rows,)
    return found


def config(layers: int, inner: int = INNER) -> dict[str, Any]:
    """Return its ``config.json``."""
    return {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": WIDTH,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": ROWS, "tie_word_embeddings": True,
        "max_position_embeddings": 2048, "dtype": "bfloat16",
    }  # fmt: skip


def make(
    folder: Path, billions: float, models: int, layers: int = 0, inner: int = INNER
) -> list[Path]:
    """Write base and models below ``folder``, those that are not there yet, and return them."""
    layers = layers or LAYERS[billions]
    made = [folder / f"{billions}B-{layers}-{name}" for name in ("base", *map(str, range(models)))]
    for number, place in enumerate(made):
        if (place / "config.json").exists():
            continue
        place.mkdir(parents=True, exist_ok=True)
        tensors = shapes(layers, inner)
        order = {name: index for index, name in enumerate(tensors)}

        def content(name: str, number: int = number, order: dict[str, int] = order) -> bytes:
            shape = shapes(layers, inner)[name]
            tensor = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(order[name]))
            if number:
                noise = torch.Generator().manual_seed(1000 * number + order[name])
                tensor += 1e-3 * torch.randn(shape, generator=noise)
            return as_bytes(tensor.to(torch.bfloat16))

        write_shards(place, {name: ("BF16", shape) for name, shape in tensors.items()}, content)
        (place / "config.json").write_text(json.dumps(config(layers, inner)))
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--billions", type=float, default=0.3, choices=LAYERS)
    parser.add_argument("--models", type=int, default=3)
    options = parser.parse_args()
    make(options.folder, options.billions, options.models)
