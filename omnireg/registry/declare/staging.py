"""Declared items in temporary tables, from which the registry is changed set by set."""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Integer,
    MetaData,
    Table,
    Text,
    insert,
    text,
)

from omnireg.errors import RegistryError
from omnireg.registry import scores
from omnireg.registry.columns import Document, UtcDateTime
from omnireg.registry.declare.manifest import (
    AnalysisItem,
    BenchmarkItem,
    CheckpointItem,
    RunItem,
    ScoreItem,
)
from omnireg.registry.declare.reading import Declared, Place

_BATCH = 5000
_metadata = MetaData()


def _table(name: str, *columns: Column[Any]) -> Table:
    return Table(f"declared_{name}", _metadata, *columns, prefixes=["TEMPORARY"])


def _texts(*names: str) -> list[Column[Any]]:
    return [Column(name, Text) for name in names]


#: `item` numbers the declarations; `id`, `known_id` are those of what is recorded already
CHECKPOINTS = _table(
    "checkpoints",
    Column("item", Integer, primary_key=True, autoincrement=False),
    *_texts("file", "name", "kind", "fingerprint", "source", "strategy", "notes"),
    Column("line", Integer),
    Column("details", Document(none_as_null=True)),
    Column("files", Document(none_as_null=True)),
    Column("created_at", UtcDateTime),
    *(Column(flag, Boolean) for flag in ("says_modalities", "says_aliases", "says_parents")),
    Column("absent", Boolean),
    Column("is_new", Boolean),
    Column("id", Integer),
)
PARENTS = _table(
    "parents",
    Column("item", Integer),
    Column("position", Integer),
    *_texts("file", "name", "role"),
    Column("line", Integer),
    Column("weight", Double),
    Column("child_id", Integer),
    Column("parent_id", Integer),
)
MODALITIES = _table("modalities", Column("item", Integer), *_texts("modality"))
ALIASES = _table("aliases", Column("item", Integer), *_texts("alias"))
SCORES = _table(
    "scores",
    Column("item", Integer, primary_key=True, autoincrement=False),
    *_texts("file", "checkpoint", "benchmark", "metric"),
    Column("line", Integer),
    Column("value", Double),
    Column("stderr", Double),
    Column("n", BigInteger),
    Column("n_shot", BigInteger),
    *_texts("filter", "split", "evaluator", "evaluator_version", "source", "conditions"),
    Column("setup", Document(none_as_null=True)),
    Column("partial", Boolean),
    Column("details", Document(none_as_null=True)),
    Column("created_at", UtcDateTime),
    Column("absent", Boolean),
    Column("checkpoint_id", Integer),
    Column("benchmark_id", Integer),
    Column("known_id", Integer),
)
_INDEXED = (
    (CHECKPOINTS.c.name,),
    (PARENTS.c.item,),
    (MODALITIES.c.item, MODALITIES.c.modality),
    (ALIASES.c.item, ALIASES.c.alias),
    (ALIASES.c.alias,),
)
_PLAIN = (
    "name",
    "kind",
    "fingerprint",
    "source",
    "strategy",
    "notes",
    "details",
    "files",
    "created_at",
)
_MEASURED = ("value", "stderr", "n", "partial", "details", "created_at", "absent")


def index(connection: Connection, *columns: Column[Any]) -> None:
    """Index a temporary table, for as long as it lasts."""
    table, names = columns[0].table.name, [column.name for column in columns]
    made = "_".join(["by", table, *names])
    connection.execute(text(f"CREATE INDEX IF NOT EXISTS {made} ON {table} ({', '.join(names)})"))


