"""``omnireg sweep``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omnireg.cli.evaluate import conduct_of, conduct_options, listed
from omnireg.cli.files import check_files
from omnireg.cli.output import (
    Settings,
    common_options,
    echo,
    hint,
    print_json,
    print_table,
    progress_bar,
)
from omnireg.cli.score_command import command_score
from omnireg.errors import ConfigError, to_type

if TYPE_CHECKING:
    from omnireg.workflows.sweeping import Preview, Sweep

_FILE = click.Path(path_type=Path)


@click.command("sweep")
@click.argument("config", type=_FILE)
@click.option("--grid", multiple=True, metavar="P=…", required=True,
              help="Values to try: P=a,b,c or P=start:stop:step.")  # fmt: skip
@click.option("--tasks", metavar="T,…", help="Score points by tasks, as omnireg eval does.")
@click.option("--evaluator", metavar="NAME", help="Evaluator to use for --tasks.")
@click.option("--score-command", metavar="CMD",
              help="Score a folder ({}): print a number, or a JSON object.")  # fmt: skip
@click.option("--out", type=_FILE, help="A folder for all of it [default: sweep-CONFIG].")
@click.option("--name", "prefix", help="Begins the checkpoints' names [default: OUT's].")
@click.option("--keep", default="all", show_default=True,
              help="Which merged folders stay: all, best, none.")  # fmt: skip
@click.option("--together", type=click.IntRange(min=1),
              help="Merges that share one read of the inputs [default: 4, if there is"
              " room].")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), help="Workers [default: all cores].")
@click.option("--plot", type=_FILE, help="Draw the curve, or the surface, here.")
@click.option("--dry-run", is_flag=True, help="Show what would be made, and make nothing.")
@conduct_options
@common_options
@click.pass_obj
def sweep_command(
    settings: Settings, /, config: Path, grid: tuple[str, ...], tasks: str | None,
    evaluator: str | None, score_command: str | None, out: Path | None, prefix: str | None,
    keep: str, together: int | None, threads: int | None, plot: Path | None, dry_run: bool,
    **how: Any,
) -> None:  # fmt: skip
    """Merge CONFIG with every setting of a grid, score and record each, and rank them.

    It can be stopped and goes on: finished points are noted in OUT/points.jsonl.
    """
    settings.goes_on = not dry_run
    from omnireg.workflows import parse_grid
    from omnireg.workflows.sweeping import Measuring, preview, sweep

    check_files(plot=plot)
    command = command_score(score_command, tasks)
    place = out or Path(f"sweep-{config.stem}")
    values = parse_grid(grid)
    measuring = Measuring(
        listed(tasks), evaluator, conduct_of(how), command, score_command or "score"
    )
    if dry_run:
        seen = preview(
            config, values, place, prefix=prefix, keep=keep, together=together,
            measuring=measuring,
        )  # fmt: skip
        _show_preview(settings, seen)
        return
    with settings.open_registry() as book, progress_bar(settings.quiet) as progress:
        found = sweep(
            config, values, place, measuring=measuring, book=book, prefix=prefix, keep=keep,
            together=together, threads=threads, progress=progress,
        )  # fmt: skip
    if plot is not None:
        _draw(found, plot)
    if settings.as_json:
        print_json(found.to_json())
        return
    _print(found)
    best = found.points[0]
    hint(f"\nnext: {to_type('lineage' if not found.scored else 'report', best.name)}")


def _show_preview(settings: Settings, seen: "Preview") -> None:
    if settings.as_json:
        print_json({**vars(seen), "names": list(seen.names)})
        return
    for name in seen.names:
        echo(name)
    echo(
        f"\n{len(seen.names)} merges, {seen.together} at a time; {seen.bytes_each / 1e9:.2f} GB"
        f" each, {seen.most_bytes / 1e9:.2f} GB at most at once"
    )


def _print(found: "Sweep") -> None:
    names = list(found.points[0].point)
    values = list(found.points[0].trial.values)
    several = len(values) > 1
    rows = [
        (
            rank,
            *(each.point[name] for name in names),
            *(_share(each.trial.values[v], each.trial.errors.get(v)) for v in values),
            *([each.mean] if several else []),
            each.name,
        )
        for rank, each in enumerate(found.points, 1)
    ]
    columns = (*(v or "score" for v in values), *(["mean"] if several else []))
    print_table(("rank" if found.scored else "", *names, *columns, "checkpoint"), rows)


def _share(value: float, error: float | None) -> str:
    return f"{value:.4g}" + (f"±{error:.2g}" if error else "")


def _draw(found: "Sweep", path: Path) -> None:
    from omnireg.workflows.charts import curve, surface

    if not found.scored:
        raise ConfigError("a plot needs scores: give --tasks or --score-command")
    varied = [n for n in found.points[0].point if len({str(p.point[n]) for p in found.points}) > 1]
    if len(varied) == 1:
        curve([each.trial for each in found.points], path, varied[0])
    else:
        surface(found.points, path, "mean")
