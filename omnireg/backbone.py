"""The language model inside a host: find it, line it up with a base, take it out, put it back.

Hosts share a language model, not a layout. Its tensors stand under different prefixes, beside
encoders that only one host has, with different extra rows in the vocabulary. Here every tensor of
every input ends as merged, carried or absent; whatever cannot be explained is an error that lists
it by name.
"""

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnireg.checkpoint import Checkpoint, Vocabulary
from omnireg.errors import PlanError
from omnireg.hookspecs import HostLayout
from omnireg.loading import write_text_config
from omnireg.outputs import appearing, copy_files
from omnireg.shards import ByteReader, TensorHeader, write_shards

if TYPE_CHECKING:
    import torch

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
VOCABULARY = (EMBEDDING, HEAD)
#: recomputed by every model class, written by some older ones
_BUFFERS = ("*rotary_emb.inv_freq", "*.masked_bias")
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class LanguageModel:
    """The language model of a checkpoint under canonical names (``model.…``, ``lm_head.weight``)."""

    checkpoint: Checkpoint
    layout: HostLayout
    prefix: str
    tensors: Mapping[str, TensorHeader]
    carried: tuple[str, ...]

    @property
    def tied(self) -> bool:
        """Whether the head on disk is the embedding."""
        return HEAD not in self.tensors

    @property
    def is_host(self) -> bool:
        """Whether the checkpoint takes in anything but text."""
        return bool(self.layout.senses or self.layout.carried)

    def header(self, name: str) -> TensorHeader:
        """Return a tensor by canonical name; a tied head is the embedding."""
        return self.tensors[EMBEDDING if name == HEAD and self.tied else name]

    @cached_property
    def depth(self) -> int:
        """Number of layers."""
        found = [int(m[1]) for name in self.tensors if (m := _LAYER.search(name))]
        return max(found, default=-1) + 1

    @cached_property
    def tied_in_effect(self) -> bool:
        """Whether a head, if there is one, holds the same bytes as the embedding."""
        read = ByteReader()
        return self.tied or read(self.tensors[HEAD]) == read(self.tensors[EMBEDDING])


def find_language_model(checkpoint: Checkpoint, layouts: Mapping[str, HostLayout]) -> LanguageModel:
    """Find the language model of a checkpoint by its embedding, whatever the on-disk form.

    Raises:
        PlanError: the class is unknown, or a tensor is neither part of the language model nor
            one that the class is known to carry.
    """
    layout = layouts.get(checkpoint.architecture, HostLayout((checkpoint.architecture,)))
    names = checkpoint.tensors
    inside = [name for name in names if not _matches(name, layout.ignored)]
    prefix = _prefix(checkpoint, inside)
    heads = [name for name in inside if re.search(r"(^|\.)lm_head\.weight$", name)]
    if len(heads) > 1:
        raise PlanError(f"{checkpoint.ref} has several heads: {', '.join(heads)}")
    found, carried, unexplained = {}, [], []
    for name, header in names.items():
        if name in heads:
            found[HEAD] = header
        elif _matches(name, (*layout.carried, *layout.ignored, *_BUFFERS)):
            carried.append(name)
        elif name.startswith(prefix):
            found["model." + name.removeprefix(prefix)] = header
        else:
            unexplained.append(name)
    if unexplained:
        raise _unexplained(checkpoint, unexplained, layout.architectures[0] in layouts)
    return LanguageModel(checkpoint, layout, prefix, found, tuple(carried))


def _prefix(checkpoint: Checkpoint, names: Iterable[str]) -> str:
    found = [name for name in names if re.search(r"(^|\.)embed_tokens\.weight$", name)]
    if len(found) != 1:
        listed = ", ".join(found) or "none"
        raise PlanError(
            f"{checkpoint.ref} ({checkpoint.architecture}): expected one language-model embedding"
            f" (…embed_tokens.weight), found {listed}"
        )
    return found[0].removesuffix("embed_tokens.weight")


