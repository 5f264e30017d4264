"""What transformers itself says of a checkpoint: is it complete, and what is its text config."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omnireg.checkpoint import Checkpoint
from omnireg.errors import CheckpointError, PlanError

_NOT_TEXT = ("model_type", "architectures", "transformers_version", "tie_word_embeddings")


def check_complete(checkpoint: Checkpoint) -> None:
    """Ask transformers whether the tensors are exactly those that the class expects.

    Only headers are read: the model is loaded onto the meta device. Classes that transformers does
    not have are left to :func:`omnireg.backbone.find_language_model`.

    Raises:
        CheckpointError: tensors are missing, unexpected or of another shape; each is named.
    """
    import transformers

    cls = getattr(transformers, checkpoint.architecture, None)
    if cls is None:
        return
    _ = checkpoint.tensors  # a damaged file is reported by its own name first
    with _quiet():
        try:
            _, info = cls.from_pretrained(
                checkpoint.folder, device_map="meta", output_loading_info=True
            )
        except (ValueError, RuntimeError, KeyError, TypeError, OSError) as exc:
            raise CheckpointError(
                f"{checkpoint.ref} does not fit its config.json: {' '.join(str(exc).split())}"
            ) from exc
    problems = {
        "missing": [_missing(name, checkpoint) for name in info["missing_keys"]],
        "unexpected": [
            _as_written(name, checkpoint)
            for name in info["unexpected_keys"]
            if not name.endswith("rotary_emb.inv_freq")
        ],
        "of another shape": [
            _as_written(entry[0], checkpoint) for entry in info["mismatched_keys"]
        ],
    }
    said = [f"{what} {', '.join(sorted(names))}" for what, names in problems.items() if names]
    if said:
        raise CheckpointError(
            f"{checkpoint.ref} is not a complete {checkpoint.architecture}: {'; '.join(said)};"
            " download or save it again"
        )


def _missing(name: str, checkpoint: Checkpoint) -> str:
    """Name a missing tensor as this checkpoint's files would, next to the class's own name."""
    parts = name.split(".")
    for tail in range(1, len(parts)):
        for cut in range(len(parts) - tail):
            module = ".".join(parts[cut:-tail])
            for other in checkpoint.tensors:
                at = f".{other}".find(f".{module}.")
                if at >= 0:
                    written = ".".join([other[:at] + module, *parts[-tail:]])
                    return written if written == name else f"{written} (in memory {name})"
    return name


def _as_written(name: str, checkpoint: Checkpoint) -> str:
    """Return the tensor on disk that shares the longest tail with a name of the class."""

    def shared(other: str) -> int:
        pairs = zip(reversed(name.split(".")), reversed(other.split(".")), strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), len(other))

    return max(checkpoint.tensors, key=shared)


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def write_text_config(
    checkpoint: Checkpoint, folder: Path, *, text_architecture: str, vocabulary: int, tied: bool
) -> None:
    """Write ``config.json`` of a checkpoint's language model as a text model of its own.

    Raises:
        PlanError: the class of the language model is not known.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    with _quiet():
        text = transformers.AutoConfig.from_pretrained(checkpoint.folder).get_text_config()
        name = text_architecture or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(text.model_type)
        if not name:
            raise PlanError(
                f"{checkpoint.ref}: no text class is known for {text.model_type!r}; a plugin's host"
                " layout can name it (text_architecture)"
            )
        cls = getattr(transformers, name).config_class
        known = cls().to_dict()
        data = {k: v for k, v in text.to_dict().items() if k in known and k not in _NOT_TEXT}
        data["rope_parameters"] = _plain_rope(data.get("rope_parameters"))
        data |= {"tie_word_embeddings": tied, "architectures": [name], "vocab_size": vocabulary}
        written = cls(**data).to_json_string()
    (folder / "config.json").write_text(written, encoding="utf-8")


def _plain_rope(rope: Any) -> Any:
    """Without image positions, multimodal rotary embedding is the ordinary one."""
    if not isinstance(rope, dict):
        return rope
    plain = {k: v for k, v in rope.items() if not k.startswith("mrope")}
    for key in ("rope_type", "type"):
        if plain.get(key) == "mrope":
            plain[key] = "default"
    return plain
