"""``omnireg mmer calibrate``."""

from pathlib import Path
from typing import Any

import click

from omnireg.boundary.files import write_text
from omnireg.cli.evaluate import conduct_of, conduct_options, listed
from omnireg.cli.files import STDOUT, TextFile, check_files
from omnireg.cli.output import (
    Settings,
    common_options,
    echo,
    hint,
    print_json,
    print_table,
    progress_bar,
)
from omnireg.cli.score_command import Scorer, command_score
from omnireg.errors import ConfigError, to_type

_SHOWN = 10


@click.command("calibrate")
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--grid", multiple=True, metavar="P=…", help="Values to try: P=a,b,c or P=start:stop:step."
)
@click.option(
    "--by", default="fit", show_default=True, help="Without scores: fit, l1, l2 or cosine."
)
@click.option(
    "--score-command",
    metavar="CMD",
    help="Score a package ({} is its folder): print a number, or a JSON object by modality.",
)
@click.option("--tasks", metavar="T,…", help="Score by tasks, as omnireg eval does.")
@click.option("--evaluator", metavar="NAME", help="Evaluator to use for --tasks.")
@click.option("--out", type=TextFile(), help="Write the chosen recipe here; - is stdout.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw a heat map here.")
@click.option(
    "--surface", type=click.Path(path_type=Path), help="Keep finished trials here, and go on."
)
@click.option(
    "--sample",
    type=click.IntRange(min=0),
    default=1 << 18,
    show_default=True,
    help="Without scores: elements of a tensor to look at; 0 for all.",
)
@conduct_options
@common_options
@click.pass_obj
def calibrate_command(
    settings: Settings,
    /,
    config: Path,
    grid: tuple[str, ...],
    by: str,
    score_command: str | None,
    tasks: str | None,
    evaluator: str | None,
    out: Path | None,
    plot: Path | None,
    surface: Path | None,
    sample: int,
    **how: Any,
) -> None:
    """Choose density, scale and masks of the recipe CONFIG.

    Without scores the weights say how close each decoupled model comes to its original; nothing is
    merged. With --tasks or --score-command every setting is merged and scored. Without --grid,
    density, scale and mask_lambda are searched as far as CONFIG does not set them.
    """
    from omnireg.workflows import calibrate, parse_grid

    if out not in (None, STDOUT) and out.is_file():
        raise ConfigError(f"{out} exists; choose another file for the recipe")
    check_files(out, surface, plot=plot)
    with progress_bar(settings.quiet) as progress:
        found = calibrate(
            config,
            parse_grid(grid),
            by=by,
            score=score_of(score_command, tasks, evaluator, how),
            sample=sample,
            score_name=tasks or score_command or "score",
            surface=surface,
            progress=progress,
        )
    if plot is not None:
        from omnireg.workflows.charts import surface as draw

        draw(found.trials, plot, found.criterion)
    if out is not None and out != STDOUT:
        write_text(out, found.text)
    if settings.as_json:
        print_json(found.to_json())
        return
    if out == STDOUT:
        echo(found.text, nl=False)
        return
    names = list(found.trials[0].point)
    senses = list(found.trials[0].values)
    rows = [
        (*(t.point[n] for n in names), *(t.values[s] for s in senses), t.mean)
        for t in found.trials[:_SHOWN]
    ]
    print_table((*names, *(s or found.criterion for s in senses), "mean"), rows)
    echo(f"\nthe best {len(rows)} of {len(found.trials)} by {found.criterion}; chosen:\n")
    echo(found.text.rstrip())
    if out is None:
        hint("\nto keep the recipe: --out RECIPE.yml")
    else:
        hint(f"\nnext: {to_type('merge', out, out.stem)}")


def score_of(
    command: str | None, tasks: str | None, evaluator: str | None, how: dict[str, Any]
) -> Scorer | None:
    """Return what scores a folder: a command, tasks, or nothing.

    Raises:
        ConfigError: both are given.
    """
    from omnireg.workflows.evaluating import scorer

    if by_command := command_score(command, tasks):
        return by_command
    if tasks:
        return scorer(listed(tasks), evaluator, conduct_of(how))
    return None
