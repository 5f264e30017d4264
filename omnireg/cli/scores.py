"""``omnireg scores``, ``scores add`` and ``scores import``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from omnireg.cli.output import (
    DefaultGroup,
    Settings,
    common_options,
    echo,
    hint,
    print_json,
    print_table,
)
from omnireg.errors import to_type

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omnireg.registry import Score


@click.group("scores", cls=DefaultGroup)
@common_options
def scores_command() -> None:
    """Show, add or import the scores of a checkpoint: ``scores NAME``, ``add``, ``import``."""


@scores_command.command("list", hidden=True)
@click.argument("name")
@common_options
@click.pass_obj
def list_scores(settings: Settings, name: str) -> None:
    """Show the scores of NAME."""
    from omnireg.recording import find_record

    with settings.open_registry() as book:
        found = book.scores(find_record(book, name).name)
    if settings.as_json:
        print_json([score.to_json() for score in found])
        return
    if not found:
        adding = to_type("scores", "add", name, "BENCHMARK", "VALUE")
        hint(f"{name} has no scores; add one: {adding}")
        return
    print_scores(found)


def print_scores(found: "Sequence[Score]") -> None:
    """Print a table; a score of some of the items alone is marked."""
    columns: tuple[str, ...] = (
        "benchmark", "metric", "value", "stderr", "n", "better", "source",
    )  # fmt: skip
    rows: list[tuple[object, ...]] = [
        (
            score.benchmark,
            score.metric + (f" ({score.filter})" if score.filter else ""),
            score.value,
            score.stderr,
            f"{score.n} (partial)" if score.partial else score.n,
            "higher" if score.higher_is_better else "lower",
            score.measured_by,
        )
        for score in found
    ]
    apart = [_apart(score, found) for score in found]
    if any(apart):
        columns, rows = (*columns, "with"), [(*row, a) for row, a in zip(rows, apart, strict=True)]
    print_table(columns, rows)


def _apart(score: "Score", among: "Sequence[Score]") -> str:
    """Return what in a score's setup tells it from others of the same benchmark and metric."""
    alike = [
        other.setup or {}
        for other in among
        if (other.benchmark, other.metric, other.filter)
        == (score.benchmark, score.metric, score.filter)
    ]
    mine = score.setup or {}
    told = [k for k in mine if any(other.get(k) != mine[k] for other in alike)]
    return ", ".join(f"{key} {str(mine[key])[:12]}" for key in told)


@scores_command.command("add", context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("benchmark")
@click.argument("value", type=float)
@click.option("--metric", default="score", show_default=True, help="What was measured.")
@click.option("--n", type=int, help="Number of items.")
@click.option("--stderr", type=float, help="Standard error of the value.")
@click.option("--source", metavar="URL", help="Where the value comes from.")
@click.option("--n-shot", type=int, help="Examples in the prompt.")
@click.option("--split", help="Split of the benchmark.")
@click.option("--evaluator", help="Program that measured it.")
@click.option("--lower-is-better", is_flag=True, help="For a benchmark not known yet.")
@click.option("--replace", is_flag=True, help="Replace a value under the same conditions.")
@common_options
@click.pass_obj
def add_score(
    settings: Settings,
    name: str,
    benchmark: str,
    value: float,
    metric: str,
    n: int | None,
    stderr: float | None,
    source: str | None,
    n_shot: int | None,
    split: str | None,
    evaluator: str | None,
    lower_is_better: bool,
    replace: bool,
) -> None:
    """Record that NAME scored VALUE on BENCHMARK, which is created if it is not known."""
    from omnireg.recording import find_record

    with settings.open_registry() as book:
        score = book.add_score(
            find_record(book, name).name,
            benchmark,
            value,
            metric=metric,
            n=n,
            stderr=stderr,
            source=source,
            n_shot=n_shot,
            split=split,
            evaluator=evaluator,
            higher_is_better=False if lower_is_better else None,
            replace=replace,
        )
    if settings.as_json:
        print_json([score.to_json()])
    else:
        echo(f"{score.checkpoint}: {benchmark} {metric} = {value:g}")


@scores_command.command("import")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--replace", is_flag=True, help="Replace values under the same conditions.")
@common_options
@click.pass_obj
def import_command(settings: Settings, name: str, file: Path, replace: bool) -> None:
    """Record what FILE says of NAME: a results file of lm-eval or lmms-eval."""
    from omnireg.evaluation.documents import read_document
    from omnireg.workflows.evaluating import import_scores

    document = read_document(file)
    with settings.open_registry() as book:
        found = [each.score for each in import_scores(book, name, document, replace=replace)]
    if settings.as_json:
        print_json([score.to_json() for score in found])
        return
    print_scores(found)
    measured = document.model or "a model that it does not name"
    hint(f"\n{document.evaluator} says it measured {measured}")
