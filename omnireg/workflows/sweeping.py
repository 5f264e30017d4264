"""A grid of merges: each point is merged, measured, recorded with its lineage, and ranked."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from omnireg.checkpoints.outputs import is_open, nearest
from omnireg.checkpoints.shards import SHARD_BYTES
from omnireg.errors import ConfigError
from omnireg.evaluation.generative import EVALUATOR, read_tasks
from omnireg.hookspecs import Conduct, Result
from omnireg.merging import Job, merge_together
from omnireg.package import fingerprint_of
from omnireg.planning import Shape, plan
from omnireg.planning.output import Output as Files
from omnireg.plugins.host import PluginHost
from omnireg.recipe import Recipe, as_recipe
from omnireg.registry import Registry
from omnireg.workflows.evaluating import Assigned, assigned, enter, first_of_each, measured, merit
from omnireg.workflows.grid import Point, points, with_parameters
from omnireg.workflows.trials import Notebook, Score, Trial, check_alike, numbers

TRIALS = "points.jsonl"
GENERATIVE = EVALUATOR.name
#: merged side by side, unless there is room for fewer
TOGETHER = 4
#: of the free disk, so much may be filled
_SHARE = 0.9


class Keep(StrEnum):
    """Which of the merged folders stay."""

    ALL = "all"
    BEST = "best"
    NONE = "none"


@dataclass(frozen=True)
class Measuring:
    """How points are scored: by tasks, or by a function.

    Attributes:
        tasks: names of tasks, and files of items.
        evaluator: who measures them; told from the task when None.
        conduct: how.
        score: called with a folder, in place of tasks; higher is better.
        name: what the function's number is called.
    """

    tasks: Sequence[str] = ()
    evaluator: str | None = None
    conduct: Conduct = field(default_factory=Conduct)
    score: Score | None = None
    name: str = "score"

    @property
    def by(self) -> str:
        """What tells this way of scoring from others; empty where nothing is scored."""
        if self.score is not None:
            return self.name
        how = self.conduct if self.tasks else ""
        return f"{','.join(self.tasks)} {self.evaluator or ''} {how}".strip()


@dataclass(frozen=True)
class SweepPoint:
    """One point of a sweep.

    Attributes:
        name: of the merged checkpoint in the registry.
        out: where it is, or was.
        fingerprint: of its weights.
        trial: its parameters, values and errors; without values where nothing was scored.
    """

    name: str
    out: Path
    fingerprint: str
    trial: Trial

    @property
    def point(self) -> Point:
        """Its parameters."""
        return self.trial.point

    @property
    def mean(self) -> float:
        """The mean of its values."""
        return self.trial.mean

    def to_json(self) -> dict[str, Any]:
        """Return the point's part of the JSON object of ``sweep``."""
        return {
            "name": self.name,
            "out": str(self.out),
            "kept": self.out.is_dir(),
            "fingerprint": self.fingerprint,
            "point": dict(self.point),
            "values": dict(self.trial.values),
            "errors": dict(self.trial.errors),
            "mean": self.mean if self.trial.values else None,
        }