def _unexplained(checkpoint: Checkpoint, names: list[str], known: bool) -> PlanError:
    where = f"{checkpoint.ref} ({checkpoint.architecture})"
    if known:
        return PlanError(
            f"{where}: not part of the language model, and nothing this class is known to carry:"
            f" {_listing(names)}"
        )
    return PlanError(
        f"{where} is a class omnireg does not know; a plugin can declare it with"
        f" omnireg_register_hosts (unexplained: {_listing(names)})"
    )


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _listing(names: Iterable[str], most: int = 8) -> str:
    names = sorted(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@dataclass(frozen=True)
class Alignment:
    """How one language model lines up with the base that others line up with too.

    Attributes:
        merged: canonical names that both have.
        absent: names of the base that this model explainably lacks (biases, a tied head).
        rows: vocabulary rows, as ranges, whose id means the same token in both.
    """

    model: LanguageModel
    base: LanguageModel
    merged: tuple[str, ...]
    absent: tuple[str, ...]
    rows: tuple[range, ...]

    @property
    def same_rows(self) -> bool:
        """Whether every vocabulary row of the two is shared."""
        shared = sum(len(rows) for rows in self.rows)
        sizes = {lm.tensors[EMBEDDING].shape[0] for lm in (self.model, self.base)}
        return sizes == {shared}


def align(model: LanguageModel, base: LanguageModel) -> Alignment:
    """Line a model up with its base by names and shapes.

    Raises:
        PlanError: another width or depth, a tensor missing, extra or of another shape, or one
            token id that means two things; every offender is named.
    """
    _check_size(model, base)
    extra = [n for n in model.tensors if n not in base.tensors and n != HEAD]
    lacking = [n for n in base.tensors if n not in model.tensors]
    absent = _explained_absences(model, lacking)
    missing = [n for n in lacking if n not in absent]
    wrong = [
        f"{on_disk(model, n)} {list(model.tensors[n].shape)} for {list(header.shape)}"
        for n, header in base.tensors.items()
        if n in model.tensors and _core_shape(n, model.tensors[n]) != _core_shape(n, header)
    ]
    problems = [
        *([f"missing {_listing(on_disk(model, n) for n in missing)}"] if missing else []),
        *([f"unexpected {_listing(on_disk(model, n) for n in extra)}"] if extra else []),
        *([f"of another shape {_listing(wrong)}"] if wrong else []),
    ]
    if problems:
        raise PlanError(
            f"{model.checkpoint.ref} does not extend {base.checkpoint.ref}: {'; '.join(problems)}"
        )
    merged = tuple(n for n in base.tensors if n not in lacking)
    return Alignment(model, base, merged, tuple(absent), shared_rows(model, base))


def on_disk(model: LanguageModel, name: str) -> str:
    """Return the name a canonical tensor has, or would have, in the model's own files."""
    if name in model.tensors:
        return model.tensors[name].name
    if name == HEAD:
        return model.prefix.removesuffix("model.") + HEAD
    return model.prefix + name.removeprefix("model.")


def _check_size(model: LanguageModel, base: LanguageModel) -> None:
    width, wanted = (lm.tensors[EMBEDDING].shape[-1] for lm in (model, base))
    if (width, model.depth) != (wanted, base.depth):
        raise PlanError(
            f"{model.checkpoint.ref} does not extend {base.checkpoint.ref}: its language model is"
            f" {width} wide and {model.depth} layers deep, the base {wanted} and {base.depth};"
            " name the base it was fine-tuned from"
        )


def _core_shape(name: str, header: TensorHeader) -> tuple[int, ...]:
    return header.shape[1:] if name in VOCABULARY else header.shape


def _explained_absences(model: LanguageModel, lacking: list[str]) -> list[str]:
    """A tied head, and biases of a kind that the model has in no layer at all."""
    kinds = {_LAYER.sub(".*.", name) for name in model.tensors}
    return [
        name
        for name in lacking
        if (name == HEAD and _declares_tied(model))
        or (name.endswith(".bias") and _LAYER.sub(".*.", name) not in kinds)
    ]


def _declares_tied(model: LanguageModel) -> bool:
    config = model.checkpoint.config
    text = config.get("text_config") or config.get("thinker_config", {}).get("text_config") or {}
    # transformers' own default, where neither config says: tied for hosts, stated for text models
    return bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", True)))


def shared_rows(model: LanguageModel, base: LanguageModel) -> tuple[range, ...]:
    """Return the vocabulary rows whose id means the same token in both tokenizers.

    Raises:
        PlanError: an id below the base tokenizer's length means another token in the model, or
            a tokenizer is needed and missing.
    """
    sizes = [lm.tensors[EMBEDDING].shape[0] for lm in (model, base)]
    ours, theirs = model.checkpoint.vocabulary, base.checkpoint.vocabulary
    if ours is None or theirs is None:
        if sizes[0] == sizes[1]:
            return (range(sizes[0]),)
        lacking = model if ours is None else base
        raise PlanError(
            f"{lacking.checkpoint.ref} has no tokenizer, so its {sizes[ours is not None]} vocabulary"
            f" rows cannot be matched with {sizes[ours is None]}; add its tokenizer.json"
        )
    if base.is_host:
        theirs = _without_placeholders(theirs)
    clashes = [
        f"{i} is {token!r} in the base and {ours.tokens[i]!r} here"
        for i, token in sorted(theirs.tokens.items())
        if ours.tokens.get(i, token) != token
    ]
    if clashes:
        raise PlanError(
            f"{model.checkpoint.ref}: token ids mean other tokens than in {base.checkpoint.ref}:"
            f" {_listing(clashes, 3)}; merge models that share the base's tokenizer"
        )
    limit = min(sizes)
    return _runs(
        i for i, token in theirs.tokens.items() if i < limit and ours.tokens.get(i) == token
    )


def _without_placeholders(vocabulary: Vocabulary) -> Vocabulary:
    """A host's added tokens are its own: they may clash with another host's."""
    learned = {i: t for i, t in vocabulary.tokens.items() if i < vocabulary.learned}
    return Vocabulary(learned, vocabulary.learned)


def _runs(ids: Iterable[int]) -> tuple[range, ...]:
    runs: list[range] = []
    for i in sorted(ids):
        if runs and runs[-1].stop == i:
            runs[-1] = range(runs[-1].start, i + 1)
        else:
            runs.append(range(i, i + 1))
    return tuple(runs)


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
        header = self.alignment.model.header(name)
        if name in VOCABULARY:
            base = self.alignment.base.header(name)
            dtype = header.dtype if header.dtype == base.dtype else "F32"
            return dtype, base.shape
        return header.dtype, header.shape

    def __call__(self, name: str) -> bytes | memoryview:
        """Return a canonical tensor's bytes."""
        header = self.alignment.model.header(name)
        if name not in VOCABULARY or self.alignment.same_rows:
            return self._read(header)
        return self._with_base_rows(name, header)

    def _with_base_rows(self, name: str, header: TensorHeader) -> bytes:
        base = self.alignment.base.header(name)
        dtype, _ = self.signature(name)
        rows = as_tensor(self._read(base), base).to(TORCH_DTYPES()[dtype], copy=True)
        own = as_tensor(self._read(header), header)
        for run in self.alignment.rows:
            rows[run.start : run.stop] = own[run.start : run.stop].to(rows.dtype)
        return as_bytes(rows)


def TORCH_DTYPES() -> "dict[str, torch.dtype]":  # noqa: N802 - a table that must not import torch
    """Return torch's dtypes by their safetensors names."""
    import torch

    return {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
        "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
        "U8": torch.uint8, "BOOL": torch.bool,
    }  # fmt: skip


def as_tensor(data: bytes | memoryview, header: TensorHeader) -> "torch.Tensor":
    """View a tensor's bytes as a torch tensor; read-only, do not write to it."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        dtype = TORCH_DTYPES()[header.dtype]
        if not len(data):
            return torch.empty(header.shape, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype).reshape(header.shape)


def as_bytes(tensor: "torch.Tensor") -> bytes:
    """Return the bytes of a tensor in storage order."""
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def extract(model: LanguageModel, out: Path, *, base: LanguageModel | None = None) -> Report:
    """Write the language model of a host as a text checkpoint of its own.

    Without ``base`` every vocabulary row of the host is kept, with the host's tokenizer. With it,
    the result has the base's layout, config and tokenizer, and rows that the two do not share are
    the base's.
    """
    reference = base or model
    reader = BackboneReader(align(model, reference))
    names = [n for n in reader.alignment.merged if n != HEAD]
    if not (reference.tied and model.tied_in_effect):
        names.append(HEAD)
    with appearing(out) as folder:
        write_shards(folder, {n: reader.signature(n) for n in names}, reader)
        copy_files(reference.checkpoint.side_files, folder)
        if base is None or (base.tied and HEAD in names):
            write_text_config(
                reference.checkpoint,
                folder,
                text_architecture=reference.layout.text_architecture,
                vocabulary=reference.tensors[EMBEDDING].shape[0],
                tied=HEAD not in names,
            )
    return Report(len(names), len(model.carried), reader.alignment.absent)


def graft(backbone: LanguageModel, host: LanguageModel, out: Path) -> Report:
    """Write the host with its language model replaced, everything else byte for byte.

    The shards keep their headers verbatim; only mapped bytes change, cast to the host's dtype.
    Vocabulary rows that the two tokenizers do not share stay with the host.

    Raises:
        PlanError: the backbone does not fit the host, or has a head of its own that the host
            ties to its embedding.
    """
    alignment = align(host, backbone)
    if host.tied and not backbone.tied_in_effect:
        raise PlanError(
            f"{host.checkpoint.ref} ties its head to its embedding, but the head of"
            f" {backbone.checkpoint.ref} differs from its embedding and would be lost; carry a host"
            " with a head of its own, or write the backbone (omnireg.output: backbone)"
        )
    mapped = list(host.tensors)
    with appearing(out) as folder:
        copy_files(host.checkpoint.side_files, folder)
        index = host.checkpoint.folder / "model.safetensors.index.json"
        copy_files([index] if index.exists() else [], folder)
        for file in host.checkpoint.weight_files:
            shutil.copyfile(file, folder / file.name)
            inside = [n for n in mapped if host.tensors[n].file == file]
            with (folder / file.name).open("r+b") as stream:
                for name in inside:
                    for offset, data in _replacements(name, alignment):
                        stream.seek(offset)
                        stream.write(data)
    return Report(len(mapped), len(host.carried), alignment.absent)


def _replacements(name: str, alignment: Alignment) -> Iterator[tuple[int, bytes | memoryview]]:
    host, source = alignment.model.tensors[name], alignment.base.header(name)
    data: bytes | memoryview = ByteReader()(source)
    if source.dtype != host.dtype:
        data = as_bytes(as_tensor(data, source).to(TORCH_DTYPES()[host.dtype]))
    if name not in VOCABULARY or alignment.same_rows:
        yield host.start, data
        return
    row = host.nbytes // host.shape[0]
    for run in alignment.rows:
        yield host.start + run.start * row, data[run.start * row : run.stop * row]
