"""``omnireg demo``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from omnireg.cli.output import (
    Settings,
    common_options,
    echo,
    hint,
    print_json,
    print_table,
    progress_bar,
)

if TYPE_CHECKING:
    from omnireg.demo.story import Row, Story
    from omnireg.hookspecs import Result


@click.command("demo")
@click.argument("folder", type=click.Path(path_type=Path), default="omnireg-demo")
@click.option("--items", type=click.IntRange(min=1), help="Test items per modality [default: all].")
@common_options
@click.pass_obj
def demo_command(settings: Settings, folder: Path, items: int | None) -> None:
    """Merge, score and compare a tiny real family in FOLDER [default: omnireg-demo].

    A text model and three models that extend it to images, sounds and video are merged with four
    strategies; every model answers held-out questions; everything is recorded in
    FOLDER/registry.db. Offline, on a CPU, in minutes.
    """
    from omnireg.demo.story import tell

    if settings.registry:
        hint(f"the demo records in its own registry, {folder}/registry.db")
    with progress_bar(settings.quiet) as progress:
        story = tell(folder, items=items, tick=progress)
    if settings.as_json:
        print_json(story.to_json())
    else:
        _print_story(story)


def _print_story(story: "Story") -> None:
    senses = list(story.hosts_on_base_tasks)
    echo("How much of each model's own score is kept (exact match ± standard error):\n")
    print_table(
        ("language model in the host", *senses, "mean retention", "base tasks"),
        [_cells(row, story) for row in story.rows],
    )
    lost = ", ".join(f"{s} {_share(c)}" for s, c in story.hosts_on_base_tasks.items())
    count = story.base.n
    echo(f"\nBase tasks, n = {count}: the base {_share(story.base)}; the hosts' own {lost}.")
    asked = ", ".join(
        f"{pair} {_share(score)} (chance {story.chance[pair]:.2f})"
        for pair, score in story.pairs.items()
    )
    echo(f"\nQuestions about two senses at once, never trained together: {asked}.")
    echo(f"\nWhat mmer-image was made of:\n\n{story.lineage.rstrip()}")
    hint(
        f"\nnext: cd {story.folder} && omnireg list\n"
        "      omnireg lineage base --direction down\n"
        "      omnireg mmer inspect omni\n"
        '      omnireg mmer generate omni --prompt "Continue: 2 4 6"'
    )


def _cells(row: "Row", story: "Story") -> list[str]:
    scores = [f"{_share(score)} ({row.retention[s]:.0%})" for s, score in row.scores.items()]
    base = story.base if row.method == "base in host" else row.base_tasks
    return [row.method, *scores, f"{row.mean_retention:.1%}", _share(base) if base else ""]


def _share(score: "Result") -> str:
    return f"{score.value:.3f}±{score.stderr:.3f}"
