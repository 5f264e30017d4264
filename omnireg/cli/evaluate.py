"""``omnireg eval``."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from omnireg.cli.output import Settings, common_options, hint, print_json, progress_bar
from omnireg.cli.scores import print_scores

if TYPE_CHECKING:
    from omnireg.hookspecs import Conduct

F = TypeVar("F", bound=Callable[..., Any])


def conduct_options(command: F) -> F:
    """Add the options that say how something is measured; they arrive as ``how``."""
    options = (
        click.option(
            "--include-path",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="A folder with your own tasks.",
        ),
        click.option(
            "--limit",
            type=click.IntRange(min=1),
            help="Items of each task to use; such a score is partial.",
        ),
        click.option("--n-shot", type=click.IntRange(min=0), help="Examples in the prompt."),
        click.option(
            "--chat-template/--no-chat-template",
            default=None,
            help="Put prompts into the chat template [default: for files of items, if there is"
            " one].",
        ),
        click.option("--device", default="cpu", show_default=True, help="Where to compute."),
        click.option("--dtype", help="What to compute in [default: what it is stored in]."),
        click.option(
            "--batch-size", type=click.IntRange(min=1), default=16, show_default=True,
            help="Items at once.",
        ),
        click.option(
            "--max-new-tokens", type=click.IntRange(min=1), help="Longest answer, in tokens."
        ),
        click.option("--seed", type=click.IntRange(min=0), help="Seed of random numbers."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def conduct_of(how: dict[str, Any], **more: Any) -> "Conduct":
    """Return how something is measured, from the options."""
    from omnireg.hookspecs import Conduct

    return Conduct(**how, **more)


def listed(tasks: str | None) -> list[str]:
    """Return the tasks of ``--tasks``."""
    return [task.strip() for task in (tasks or "").split(",") if task.strip()]


@click.command("eval")
@click.argument("name")
@click.option("--tasks", required=True, metavar="T,…", help="Tasks, and files of items (.jsonl).")
@click.option("--evaluator", metavar="NAME", help="Evaluator to use [default: chosen by task].")
@click.option("--ability", help="What the tasks are about, such as reasoning.")
@conduct_options
@common_options
@click.pass_obj
def eval_command(
    settings: Settings, /, name: str, tasks: str, evaluator: str | None, ability: str | None,
    **how: Any,
) -> None:  # fmt: skip
    """Measure NAME and record its scores.

    A task is one of lm-evaluation-harness, or a file of items that ends in .jsonl: prompts with
    images, audio and video, and their answers. Hosts and packages are measured as well.
    """
    from omnireg.workflows.evaluating import evaluate

    with settings.open_registry() as book, progress_bar(settings.quiet, at_once=False) as progress:
        found = evaluate(
            book, name, listed(tasks), evaluator=evaluator, ability=ability,
            conduct=conduct_of(how, tick=progress),
        )  # fmt: skip
    scores = [each.score for each in found]
    if settings.as_json:
        print_json([score.to_json() for score in scores])
        return
    print_scores(scores)
    for each in found:
        if each.before is not None:
            hint(f"{each.score.benchmark}: {each.before:g} under the same conditions is replaced")
    if any(score.partial for score in scores):
        hint("partial scores top no leaderboard; measure all items without --limit")
