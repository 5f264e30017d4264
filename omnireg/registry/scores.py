"""Benchmarks and scores in a session."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from omnireg.errors import RegistryError
from omnireg.registry import rules
from omnireg.registry.records import Benchmark, Score, whole
from omnireg.registry.tables import BenchmarkRow, CheckpointRow, ScoreRow, now


@dataclass(frozen=True, slots=True)
class Conditions:
    """What two scores must share to be the same measurement; absent equals absent."""

    metric: str
    n_shot: int | None = None
    filter: str | None = None
    split: str | None = None
    evaluator: str | None = None
    evaluator_version: str | None = None
    source: str | None = None
    setup: Mapping[str, Any] | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """Return the conditions by column."""
        return {name: getattr(self, name) for name in self.__slots__}

    @property
    def digest(self) -> str:
        """Return the key under which a score is unique; NULLs in an index never collide."""
        setup = json.dumps(dict(self.setup), sort_keys=True) if self.setup else None
        return _digest(setup, *(getattr(self, name) for name in _PLAIN))


_PLAIN = tuple(name for name in Conditions.__slots__ if name != "setup")


@lru_cache(maxsize=4096)
def _digest(setup: str | None, *values: str | int | None) -> str:
    fields: dict[str, Any] = dict(zip(_PLAIN, values, strict=True))
    if setup is not None:  # scores that have none keep the digest of older schemas
        fields["setup"] = setup
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured under the conditions."""

    value: float
    stderr: float | None = None
    n: int | None = None
    partial: bool = False
    details: dict[str, Any] | None = None


def conditions(
    metric: str, n_shot: int | None, setup: Mapping[str, Any] | None = None, **texts: str | None
) -> Conditions:
    """Check the conditions of a score."""
    checked = {field: rules.optional_text(value, field) for field, value in texts.items()}
    known = rules.document(setup, "setup") if setup else None
    metric = rules.name(metric, "metric")
    return Conditions(metric, rules.count(n_shot, "n_shot"), **checked, setup=known)


def measurement(
    value: float,
    stderr: float | None,
    n: int | None,
    partial: bool,
    details: Mapping[str, Any] | None,
) -> Measurement:
    """Check what was measured."""
    return Measurement(
        rules.finite(value, "score"),
        rules.error_bar(stderr),
        rules.count(n, "n"),
        bool(partial),
        None if details is None else rules.document(details, "details"),
    )


def record_benchmark(
    session: Session,
    name: str,
    higher_is_better: bool | None,
    **texts: str | None,
) -> BenchmarkRow:
    """Add a benchmark, or what was missing about a known one."""
    row = session.scalars(
        select(BenchmarkRow).where(BenchmarkRow.name == rules.name(name, "benchmark"))
    ).one_or_none()
    if row is None:
        row = BenchmarkRow(name=name, higher_is_better=higher_is_better is not False)
        session.add(row)
    if higher_is_better not in (None, row.higher_is_better):
        better = "higher" if row.higher_is_better else "lower"
        raise RegistryError(
            f"benchmark {name!r} is recorded with {better} scores being better:"
            " leave the direction out, or use another benchmark name"
        )
    for field, said in texts.items():
        _fill(row, field, rules.optional_text(said, field))
    session.flush()
    return row


def record(
    session: Session,
    checkpoint: CheckpointRow,
    benchmark: BenchmarkRow,
    under: Conditions,
    measured: Measurement,
    *,
    replace: bool,
) -> ScoreRow:
    """Add a score, confirm the same one, or replace another one where that was asked for."""
    row = session.scalars(
        select(ScoreRow).where(
            ScoreRow.checkpoint_id == checkpoint.id,
            ScoreRow.benchmark_id == benchmark.id,
            ScoreRow.conditions == under.digest,
        )
    ).one_or_none()
    if row is None:
        row = ScoreRow(
            checkpoint=checkpoint, benchmark=benchmark, conditions=under.digest, **under.fields
        )
        _overwrite(row, measured)
        session.add(row)
    elif _contradicts(row, measured):
        if not replace:
            raise _contradiction(row, measured)
        _overwrite(row, measured)
    else:
        _complete(row, measured)
    session.flush()
    return row


def scores_of(session: Session, checkpoint: CheckpointRow) -> list[Score]:
    """Return every score of a checkpoint, by benchmark and metric."""
    query = (
        select(ScoreRow)
        .join(ScoreRow.benchmark)
        .options(joinedload(ScoreRow.benchmark), joinedload(ScoreRow.checkpoint))
        .where(ScoreRow.checkpoint_id == checkpoint.id)
        .order_by(BenchmarkRow.name, ScoreRow.metric, ScoreRow.id)
    )
    return [to_score(row) for row in session.scalars(query)]


def benchmarks(session: Session) -> list[Benchmark]:
    """Return every benchmark by name."""
    rows = session.scalars(select(BenchmarkRow).order_by(BenchmarkRow.name))
    return [to_benchmark(row) for row in rows]


def to_benchmark(row: BenchmarkRow) -> Benchmark:
    """Return the frozen value of a row."""
    return whole(
        Benchmark(
            row.name, row.higher_is_better, row.ability, row.unit, row.description, row.metric
        )
    )


def to_score(row: ScoreRow) -> Score:
    """Return the frozen value of a row."""
    return whole(
        Score(
            checkpoint=row.checkpoint.name,
            benchmark=row.benchmark.name,
            metric=row.metric,
            value=row.value,
            higher_is_better=row.benchmark.higher_is_better,
            created_at=row.created_at,
            n=row.n,
            stderr=row.stderr,
            n_shot=row.n_shot,
            filter=row.filter,
            split=row.split,
            evaluator=row.evaluator,
            evaluator_version=row.evaluator_version,
            source=row.source,
            setup=row.setup,
            ability=row.benchmark.ability,
            unit=row.benchmark.unit,
            partial=row.partial,
            details=row.details,
        )
    )


def _fill(row: BenchmarkRow, field: str, said: str | None) -> None:
    known = getattr(row, field)
    if known is not None and said is not None and known != said:
        raise RegistryError(
            f"benchmark {row.name!r} is recorded with {field} {known!r}, not {said!r}:"
            " leave it out, or use another benchmark name"
        )
    setattr(row, field, known if known is not None else said)


def _contradicts(row: ScoreRow, measured: Measurement) -> bool:
    pairs = [(row.stderr, measured.stderr), (row.n, measured.n)]
    return (row.value, row.partial) != (measured.value, measured.partial) or any(
        known is not None and said is not None and known != said for known, said in pairs
    )


def _contradiction(row: ScoreRow, measured: Measurement) -> RegistryError:
    return RegistryError(
        f"{row.checkpoint.name!r} already has {row.value} on {row.benchmark.name!r}"
        f" ({row.metric}) under the same conditions, not {measured.value}:"
        " replace it (replace=True, --replace), or name another source"
    )


def _overwrite(row: ScoreRow, measured: Measurement) -> None:
    row.value, row.stderr, row.n = measured.value, measured.stderr, measured.n
    row.partial, row.details, row.created_at = measured.partial, measured.details, now()


def _complete(row: ScoreRow, measured: Measurement) -> None:
    row.stderr = measured.stderr if row.stderr is None else row.stderr
    row.n = measured.n if row.n is None else row.n
    row.details = measured.details if row.details is None else row.details
