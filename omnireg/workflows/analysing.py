"""Analyses of checkpoints by name, recorded where the checkpoints are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omnireg.analysis.heads import Probe, salience
from omnireg.analysis.salience import Salience
from omnireg.analysis.shift import Shift, shift
from omnireg.analysis.tsne import Map, place
from omnireg.checkpoints.checkpoint import open_checkpoint
from omnireg.errors import RegistryError
from omnireg.evaluation.items import Items
from omnireg.evaluation.opening import open_subject
from omnireg.package import fingerprint_of
from omnireg.recording import files_of, find_record
from omnireg.registry import Checkpoint as Record
from omnireg.registry import Registry

Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Located:
    """A checkpoint that was named.

    Attributes:
        name: its name in the registry, else as it was named.
        ref: a folder or a Hub id.
        record: None where it is not recorded.
    """

    name: str
    ref: str
    record: Record | None


def locate(book: Registry, name: str) -> Located:
    """Return the files of a NAME; what is not recorded may be a folder or a Hub id.

    Raises:
        RegistryError: nothing is known of it, or the name is ambiguous.
        CheckpointError: its files are gone or changed.
    """
    try:
        record = find_record(book, name) if book.exists() else None
    except RegistryError:
        if not _could_be_files(name):
            raise
        record = None
    if record is None:
        return Located(name, name, None)
    return Located(record.name, str(files_of(record)), record)


def _could_be_files(name: str) -> bool:
    return Path(name).is_dir() or name.count("/") == 1


def record_shift(
    book: Registry,
    base: str,
    models: Sequence[str],
    *,
    threads: int | None = None,
    tick: Tick = lambda done, total: None,
) -> tuple[Shift, bool]:
    """Compare models with their base; record it if all are recorded, and say whether."""
    low, others = locate(book, base), [locate(book, model) for model in models]
    found = shift(low.ref, [each.ref for each in others], threads=threads, tick=tick)
    named = _renamed(found, low, others)
    if low.record is None or any(each.record is None for each in others):
        return named, False
    for model, each in zip(named.models, others, strict=True):
        pairs = [pair.to_json() for pair in named.pairs if each.name in pair.models]
        result = {**model.to_json(), "pairs": pairs, "numel": named.numel}
        _record(book, each, "shift", low, {}, result)
    return named, True


def _renamed(found: Shift, base: Located, models: Sequence[Located]) -> Shift:
    """Return a shift whose checkpoints are called as in the registry."""
    names = {each.ref: each.name for each in models}
    return replace(
        found,
        base=base.name,
        models=tuple(replace(m, name=names[m.name]) for m in found.models),
        pairs=tuple(
            replace(p, models=(names[p.models[0]], names[p.models[1]])) for p in found.pairs
        ),
    )


def record_heads(
    book: Registry,
    model: str,
    items: Items,
    *,
    limit: int | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    **how: Any,
) -> tuple[Salience, bool]:
    """Mask every head of a model in turn; record it if the model is, and say whether."""
    located = locate(book, model)
    folder = _folder(located.ref)
    probe = Probe.of(items, limit)
    subject = open_subject(folder, device=device, dtype=dtype)
    found = salience(subject, probe, fingerprint=fingerprint_of(folder), **how)
    if located.record is None:
        return found, False
    setup = {
        "mask": str(how.get("mask", "zero")),
        "items": probe.sha256,
        "n": len(probe.items),
        "layers": how.get("layers"),
    }
    _record(book, located, "heads", None, setup, found.to_json())
    return found, True


def _folder(ref: str) -> Path:
    place = Path(ref)
    return place.resolve() if place.is_dir() else open_checkpoint(ref).folder


def record_map(
    book: Registry, models: Sequence[str], reference: str, **how: Any
) -> tuple[Map, bool]:
    """Place models by their distance from a reference; record it if all are, and say whether."""
    low, others = locate(book, reference), [locate(book, model) for model in models]
    found = place([each.ref for each in others], low.ref, **how)
    names = {each.ref: each.name for each in others}
    named = replace(
        found,
        reference=low.name,
        places={names[ref]: at for ref, at in found.places.items()},
        features={names[ref]: row for ref, row in found.features.items()},
    )
    if low.record is None or any(each.record is None for each in others):
        return named, False
    setup = {"method": str(named.method), "seed": named.seed, "models": list(named.places)}
    for each in others:
        x, y = named.places[each.name]
        features = dict(zip(named.tensors, named.features[each.name], strict=True))
        _record(book, each, "tsne", low, setup, {"x": x, "y": y, "norms": features})
    return named, True


def _record(
    book: Registry, owner: Located, kind: str, against: Located | None,
    setup: Mapping[str, Any], result: Mapping[str, Any],
) -> None:  # fmt: skip
    book.add_analysis(
        owner.name, kind, result, against=against.name if against else None, setup=setup
    )
