"""Questions about scores: who is best, and who lost what against whom."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from statistics import fmean
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from omnireg.errors import RegistryError, did_you_mean
from omnireg.registry import rules
from omnireg.registry.records import Kind, Score, whole
from omnireg.registry.tables import BenchmarkRow, CheckpointRow, ScoreRow


@dataclass(frozen=True, slots=True)
class Place:
    """A place on a leaderboard; equal values share a rank."""

    rank: int
    name: str
    kind: Kind
    value: float
    metric: str

    def to_json(self) -> dict[str, Any]:
        """Return the place as a JSON object of `leaderboard`."""
        return {
            "rank": self.rank,
            "name": self.name,
            "kind": str(self.kind),
            "value": self.value,
            "metric": self.metric,
        }


def leaderboard(
    session: Session, benchmark: str, metric: str | None, limit: int | None
) -> list[Place]:
    """Return the best checkpoints on a benchmark, each with its best complete score.

    Raises:
        RegistryError: no such benchmark or metric; names the closest.
    """
    on = _benchmark(session, benchmark)
    chosen = _metric(session, on, metric)
    value = ScoreRow.value.desc() if on.higher_is_better else ScoreRow.value.asc()
    query = (
        select(ScoreRow.checkpoint_id, ScoreRow.value)
        .where(ScoreRow.benchmark_id == on.id, ScoreRow.metric == chosen, ~ScoreRow.partial)
        .order_by(value)
        .execution_options(yield_per=200)
    )
    best: dict[int, float] = {}
    with session.execute(query) as found:
        for checkpoint, scored in found:
            best.setdefault(checkpoint, scored)
            if limit is not None and len(best) >= limit:
                break
    rows = session.execute(
        select(CheckpointRow.id, CheckpointRow.name, CheckpointRow.kind).where(
            CheckpointRow.id.in_(best)
        )
    )
    names = {number: (name, kind) for number, name, kind in rows}
    values = list(best.values())
    return [
        whole(Place(values.index(scored) + 1, *names[number], scored, chosen))
        for number, scored in best.items()
    ]


def _benchmark(session: Session, name: str) -> BenchmarkRow:
    named = BenchmarkRow.name == rules.asked(name, "benchmark")
    row = session.scalars(select(BenchmarkRow).where(named)).one_or_none()
    if row is None:
        known = session.scalars(select(BenchmarkRow.name)).all()
        raise RegistryError(
            f"no benchmark {name!r}{did_you_mean(name, known)}: see"
            ' `omnireg sql "SELECT name FROM v_benchmarks"`'
        )
    return row


def _metric(session: Session, benchmark: BenchmarkRow, metric: str | None) -> str:
    """Return the metric asked for, else the benchmark's usual one, else the most frequent one."""
    number = func.count()
    query = select(ScoreRow.metric, number).where(ScoreRow.benchmark_id == benchmark.id)
    if metric is None and benchmark.metric is not None:
        return benchmark.metric
    found = session.execute(query.group_by(ScoreRow.metric).order_by(number.desc())).all()
    known = [row[0] for row in found]
    if metric is None:
        return known[0] if known else "score"
    if metric not in known:
        raise RegistryError(
            f"nobody has {metric!r} on {benchmark.name!r}{did_you_mean(metric, known)}: it has"
            f" {', '.join(known) or 'no scores'}"
        )
    return metric


@dataclass(frozen=True, slots=True)
class Compared:
    """One value beside the reference's.

    Attributes:
        delta: value − reference, in the benchmark's unit.
        retention: how much of the reference is kept, 1 being all: value / reference, or
            reference / value where lower is better; None where that divides by zero.
        better: whether it is better than the reference; None if equal.
        partial: whether either was measured on some of the items alone.
    """

    value: float
    delta: float
    retention: float | None
    better: bool | None
    partial: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the value as a JSON object."""
        return {
            "value": self.value,
            "delta": self.delta,
            "retention": self.retention,
            "better": self.better,
            "partial": self.partial,
        }


@dataclass(frozen=True, slots=True)
class Row:
    """One benchmark and metric; a checkpoint without a score there has no value."""

    benchmark: str
    metric: str
    higher_is_better: bool
    ability: str | None
    unit: str | None
    reference: float
    values: Mapping[str, Compared]

    def to_json(self) -> dict[str, Any]:
        """Return the row as a JSON object."""
        return {
            "benchmark": self.benchmark,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "ability": self.ability,
            "unit": self.unit,
            "reference": self.reference,
            "values": {name: value.to_json() for name, value in self.values.items()},
        }


@dataclass(frozen=True, slots=True)
class Mean:
    """Means over the rows that a checkpoint has a value in.

    Attributes:
        delta: mean gain in points; losses are negative also where lower is better.
        relative: mean gain as a share of the reference, over the rows whose reference is not 0.
    """

    delta: float
    relative: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the means as a JSON object."""
        return {"delta": self.delta, "relative": self.relative}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Checkpoints against a reference, benchmark by benchmark."""

    against: str
    names: tuple[str, ...]
    rows: tuple[Row, ...]
    mean: Mapping[str, Mean] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as the JSON object of `compare`."""
        return {
            "against": self.against,
            "rows": [row.to_json() for row in self.rows],
            "mean": {name: mean.to_json() for name, mean in self.mean.items()},
        }


