"""The language model inside a host: find it, and line it up with the base that others share.

Hosts share a language model, not a layout. Its tensors stand under different prefixes, beside
encoders that only one host has, with different extra rows in the vocabulary. Here every tensor of
every input ends as merged, carried or absent; whatever cannot be explained is an error that lists
it by name.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from omnireg.checkpoints.checkpoint import Checkpoint, Vocabulary
from omnireg.checkpoints.loading import head_beside, ties_head
from omnireg.checkpoints.shards import ByteReader, TensorHeader
from omnireg.errors import PlanError
from omnireg.hookspecs import HostLayout

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
VOCABULARY = (EMBEDDING, HEAD)
#: recomputed by every model class, written by some older ones
_BUFFERS = ("*rotary_emb.inv_freq", "*.masked_bias")
LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class LanguageModel:
    """A checkpoint's language model by canonical names: ``model.…`` and ``lm_head.weight``."""

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
        found = [int(m[1]) for name in self.tensors if (m := LAYER.search(name))]
        return max(found, default=-1) + 1

    @cached_property
    def tied_in_effect(self) -> bool:
        """Whether a head, if there is one, holds the same bytes as the embedding.

        Where only headers are here, a head counts as one of its own.
        """
        if self.checkpoint.empty:
            return self.tied
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
        merged: canonical names that both have, and a head that only the model has: the base's is
            its embedding.
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
    missing = [n for n in lacking if n not in absent and n != HEAD]
    if model.tied and not ties_head(model.checkpoint):
        missing.append(HEAD)
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
    merged = tuple(n for n in {**base.tensors, **model.tensors} if n in model.tensors)
    return Alignment(model, base, merged, tuple(absent), shared_rows(model, base))


def on_disk(model: LanguageModel, name: str) -> str:
    """Return the name a canonical tensor has, or would have, in the model's own files."""
    if name in model.tensors:
        return model.tensors[name].name
    if name == HEAD:
        return head_beside(model.prefix + "embed_tokens.weight")
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
    """Return a tied head, and biases of a kind that the model has in no layer at all."""
    kinds = {LAYER.sub(".*.", name) for name in model.tensors}
    return [
        name
        for name in lacking
        if name == HEAD or (name.endswith(".bias") and LAYER.sub(".*.", name) not in kinds)
    ]


def shared_rows(model: LanguageModel, base: LanguageModel) -> tuple[range, ...]:
    """Return the vocabulary rows that mean the same in both: one token, or padding in both.

    Raises:
        PlanError: an id below the base tokenizer's length means another token in the model, or
            a tokenizer is needed and missing.
    """
    sizes = [lm.tensors[EMBEDDING].shape[0] for lm in (model, base)]
    ours, theirs = model.checkpoint.vocabulary, base.checkpoint.vocabulary
    if ours is None or theirs is None:
        alike = sizes[0] == sizes[1] and (ours is theirs or not (model.is_host or base.is_host))
        if alike:
            return (range(sizes[0]),)
        lacking = model if ours is None else base
        raise PlanError(
            f"{lacking.checkpoint.ref} has no tokenizer, so its {sizes[ours is not None]}"
            f" vocabulary rows cannot be matched with {sizes[ours is None]}; add its tokenizer.json"
        )
    clashes = [
        f"{i} is {token!r} in the base and {ours.tokens[i]!r} here"
        for i, token in sorted(_promised(base, theirs).items())
        if ours.tokens.get(i, token) != token
    ]
    if clashes:
        raise PlanError(
            f"{model.checkpoint.ref}: token ids mean other tokens than in {base.checkpoint.ref}:"
            f" {_listing(clashes, 3)}; merge models that share the base's tokenizer"
        )
    return _runs(i for i in range(min(sizes)) if ours.tokens.get(i) == theirs.tokens.get(i))


def _promised(base: LanguageModel, vocabulary: Vocabulary) -> Mapping[int, str]:
    """Return the tokens that every model must agree on: of a host, not its own placeholders."""
    if not base.is_host:
        return vocabulary.tokens
    return {i: t for i, t in vocabulary.tokens.items() if i < vocabulary.learned}


def _runs(ids: Iterable[int]) -> tuple[range, ...]:
    runs: list[range] = []
    for i in sorted(ids):
        if runs and runs[-1].stop == i:
            runs[-1] = range(runs[-1].start, i + 1)
        else:
            runs.append(range(i, i + 1))
    return tuple(runs)
