"""What is published of a checkpoint's family: names that mean something elsewhere, no paths."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from omnireg.registry import Checkpoint, Kind, Lineage, Registry, Run, Score
from omnireg.registry.declare.manifest import VERSION

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class Dossier:
    """All that the registry knows of one checkpoint, its ancestors and their scores.

    Attributes:
        record: the checkpoint.
        family: its ancestors.
        ancestors: by name, itself included.
        scores: of each of them.
        hub_ids: of those that are on the Hub, with a revision where one is known.
        runs: what made those that were made by a recipe.
    """

    record: Checkpoint
    family: Lineage
    ancestors: Mapping[str, Checkpoint]
    scores: Mapping[str, Sequence[Score]]
    hub_ids: Mapping[str, str]
    runs: Mapping[str, Run]

    @property
    def run(self) -> Run | None:
        """What made it, if that was recorded."""
        return self.runs.get(self.record.name)

    @property
    def recipe(self) -> str | None:
        """The recipe, verbatim."""
        return self.run.recipe_text if self.run else None

    @property
    def base_models(self) -> list[str]:
        """The Hub ids of the direct parents, without revisions, each once."""
        found = [self.hub_ids[p.name] for p in self.record.parents if p.name in self.hub_ids]
        return list(dict.fromkeys(ref.partition("@")[0] for ref in found))


def dossier(book: Registry, name: str) -> Dossier:
    """Collect what is known of a checkpoint.

    Raises:
        RegistryError: it is not recorded.
    """
    record = book.find(name)
    family = book.lineage(record.name, direction="up")
    ancestors = {node.name: book.find(node.name) for node in family.nodes}
    ids = {found: _hub_id(book, each) for found, each in ancestors.items() if found != record.name}
    return Dossier(
        record,
        family,
        ancestors,
        {found: book.scores(found) for found in ancestors},
        {found: ref for found, ref in ids.items() if ref},
        {found: run for found in ancestors if (run := book.run_of(found))},
    )


def _hub_id(book: Registry, record: Checkpoint) -> str | None:
    """Return where on the Hub a checkpoint is: published, or fetched from there."""
    for publication in book.publications(record.name):
        return f"{publication.repo}@{publication.commit}"
    said = (record.source, *record.aliases, record.name)
    return next((ref for ref in said if ref and on_hub(ref)), None)


def on_hub(ref: str) -> bool:
    """Whether a reference is that of a repository on the Hub, by its form."""
    return bool(_HUB_ID.fullmatch(ref)) and not ref.startswith((".", "/"))


def manifest(found: Dossier, repo: str) -> str:
    """Return the family as a manifest that ``omnireg apply`` reads, without local paths."""
    order = sorted(found.ancestors, key=lambda name: _depth(found, name), reverse=True)
    scores = [score for name in order for score in found.scores[name]]
    benchmarks = {score.benchmark: _benchmark(score) for score in scores}
    sections: dict[str, Any] = {
        "omnireg": VERSION,
        "benchmarks": list(benchmarks.values()),
        "checkpoints": [_checkpoint(found, name, repo) for name in order],
        "runs": [_run(found.runs[name], repo) for name in order if name in found.runs],
        "scores": [_score(score) for score in scores],
    }
    said = {key: value for key, value in sections.items() if value}
    return yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=100)


def _checkpoint(found: Dossier, name: str, repo: str) -> dict[str, Any]:
    each = found.ancestors[name]
    return _without_none(
        name=name,
        kind=str(each.kind),
        fingerprint=each.fingerprint,
        source=repo if name == found.record.name else found.hub_ids.get(name),
        strategy=each.strategy,
        modalities=list(each.modalities) or None,
        parents=[parent.to_json() for parent in each.parents] or None,
        details=dict(each.details) if each.details else None,
    )


def _benchmark(score: Score) -> dict[str, Any]:
    return _without_none(
        name=score.benchmark,
        ability=score.ability,
        unit=score.unit,
        higher_is_better=score.higher_is_better,
    )


def _score(score: Score) -> dict[str, Any]:
    said = score.to_json()
    for name in ("higher_is_better", "ability", "unit", "created_at"):
        del said[name]
    return _without_none(**{**said, "partial": score.partial or None})


def _run(run: Run, repo: str) -> dict[str, Any]:
    """Return a run, so that it can be run again; where it ran is nobody's business."""
    said = run.to_json()
    del said["id"]
    return _without_none(**{**said, "out": repo, "machine": "published"})


def _depth(found: Dossier, name: str) -> int:
    """How many generations lie between a checkpoint and the published one, at most."""
    parents: dict[str, list[str]] = {}
    for edge in found.family.edges:
        parents.setdefault(edge.parent, []).append(edge.child)
    return max((1 + _depth(found, child) for child in parents.get(name, ())), default=0)


def _without_none(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def is_merge(record: Checkpoint) -> bool:
    """Whether a checkpoint was put together out of several."""
    return record.kind in (Kind.MERGED, Kind.PACKAGE)
