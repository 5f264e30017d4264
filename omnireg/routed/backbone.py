"""The base's own class with routed modules in the place of those that have weights."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from omnireg.checkpoints.loading import quiet
from omnireg.errors import CheckpointError
from omnireg.routed.embedding import Embedding, Head
from omnireg.routed.layers import Pass, Routed, RoutedLinear
from omnireg.routed.vocabulary import JointVocabulary
from omnireg.routed.weights import Weights

_EMBEDDING, _HEAD, _ROTARY = "model.embed_tokens", "lm_head", "model.rotary_emb"


class _Rotary(nn.Module):
    """A rotary embedding that counts in three dimensions where a host does."""

    def __init__(self, rotary: nn.Module, now: Pass) -> None:
        super().__init__()
        self.rotary, self._now = rotary, now

    def forward(self, x: Tensor, position_ids: Tensor) -> Any:
        places = self._now.positions
        return self.rotary(x, position_ids if places is None else places)


def build(
    config: Any, vocabulary: JointVocabulary, weights: Weights, now: Pass, rotary: nn.Module | None
) -> Any:
    """Build the model; nothing of it has weights yet.

    Raises:
        CheckpointError: the class and the package disagree on what there is.
    """
    with quiet(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=weights.dtype
        )
    unknown = set(weights.package.vector)
    for path, module in list(model.named_modules()):
        names = {name: f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)}
        if not names:
            continue
        unknown -= set(names.values())
        if path not in (_EMBEDDING, _HEAD):
            _check_known(names.values(), weights)
            routed = RoutedLinear if isinstance(module, nn.Linear) else Routed
            _put(model, path, routed(module, names, weights, now))
    if unknown:
        raise CheckpointError(
            f"{weights.package.folder}: {type(model).__name__} has no {', '.join(sorted(unknown))}"
        )
    _put(model, _EMBEDDING, Embedding(vocabulary, weights, now))
    _put(model, _HEAD, Head(vocabulary, weights, now))
    own = type(model.model.rotary_emb)(config=config)
    _put(model, _ROTARY, own if rotary is None else _Rotary(rotary, now))
    return model


def _check_known(names: Iterable[str], weights: Weights) -> None:
    missing = [name for name in names if name not in weights.package.vector]
    if missing:
        raise CheckpointError(f"{weights.package.folder} has no {', '.join(missing)}: damaged")


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    above, _, name = path.rpartition(".")
    setattr(model.get_submodule(above), name, module)
