"""The registry as a manifest that `apply` reads: what is exported and applied exports the same."""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload, selectinload

from omnireg.errors import RegistryError
from omnireg.registry.declare.manifest import VERSION
from omnireg.registry.tables import (
    AnalysisRow,
    BenchmarkRow,
    CheckpointRow,
    ParentRow,
    RunRow,
    ScoreRow,
)

_BATCH = 1000
_SECTIONS = {"analysis": "analyses"}
_BENCHMARK = ("name", "ability", "metric", "unit", "higher_is_better", "description")
_CHECKPOINT = ("name", "kind", "fingerprint", "source", "strategy", "notes", "details")
_RUN = (
    "name", "out", "machine", "started_at", "status", "recipe_text", "recipe_digest", "strategy",
    "strategy_distribution", "strategy_version", "engine", "seed", "parameters", "versions",
    "finished_at", "error",
)  # fmt: skip
_SCORE = (
    "metric", "value", "n", "stderr", "n_shot", "filter", "split", "evaluator",
    "evaluator_version", "source", "setup", "details", "created_at",
)  # fmt: skip


def write(found: Iterable[tuple[str, dict[str, Any]]], path: Path) -> None:
    """Write a manifest of items: JSON Lines if the file's name ends so, else YAML.

    Raises:
        RegistryError: the file cannot be written; an older one stays as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            if path.suffix in (".jsonl", ".ndjson"):
                stream.writelines(lines(found))
            else:
                stream.write(as_yaml(found))
        partial.replace(path)
    except OSError as exc:
        raise RegistryError(f"cannot write {path}: {exc.strerror}: check the folder") from exc
    finally:
        with suppress(OSError):  # what hindered writing may hinder this too
            partial.unlink(missing_ok=True)


def items(session: Session) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every item as (kind, fields), the kind being a key of a JSON Lines manifest."""
    for benchmark in session.scalars(select(BenchmarkRow).order_by(BenchmarkRow.id)):
        yield "benchmark", _said(benchmark, _BENCHMARK)
    for row in _each(session, _checkpoints()):
        yield "checkpoint", _checkpoint(row)
    for row in _each(session, select(RunRow).options(joinedload(RunRow.checkpoint)), RunRow):
        made = {"checkpoint": row.checkpoint.name} if row.checkpoint else {}
        yield "run", {**_said(row, _RUN), **made}
    scores = select(ScoreRow).options(
        joinedload(ScoreRow.checkpoint), joinedload(ScoreRow.benchmark)
    )
    for row in _each(session, scores, ScoreRow):
        partial = {"partial": True} if row.partial else {}
        names = {"checkpoint": row.checkpoint.name, "benchmark": row.benchmark.name}
        yield "score", {**names, **_said(row, _SCORE), **partial}
    found = select(AnalysisRow).options(
        joinedload(AnalysisRow.checkpoint), joinedload(AnalysisRow.against)
    )
    for row in _each(session, found, AnalysisRow):
        against = {"against": row.against.name} if row.against else {}
        yield (
            "analysis",
            {
                "checkpoint": row.checkpoint.name,
                **against,
                **_said(row, ("kind", "setup", "result")),
            },
        )


def lines(found: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    """Yield the lines of a JSON Lines manifest."""
    yield json.dumps({"omnireg": VERSION}) + "\n"
    for kind, fields in found:
        yield json.dumps({kind: fields}, ensure_ascii=False, allow_nan=False) + "\n"


def document(found: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return a manifest as one document."""
    sections: dict[str, list[dict[str, Any]]] = {}
    for kind, fields in found:
        sections.setdefault(_SECTIONS.get(kind, f"{kind}s"), []).append(fields)
    return {"omnireg": VERSION, **sections}


def as_yaml(found: Iterable[tuple[str, dict[str, Any]]]) -> str:
    """Return a manifest as YAML."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """YAML that keeps every sign of a text."""

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
        # a reader takes this one for the end of a line, unless it is an escape
        style = '"' if "\x85" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    said = document(found)
    return str(yaml.dump(said, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100))


def _each(session: Session, query: Any, row: Any = CheckpointRow) -> Iterator[Any]:
    """Yield rows by number, a batch at a time, so that memory stays bounded."""
    last = 0
    while batch := session.scalars(query.where(row.id > last).order_by(row.id).limit(_BATCH)).all():
        yield from batch
        last = batch[-1].id
        session.expunge_all()


def _checkpoints() -> Any:
    return select(CheckpointRow).options(
        selectinload(CheckpointRow.aliases),
        selectinload(CheckpointRow.modalities),
        selectinload(CheckpointRow.parents).joinedload(ParentRow.parent),
    )


def _checkpoint(row: CheckpointRow) -> dict[str, Any]:
    lists = {
        "modalities": [word.modality for word in row.modalities],
        "aliases": [alias.alias for alias in row.aliases],
        "parents": [
            {"name": edge.parent.name, **_said(edge, ("role", "weight"))} for edge in row.parents
        ],
    }
    given = {name: values for name, values in lists.items() if values}
    return {**_said(row, (*_CHECKPOINT, "created_at")), **given}


def _said(row: Any, fields: Iterable[str]) -> dict[str, Any]:
    said = {}
    for field in fields:
        value = _plain(getattr(row, field))
        if value is not None:
            said[field] = value
        elif not type(row).__table__.c[field].nullable:
            raise ValueError(f"a row without its {field}")
    return said


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if value is None or isinstance(value, bool | int | float | dict):
        return value
    return str(value)
