"""Greedy answers to questions about media: text models, hosts and packages, on files of items.

A task is a JSON Lines file; see :mod:`omnireg.evaluation.items`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from omnireg.errors import EvaluationError, did_you_mean
from omnireg.evaluation.items import Item, Items, read_items
from omnireg.evaluation.metrics import METRICS
from omnireg.evaluation.model import Response, Subject
from omnireg.evaluation.opening import open_subject
from omnireg.hookspecs import Conduct, Result
from omnireg.version import __version__

#: an answer that is longer is cut
MAX_NEW_TOKENS = 32


class Generative:
    """Asks a checkpoint the questions of JSON Lines files and judges its answers."""

    name = "generative"

    @property
    def version(self) -> str:
        """Return omnireg's version."""
        return __version__

    def evaluate(self, folder: Path, tasks: Sequence[str], conduct: Conduct) -> Iterator[Result]:
        """Measure the checkpoint in a folder.

        Raises:
            EvaluationError: a file cannot be read, or the checkpoint cannot take its items in.
        """
        files = read_tasks(tasks, conduct)
        subject = open_subject(folder, device=conduct.device, dtype=conduct.dtype)
        for task, items in files.items():
            yield from measure(subject, Path(task).stem, items, conduct)


EVALUATOR = Generative()


def read_tasks(tasks: Sequence[str], conduct: Conduct) -> dict[str, Items]:
    """Return the items of every task.

    Raises:
        EvaluationError: a file cannot be read, its items cannot be judged, or examples in the
            prompt are asked for.
    """
    if conduct.n_shot:
        raise EvaluationError("files of items take no examples: put them into the prompts")
    files = {task: read_items(_file(task, conduct)) for task in tasks}
    for task, items in files.items():
        check_metrics(items, task)
    return files


def _file(task: str, conduct: Conduct) -> Path:
    """Return the file of a task: where it says, or in the folder of more tasks."""
    file = Path(task)
    if not file.exists() and conduct.include_path:
        for name in (task, f"{task}.jsonl"):
            if (conduct.include_path / name).exists():
                return conduct.include_path / name
    return file


def check_metrics(items: Iterable[Item], task: str) -> None:
    """Refuse items that cannot be judged.

    Raises:
        EvaluationError: no such metric, or no answer is right.
    """
    for item in items:
        if item.metric not in METRICS:
            raise EvaluationError(
                f"{task}: item {item.id}: no metric {item.metric!r}"
                f"{did_you_mean(item.metric, METRICS)}: choose one of {', '.join(METRICS)}"
            )
        if not item.answers:
            raise EvaluationError(f"{task}: item {item.id} has no `answer`; write one")


def measure(subject: Subject, benchmark: str, items: Items, conduct: Conduct) -> Iterator[Result]:
    """Yield one result for each metric among the items."""
    chosen = _spread(items.items, conduct.limit)
    chat = subject.has_chat_template if conduct.chat_template is None else conduct.chat_template
    length = conduct.max_new_tokens or MAX_NEW_TOKENS
    answers = subject.respond(
        chosen,
        max_new_tokens=length,
        chat=chat,
        batch_size=conduct.batch_size,
        tick=lambda done, total: conduct.tick(benchmark, done, total),
    )
    setup: dict[str, Any] = {
        "items": items.sha256,
        "chat_template": chat,
        "max_new_tokens": length,
    }
    if len(chosen) < len(items):
        setup["limit"] = len(chosen)
    pairs = sorted(zip(chosen, answers, strict=True), key=lambda pair: pair[0].metric)
    for metric, group in groupby(pairs, key=lambda pair: pair[0].metric):
        yield _result(benchmark, metric, list(group), setup, len(chosen) < len(items))


def _spread(items: Sequence[Item], limit: int | None) -> Sequence[Item]:
    """Return so many items from all over a file, which may be sorted."""
    if limit is None or limit >= len(items):
        return items
    return [items[number * len(items) // limit] for number in range(limit)]


def _result(
    benchmark: str,
    metric: str,
    answered: Sequence[tuple[Item, Response]],
    setup: dict[str, Any],
    partial: bool,
) -> Result:
    points = [METRICS[metric](response.text, item.answers) for item, response in answered]
    count, value = len(points), sum(points) / len(points)
    modalities = {item.modalities for item, _ in answered}
    one = next(iter(modalities)) if len(modalities) == 1 else ()
    details: dict[str, Any] = {}
    if any(item.category for item, _ in answered):
        asked, right = Counter[str](), Counter[str]()
        for (item, _), point in zip(answered, points, strict=True):
            asked[item.category or ""] += 1
            right[item.category or ""] += int(point)
        details["by_category"] = {name: [right[name], n] for name, n in asked.items()}
    return Result(
        benchmark=benchmark,
        metric=metric,
        value=value,
        stderr=(value * (1 - value) / count) ** 0.5,
        n=count,
        n_shot=0,
        ability="+".join(one) or None,
        modality=one[0] if len(one) == 1 else None,
        partial=partial,
        setup=setup,
        details=details,
    )
