"""Mask each attention head in turn and ask again (arXiv 2506.01872, section 5.2).

``zero`` sets a head's output to 0, the usual ablation. ``uniform`` makes it attend to all
positions alike, later ones included, as the paper's released code does by setting its attention
logits to 0 after the causal mask.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from omnireg.analysis.masking import Mask, attentions_of
from omnireg.analysis.salience import (
    ORIGINAL,
    Asked,
    Head,
    Key,
    Salience,
    accuracy,
    file_of,
    head,
    probability_accuracy,
    read_run,
    write_run,
)
from omnireg.boundary.files import read_text, reason, write_text
from omnireg.checkpoints.digests import cache_folder
from omnireg.errors import EvaluationError
from omnireg.evaluation.items import Item, Items
from omnireg.evaluation.model import Subject

_ABOUT = "about.json"
#: prepared inputs are kept up to so many bytes; more are prepared anew for every head
_KEPT_BYTES = 1 << 30


@dataclass(frozen=True)
class Probe:
    """Questions with options.

    Attributes:
        items: the questions.
        options: of each, in its order; the first tokens differ.
        right: by the question's id.
        sha256: of the file and its media.
    """

    items: tuple[Item, ...]
    options: tuple[tuple[str, ...], ...]
    right: Mapping[str, Key]
    sha256: str

    @classmethod
    def of(cls, items: Items, limit: int | None = None) -> "Probe":
        """Take questions; those without options may be answered like others of their category.

        Raises:
            EvaluationError: a question has fewer than two options, or none is right.
        """
        answers: dict[str | None, dict[str, None]] = {}
        for item in items:
            answers.setdefault(item.category, {}).update(dict.fromkeys(item.answers[:1]))
        chosen = items.items[:limit]
        options = tuple(i.options or tuple(sorted(answers[i.category])) for i in chosen)
        right = {}
        for item, own in zip(chosen, options, strict=True):
            if not item.answers or item.answers[0] not in own or len(own) < 2:
                raise EvaluationError(
                    f"item {item.id}: give it `options`, two or more, and an `answer` among them"
                )
            if item.id in right:
                raise EvaluationError(f"two items have the id {item.id}; give each its own")
            right[item.id] = Key(item.answers[0].strip(), own.index(item.answers[0]))
        return cls(chosen, options, right, items.sha256)


def salience(
    subject: Subject,
    probe: Probe,
    *,
    mask: Mask | str = Mask.ZERO,
    fingerprint: str = "",
    folder: Path | None = None,
    layers: Sequence[int] | None = None,
    max_new_tokens: int = 8,
    chat: bool | None = None,
    batch_size: int = 16,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Salience:
    """Ask a model with each head masked in turn; heads that were asked before are not asked again.

    Args:
        subject: the model.
        probe: the questions.
        mask: how a head is taken out.
        fingerprint: of the model; what was asked before is known by it.
        folder: where answers and logits are kept, in the form that ``--logits`` reads; a folder
            of the cache when None.
        layers: which layers to look at; all when None.
        max_new_tokens: where an answer ends.
        chat: put prompts into the chat template; if there is one, when None.
        batch_size: how many questions at once.
        tick: called with heads done, and of how many.

    Raises:
        EvaluationError: the model's attention has an unknown form, options share a first token,
            or the folder holds something else.
    """
    way = Mask(mask) if mask in list(Mask) else _no_mask(mask)
    attentions = attentions_of(subject)
    wanted = list(range(len(attentions))) if layers is None else list(layers)
    for layer in wanted:
        if not 0 <= layer < len(attentions):
            raise EvaluationError(f"no layer {layer}: there are {len(attentions)}, from 0")
    told = subject.has_chat_template if chat is None else chat
    about = {
        "checkpoint": fingerprint or str(subject.folder),
        "items": probe.sha256,
        "n": len(probe.items),
        "mask": str(way),
        "max_new_tokens": max_new_tokens,
        "chat_template": told,
        "dtype": str(subject.model.dtype).removeprefix("torch."),
    }
    place = _prepare(folder, about)
    asking = _Asking(subject, probe, max_new_tokens, told, batch_size)
    total = 1 + sum(attentions[layer].heads for layer in wanted)
    tick(0, total)
    original = _kept(place / f"{ORIGINAL}.jsonl.gz", asking)
    heads: list[Head] = []
    for layer in wanted:
        for number in range(attentions[layer].heads):
            tick(1 + len(heads), total)
            with attentions[layer].masked(number, way) as begin:
                masked = _kept(file_of(place, layer, number), asking, begin)
            heads.append(head(layer, number, original, masked, probe.right))
    tick(total, total)
    return Salience(
        accuracy(original, probe.right),
        probability_accuracy(original, probe.right),
        len(probe.items),
        tuple(heads),
    )


def _no_mask(mask: str) -> Mask:
    raise EvaluationError(f"no mask {mask!r}: choose one of {', '.join(Mask)}")


def _prepare(folder: Path | None, about: dict[str, Any]) -> Path:
    """Return the folder to keep logits in, which says what they are of."""
    text = json.dumps(about, sort_keys=True, indent=2)
    place = folder or cache_folder() / "heads" / sha256(text.encode()).hexdigest()
    try:
        place.mkdir(parents=True, exist_ok=True)
        said, empty = place / _ABOUT, not any(place.iterdir())
    except OSError as exc:
        raise EvaluationError(f"cannot write to {place}: {reason(exc)}") from exc
    if said.exists() and read_text(said, error=EvaluationError) != text:
        raise EvaluationError(
            f"{place} holds logits of another model, mask or file; name another folder"
        )
    if not said.exists() and not empty:
        raise EvaluationError(f"{place} holds something else; name a new folder")
    write_text(said, text, EvaluationError)
    return place


def _kept(
    file: Path, asking: "_Asking", begin: Callable[[], None] = lambda: None
) -> dict[str, Asked]:
    """Return what is in a file, else ask and write it; a damaged file is asked for again."""
    if file.exists():
        try:
            return read_run(file)
        except EvaluationError:
            _remove(file)
    found = asking(begin)
    write_run(file, found)
    return found


def _remove(file: Path) -> None:
    try:
        file.unlink()
    except OSError as exc:
        raise EvaluationError(f"cannot replace {file}: {reason(exc)}") from exc


class _Asking:
    """Questions in batches of one length, so that nothing is filled up."""

    def __init__(
        self, subject: Subject, probe: Probe, max_new_tokens: int, chat: bool, batch_size: int
    ) -> None:
        self._subject, self._probe, self._length = subject, probe, max_new_tokens
        self._chat, self._size = chat, batch_size
        self._tokens = [_first_tokens(subject, options) for options in probe.options]
        self._inputs: dict[int, dict[str, Any]] = {}
        self._bytes = 0

    @cached_property
    def _batches(self) -> list[list[int]]:
        """Which questions are asked together; they are read first when one must be asked."""
        alike: dict[tuple[Any, ...], list[int]] = {}
        for place, item in enumerate(self._probe.items):
            ids = self._subject.inputs([item], chat=self._chat)["input_ids"]
            alike.setdefault((item.modalities, ids.shape[1]), []).append(place)
        return [
            places[start : start + self._size]
            for places in alike.values()
            for start in range(0, len(places), self._size)
        ]

    def __call__(self, begin: Callable[[], None]) -> dict[str, Asked]:
        """Ask everything; ``begin`` is called before each batch."""
        found: dict[int, Asked] = {}
        for number, places in enumerate(self._batches):
            begin()
            answers = self._subject.answer(self._prepared(number), self._length)
            for place, response in zip(places, answers, strict=True):
                logits = response.logits[self._tokens[place]].tolist()
                found[place] = Asked(response.text, tuple(logits))
        return {item.id: found[place] for place, item in enumerate(self._probe.items)}

    def _prepared(self, number: int) -> dict[str, Any]:
        if number in self._inputs:
            return dict(self._inputs[number])
        items = [self._probe.items[place] for place in self._batches[number]]
        made = self._subject.inputs(items, chat=self._chat)
        size = sum(v.nbytes for v in made.values() if isinstance(v, Tensor))
        if self._bytes + size <= _KEPT_BYTES:
            self._inputs[number] = made
            self._bytes += size
        return dict(made)


def _first_tokens(subject: Subject, options: Sequence[str]) -> list[int]:
    """Return the first token of every option.

    Raises:
        EvaluationError: two options begin with the same one.
    """
    found: dict[int, str] = {}
    for option in options:
        ids = subject.tokenizer(option, add_special_tokens=False)["input_ids"]
        if not ids:
            raise EvaluationError(f"the option {option!r} has no token")
        other = found.setdefault(ids[0], option)
        if other != option:
            raise EvaluationError(
                f"the options {other!r} and {option!r} begin with the same token, so its logit"
                " does not tell them apart; use letters"
            )
    return list(found)
