"""``omnireg mmer calibrate``."""

import json
import shlex
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from omnireg.cli.evaluate import conduct_of, conduct_options, listed
from omnireg.cli.output import Settings, common_options, hint, print_json, print_table, progress_bar
from omnireg.errors import ConfigError, EvaluationError, to_type

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
@click.option("--evaluator", metavar="NAME", help="Who measures them.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the chosen recipe here.")
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

    if out is not None and out.exists():
        raise ConfigError(f"{out} exists; choose another file for the recipe")
    for file in (out, plot, surface):
        if file is not None and not file.absolute().parent.is_dir():
            raise ConfigError(f"there is no folder {file.parent} for {file.name}; make it first")
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
    if out is not None:
        try:
            out.write_text(found.text, encoding="utf-8")
        except OSError as exc:
            raise ConfigError(f"cannot write {out}: {exc.strerror}") from exc
    if settings.as_json:
        print_json(found.to_json())
        return
    names = list(found.trials[0].point)
    senses = list(found.trials[0].values)
    rows = [
        (*(t.point[n] for n in names), *(t.values[s] for s in senses), t.mean)
        for t in found.trials[:_SHOWN]
    ]
    print_table((*names, *(s or found.criterion for s in senses), "mean"), rows)
    click.echo(f"\nthe best {len(rows)} of {len(found.trials)} by {found.criterion}; chosen:\n")
    click.echo(found.text.rstrip())
    hint(f"\nnext: {to_type('merge', out or 'RECIPE.yml', 'omni')}")


def score_of(
    command: str | None, tasks: str | None, evaluator: str | None, how: dict[str, Any]
) -> Callable[[Path], float | Mapping[str, float]] | None:
    """Return what scores a folder: a command, tasks, or nothing.

    Raises:
        ConfigError: both are given.
    """
    from omnireg.workflows.evaluating import scorer

    if command and tasks:
        raise ConfigError("--score-command and --tasks both say how to score; leave one out")
    if command:
        return scorer_of(command)
    if tasks:
        conduct = conduct_of(how, lambda stage, done, total: None)
        return scorer(listed(tasks), evaluator, conduct)
    return None


def scorer_of(command: str) -> Callable[[Path], float | Mapping[str, float]]:
    """Return what runs a command on a folder and reads what it prints last."""
    try:
        words = shlex.split(command)
    except ValueError as exc:
        raise ConfigError(f"--score-command: {exc}") from exc
    if not any("{}" in word for word in words):
        words.append("{}")

    def score(package: Path) -> float | Mapping[str, float]:
        line = [word.replace("{}", str(package)) for word in words]
        try:
            done = subprocess.run(line, capture_output=True, text=True, check=False)
        except OSError as exc:
            raise EvaluationError(f"cannot run {words[0]}: {exc.strerror}") from exc
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["nothing"]
            raise EvaluationError(f"{words[0]} failed with {done.returncode}: {said[0]}")
        last = (done.stdout.strip().splitlines() or [""])[-1]
        try:
            found: float | Mapping[str, float] = json.loads(last)
        except ValueError as exc:
            raise EvaluationError(
                f"{words[0]} printed {last!r} last; print a number, or a JSON object by modality"
            ) from exc
        return found

    return score
