"""A processor that joins those of all hosts: texts with placeholders, and media of any kind."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature

from omnireg.errors import ConfigError, did_you_mean
from omnireg.routed.readers import HostReader
from omnireg.routed.vocabulary import JointVocabulary


class Inputs(BatchFeature):
    """What the model takes: ``input_ids``, ``attention_mask``, and ``media`` by modality."""

    def to(self, device: Any, dtype: Any = None, **_: Any) -> "Inputs":
        """Move every tensor; those of floats may be converted."""
        self.data = _moved(self.data, device, dtype)
        return self


def _moved(value: Any, device: Any, dtype: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _moved(v, device, dtype) for name, v in value.items()}
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    return value


class OmniProcessor:
    """Texts and media as one padded batch of joint ids.

    In a text every medium has its placeholder: see :attr:`placeholders`. Media of one modality are
    taken in the order in which their placeholders stand in the batch.
    """

    def __init__(self, vocabulary: JointVocabulary) -> None:
        """Take the vocabulary; the hosts' processors are loaded when they are needed."""
        self._vocabulary = vocabulary
        self.tokenizer = vocabulary.tokenizer
        self._readers: dict[str, HostReader] = {}

    @cached_property
    def placeholders(self) -> dict[str, str]:
        """What stands for a medium of each modality in a text."""
        return {sense: p.text for sense, p in self._vocabulary.placeholders.items()}

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding_side: str = "left",
        **media: Sequence[Any] | Any,
    ) -> Inputs:
        """Return the inputs of a batch.

        Args:
            text: one prompt or several.
            padding_side: where short rows are filled up.
            media: by modality, one medium or a list: images as ``PIL.Image`` or arrays, sounds as
                waveforms at the host's sampling rate, videos as arrays (frames, height, width, 3).

        Raises:
            ConfigError: no such modality, or more or fewer media than placeholders.
        """
        texts = [text] if isinstance(text, str) else list(text)
        rows: list[list[int]] = self.tokenizer(texts)["input_ids"]
        given = {sense: _listed(found) for sense, found in media.items() if found is not None}
        self._check(rows, given)
        made = {
            sense: self.reader(sense)(found) for sense, found in given.items() if len(found) > 0
        }
        segments = {sense: self._segments(sense, inputs) for sense, inputs in made.items()}
        rows = [self._expanded(row, segments) for row in rows]
        length = max(map(len, rows))
        filler = self.tokenizer.pad_token_id
        filler = self.tokenizer.eos_token_id if filler is None else filler
        ids = torch.full((len(rows), length), 0 if filler is None else filler)
        shown = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            place = slice(length - len(row), length) if padding_side == "left" else slice(len(row))
            ids[number, place] = torch.tensor(row)
            shown[number, place] = 1
        found = {"input_ids": ids, "attention_mask": shown}
        return Inputs({**found, "media": made} if made else found)

    def reader(self, modality: str) -> HostReader:
        """Return the processor of a modality's host.

        Raises:
            ConfigError: the package takes in no such modality.
        """
        self._check_known(modality)
        if modality not in self._readers:
            placeholder = self._vocabulary.placeholders[modality]
            folder = self._vocabulary.package.host_folder(placeholder.model)
            self._readers[modality] = HostReader(
                folder, placeholder.sense.argument, placeholder.own_text
            )
        return self._readers[modality]

    def batch_decode(self, ids: Tensor, **kwargs: Any) -> list[str]:
        """Return the texts of ids."""
        found: list[str] = self.tokenizer.batch_decode(ids, **kwargs)
        return found

    def _check(self, rows: Sequence[Sequence[int]], given: Mapping[str, Sequence[Any]]) -> None:
        for sense in given:
            self._check_known(sense)
        for sense, placeholder in self._vocabulary.placeholders.items():
            asked = sum(row.count(placeholder.id) for row in rows)
            if asked != len(given.get(sense, ())):
                raise ConfigError(
                    f"{sense}: {asked} {placeholder.text} in the text, but"
                    f" {len(given.get(sense, ()))} media; write one {placeholder.text} for each"
                )

    def _check_known(self, modality: str) -> None:
        known = self._vocabulary.placeholders
        if modality not in known:
            raise ConfigError(
                f"no modality {modality!r}{did_you_mean(modality, known)}: the package takes in"
                f" {', '.join(known) or 'text alone'}"
            )

    def _segments(self, sense: str, inputs: Mapping[str, Any]) -> list[list[int]]:
        """Return, for every medium, the joint ids that take its placeholder's place."""
        placeholder = self._vocabulary.placeholders[sense]
        columns = self._vocabulary.columns[placeholder.model.name].clone()
        columns[placeholder.own_id] = placeholder.id
        shown = inputs["attention_mask"].bool()
        return [
            columns[row[mask]].tolist()
            for row, mask in zip(inputs["input_ids"], shown, strict=True)
        ]

    def _expanded(self, row: list[int], segments: Mapping[str, list[list[int]]]) -> list[int]:
        ids = {self._vocabulary.placeholders[sense].id: queue for sense, queue in segments.items()}
        found: list[int] = []
        for token in row:
            found += ids[token].pop(0) if token in ids else [token]
        return found


def _listed(media: Any) -> list[Any]:
    return list(media) if isinstance(media, list | tuple) else [media]
