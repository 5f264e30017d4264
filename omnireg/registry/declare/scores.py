"""Declared scores, by the million."""

from typing import Any

from sqlalchemy import and_, delete, exists, false, func, select, update

from omnireg.errors import RegistryError, did_you_mean
from omnireg.registry.declare.changing import (
    BENCHMARK,
    SCORE,
    Step,
    any_of,
    comparable,
    id_of,
    name_of,
)
from omnireg.registry.declare.reading import Place
from omnireg.registry.declare.staging import SCORES, index
from omnireg.registry.records import Action, SubjectType
from omnireg.registry.tables import BenchmarkRow

_MEASURED = ("value", "stderr", "n", "partial", "details", "created_at")
_CONDITIONS = (
    "metric", "n_shot", "filter", "split", "evaluator", "evaluator_version", "source",
    "setup", "conditions",
)  # fmt: skip


class Scores(Step):
    """Brings scores to what is declared."""

    def set(self) -> None:
        """Create, change and remove."""
        score = SCORES.c
        named = select(BENCHMARK.c.id).where(BENCHMARK.c.name == score.benchmark)
        self._do(
            update(SCORES).values(
                checkpoint_id=id_of(score.checkpoint), benchmark_id=named.scalar_subquery()
            )
        )
        row = self._connection.execute(
            select(score.file, score.line, score.benchmark)
            .where(score.benchmark_id.is_(None))
            .order_by(score.file, score.line)
            .limit(1)
        ).first()
        if row:
            known = self._session.scalars(select(BenchmarkRow.name).limit(1000)).all()
            raise RegistryError(
                f"{Place(row[0], row[1])}: unknown benchmark {row[2]!r}"
                f"{did_you_mean(row[2], known)}: declare it under `benchmarks`"
            )
        self._refuse(
            select(score.file, score.line, score.checkpoint)
            .where(score.checkpoint_id.is_(None))
            .order_by(score.file, score.line),
            "no checkpoint {0!r}{hint}: declare it, or correct the name",
            suggest=True,
        )
        same = and_(
            SCORE.c.checkpoint_id == score.checkpoint_id,
            SCORE.c.benchmark_id == score.benchmark_id,
            SCORE.c.conditions == score.conditions,
        )
        known_id = select(SCORE.c.id).where(same)
        self._do(update(SCORES).values(known_id=known_id.scalar_subquery()))
        self._remove()
        self._create()
        self._update()

    def _create(self) -> None:
        score = SCORES.c
        is_new = and_(score.known_id.is_(None), ~score.absent)
        facts = ("checkpoint_id", "benchmark_id", *_CONDITIONS, *_MEASURED[:3], "details")
        chosen = select(
            *(score[fact] for fact in facts),
            func.coalesce(score.partial, false()),
            func.coalesce(score.created_at, self._now),
        ).where(is_new)
        columns = [*facts, "partial", "created_at"]
        insertion = _insertion(self._is_sqlite).from_select(columns, chosen.order_by(score.item))
        made = self._do(insertion.on_conflict_do_nothing())
        wanted = self._connection.scalar(select(func.count()).select_from(SCORES).where(is_new))
        if made != wanted:
            self._settle_repeated(is_new)
        self._note(
            Action.CREATE, SubjectType.SCORE, name_of(score.checkpoint_id),
            self._object(benchmark=score.benchmark, metric=score.metric, value=score.value),
            is_new,
        )  # fmt: skip

    def _settle_repeated(self, among: Any) -> None:
        """Refuse two values for one score; of equal ones keep the first."""
        key = ("checkpoint_id", "benchmark_id", "conditions")
        index(self._connection, *(SCORES.c[name] for name in (*key, "item")))
        score, other = SCORES.c, SCORES.alias()
        earlier = and_(
            *(other.c[name] == score[name] for name in key),
            ~other.c.absent,
            other.c.item < score.item,
        )
        same = [other.c[fact].is_not_distinct_from(score[fact]) for fact in _MEASURED[:4]]
        self._refuse(
            select(
                score.file, score.line, score.checkpoint, score.benchmark, score.metric,
                score.value, other.c.value, other.c.file, other.c.line,
            ).where(among, earlier, ~and_(*same)),
            "{0!r} has {3} on {1!r} ({2}), but {4} under the same conditions at {5}:{6}: correct"
            " one, or name another source",
        )  # fmt: skip
        self._do(delete(SCORES).where(among, any_of(other, earlier)))

    def _update(self) -> None:
        score = SCORES.c
        known = and_(score.known_id.is_not(None), ~score.absent)
        if not self._connection.scalar(select(exists().where(known))):
            return
        index(self._connection, score.known_id)
        twice = select(score.known_id).where(known).group_by(score.known_id)
        if self._connection.execute(twice.having(func.count() > 1).limit(1)).first():
            self._settle_repeated(known)
        here = and_(SCORE.c.id == score.known_id, ~score.absent)
        for fact in _MEASURED:
            old, said = comparable(SCORE.c[fact]), comparable(score[fact])
            differs = and_(here, score[fact].is_not(None), said.is_distinct_from(old))
            self._note(
                Action.UPDATE, SubjectType.SCORE, name_of(score.checkpoint_id),
                self._object(
                    benchmark=score.benchmark, metric=score.metric,
                    changes=self._object(**{fact: self._pair(old, said)}),
                ),
                differs,
            )  # fmt: skip
            self._do(update(SCORE).values({fact: score[fact]}).where(differs))

    def _remove(self) -> None:
        score = SCORES.c
        gone = and_(SCORE.c.id == score.known_id, score.absent)
        self._note(
            Action.DELETE, SubjectType.SCORE, name_of(score.checkpoint_id),
            self._object(benchmark=score.benchmark, metric=score.metric, value=SCORE.c.value),
            gone,
        )  # fmt: skip
        absent = select(score.known_id).where(score.absent, score.known_id.is_not(None))
        self._do(delete(SCORE).where(SCORE.c.id.in_(absent)))


def _insertion(is_sqlite: bool) -> Any:
    if is_sqlite:
        from sqlalchemy.dialects.sqlite import insert as insert_or_nothing

        return insert_or_nothing(SCORE)
    from sqlalchemy.dialects.postgresql import insert as insert_unless

    return insert_unless(SCORE)
