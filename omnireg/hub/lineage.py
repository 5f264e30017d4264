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
        run: what made it, if that was recorded.
        family: its ancestors.
        ancestors: by name, itself included.
        scores: of each of them.
        hub_ids: of those that are on the Hub, with a revision where one is known.
        recipe: the text of its recipe, verbatim, if there is one.
    """

    record: Checkpoint
    run: Run | None
    family: Lineage
    ancestors: Mapping[str, Checkpoint]
    scores: Mapping[str, Sequence[Score]]
    hub_ids: Mapping[str, str]

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
        book.run_of(record.name),
        family,
        ancestors,
        {found: book.scores(found) for found in ancestors},
        {found: ref for found, ref in ids.items() if ref},
    )


def _hub_id(book: Registry, record: Checkpoint) -> str | None:
    """Return where on the Hub a checkpoint is: published, or fetched from there."""
    for publication in book.publications(record.name):
        return f"{publication.repo}@{publication.commit}"
    said = (record.source, *record.aliases, record.name)
    return next((ref for ref in said if ref and _on_hub(ref)), None)


def _on_hub(ref: str) -> bool:
    return bool(_HUB_ID.fullmatch(ref)) and not ref.startswith((".", "/"))


def manifest(found: Dossier, repo: str) -> str:
    """Return the family as a manifest that ``omnireg apply`` reads, without local paths."""
    checkpoints, scores, benchmarks = [], [], {}
    for name in sorted(found.ancestors, key=lambda n: _depth(found, n), reverse=True):
        each = found.ancestors[name]
        source = repo if name == found.record.name else found.hub_ids.get(name)
        checkpoints.append(_without_none(
            name=name, kind=str(each.kind), fingerprint=each.fingerprint, source=source,
            strategy=each.strategy, modalities=list(each.modalities) or None,
            parents=[p.to_json() for p in each.parents] or None, details=each.details and dict(
                each.details
            ),
        ))  # fmt: skip
        for score in found.scores[name]:
            benchmarks[score.benchmark] = _without_none(
                name=score.benchmark, ability=score.ability, unit=score.unit,
                higher_is_better=score.higher_is_better,
            )  # fmt: skip
            scores.append(_without_none(
                checkpoint=name, benchmark=score.benchmark, metric=score.metric,
                value=score.value, n=score.n, stderr=score.stderr, n_shot=score.n_shot,
                filter=score.filter, split=score.split, evaluator=score.evaluator,
                evaluator_version=score.evaluator_version, source=score.source,
                details=score.details and dict(score.details), partial=score.partial or None,
            ))  # fmt: skip
    sections: dict[str, Any] = {
        "omnireg": VERSION, "benchmarks": list(benchmarks.values()), "checkpoints": checkpoints,
        "scores": scores,
    }  # fmt: skip
    said = {key: value for key, value in sections.items() if value}
    return yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=100)


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
