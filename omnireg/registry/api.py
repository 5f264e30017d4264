"""The registry as a Python object: every call is one transaction and returns frozen values."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from omnireg.registry import (
    analyses,
    checkpoints,
    events,
    lineage,
    problems,
    publications,
    ranking,
    reading,
    recording,
    rules,
    runs,
    scores,
    signatures,
)
from omnireg.registry.database import BUSY_TIMEOUT, Database
from omnireg.registry.records import (
    Analysis,
    Benchmark,
    Changes,
    Checkpoint,
    Event,
    Kind,
    Parent,
    Publication,
    Run,
    RunStatus,
    Score,
)

if TYPE_CHECKING:
    from omnireg.registry.declare.reading import Declared


class Registry:
    """What checkpoints are made of and how good they are.

    The registry is at `url`, else at `$OMNIREG_REGISTRY`, else in ``registry.db`` in the working
    folder; a plain path is a SQLite file. The first write creates it. Threads may share one.
    """

    def __init__(
        self, url: str | Path | None = None, *, busy_timeout: float = BUSY_TIMEOUT
    ) -> None:
        """Name the registry; `busy_timeout` is how many seconds to wait for another writer."""
        self._database = Database(url, busy_timeout)

    def __enter__(self) -> Self:
        """Return the registry."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the registry."""
        self.close()

    def __repr__(self) -> str:
        """Return where the registry is."""
        return f"Registry({self.where!r})"

    @property
    def where(self) -> str:
        """Return the path, or the URL without its password."""
        return self._database.where

    def close(self) -> None:
        """Let go of the database; a later call opens it again."""
        self._database.close()

    def exists(self) -> bool:
        """Return whether anything was ever written here, since reading nothing is an error."""
        return self._database.exists()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make all calls of this thread in the block one transaction: an error takes all back."""
        with self._database.together():
            yield

    # Checkpoints

    def add_checkpoint(
        self,
        name: str,
        *,
        kind: str,
        fingerprint: str | None = None,
        source: str | None = None,
        modalities: Iterable[str] = (),
        parents: Iterable[Parent] = (),
        strategy: str | None = None,
        notes: str | None = None,
        files: Mapping[str, str] | None = None,
    ) -> Checkpoint:
        """Record a checkpoint with recorded parents, or add what was missing about a known one."""
        said = recording.facts(
            name, kind, fingerprint, source, modalities, parents, strategy, notes, files
        )
        with self._database.writing() as session:
            row = recording.record(session, said, create_parents=False)
            return checkpoints.to_checkpoint(row)

    def add_alias(self, ref: str, alias: str) -> Checkpoint:
        """Give a checkpoint another name."""
        rules.name(alias, "alias")
        with self._database.writing() as session:
            row = checkpoints.find(session, ref)
            recording.add_alias(session, row, alias)
            session.flush()
            session.expire(row)
            return checkpoints.to_checkpoint(row)

    def find(self, ref: str) -> Checkpoint:
        """Return the one checkpoint that a name, an alias or a fingerprint prefix means."""
        with self._database.reading() as session:
            return checkpoints.read(session, checkpoints.locate(session, ref))

    def get(self, name: str) -> Checkpoint | None:
        """Return the checkpoint of exactly this name, if there is one."""
        rules.name(name)
        with self._database.reading() as session:
            row = checkpoints.by_name(session, name)
            return checkpoints.to_checkpoint(row) if row else None

    def by_fingerprint(self, fingerprint: str) -> list[Checkpoint]:
        """Return every checkpoint with these bytes, oldest first."""
        whole = rules.fingerprint(fingerprint)
        with self._database.reading() as session:
            rows = checkpoints.by_fingerprint(session, str(whole))
            return [checkpoints.to_checkpoint(row) for row in rows if row.fingerprint == whole]

    def checkpoints(
        self,
        *,
        kind: str | None = None,
        modality: str | None = None,
        strategy: str | None = None,
        parent: str | None = None,
        limit: int | None = 100,
    ) -> list[Checkpoint]:
        """Return the checkpoints that match every given condition, newest first."""
        with self._database.reading() as session:
            return checkpoints.search(session, kind, modality, strategy, parent, limit)

    def lineage(
        self,
        ref: str,
        *,
        direction: str = "both",
        depth: int | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> lineage.Lineage:
        """Return the family of a checkpoint, `depth` generations up, down or both, nearest first.

        In each direction at most `limit` relatives, after the first `offset` of them.
        """
        way = rules.state(lineage.Direction, direction, "direction")
        generations, most = rules.limit(depth, "depth"), rules.limit(limit)
        skipped = rules.count(offset, "offset") or 0
        with self._database.reading() as session:
            root = checkpoints.locate(session, ref)
            return lineage.family(session.connection(), root, way, generations, most, skipped)

    # Scores

    def add_benchmark(
        self,
        name: str,
        *,
        higher_is_better: bool | None = None,
        ability: str | None = None,
        metric: str | None = None,
        unit: str | None = None,
        description: str | None = None,
    ) -> Benchmark:
        """Record a benchmark (higher is better unless said), or fill in what was missing."""
        with self._database.writing() as session:
            row = scores.record_benchmark(
                session,
                name,
                higher_is_better,
                ability=ability,
                metric=metric,
                unit=unit,
                description=description,
            )
            return scores.to_benchmark(row)

    def benchmarks(self) -> list[Benchmark]:
        """Return every benchmark by name."""
        with self._database.reading() as session:
            return scores.benchmarks(session)

    def add_score(
        self,
        checkpoint: str,
        benchmark: str,
        value: float,
        *,
        metric: str = "score",
        n: int | None = None,
        stderr: float | None = None,
        n_shot: int | None = None,
        filter: str | None = None,
        split: str | None = None,
        evaluator: str | None = None,
        evaluator_version: str | None = None,
        source: str | None = None,
        setup: Mapping[str, Any] | None = None,
        higher_is_better: bool | None = None,
        ability: str | None = None,
        unit: str | None = None,
        partial: bool = False,
        details: Mapping[str, Any] | None = None,
        replace: bool = False,
    ) -> Score:
        """Record a score; another value under the same conditions is an error unless replaced.

        `setup` holds the conditions that have no argument of their own; see
        :class:`omnireg.registry.Score`.
        """
        under = scores.conditions(
            metric,
            n_shot,
            setup,
            filter=filter,
            split=split,
            evaluator=evaluator,
            evaluator_version=evaluator_version,
            source=source,
        )
        measured = scores.measurement(value, stderr, n, partial, details)
        with self._database.writing() as session:
            owner = checkpoints.find(session, checkpoint)
            on = scores.record_benchmark(
                session, benchmark, higher_is_better, ability=ability, unit=unit
            )
            row = scores.record(session, owner, on, under, measured, replace=replace)
            return scores.to_score(row)

    def scores(self, checkpoint: str) -> list[Score]:
        """Return every score of a checkpoint, by benchmark and metric."""
        with self._database.reading() as session:
            return scores.scores_of(session, checkpoints.find(session, checkpoint))

    def leaderboard(
        self, benchmark: str, *, metric: str | None = None, limit: int | None = 50
    ) -> list[ranking.Place]:
        """Return the best checkpoints on a benchmark; the metric is its usual one unless given."""
        most = rules.limit(limit)
        with self._database.reading() as session:
            return ranking.leaderboard(session, benchmark, metric, most)

    def compare(
        self,
        names: str | Iterable[str],
        *,
        against: str,
        benchmarks: Iterable[str] = (),
        source: str | None = None,
    ) -> ranking.Comparison:
        """Return how checkpoints differ from a reference on every benchmark both have."""
        wanted = [names] if isinstance(names, str) else list(names)
        with self._database.reading() as session:
            rows = {ref: checkpoints.find(session, ref) for ref in (*wanted, against)}
            found = {row.name: scores.scores_of(session, row) for row in rows.values()}
        return ranking.compare(
            [rows[ref].name for ref in wanted], found, rows[against].name, benchmarks, source
        )

    def check_scores(
        self, ref: str, *, thresholds: Mapping[str, float] | None = None
    ) -> list[signatures.Signature]:
        """Return the signatures of failure that the scores of a checkpoint show.

        `thresholds` changes some of :data:`omnireg.registry.signatures.THRESHOLDS`.
        """
        limits = signatures.thresholds(thresholds or {})
        with self._database.reading() as session:
            row = checkpoints.find(session, ref)
            found = {
                other.name: scores.scores_of(session, other)
                for other in (row, *(edge.parent for edge in row.parents))
            }
            return signatures.check(checkpoints.to_checkpoint(row), found, limits)

    # Analyses

    def add_analysis(
        self,
        checkpoint: str,
        kind: str,
        result: Mapping[str, Any],
        *,
        against: str | None = None,
        setup: Mapping[str, Any] | None = None,
    ) -> Analysis:
        """Record what an analysis found; the same one again replaces its result."""
        with self._database.writing() as session:
            owner = checkpoints.find(session, checkpoint)
            other = checkpoints.find(session, against) if against else None
            return analyses.to_analysis(
                analyses.record(session, owner, kind, other, setup or {}, result)
            )

    def analyses(self, checkpoint: str, kind: str | None = None) -> list[Analysis]:
        """Return the analyses of a checkpoint, newest first; of one kind if named."""
        with self._database.reading() as session:
            return analyses.of(session, checkpoints.find(session, checkpoint), kind)

    # Runs

    def check_name_free(
        self,
        name: str,
        *,
        kind: str | None = None,
        fingerprint: str | None = None,
        recipe_digest: str | None = None,
        plugin: str | None = None,
    ) -> None:
        """Refuse, before any work, a name that a checkpoint with other bytes has.

        A name whose bytes are unknown is free, and so is one that these bytes or a run of this
        recipe already have, with this version of the single-file ``plugin`` if one is used.
        """
        wanted = None if kind is None else rules.state(Kind, kind, "kind")
        whole = rules.fingerprint(fingerprint)
        if not self.exists():
            rules.name(name)
            return
        with self._database.reading() as session:
            runs.refuse_taken(session, name, wanted, whole, recipe_digest, plugin)

    def start_run(
        self,
        name: str,
        *,
        out: str | Path,
        recipe_text: str,
        recipe_digest: str,
        strategy: str,
        engine: str,
        strategy_distribution: str | None = None,
        strategy_version: str | None = None,
        seed: int | None = None,
        parameters: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
        machine: str | None = None,
    ) -> int:
        """Record that work on a checkpoint begins, and return the run's number."""
        with self._database.writing() as session:
            row = runs.start(
                session,
                name,
                out=str(out),
                recipe_text=recipe_text,
                recipe_digest=recipe_digest,
                strategy=strategy,
                engine=engine,
                strategy_distribution=strategy_distribution,
                strategy_version=strategy_version,
                seed=seed,
                parameters=parameters,
                versions=versions,
                machine=machine,
            )
            return row.id

    def finish_run(
        self,
        run_id: int,
        *,
        name: str,
        kind: str,
        fingerprint: str,
        source: str | None = None,
        modalities: Iterable[str] = (),
        parents: Iterable[Parent] = (),
        strategy: str | None = None,
        notes: str | None = None,
        files: Mapping[str, str] | None = None,
    ) -> Checkpoint:
        """Record what a run made, with parents nobody recorded yet, in one transaction."""
        said = recording.facts(
            name, kind, fingerprint, source, modalities, parents, strategy, notes, files
        )
        with self._database.writing() as session:
            return checkpoints.to_checkpoint(runs.finish(session, run_id, said))

    def fail_run(self, run_id: int, error: str) -> Run:
        """Record why a run stopped; a run that already failed keeps its first reason."""
        with self._database.writing() as session:
            return runs.to_run(runs.fail(session, run_id, error))

    def run(self, run_id: int) -> Run:
        """Return a run by its number."""
        with self._database.reading() as session:
            return runs.to_run(runs.get(session, run_id))

    def run_of(self, name: str) -> Run | None:
        """Return the latest run that made a checkpoint, if one did."""
        with self._database.reading() as session:
            made = runs.latest(session, checkpoint=checkpoints.find(session, name), limit=1)
            return made[0] if made else None

    def runs(self, status: str | None = None, *, limit: int | None = 100) -> list[Run]:
        """Return runs, newest first."""
        state = None if status is None else rules.state(RunStatus, status, "status")
        with self._database.reading() as session:
            return runs.latest(session, status=state, limit=limit)

    # Publications

    def add_publication(
        self, checkpoint: str, repo: str, commit: str, *, url: str, branch: str | None = None
    ) -> Publication:
        """Record that a commit on the Hub holds a checkpoint; twice is once."""
        with self._database.writing() as session:
            owner = checkpoints.find(session, checkpoint)
            row = publications.record(session, owner, repo, commit, url, branch)
            return publications.to_publication(row)

    def publications(self, checkpoint: str) -> list[Publication]:
        """Return where a checkpoint was published, newest first."""
        with self._database.reading() as session:
            return publications.of(session, checkpoints.find(session, checkpoint))

    # Manifests

    def apply(self, *files: str | Path, dry_run: bool = False) -> Changes:
        """Bring the registry to what manifest files declare, in one transaction.

        Applying the same files again changes nothing. A dry run works on a scratch copy.

        Raises:
            RegistryError: the files contradict themselves or what is recorded; names file and line.
        """
        # manifests take a moment to import, and few commands read them
        from omnireg.registry.declare.applying import apply
        from omnireg.registry.declare.reading import read

        items = read([Path(file) for file in files])
        if dry_run:
            with self._database.scratch() as scratch, scratch.trying() as session:
                return apply(session, items)
        with self._database.writing() as session:
            return apply(session, items)

    def apply_items(self, items: "Iterable[Declared]") -> Changes:
        """Bring the registry to what items of manifests declare, in one transaction.

        Raises:
            RegistryError: the items contradict themselves or what is recorded; names file and line.
        """
        from omnireg.registry.declare.applying import apply

        with self._database.writing() as session:
            return apply(session, items)

    def items(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield all that is recorded, as (``benchmark`` | ``checkpoint`` | …, fields)."""
        from omnireg.registry.declare import exporting

        with self._database.reading() as session:
            yield from exporting.items(session)

    def export(self, out: str | Path) -> None:
        """Write a manifest of all that is recorded: JSON Lines if `out` ends so, else YAML.

        Raises:
            RegistryError: the file cannot be written; an older one stays as it was.
        """
        from omnireg.registry.declare import exporting

        exporting.write(self.items(), Path(out))

    def sql(
        self,
        query: str,
        *,
        limit: int | None = 1000,
        timeout: float | None = reading.TIMEOUT,
    ) -> reading.Answer:
        """Return what a SELECT over the documented views finds; nothing can be written.

        Raises:
            RegistryError: the query is refused, or takes longer than `timeout` seconds.
        """
        most = rules.limit(limit)
        with self._database.reading() as session:
            return reading.ask(session.connection(), query, most, timeout)

    def events(self, subject: str | None = None, *, limit: int | None = 100) -> list[Event]:
        """Return who changed what, newest first; of one checkpoint or benchmark if named."""
        with self._database.reading() as session:
            return events.search(session, subject, limit)

    # The database

    def upgrade(self) -> str | None:
        """Create the schema or bring an older one up to date, and return its revision."""
        self._database.upgrade()
        return self.current()

    def seal(self) -> None:
        """Make a SQLite file one that ships with a project.

        It is one file without side files, which anyone may read by default, and which is only
        written where it is named: by a URL, ``--registry`` or ``$OMNIREG_REGISTRY``.
        """
        self._database.seal()

    def current(self) -> str | None:
        """Return the schema's revision, or None where there is no registry yet."""
        return self._database.revision()

    def check(self) -> list[str]:
        """Return what is wrong with the stored data, one line per problem."""
        with self._database.reading() as session:
            return problems.of(session, in_a_file=self._database.is_sqlite)
