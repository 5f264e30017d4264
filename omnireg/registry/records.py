"""What the registry hands out: closed states and frozen values, never database rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar, get_args

from omnireg.checkpoints.digests import combine_digests

R = TypeVar("R")


def whole(record: R) -> R:
    """Return a record; a foreign hand may have taken away what every one has.

    Raises:
        ValueError: something is missing that cannot be.
    """
    kind: Any = type(record)
    for name in _needed(kind):
        value = getattr(record, name)
        if value is None or (isinstance(value, tuple) and None in value):
            raise ValueError(f"a {kind.__name__} without its {name}")
    return record


@cache
def _needed(kind: Any) -> tuple[str, ...]:
    return tuple(f.name for f in fields(kind) if type(None) not in get_args(f.type))


class Kind(StrEnum):
    """What a checkpoint is."""

    BASE = "base"
    FINETUNED = "finetuned"
    MERGED = "merged"
    PACKAGE = "package"


class Role(StrEnum):
    """What a parent was to its child."""

    BASE = "base"
    MODEL = "model"
    HOST = "host"
    PACKAGE = "package"
    FINETUNED_FROM = "finetuned_from"


class RunStatus(StrEnum):
    """How far a run got."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Action(StrEnum):
    """What was done to a subject."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


class SubjectType(StrEnum):
    """What an event is about."""

    CHECKPOINT = "checkpoint"
    ALIAS = "alias"
    PARENT = "parent"
    BENCHMARK = "benchmark"
    SCORE = "score"
    RUN = "run"
    PUBLICATION = "publication"
    ANALYSIS = "analysis"


@dataclass(frozen=True, slots=True)
class Parent:
    """One parent of a checkpoint; the last three fields describe one that nobody recorded yet."""

    name: str
    role: str = Role.MODEL
    weight: float | None = None
    fingerprint: str | None = None
    source: str | None = None
    kind: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the parent as a JSON object."""
        return {"name": self.name, "role": str(self.role), "weight": self.weight}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A recorded checkpoint; `fingerprint` is null while its bytes were never read.

    `files` are the sha256 of everything in its folder that decides what it says, by relative name.
    """

    name: str
    kind: Kind
    fingerprint: str | None
    source: str | None
    modalities: tuple[str, ...]
    strategy: str | None
    created_at: datetime
    notes: str | None = None
    aliases: tuple[str, ...] = ()
    parents: tuple[Parent, ...] = ()
    details: Mapping[str, Any] | None = None
    files: Mapping[str, str] | None = None

    @property
    def contents(self) -> str | None:
        """The digest of the whole folder, as the fingerprint is of its weights."""
        return combine_digests(self.files.items()) if self.files else None

    def to_json(self) -> dict[str, Any]:
        """Return the checkpoint as the JSON object of `list` and `show`."""
        return {
            "name": self.name,
            "kind": str(self.kind),
            "fingerprint": self.fingerprint,
            "contents": self.contents,
            "source": self.source,
            "modalities": list(self.modalities),
            "strategy": self.strategy,
            "created_at": timestamp(self.created_at),
            "notes": self.notes,
            "aliases": list(self.aliases),
            "parents": [parent.to_json() for parent in self.parents],
            "details": dict(self.details) if self.details is not None else None,
        }


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark and the direction in which its scores improve."""

    name: str
    higher_is_better: bool
    ability: str | None = None
    unit: str | None = None
    description: str | None = None
    metric: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the benchmark as a JSON object."""
        return {
            "name": self.name,
            "higher_is_better": self.higher_is_better,
            "ability": self.ability,
            "metric": self.metric,
            "unit": self.unit,
            "description": self.description,
        }


@dataclass(frozen=True, slots=True)
class Score:
    """One measured value with every condition it was measured under.

    Attributes:
        setup: what else the value depends on, by name: seed, limit, chat template, version and hash
            of the task, …
        partial: whether only some of the items were measured.
        details: what is worth knowing beside it, and does not tell it from another score.
    """

    checkpoint: str
    benchmark: str
    metric: str
    value: float
    higher_is_better: bool
    created_at: datetime
    n: int | None = None
    stderr: float | None = None
    n_shot: int | None = None
    filter: str | None = None
    split: str | None = None
    evaluator: str | None = None
    evaluator_version: str | None = None
    source: str | None = None
    setup: Mapping[str, Any] | None = None
    ability: str | None = None
    unit: str | None = None
    partial: bool = False
    details: Mapping[str, Any] | None = None

    @property
    def measured_by(self) -> str:
        """Where the value comes from: its source, else the program that measured it."""
        program = " ".join(filter(None, (self.evaluator, self.evaluator_version)))
        return self.source or program

    def to_json(self) -> dict[str, Any]:
        """Return the score as the JSON object of `scores`."""
        return {
            "checkpoint": self.checkpoint,
            "benchmark": self.benchmark,
            "metric": self.metric,
            "value": self.value,
            "higher_is_better": self.higher_is_better,
            "n": self.n,
            "stderr": self.stderr,
            "n_shot": self.n_shot,
            "filter": self.filter,
            "split": self.split,
            "evaluator": self.evaluator,
            "evaluator_version": self.evaluator_version,
            "source": self.source,
            "setup": dict(self.setup) if self.setup is not None else None,
            "ability": self.ability,
            "unit": self.unit,
            "partial": self.partial,
            "details": dict(self.details) if self.details is not None else None,
            "created_at": timestamp(self.created_at),
        }


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt at making a checkpoint, recorded from before its first byte."""

    id: int
    status: RunStatus
    name: str
    out: str
    recipe_text: str
    recipe_digest: str
    strategy: str
    engine: str
    machine: str
    started_at: datetime
    strategy_distribution: str | None = None
    strategy_version: str | None = None
    seed: int | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    finished_at: datetime | None = None
    error: str | None = None
    checkpoint: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the run as a JSON object."""
        return {
            "id": self.id,
            "status": str(self.status),
            "name": self.name,
            "checkpoint": self.checkpoint,
            "out": self.out,
            "recipe_text": self.recipe_text,
            "recipe_digest": self.recipe_digest,
            "strategy": self.strategy,
            "strategy_distribution": self.strategy_distribution,
            "strategy_version": self.strategy_version,
            "engine": self.engine,
            "seed": self.seed,
            "parameters": dict(self.parameters),
            "versions": dict(self.versions),
            "machine": self.machine,
            "started_at": timestamp(self.started_at),
            "finished_at": timestamp(self.finished_at) if self.finished_at else None,
            "error": self.error,
        }


@dataclass(frozen=True, slots=True)
class Publication:
    """One commit on the Hub that holds a checkpoint."""

    checkpoint: str
    repo: str
    commit: str
    url: str
    published_at: datetime
    branch: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the publication as a JSON object."""
        return {
            "checkpoint": self.checkpoint,
            "repo": self.repo,
            "commit": self.commit,
            "url": self.url,
            "branch": self.branch,
            "published_at": timestamp(self.published_at),
        }