_Key = tuple[str, str, str | None, int | None, str | None]


def compare(
    names: Sequence[str],
    scores: Mapping[str, Sequence[Score]],
    against: str,
    benchmarks: Iterable[str] = (),
    source: str | None = None,
) -> Comparison:
    """Set checkpoints beside a reference wherever it was measured in the same way.

    Two scores are compared if they share benchmark, metric, filter, shots and split; of several,
    those with the same source and evaluator are paired, and later ones go before earlier ones.

    Args:
        names: the checkpoints.
        scores: the scores of each, and of the reference.
        against: the reference.
        benchmarks: those to look at; all of the reference's when empty.
        source: look at scores alone whose source, or the program that measured them, holds this.
    """
    wanted = set(benchmarks)
    grouped = {name: _grouped(scores[name], wanted, source) for name in (*names, against)}
    rows = [
        row
        for key, references in grouped[against].items()
        if (row := _row(references, {name: grouped[name].get(key, ()) for name in names}))
    ]
    means = {name: mean for name in names if (mean := _mean(rows, name))}
    return Comparison(against, tuple(names), tuple(rows), means)


def _grouped(
    scores: Sequence[Score], benchmarks: set[str], source: str | None
) -> dict[_Key, list[Score]]:
    found: dict[_Key, list[Score]] = {}
    for score in scores:
        if benchmarks and score.benchmark not in benchmarks:
            continue
        if source is not None and source not in score.measured_by:
            continue
        key = (score.benchmark, score.metric, score.filter, score.n_shot, score.split)
        found.setdefault(key, []).append(score)
    return found


def _row(references: Sequence[Score], others: Mapping[str, Sequence[Score]]) -> Row | None:
    values = {}
    reference = references[-1]
    for name, scores in others.items():
        if scores:
            mine, theirs = _pair(scores, references)
            values[name] = _compared(mine, theirs)
            reference = theirs
    if not values:
        return None
    return Row(
        reference.benchmark, reference.metric, reference.higher_is_better, reference.ability,
        reference.unit, reference.value, values,
    )  # fmt: skip


def _pair(scores: Sequence[Score], references: Sequence[Score]) -> tuple[Score, Score]:
    """Return the two that were measured most alike; later ones go first."""

    def alike(pair: tuple[Score, Score]) -> tuple[bool, ...]:
        one, other = pair
        return (
            one.partial == other.partial,
            not one.partial,
            one.setup == other.setup,
            one.source == other.source,
            (one.evaluator, one.evaluator_version) == (other.evaluator, other.evaluator_version),
        )

    pairs = [(one, other) for one in reversed(scores) for other in reversed(references)]
    return max(pairs, key=alike)


def _compared(score: Score, reference: Score) -> Compared:
    value, known = score.value, reference.value
    gain = value - known if score.higher_is_better else known - value
    part, whole = (value, known) if score.higher_is_better else (known, value)
    retention = part / whole if whole and isfinite(part / whole) else None
    better = None if gain == 0 else gain > 0
    return Compared(value, value - known, retention, better, score.partial or reference.partial)


def _mean(rows: Sequence[Row], name: str) -> Mean | None:
    gains = [
        (row.values[name].delta * (1 if row.higher_is_better else -1), row.reference)
        for row in rows
        if name in row.values
    ]
    if not gains:
        return None
    relative = [gain / abs(reference) for gain, reference in gains if reference]
    return Mean(fmean(gain for gain, _ in gains), fmean(relative) if relative else None)
