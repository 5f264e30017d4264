"""``omnireg leaderboard``, ``compare`` and ``check``: questions about scores."""

from typing import TYPE_CHECKING

import click

from omnireg.cli.output import Settings, common_options, echo, hint, print_json, print_table
from omnireg.errors import RegistryError

if TYPE_CHECKING:
    from omnireg.registry import Compared, Comparison, Row


@click.command("leaderboard")
@click.argument("benchmark")
@click.option("--metric", help="Which metric [default: the benchmark's usual one].")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most.")
@common_options
@click.pass_obj
def leaderboard_command(settings: Settings, benchmark: str, metric: str | None, limit: int) -> None:
    """Rank checkpoints by their best score on BENCHMARK; partial scores do not count."""
    with settings.open_registry() as book:
        places = book.leaderboard(benchmark, metric=metric, limit=limit)
    if settings.as_json:
        print_json([place.to_json() for place in places])
        return
    if not places:
        hint(f"nobody has a score on {benchmark}")
        return
    columns = ("rank", "name", "kind", places[0].metric)
    print_table(columns, [(p.rank, p.name, str(p.kind), p.value) for p in places])


@click.command("compare")
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@click.option("--against", required=True, metavar="REF", help="The reference.")
@click.option("--benchmark", "benchmarks", multiple=True, help="Only this one.")
@click.option("--source", help="Only scores whose source, or evaluator, holds this text.")
@common_options
@click.pass_obj
def compare_command(
    settings: Settings,
    names: tuple[str, ...],
    against: str,
    benchmarks: tuple[str, ...],
    source: str | None,
) -> None:
    """Set checkpoints beside a reference, benchmark by benchmark.

    ↑ is better than the reference, ↓ worse and = equal, whichever way the benchmark counts.
    """
    from omnireg.recording import find_record

    with settings.open_registry() as book:
        found = [find_record(book, name).name for name in names]
        compared = book.compare(
            found,
            against=find_record(book, against).name,
            benchmarks=benchmarks,
            source=source,
        )
    if settings.as_json:
        print_json(compared.to_json())
        return
    if not compared.rows:
        hint(f"no benchmark has scores of {compared.against} and of the others")
        return
    _print_comparison(compared)


def _print_comparison(compared: "Comparison") -> None:
    columns = ("benchmark", "metric", compared.against, *compared.names)
    rows = [
        (
            row.benchmark + ("" if row.higher_is_better else " (lower is better)"),
            row.metric,
            f"{row.reference:.4g}",
            *(_cell(row, row.values.get(name)) for name in compared.names),
        )
        for row in compared.rows
    ]
    print_table(columns, rows)
    echo()
    for name, mean in compared.mean.items():
        relative = "" if mean.relative is None else f", {mean.relative:+.1%} of the reference"
        echo(f"{name}: mean gain {mean.delta:+.4g} points{relative}")


def _cell(row: "Row", value: "Compared | None") -> str:
    if value is None:
        return "–"
    arrow = "=" if value.better is None else "↑" if value.better else "↓"
    kept = "" if value.retention is None else f", {value.retention:.0%}"
    part = " partial" if value.partial else ""
    return f"{value.value:.4g}{arrow} ({value.delta:+.4g}{kept}){part}"


@click.command("check")
@click.argument("name")
@click.option(
    "--threshold",
    "changed",
    multiple=True,
    metavar="NAME=NUMBER",
    help="Change a threshold, such as instruction_drop=10.",
)
@common_options
@click.pass_obj
def check_command(settings: Settings, name: str, changed: tuple[str, ...]) -> None:
    """Look for signatures of failure in the scores of NAME; exit 1 if any fires.

    Thresholds: instruction_drop (15 points of IFEval), code_floor (0 on HumanEval+ pass@1),
    knowledge_gain (0.01 of MMLU) after more than knowledge_tokens (1e12, the checkpoint's detail
    training_tokens), below_inputs (0 points below the worst input of a merge).
    """
    from omnireg.recording import find_record

    with settings.open_registry() as book:
        found = book.check_scores(
            find_record(book, name).name, thresholds=dict(map(_threshold, changed))
        )
    if settings.as_json:
        print_json([signature.to_json() for signature in found])
    elif found:
        columns = ("signature", "benchmark", "observed", "threshold", "against")
        rows = [(s.signature, s.benchmark, s.observed, s.threshold, s.against) for s in found]
        print_table(columns, rows)
    else:
        echo(f"{name}: no signature of failure")
    if found:
        raise click.exceptions.Exit(1)


def _threshold(text: str) -> tuple[str, float]:
    name, equals, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        said = f"threshold {text!r} is not NAME=NUMBER" if equals else f"{text!r} has no ="
        raise RegistryError(f"{said}: write it like instruction_drop=10") from None
