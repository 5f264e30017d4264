"""Bringing the registry to what manifests declare: in one transaction, set by set.

Every change leaves an event, so the plan that people see is the events of the transaction.
"""

import json
from collections.abc import Hashable, Iterable

from sqlalchemy import func, literal, select
from sqlalchemy.orm import Session

from omnireg.errors import RegistryError
from omnireg.registry import analyses
from omnireg.registry.declare.changing import Step, id_of
from omnireg.registry.declare.checkpoints import Checkpoints
from omnireg.registry.declare.manifest import AnalysisItem, BenchmarkItem, RunItem
from omnireg.registry.declare.reading import Declared, Place
from omnireg.registry.declare.scores import Scores
from omnireg.registry.declare.staging import Staging
from omnireg.registry.events import to_event
from omnireg.registry.records import Changes
from omnireg.registry.tables import BenchmarkRow, CheckpointRow, EventRow, RunRow, ScoreRow

#: of a plan, so many changes are listed
LISTED = 100
_CACHE_KILOBYTES = 200_000
#: what tells a run from others
_RUN = ("name", "out", "machine", "started_at")


def apply(session: Session, items: Iterable[Declared]) -> Changes:
    """Change the registry to what the items say, inside the session's transaction.

    Raises:
        RegistryError: the items contradict each other or the registry; names file and line, and
            the caller's transaction must not be committed.
    """
    if session.connection().dialect.name == "sqlite":
        # indexes of millions of rows grow at random places
        session.connection().exec_driver_sql(f"PRAGMA cache_size = -{_CACHE_KILOBYTES}")
    last = session.scalar(select(func.max(EventRow.id))) or 0
    metrics = dict(session.execute(select(BenchmarkRow.name, BenchmarkRow.metric)).all())
    staging = Staging(session.connection(), metrics)
    staging.load(items)
    few, checkpoints = _Few(session), Checkpoints(session)
    few.set_benchmarks(staging.benchmarks.values())
    checkpoints.set()
    Scores(session).set()
    few.set_runs(staging.runs)
    few.set_analyses(staging.analyses)
    checkpoints.remove()
    few.remove_benchmarks(staging.benchmarks.values())
    changes = _changes(session, last)
    # after an error they go with the transaction
    staging.drop()
    return changes


def _changes(session: Session, last: int) -> Changes:
    recent = EventRow.id > last
    counts: dict[str, dict[str, int]] = {}
    query = select(EventRow.action, EventRow.subject_type, func.count()).where(recent)
    for action, kind, number in session.execute(
        query.group_by(EventRow.action, EventRow.subject_type).order_by(EventRow.action)
    ):
        counts.setdefault(str(action), {})[str(kind)] = number
    rows = session.scalars(select(EventRow).where(recent).order_by(EventRow.id).limit(LISTED))
    listed = tuple(to_event(row) for row in rows)
    return Changes(counts, listed)


class _Once:
    """What was declared before, and where."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[object, Place]] = {}

    def is_new(self, key: Hashable, said: object, place: Place, what: str) -> bool:
        """Return whether nobody declared it before; refuse it if that was in another way."""
        before, first = self._known.setdefault(key, (said, place))
        if before != said:
            raise RegistryError(
                f"{place}: {what} is declared in another way at {first}: keep one of the two"
            )
        return first is place


class _Few(Step):
    """Benchmarks, runs and analyses: few, so one at a time."""

    def set_benchmarks(self, declared: Iterable[tuple[BenchmarkItem, Place]]) -> None:
        for item, _ in declared:
            self._benchmark(item)
        self._session.flush()

    def set_runs(self, declared: Iterable[tuple[RunItem, Place]]) -> None:
        once = _Once()
        for item, place in declared:
            known = tuple(getattr(item, name) for name in _RUN)
            if once.is_new(known, item, place, f"a run of {item.name!r}"):
                self._run(item, place)
        self._session.flush()

    def set_analyses(self, declared: Iterable[tuple[AnalysisItem, Place]]) -> None:
        once = _Once()
        for item, place in declared:
            ids = [
                None if name is None else self._id(name, place)
                for name in (item.checkpoint, item.against)
            ]
            known = (*ids, item.kind, json.dumps(item.setup, sort_keys=True))
            what = f"an analysis {item.kind!r} of {item.checkpoint!r}"
            if once.is_new(known, item.result, place, what):
                self._analysis(item, place)

    def remove_benchmarks(self, declared: Iterable[tuple[BenchmarkItem, Place]]) -> None:
        for item, place in declared:
            if item.absent:
                self._remove_benchmark(item, place)
        self._session.flush()

    def _benchmark(self, item: BenchmarkItem) -> None:
        query = select(BenchmarkRow).where(BenchmarkRow.name == item.name)
        row = self._session.scalars(query).one_or_none()
        if item.absent:
            return
        if row is None:
            row = BenchmarkRow(name=item.name, higher_is_better=item.higher_is_better is not False)
            self._session.add(row)
        for fact in ("ability", "metric", "unit", "description", "higher_is_better"):
            said = getattr(item, fact)
            if said is not None and getattr(row, fact) != said:
                setattr(row, fact, said)

    def _run(self, item: RunItem, place: Place) -> None:
        query = select(RunRow).where(*(getattr(RunRow, k) == getattr(item, k) for k in _RUN))
        row = self._session.scalars(query).first()
        checkpoint_id = self._id(item.checkpoint, place) if item.checkpoint is not None else None
        if (item.status == "done") != (checkpoint_id is not None):
            raise RegistryError(
                f"{place}: a run is done if it made a checkpoint: name the checkpoint, or another"
                " status"
            )
        facts = item.model_dump(exclude={*_RUN, "checkpoint"}) | {"checkpoint_id": checkpoint_id}
        if row is None:
            self._session.add(RunRow(**{k: getattr(item, k) for k in _RUN}, **facts))
            return
        for fact, said in facts.items():
            if getattr(row, fact) != said:
                setattr(row, fact, said)

    def _analysis(self, item: AnalysisItem, place: Place) -> None:
        owner, other = (
            self._session.get(CheckpointRow, self._id(name, place)) if name else None
            for name in (item.checkpoint, item.against)
        )
        assert owner is not None
        analyses.record(self._session, owner, item.kind, other, item.setup, item.result)

    def _id(self, name: str, place: Place) -> int:
        found = self._session.scalar(select(id_of(literal(name))))
        if found is None:
            raise RegistryError(f"{place}: no checkpoint {name!r}: declare it, or correct the name")
        return int(found)

    def _remove_benchmark(self, item: BenchmarkItem, place: Place) -> None:
        query = select(BenchmarkRow).where(BenchmarkRow.name == item.name)
        row = self._session.scalars(query).one_or_none()
        if row is None:
            return
        used = select(func.count()).where(ScoreRow.benchmark_id == row.id)
        number = self._session.scalar(used)
        if number:
            raise RegistryError(
                f"{place}: benchmark {item.name!r} has {number} scores: remove those first"
            )
        self._session.delete(row)