@dataclass(frozen=True, slots=True)
class Analysis:
    """What an analysis of a checkpoint's weights or behaviour found.

    Attributes:
        kind: which analysis: ``shift``, ``heads``, ``tsne``.
        against: the checkpoint it was compared with, if with one.
        setup: what the result depends on; the same again replaces the result.
        result: what was found.
    """

    checkpoint: str
    kind: str
    result: Mapping[str, Any]
    created_at: datetime
    against: str | None = None
    setup: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the analysis as a JSON object."""
        return {
            "checkpoint": self.checkpoint,
            "kind": self.kind,
            "against": self.against,
            "setup": dict(self.setup),
            "result": dict(self.result),
            "created_at": timestamp(self.created_at),
        }


def timestamp(moment: datetime) -> str:
    """Return a UTC time as ISO 8601 to the second, ending in ``Z``."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class Event:
    """One change: who made it, when, and to what."""

    id: int
    at: datetime
    actor: str
    action: Action
    subject_type: SubjectType
    subject: str
    details: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the event as a JSON object."""
        return {
            "id": self.id,
            "at": timestamp(self.at),
            "actor": self.actor,
            "action": str(self.action),
            "subject_type": str(self.subject_type),
            "subject": self.subject,
            "details": dict(self.details) if self.details is not None else None,
        }


@dataclass(frozen=True, slots=True)
class Changes:
    """What an apply did, or would do.

    Attributes:
        counts: by action and type, such as ``{"create": {"score": 3}}``.
        listed: the first changes, one event each.
    """

    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    listed: tuple[Event, ...] = ()

    @property
    def total(self) -> int:
        """How many changes there are."""
        return sum(number for kinds in self.counts.values() for number in kinds.values())

    def to_json(self) -> dict[str, Any]:
        """Return the changes as the JSON object of ``apply``; at most the first hundred."""
        found: dict[str, Any] = {str(action): [] for action in Action}
        for event in self.listed:
            found[str(event.action)].append(
                {
                    "type": str(event.subject_type),
                    "name": event.subject,
                    **(event.details or {}),
                }
            )
        return {**found, "counts": {action: dict(kinds) for action, kinds in self.counts.items()}}
