"""Take the language model out of a host as a text checkpoint, and put one back.

Finding it and lining it up with a base is :mod:`omnireg.backbones.alignment`'s part.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnireg.backbones.alignment import (
    EMBEDDING,
    HEAD,
    VOCABULARY,
    Alignment,
    LanguageModel,
    align,
)
from omnireg.backbones.sources import aligned
from omnireg.checkpoints.checkpoint import INDEX
from omnireg.checkpoints.loading import write_text_config
from omnireg.checkpoints.outputs import appearing, copy_files
from omnireg.checkpoints.shards import SHARD_BYTES, ByteReader, write_shards
from omnireg.checkpoints.tensors import TORCH_DTYPES, as_bytes, as_tensor, usual_dtype
from omnireg.errors import PlanError


@dataclass(frozen=True)
class Report:
    """Where every tensor of a host went."""

    mapped: int
    carried: int
    absent: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the report as the command line prints it."""
        tensors = {"mapped": self.mapped, "carried": self.carried, "absent": list(self.absent)}
        return {"tensors": tensors}


class BackboneReader:
    """The bytes of a model's backbone in the base's layout, vocabulary rows matched by token.

    A row that is not shared keeps the base's value, so its task vector is zero there.
    """

    def __init__(self, alignment: Alignment) -> None:
        self.alignment = alignment
        self._read = ByteReader()

    def signature(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Return dtype and shape of a canonical tensor in the base's layout."""
        if self._lacks(name):
            header = self.alignment.base.header(name)
            return header.dtype, header.shape
        found = aligned("", self.alignment, name)
        return found.dtype, found.shape

    def __call__(self, name: str) -> bytes | memoryview:
        """Return a canonical tensor's bytes; a bias that the model lacks is zero."""
        if self._lacks(name):
            return bytes(self.alignment.base.header(name).nbytes)
        return aligned("", self.alignment, name).bytes(self._read)

    def check(self) -> None:
        """Make sure that nothing that was read has changed meanwhile."""
        self._read.check()

    def _lacks(self, name: str) -> bool:
        return name != HEAD and name in self.alignment.absent


def extract(
    model: LanguageModel,
    out: Path,
    *,
    base: LanguageModel | None = None,
    max_bytes: int = SHARD_BYTES,
) -> Report:
    """Write the language model of a host as a text checkpoint of its own.

    Without ``base`` every vocabulary row of the host is kept, with the host's tokenizer. With it,
    the result has the base's layout, config and tokenizer; rows that the two do not share are the
    base's, and biases that the host lacks are zero.
    """
    reference = base or model
    reader = BackboneReader(align(model, reference))
    names = [n for n in reference.tensors if n != HEAD]
    if not (reference.tied and model.tied_in_effect):
        names.append(HEAD)
    with appearing(out) as folder:
        signatures = {n: reader.signature(n) for n in names}
        write_shards(folder, signatures, reader, max_bytes=max_bytes)
        reader.check()
        copy_files(reference.checkpoint.text_files, folder)
        if base is None or (base.tied and HEAD in names):
            write_text_config(
                reference.checkpoint,
                folder,
                text_architecture=reference.layout.text_architecture,
                vocabulary=reference.tensors[EMBEDDING].shape[0],
                tied=HEAD not in names,
                dtype=usual_dtype(dtype for dtype, _ in signatures.values()),
            )
    return Report(len(names), len(model.carried), reader.alignment.absent)


def graft(backbone: LanguageModel, host: LanguageModel, out: Path) -> Report:
    """Write the host with its language model replaced, everything else byte for byte.

    The shards keep their headers verbatim; only mapped bytes change, cast to the host's dtype.
    Vocabulary rows that the two tokenizers do not share stay with the host.

    Raises:
        PlanError: the backbone does not fit the host, or has a head of its own or biases that
            the host has no place for.
    """
    alignment = align(host, backbone)
    if host.tied and not backbone.tied_in_effect:
        raise PlanError(
            f"{host.checkpoint.ref} ties its head to its embedding, but the head of"
            f" {backbone.checkpoint.ref} differs from its embedding and would be lost; carry a host"
            " with a head of its own, or write the backbone (omnireg.output: backbone)"
        )
    mapped = list(host.tensors)
    read = ByteReader()
    check_nothing_lost(backbone, alignment, read)
    with appearing(out) as folder:
        copy_files(host.checkpoint.side_files, folder)
        index = host.checkpoint.folder / INDEX
        copy_files([index] if index.exists() else [], folder)
        for file in host.checkpoint.weight_files:
            shutil.copyfile(file, folder / file.name)
            inside = [n for n in mapped if host.tensors[n].file == file]
            with (folder / file.name).open("r+b") as stream:
                for name in inside:
                    for offset, data in _replacements(name, alignment, read):
                        stream.seek(offset)
                        stream.write(data)
        read.check()
        host.checkpoint.check_unchanged()
    return Report(len(mapped), len(host.carried), alignment.absent)


def check_nothing_lost(backbone: LanguageModel, alignment: Alignment, read: ByteReader) -> None:
    """Refuse a backbone with biases for a host that has no place for them, unless they are zero.

    Raises:
        PlanError: names the biases.
    """
    host = alignment.model
    lost = [n for n in alignment.absent if n != HEAD and any(read(backbone.tensors[n]))]
    if lost:
        raise PlanError(
            f"{host.checkpoint.ref} has no biases, but {backbone.checkpoint.ref} does and they are"
            f" not zero: {', '.join(lost[:4])} …; carry a host that has them, or write the backbone"
            " (omnireg.output: backbone)"
        )


def _replacements(
    name: str, alignment: Alignment, read: ByteReader
) -> Iterator[tuple[int, bytes | memoryview]]:
    host, source = alignment.model.tensors[name], alignment.base.header(name)
    data: bytes | memoryview = read(source)
    if source.dtype != host.dtype:
        data = as_bytes(as_tensor(data, source).to(TORCH_DTYPES()[host.dtype]))
    if name not in VOCABULARY or alignment.same_rows:
        yield host.start, data
        return
    row = host.nbytes // host.shape[0]
    for run in alignment.rows:
        yield host.start + run.start * row, data[run.start * row : run.stop * row]
