"""Loading a checkpoint so that it can be asked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from omnireg.backbones.alignment import find_language_model
from omnireg.checkpoints.checkpoint import Checkpoint
from omnireg.checkpoints.loading import check_complete, config_errors, model_class, quiet, read_into
from omnireg.checkpoints.tensors import as_device, as_dtype
from omnireg.errors import CheckpointError, ConfigError, EvaluationError
from omnireg.evaluation.items import Item, Medium
from omnireg.evaluation.model import Subject
from omnireg.package import is_package
from omnireg.plugins.host import PluginHost
from omnireg.routed import OmniModel, load
from omnireg.routed.readers import HostReader, host_processor


def open_subject(
    folder: Path,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    plugins: PluginHost | None = None,
) -> Subject:
    """Load a text model, a host or a package.

    Args:
        folder: where it is.
        device: where it computes.
        dtype: what it computes in; what it is stored in when None.
        plugins: where host layouts come from.

    Raises:
        CheckpointError: missing, damaged, incomplete, or of a class that transformers has not.
        ConfigError: no such device or dtype.
    """
    if is_package(folder):
        return PackageSubject(load(folder, device=device, dtype=dtype, plugins=plugins))
    return HostSubject(folder, as_device(device), dtype, plugins or PluginHost())


class PackageSubject(Subject):
    """A package as one routed model; a batch may mix all modalities."""

    def __init__(self, model: OmniModel) -> None:
        """Take the routed model."""
        self.folder, self.model = model.package.folder, model
        self.tokenizer = model.processor.tokenizer
        self.placeholders = dict(model.processor.placeholders)

    def inputs(self, items: Sequence[Item], *, chat: bool) -> dict[str, Any]:
        """See :class:`Subject`."""
        media: dict[str, list[Any]] = {}
        for item in items:
            for medium in _in_order(item):
                reader = self.model.processor.reader(medium.modality)
                media.setdefault(medium.modality, []).append(_opened(medium, reader))
        texts = self.texts(items, chat=chat)
        return dict(self.model.processor(texts, **media).to(self.model.device))


class HostSubject(Subject):
    """A text model, or a host with its own processor."""

    def __init__(
        self, folder: Path, device: torch.device, dtype: str | None, plugins: PluginHost
    ) -> None:
        """Load model and tokenizer; the processor when media come."""
        checkpoint = Checkpoint(str(folder), folder)
        check_complete(checkpoint)
        found = find_language_model(checkpoint, plugins.layouts)
        self.folder = folder
        self.model = _load(checkpoint, dtype).to(device)
        senses = found.layout.senses
        self.tokenizer = _tokenizer(checkpoint)
        config = self.model.config
        tokens = {
            modality: next(
                (token for key in sense.placeholder if (token := getattr(config, key, None))), None
            )
            for modality, sense in senses.items()
        }
        self.placeholders = {
            modality: str(self.tokenizer.convert_ids_to_tokens(token))
            for modality, token in tokens.items()
            if token is not None
        }
        self._readers = {
            modality: HostReader(folder, senses[modality].argument, token)
            for modality, token in self.placeholders.items()
        }
        self._arguments = {modality: senses[modality].argument for modality in self.placeholders}

    @property
    def _template(self) -> Any:
        """See :class:`Subject`."""
        if self.placeholders and getattr(self._processor, "chat_template", None):
            return self._processor
        return self.tokenizer

    @property
    def has_chat_template(self) -> bool:
        """See :class:`Subject`."""
        return bool(getattr(self._template, "chat_template", None))

    @property
    def _processor(self) -> Any:
        return host_processor(self.folder)

    def inputs(self, items: Sequence[Item], *, chat: bool) -> dict[str, Any]:
        """See :class:`Subject`."""
        texts = self.texts(items, chat=chat)
        given: dict[str, Any] = {}
        for modality, argument in self._arguments.items():
            reader = self._readers[modality]
            rows = [
                [
                    reader.prepared(_opened(medium, reader))
                    for medium in _in_order(item)
                    if medium.modality == modality
                ]
                for item in items
            ]
            if any(rows):
                nested = argument == "images"
                given[argument] = rows if nested else [medium for row in rows for medium in row]
                if argument == "audio":
                    given["sampling_rate"] = reader.sampling_rate
        try:
            made = self._encode(texts, given, special=not chat)
        except (ValueError, TypeError, IndexError) as exc:
            raise EvaluationError(f"{self.folder}: {' '.join(str(exc).split())}") from exc
        return {
            name: value.to(self.model.device, self._kind(value))
            for name, value in made.items()
            if isinstance(value, torch.Tensor)
        }

    def _kind(self, value: torch.Tensor) -> torch.dtype | None:
        return self.model.dtype if value.is_floating_point() else None

    def _encode(self, texts: list[str], given: dict[str, Any], *, special: bool) -> Any:
        how = {"padding": True, "add_special_tokens": special, "return_tensors": "pt"}
        if not given:
            return self.tokenizer(texts, **how)
        processor = self._processor
        _pad_left(processor.tokenizer)
        return processor(text=texts, **given, **how)


def _in_order(item: Item) -> list[Medium]:
    return [part for part in item.parts if isinstance(part, Medium)]


def _opened(medium: Medium, reader: HostReader) -> Any:
    if not isinstance(medium.content, Path):
        return medium.content
    try:
        return reader.open(medium.content)
    except ConfigError as exc:
        raise EvaluationError(str(exc)) from exc


def _load(checkpoint: Checkpoint, dtype: str | None) -> Any:
    import transformers

    cls = model_class(checkpoint)
    if cls is None:
        raise CheckpointError(
            f"{checkpoint.ref}: transformers has no {checkpoint.architecture}; such a checkpoint"
            " cannot be asked"
        )
    with quiet(), config_errors(checkpoint):
        config = transformers.AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
        if hasattr(config, "enable_audio_output"):
            config.enable_audio_output = False
        model = read_into(
            cls, checkpoint.folder, config=config, dtype=as_dtype(dtype) if dtype else "auto"
        )
    return getattr(model, "thinker", model).eval()


def _tokenizer(checkpoint: Checkpoint) -> Any:
    import transformers

    try:
        with quiet():
            found = transformers.AutoTokenizer.from_pretrained(
                checkpoint.folder, trust_remote_code=False
            )
    except Exception as exc:  # what the tokenizers library raises has no class of its own
        raise CheckpointError(
            f"{checkpoint.ref}: its tokenizer cannot be read: {' '.join(str(exc).split())}"
        ) from exc
    _pad_left(found)
    return found


def _pad_left(tokenizer: Any) -> None:
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
