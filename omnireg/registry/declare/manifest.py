"""The manifest format, version 1: what may be declared, and under which keys.

A YAML file holds lists of items for people to write; a JSON Lines file holds one item a line for
bulk. A field that is left out, or null, says nothing: what is recorded stays as it is. Lists are
whole: a checkpoint's ``parents`` are all its parents. ``absent: true`` removes.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from omnireg.errors import RegistryError
from omnireg.registry import rules
from omnireg.registry.records import Kind, Role, RunStatus
from omnireg.registry.tables import LONGEST_DIGEST, LONGEST_NAME

VERSION = 1


def _ruled(rule: Any, *more: Any) -> AfterValidator:
    """Apply a rule of the registry, so that a manifest accepts what an API call does."""

    def checked(value: Any) -> Any:
        try:
            return rule(value, *more)
        except RegistryError as exc:
            raise ValueError(str(exc)) from exc

    return AfterValidator(checked)


Name = Annotated[str, Field(max_length=LONGEST_NAME), _ruled(rules.name)]
Modality = Annotated[str, Field(max_length=100), _ruled(rules.name, "modality", 100)]
Text = Annotated[str, _ruled(rules.optional_text, "text")]
Whole = Annotated[str, _ruled(rules.text, "text")]
Digest = Annotated[str, Field(max_length=LONGEST_DIGEST), _ruled(rules.text, "digest")]
Hex = Annotated[str, StringConstraints(strip_whitespace=True), _ruled(rules.fingerprint)]
Count = Annotated[int, Field(strict=True, ge=0, le=rules.LARGEST_INTEGER)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Seed = Annotated[int, Field(strict=True, ge=-(2**63), le=rules.LARGEST_INTEGER)]
Document = Annotated[dict[str, Any], _ruled(rules.document, "what it holds")]
Found = Annotated[dict[str, Any], _ruled(rules.document, "what it holds", rules.LARGEST_RESULT)]
Moment = Annotated[datetime, _ruled(rules.moment)]


class Item(BaseModel):
    """Anything that can be declared."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BenchmarkItem(Item):
    """A benchmark: what it measures, and which way is better."""

    name: Name
    ability: Text | None = None
    metric: Text | None = Field(None, description="What a score has that names none.")
    unit: Text | None = None
    higher_is_better: bool | None = Field(None, description="True for a new one, unless said.")
    description: Text | None = None
    absent: bool = False


class ParentItem(Item):
    """One parent of a checkpoint: declared beside it, or recorded before."""

    name: Name
    role: Role = Role.MODEL
    weight: Finite | None = None


class CheckpointItem(Item):
    """A checkpoint: what it is, where it is, and what it was made of."""

    name: Name
    kind: Kind | None = Field(None, description="Needed for one that is not recorded yet.")
    fingerprint: Hex | None = None
    source: Text | None = None
    strategy: Text | None = None
    notes: Text | None = None
    details: Document | None = Field(None, description="Free facts, such as training data.")
    files: Annotated[dict[str, str], _ruled(rules.files)] | None = Field(
        None, description="sha256 of the files that decide what it says, by relative name."
    )
    created_at: Moment | None = None
    modalities: list[Modality] | None = None
    aliases: list[Name] | None = None
    parents: list[ParentItem] | None = None
    absent: bool = False


class Conditions(Item):
    """What a score was measured under; two scores that share all of it are one measurement."""

    n_shot: Count | None = None
    filter: Text | None = None
    split: Text | None = None
    evaluator: Text | None = None
    evaluator_version: Text | None = None
    source: Text | None = None
    setup: Document | None = Field(
        None, description="What else the value depends on, by name: seed, limit, chat template, …"
    )


class ScoreItem(Conditions):
    """One value that a checkpoint scored on a benchmark."""

    checkpoint: Name
    benchmark: Name
    metric: Name | None = Field(None, description="The benchmark's usual one unless said.")
    value: Finite | None = Field(None, description="Needed unless absent.")
    n: Count | None = None
    stderr: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    partial: bool | None = None
    details: Document | None = None
    created_at: Moment | None = None
    absent: bool = False


class RunItem(Item):
    """One attempt at making a checkpoint; known by name, folder, machine and start."""

    name: Name
    out: Whole
    machine: Whole
    started_at: Moment
    status: RunStatus
    checkpoint: Name | None = None
    recipe_text: Whole
    recipe_digest: Digest
    strategy: Whole
    strategy_distribution: Text | None = None
    strategy_version: Text | None = None
    engine: Whole
    seed: Seed | None = None
    parameters: Document = Field(default_factory=dict)
    versions: Document = Field(default_factory=dict)
    finished_at: Moment | None = None
    error: Whole | None = None


class AnalysisItem(Item):
    """What an analysis of a checkpoint found; known by checkpoint, kind, against and setup."""

    checkpoint: Name
    kind: Annotated[str, Field(max_length=100), _ruled(rules.name, "kind of analysis", 100)]
    against: Name | None = None
    setup: Document = Field(default_factory=dict)
    result: Found


class Column(Conditions):
    """A column of a table of scores; what it says overrides the table."""

    benchmark: Name
    metric: Name | None = None


class TableItem(Conditions):
    """Scores as a table prints them; null where it has none."""

    metric: Name | None = None
    columns: Annotated[list[Name | Column], Field(min_length=1)]
    rows: dict[Name, list[Finite | None]]


class Manifest(Item):
    """A manifest file."""

    model_config = ConfigDict(extra="forbid", title="omnireg manifest")

    omnireg: Literal[1] = Field(description="The format's version.")
    benchmarks: list[BenchmarkItem] = Field(default_factory=list)
    checkpoints: list[CheckpointItem] = Field(default_factory=list)
    runs: list[RunItem] = Field(default_factory=list)
    scores: list[ScoreItem] = Field(default_factory=list)
    tables: list[TableItem] = Field(default_factory=list)
    analyses: list[AnalysisItem] = Field(default_factory=list)


class Line(Item):
    """A line of a JSON Lines manifest: one item, or on the first line the version."""

    omnireg: Literal[1] | None = None
    benchmark: BenchmarkItem | None = None
    checkpoint: CheckpointItem | None = None
    run: RunItem | None = None
    score: ScoreItem | None = None
    analysis: AnalysisItem | None = None


def schema() -> dict[str, Any]:
    """Return the JSON schema of a manifest; a line of JSON Lines is its ``$defs/Line``."""
    from pydantic.json_schema import models_json_schema

    _, both = models_json_schema([(Manifest, "validation"), (Line, "validation")])
    definitions = both["$defs"]
    manifest = definitions.pop("Manifest")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **manifest,
        "$defs": definitions,
    }
