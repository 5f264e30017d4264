"""A host without its language model: what turns media into embeddings.

The host's own forward pass is run, with something in the place of the language model that hands
back what it was given. So whatever a class does on the way (newlines after rows, pooling of frames,
places in three dimensions) is done by that class.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omnireg.checkpoints.checkpoint import Checkpoint
from omnireg.checkpoints.loading import (
    config_errors,
    language_model_of,
    model_class,
    quiet,
    read_into,
)
from omnireg.checkpoints.shards import ByteReader, read_header
from omnireg.checkpoints.tensors import as_tensor
from omnireg.errors import CheckpointError, ConfigError
from omnireg.package import Model, Package
from omnireg.package.layout import SHELL

_WORDS = ("embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True)
class Encoded:
    """Media as a language model sees them.

    Attributes:
        ids: (media, length) in the host's vocabulary.
        shown: (media, length) 1 where there is a token.
        embeddings: (media, length, width); only those at placeholders mean anything.
        positions: (3, media, length) in time, height and width, if the host counts so.
    """

    ids: Tensor
    shown: Tensor
    embeddings: Tensor
    positions: Tensor | None


class _Blank(nn.Module):
    """An embedding that embeds nothing."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width, dtype=dtype), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight.new_zeros(*ids.shape, self.weight.shape[1])


class _Mirror(nn.Module):
    """Stands for a language model and gives back what it is asked to read."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = model.config
        self.embed_tokens = _Blank(model.config.hidden_size, dtype)
        self.rotary_emb = getattr(model, "rotary_emb", None)
        self.positions: Tensor | None = None

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def forward(
        self, *, inputs_embeds: Tensor, position_ids: Tensor | None = None, **others: object
    ) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPast

        if others.get("deepstack_visual_embeds") is not None:
            raise ConfigError(
                f"{self.config.model_type}: this host feeds its media into several layers of the"
                " language model, which a routed model cannot; take it out: omnireg mmer extract"
            )
        self.positions = position_ids
        return BaseModelOutputWithPast(last_hidden_state=inputs_embeds)


class Encoder(nn.Module):
    """The encoders and projectors of one host."""

    def __init__(self, package: Package, model: Model, dtype: torch.dtype) -> None:
        """Load what is the host's own.

        Raises:
            CheckpointError: transformers has no such class, or the weights do not fit it.
        """
        super().__init__()
        folder = package.host_folder(model)
        host = Checkpoint(str(folder), folder)
        self.host = _without_language_model(host, folder / SHELL, dtype, package.read)
        self._mirror = _put_mirror(self.host, dtype)

    @property
    def rotary(self) -> nn.Module | None:
        """The host's rotary embedding, if it counts in three dimensions."""
        rope = getattr(self._mirror.config, "rope_parameters", None) or {}
        return self._mirror.rotary_emb if "mrope_section" in rope else None

    @torch.no_grad()
    def forward(self, inputs: dict[str, Any]) -> Encoded:
        """Encode media: what the host's processor returns for one row of ids per medium."""
        ids = inputs["input_ids"]
        shown = inputs.get("attention_mask", torch.ones_like(ids))
        device, dtype = (
            self._mirror.embed_tokens.weight.device,
            self._mirror.embed_tokens.weight.dtype,
        )
        moved = {
            name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
            for name, value in inputs.items()
            if isinstance(value, Tensor)
        }
        found = self.host.base_model(**moved, use_cache=False)
        positions = self._mirror.positions
        if positions is not None:
            positions = positions[-3:] if positions.ndim == 3 else None
        return Encoded(ids, shown, found.last_hidden_state, positions)


def _without_language_model(
    host: Checkpoint, shell: Path, dtype: torch.dtype, read: ByteReader
) -> Any:
    from transformers import AutoConfig

    cls = model_class(host)
    if cls is None:
        raise CheckpointError(f"{host.ref}: transformers has no {host.architecture}")
    state = {
        name: as_tensor(read(header), header).clone()
        for name, header in read_header(shell).items()
        if not name.endswith(_WORDS)
    }
    read.check()
    with quiet(), config_errors(host):
        config = AutoConfig.from_pretrained(host.folder, trust_remote_code=False)
        _shrink(config)
        model, told = read_into(
            cls, None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
        )
    missing = [name for name in told["missing_keys"] if not _of_language_model(name)]
    if missing or told["unexpected_keys"]:
        problem = ", ".join(sorted({*missing, *told["unexpected_keys"]}))
        raise CheckpointError(f"{shell} does not fit {host.architecture}: {problem}; damaged")
    return getattr(model, "thinker", model).eval()


def _of_language_model(name: str) -> bool:
    """Whether a tensor is one of those that are left of a language model without layers."""
    return name.endswith((*_WORDS, "language_model.norm.weight", "text_model.norm.weight"))


def _shrink(config: Any) -> None:
    """Leave nothing of the language model but its width."""
    text = config.get_text_config()
    text.num_hidden_layers = 0
    text.layer_types = []
    text.vocab_size = 1
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, name, None)
    if hasattr(config, "enable_audio_output"):
        config.enable_audio_output = False


def _put_mirror(host: Any, dtype: torch.dtype) -> _Mirror:
    """Replace the language model."""
    path = language_model_of(host)
    above, _, name = path.rpartition(".")
    mirror = _Mirror(host.get_submodule(path), dtype)
    setattr(host.get_submodule(above), name, mirror)
    return mirror
