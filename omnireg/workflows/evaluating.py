"""Measure a recorded checkpoint and record its scores."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omnireg.errors import EvaluationError, did_you_mean
from omnireg.evaluation.documents import Document
from omnireg.hookspecs import Conduct, Evaluator, Result
from omnireg.plugins.host import PluginHost
from omnireg.recording import files_of, find_record
from omnireg.registry import Registry, Score

ITEMS = ".jsonl"
Assigned = Sequence[tuple[Evaluator, list[str]]]


@dataclass(frozen=True)
class Recorded:
    """A score, and what it replaced under the same conditions, if it is another value."""

    score: Score
    before: float | None = None


def evaluate(
    book: Registry,
    name: str,
    tasks: Sequence[str],
    *,
    evaluator: str | None = None,
    ability: str | None = None,
    conduct: Conduct | None = None,
    plugins: PluginHost | None = None,
) -> list[Recorded]:
    """Measure a checkpoint; every score is recorded as soon as it is there.

    Args:
        book: where the checkpoint is recorded, and its scores will be.
        name: the checkpoint.
        tasks: names of tasks, and files of items (``.jsonl``).
        evaluator: who measures; the built-in one that knows such a task when None.
        ability: what the tasks say something about, where the evaluator does not know.
        conduct: how to measure.
        plugins: plugins to use; all installed ones when None.

    Raises:
        RegistryError: it is not recorded.
        CheckpointError: its files are gone or changed.
        EvaluationError: no such task or evaluator, or it cannot be measured.
    """
    record = find_record(book, name)
    folder = files_of(record)
    chosen = assigned(tasks, evaluator, plugins or PluginHost())
    made = measured(book, record.name, folder, chosen, conduct or Conduct(), ability)
    return [recorded for _, recorded in made]


def measured(
    book: Registry, name: str, folder: Path, chosen: Assigned, conduct: Conduct,
    ability: str | None = None,
) -> Iterator[tuple[Result, Recorded]]:  # fmt: skip
    """Measure the folder of a recorded checkpoint, and yield each result once it is recorded."""
    for evaluator, tasks in chosen:
        for result in evaluator.evaluate(folder, tasks, conduct):
            said = replace(result, ability=result.ability or ability)
            yield said, enter(book, name, said, evaluator.name, evaluator.version, replace_=True)


def assigned(tasks: Sequence[str], evaluator: str | None, plugins: PluginHost) -> Assigned:
    """Return who measures which tasks.

    Raises:
        EvaluationError: there are no tasks, or there is no such evaluator.
    """
    if not tasks:
        raise EvaluationError("no tasks are named: --tasks T,…")
    known = plugins.evaluators
    if evaluator is not None and evaluator not in known:
        raise EvaluationError(
            f"no evaluator {evaluator!r}{did_you_mean(evaluator, known)}: there are"
            f" {', '.join(known)}"
        )
    found: dict[str, list[str]] = {}
    for task in dict.fromkeys(tasks):
        chosen = evaluator or ("generative" if task.endswith(ITEMS) else "lm-eval")
        found.setdefault(chosen, []).append(task)
    return [(known[name].load(), own) for name, own in found.items()]


def enter(
    book: Registry, name: str, result: Result, evaluator: str, version: str | None, *,
    replace_: bool,
) -> Recorded:  # fmt: skip
    """Record one result.

    Raises:
        RegistryError: another value is recorded under the same conditions, and stays.
    """
    known = {_key(score): score.value for score in book.scores(name)}
    score = book.add_score(
        name,
        result.benchmark,
        result.value,
        metric=result.metric,
        n=result.n,
        stderr=result.stderr,
        n_shot=result.n_shot,
        filter=result.filter,
        split=result.split,
        evaluator=evaluator,
        evaluator_version=version,
        setup=result.setup,
        higher_is_better=result.higher_is_better,
        ability=result.ability if _says_ability(book, result.benchmark) else None,
        partial=result.partial,
        details=result.details or None,
        replace=replace_,
    )
    before = known.get(_key(score))
    return Recorded(score, before if before != score.value else None)


def _says_ability(book: Registry, benchmark: str) -> bool:
    """Whether a benchmark's ability is still open: what people recorded goes first."""
    known = next((b for b in book.benchmarks() if b.name == benchmark), None)
    return known is None or known.ability is None


def _key(score: Score) -> tuple[object, ...]:
    return (
        score.benchmark, score.metric, score.n_shot, score.filter, score.split, score.evaluator,
        score.evaluator_version, score.source, repr(sorted((score.setup or {}).items())),
    )  # fmt: skip


def import_scores(
    book: Registry, name: str, document: Document, *, replace: bool = False
) -> list[Recorded]:
    """Record what a results file says of a checkpoint.

    Raises:
        RegistryError: it is not recorded, or another value is, under the same conditions.
    """
    record = find_record(book, name)
    return [
        enter(book, record.name, result, document.evaluator, document.version, replace_=replace)
        for result in document.results
    ]


def scorer(
    tasks: Sequence[str],
    evaluator: str | None = None,
    conduct: Conduct | None = None,
    plugins: PluginHost | None = None,
) -> Callable[[Path], Mapping[str, float]]:
    """Return what measures a folder: one number by modality or benchmark, higher being better.

    Where every task is about one modality and all differ in it, numbers are by modality, else by
    benchmark. A metric that is better lower counts negative.

    Raises:
        EvaluationError: no such evaluator.
    """
    chosen = assigned(tasks, evaluator, plugins or PluginHost())

    def score(folder: Path) -> Mapping[str, float]:
        results = (
            result
            for each, own in chosen
            for result in each.evaluate(folder, own, conduct or Conduct())
        )
        named = _by_modality(first_of_each(results))
        return {name: merit(result) for name, result in named.items()}

    return score


def merit(result: Result) -> float:
    """Return a result's value, negative where lower is better."""
    return result.value if result.higher_is_better else -result.value


def first_of_each(results: Iterable[Result]) -> dict[str, Result]:
    """Return the first result of each benchmark."""
    first: dict[str, Result] = {}
    for result in results:
        first.setdefault(result.benchmark, result)
    return first


def _by_modality(results: Mapping[str, Result]) -> Mapping[str, Result]:
    """Return results by modality where all differ in it, else as they are."""
    senses = [result.modality for result in results.values()]
    distinct = None not in senses and len(set(senses)) == len(senses)
    return {str(r.modality): r for r in results.values()} if distinct else results