class Staging:
    """The temporary tables of one transaction, and what is few enough to be kept in memory."""

    def __init__(self, connection: Connection, metrics: Mapping[str, str | None]) -> None:
        """Create the tables; `metrics` are the usual metrics of recorded benchmarks."""
        self._connection = connection
        self._metrics = dict(metrics)
        self._waiting: dict[Table, list[dict[str, Any]]] = {}
        self._unclear: list[tuple[ScoreItem, Place]] = []
        self.benchmarks: dict[str, tuple[BenchmarkItem, Place]] = {}
        self.runs: list[tuple[RunItem, Place]] = []
        self.analyses: list[tuple[AnalysisItem, Place]] = []
        self.checkpoints = self.scores = 0
        _metadata.create_all(connection, checkfirst=False)

    def load(self, items: Iterable[Declared]) -> None:
        """Take in every item.

        Raises:
            RegistryError: an item contradicts itself or another one; names file and line.
        """
        for item, place in items:
            if isinstance(item, ScoreItem):
                self._score(item, place)
            elif isinstance(item, CheckpointItem):
                self._checkpoint(item, place)
            elif isinstance(item, BenchmarkItem):
                self._benchmark(item, place)
            elif isinstance(item, RunItem):
                self.runs.append((item, place))
            elif isinstance(item, AnalysisItem):
                self.analyses.append((item, place))
        for item, place in self._unclear:
            # the benchmark came later, or never; the latter is found out by joining
            self._add_score(item, place, self._metrics.get(item.benchmark) or "score")
        for table in list(self._waiting):
            self._flush(table)
        for columns in _INDEXED:
            index(self._connection, *columns)

    def drop(self) -> None:
        """Drop the tables."""
        _metadata.drop_all(self._connection, checkfirst=False)

    def _add(self, table: Table, row: dict[str, Any]) -> None:
        rows = self._waiting.setdefault(table, [])
        rows.append(row)
        if len(rows) >= _BATCH:
            self._flush(table)

    def _flush(self, table: Table) -> None:
        rows = self._waiting.pop(table, [])
        if rows:
            self._connection.execute(insert(table), rows)

    def _benchmark(self, item: BenchmarkItem, place: Place) -> None:
        known, first = self.benchmarks.setdefault(item.name, (item, place))
        if known != item:
            raise RegistryError(
                f"{place}: benchmark {item.name!r} is declared in another way at {first}:"
                " keep one of the two"
            )
        self._metrics[item.name] = item.metric or self._metrics.get(item.name)

    def _checkpoint(self, item: CheckpointItem, place: Place) -> None:
        self.checkpoints += 1
        row = self.checkpoints
        said = {field: getattr(item, field) for field in _PLAIN}
        self._add(
            CHECKPOINTS,
            {
                "item": row,
                "file": place.file,
                "line": place.line,
                **said,
                "says_modalities": item.modalities is not None,
                "says_aliases": item.aliases is not None,
                "says_parents": item.parents is not None,
                "absent": item.absent,
            },
        )
        for modality in sorted(set(item.modalities or ())):
            self._add(MODALITIES, {"item": row, "modality": modality})
        for alias in sorted(set(item.aliases or ())):
            self._add(ALIASES, {"item": row, "alias": alias})
        self._parents(item, row, place)

    def _parents(self, item: CheckpointItem, row: int, place: Place) -> None:
        seen = set()
        for position, parent in enumerate(item.parents or ()):
            if (parent.name, parent.role) in seen:
                raise RegistryError(
                    f"{place}: {parent.name!r} is listed twice as {parent.role} of"
                    f" {item.name!r}: add up its weights"
                )
            seen.add((parent.name, parent.role))
            self._add(
                PARENTS,
                {
                    "item": row,
                    "position": position,
                    "file": place.file,
                    "line": place.line,
                    "name": parent.name,
                    "role": str(parent.role),
                    "weight": parent.weight,
                },
            )

    def _score(self, item: ScoreItem, place: Place) -> None:
        if item.value is None and not item.absent:
            raise RegistryError(f"{place}: the score has no value: give one, or `absent: true`")
        metric = item.metric or self._metrics.get(item.benchmark)
        if metric is None:
            self._unclear.append((item, place))
        else:
            self._add_score(item, place, metric)

    def _add_score(self, item: ScoreItem, place: Place, metric: str) -> None:
        under = scores.Conditions(
            metric,
            item.n_shot,
            item.filter,
            item.split,
            item.evaluator,
            item.evaluator_version,
            item.source,
            item.setup or None,
        )
        self.scores += 1
        self._add(
            SCORES,
            {
                "item": self.scores,
                "file": place.file,
                "line": place.line,
                "checkpoint": item.checkpoint,
                "benchmark": item.benchmark,
                **under.fields,
                "conditions": under.digest,
                **{field: getattr(item, field) for field in _MEASURED},
            },
        )