@dataclass(frozen=True)
class Sweep:
    """Every point, the best first; in the grid's order where nothing was scored."""

    points: tuple[SweepPoint, ...]
    scored: bool

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``sweep``."""
        ranked = [{"rank": rank, **p.to_json()} for rank, p in enumerate(self.points, 1)]
        return {"scored": self.scored, "points": ranked}


@dataclass(frozen=True)
class Preview:
    """What a sweep would do.

    Attributes:
        names: the checkpoints that it would make.
        bytes_each: size of one, 0 where only mergekit knows.
        together: how many would be merged side by side.
        most_bytes: on disk at the same time.
    """

    names: tuple[str, ...]
    bytes_each: int
    together: int
    most_bytes: int


def preview(
    recipe: Recipe | Path | str,
    grid: Mapping[str, Sequence[Any]],
    out: Path,
    *,
    prefix: str | None = None,
    keep: Keep | str = Keep.ALL,
    together: int | None = None,
    measuring: Measuring | None = None,
    plugins: PluginHost | None = None,
) -> Preview:
    """Check every point of a sweep, from headers alone, and say what it would take.

    Raises:
        ConfigError: no such parameter or value, not enough room on the disk, or no folder can be
            made at ``out``.
        EvaluationError: the points cannot be measured as ``measuring`` says.
        OmniregError: the recipe's inputs do not fit together.
    """
    plugins, keep = plugins or PluginHost(), _keep(keep)
    if measuring is not None:
        _evaluators(measuring, keep, plugins)
    place = nearest(out)
    if not place.is_dir():
        raise ConfigError(f"cannot make the folder {out}: {place} is in the way; name another")
    if not is_open(place):
        raise ConfigError(f"cannot write to {place}; name another folder with --out")
    if not grid:
        raise ConfigError("nothing varies: give --grid P=a,b,c or --grid P=start:stop:step")
    parsed, _ = as_recipe(recipe)
    settings = list(points(grid))
    plans = [plan(with_parameters(parsed, point), plugins) for point in settings]
    first = plans[0]
    sized = not first.planned_by_mergekit and first.shape is not Shape.PACKAGE
    size = Files(first, SHARD_BYTES).size if sized else 0
    free = int(_SHARE * shutil.disk_usage(place).free)
    kept = 0 if keep is Keep.NONE else 1
    chosen = together or TOGETHER
    if size:
        chosen = max(1, min(chosen, free // size - kept))
    chosen = min(chosen, len(settings))
    most = size * (len(settings) if keep is Keep.ALL else chosen + kept)
    if most > free:
        raise ConfigError(
            f"{most / 1e9:.3g} GB are needed at once in {out}, and {free / 1e9:.3g} GB are there;"
            + (" --keep best removes the others after they were scored, or" if kept else "")
            + " take fewer points"
        )
    names = tuple(f"{_prefix(parsed, prefix, out)}/{_slug(point)}" for point in settings)
    if len(set(names)) < len(names):
        raise ConfigError("two points of the grid are the same; leave one out")
    return Preview(names, size, chosen, most)


def sweep(
    recipe: Recipe | Path | str,
    grid: Mapping[str, Sequence[Any]],
    out: Path,
    *,
    measuring: Measuring | None = None,
    book: Registry | None = None,
    prefix: str | None = None,
    keep: Keep | str = Keep.ALL,
    together: int | None = None,
    threads: int | None = None,
    plugins: PluginHost | None = None,
    progress: Callable[..., None] = lambda stage, done, total, detail="": None,
) -> Sweep:
    """Merge, measure and record every point of a grid; points that are done are not done again.

    Args:
        recipe: what is merged; the grid replaces its parameters.
        grid: parameter → values.
        out: a folder for all of it: merged checkpoints, and ``points.jsonl``.
        measuring: how points are scored; not at all when None.
        book: where everything is recorded; the default registry when None.
        prefix: begins the checkpoints' names; the recipe's name, else the folder's, when None.
        keep: which merged folders stay; all stay recorded, and can be merged again.
        together: how many to merge side by side, sharing one read of the inputs.
        threads: workers of the engine; all cores when None.
        plugins: plugins to use; all installed ones when None.
        progress: called with (stage, done, total, detail).

    Raises:
        ConfigError: see :func:`preview`; or ``keep`` asks for scores where there are none.
        OmniregError: a point could not be merged or measured; what was finished stays.
    """
    plugins, how, keep = plugins or PluginHost(), measuring or Measuring(), _keep(keep)
    evaluators = _evaluators(how, keep, plugins)
    parsed, _ = as_recipe(recipe)
    seen = preview(
        parsed, grid, out, prefix=prefix, keep=keep, together=together, plugins=plugins
    )  # fmt: skip
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"cannot make the folder {out}: {exc.strerror}; name another") from exc
    work = _Work(how, evaluators, book or Registry(), plugins, threads, progress)
    notebook = Notebook(out / TRIALS, how.by)
    at = dict(zip(seen.names, points(grid), strict=True))
    jobs = {
        name: Job(with_parameters(parsed, point), out / _slug(point), name)
        for name, point in at.items()
    }
    done = list(_recalled(notebook, jobs.values(), at, keep))
    finished = {point.name for point in done}
    waiting = [job for name, job in jobs.items() if name not in finished]
    while waiting:
        progress("points", len(done), len(jobs))
        batch, waiting = waiting[: seen.together], waiting[seen.together :]
        for job, fingerprint in work.merged(batch):
            trial = work.scored(job, at[job.name])
            check_alike(done[0].trial if done else trial, trial)
            notebook.note(job.recipe.digest, trial, name=job.name, fingerprint=fingerprint)
            done.append(SweepPoint(job.name, job.out, fingerprint, trial))
            _tidy(done, keep)
    ranked = _ranked(done, seen.names)
    if keep is Keep.BEST and not ranked[0].out.is_dir():
        work.merged([jobs[ranked[0].name]])
    progress("points", len(jobs), len(jobs))
    return Sweep(tuple(ranked), bool(how.by))


@dataclass
class _Work:
    """What is done for each point."""

    how: Measuring
    evaluators: Assigned
    book: Registry
    plugins: PluginHost
    threads: int | None
    progress: Callable[..., None]

    def merged(self, jobs: Sequence[Job]) -> list[tuple[Job, str]]:
        """Merge what is not there yet, and return the fingerprints."""
        missing = [job for job in jobs if not job.out.is_dir()]
        receipts = merge_together(
            missing, registry=self.book, plugins=self.plugins, threads=self.threads,
            progress=self.progress,
        )  # fmt: skip
        found = {job.name: r.fingerprint for job, r in zip(missing, receipts, strict=True)}
        for job in jobs:
            if job.name not in found:
                found[job.name] = fingerprint_of(job.out.resolve())
                record = self.book.get(job.name) if self.book.exists() else None
                if record is None or record.fingerprint != found[job.name]:
                    raise ConfigError(
                        f"{job.out} holds other weights than this sweep makes there, or nobody"
                        " recorded them; move it away"
                    )
        return [(job, found[job.name]) for job in jobs]

    def scored(self, job: Job, point: Point) -> Trial:
        """Measure a merged point, and record its scores."""
        if self.how.score is not None:
            values = numbers(self.how.score(job.out))
            for name, value in values.items():
                found = Result(name or self.how.name, "score", value)
                enter(self.book, job.name, found, self.how.name, None, replace_=True)
            return Trial(point, values)
        conduct = replace(self.how.conduct, tick=self.progress)
        made = measured(self.book, job.name, job.out, self.evaluators, conduct)
        named = first_of_each(result for result, _ in made)
        return Trial(
            point,
            {n: merit(r) for n, r in named.items()},
            {n: r.stderr for n, r in named.items() if r.stderr is not None},
        )


def _keep(keep: Keep | str) -> Keep:
    if keep not in list(Keep):
        raise ConfigError(f"no such keep {keep!r}: choose one of {', '.join(Keep)}")
    return Keep(keep)


def _evaluators(how: Measuring, keep: Keep, plugins: PluginHost) -> Assigned:
    """Return who measures what, having read files of items, before anything is merged.

    Raises:
        ConfigError: ``keep`` asks for scores where there are none.
        EvaluationError: no such evaluator, or items cannot be read.
    """
    if not how.by and keep is not Keep.ALL:
        raise ConfigError("without scores no point is the best; give --tasks, or keep all")
    chosen = assigned(how.tasks, how.evaluator, plugins) if how.tasks else ()
    for evaluator, tasks in chosen:
        if evaluator.name == GENERATIVE:
            read_tasks(tasks, how.conduct)
    return chosen


def _recalled(
    notebook: Notebook, jobs: Iterable[Job], at: Mapping[str, Point], keep: Keep
) -> Iterator[SweepPoint]:
    """Yield the points that are done: noted, and in their folder if all are to stay."""
    for job in jobs:
        known = notebook.recall(job.recipe.digest)
        if known and "fingerprint" in known and (keep is not Keep.ALL or job.out.is_dir()):
            trial = Trial(at[job.name], known["values"], known.get("errors", {}))
            yield SweepPoint(job.name, job.out, str(known["fingerprint"]), trial)


def _tidy(done: Sequence[SweepPoint], keep: Keep) -> None:
    """Remove the merged folders that are not to stay."""
    if keep is Keep.ALL:
        return
    best = max(done, key=lambda p: p.mean) if keep is Keep.BEST else None
    for each in done:
        if each is not best and each.out.is_dir():
            shutil.rmtree(each.out)


def _ranked(done: Iterable[SweepPoint], order: Sequence[str]) -> list[SweepPoint]:
    in_order = sorted(done, key=lambda p: order.index(p.name))
    if not all(p.trial.values for p in in_order):
        return in_order
    return sorted(in_order, key=lambda p: -p.mean)


def _prefix(recipe: Recipe, prefix: str | None, out: Path) -> str:
    return prefix or recipe.omnireg.name or out.absolute().name


def _slug(point: Point) -> str:
    """Return a point as a folder is called."""
    text = ",".join(f"{name}={value}" for name, value in point.items())
    return "".join(c if c.isalnum() or c in "=.,_-+" else "_" for c in text)
