"""``omnireg scores`` and ``omnireg scores add``."""

import click

from omnireg.cli.output import (
    DefaultGroup,
    Settings,
    common_options,
    hint,
    print_json,
    print_table,
)
from omnireg.errors import to_type


@click.group("scores", cls=DefaultGroup)
@common_options
def scores_command() -> None:
    """Show or add the scores of a checkpoint: ``scores NAME`` or ``scores add``."""


@scores_command.command("list", hidden=True)
@click.argument("name")
@common_options
@click.pass_obj
def list_scores(settings: Settings, name: str) -> None:
    """Show the scores of NAME."""
    from omnireg.engine.recording import find_record

    with settings.open_registry() as book:
        found = book.scores(find_record(book, name).name)
    if settings.as_json:
        print_json([score.to_json() for score in found])
        return
    if not found:
        adding = to_type("scores", "add", name, "BENCHMARK", "VALUE")
        hint(f"{name} has no scores; add one: {adding}")
        return
    columns = ("benchmark", "metric", "value", "stderr", "n", "better", "source")
    print_table(
        columns,
        [
            (s.benchmark, s.metric, s.value, s.stderr, s.n, _arrow(s.higher_is_better), s.source)
            for s in found
        ],
    )


def _arrow(higher_is_better: bool) -> str:
    return "higher" if higher_is_better else "lower"


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
    from omnireg.engine.recording import find_record

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
        click.echo(f"{score.checkpoint}: {benchmark} {metric} = {value:g}")
