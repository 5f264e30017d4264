"""``omnireg publish`` and ``omnireg pull``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from omnireg.boundary.text import brief
from omnireg.cli.output import (
    Settings,
    common_options,
    confirm,
    echo,
    hint,
    print_json,
    print_table,
    warn,
)
from omnireg.errors import to_type

if TYPE_CHECKING:
    from omnireg.hub import PublicationPlan

#: how often to show a new plan when somebody commits meanwhile
_ATTEMPTS = 3
#: of a card's changes so many characters are shown
_LONGEST_CARD = 20_000


@click.command("publish")
@click.argument("name")
@click.argument("repo")
@click.option("--private/--public", default=True, help="Of a new repository [default: private].")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and stop.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--branch", default="main", show_default=True, help="Of the repository.")
@click.option("--license", "licence", help="Of the result [default: follows from its parents'].")
@click.option(
    "--plugin",
    type=click.Path(path_type=Path),
    help="The single-file plugin it was merged with; published along.",
)
@common_options
@click.pass_obj
def publish_command(
    settings: Settings,
    /,
    name: str,
    repo: str,
    private: bool,
    dry_run: bool,
    yes: bool,
    create_pr: bool,
    branch: str,
    licence: str | None,
    plugin: Path | None,
) -> None:
    """Publish the checkpoint NAME to REPO (org/name) as one commit.

    Weights, card, recipe, lineage and scores. What is already there is not sent again; publishing
    the same thing twice commits nothing.
    """
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from omnireg.hub import carry_out, plan_publication
    from omnireg.hub.client import Stale

    if settings.quiet or settings.as_json or not sys.stderr.isatty():
        disable_progress_bars()
    with settings.open_registry() as book:
        for attempt in range(_ATTEMPTS):
            plan = plan_publication(
                book, name, repo, private=private, branch=branch, licence=licence, plugin=plugin,
                look_only=dry_run,
            )  # fmt: skip
            if settings.as_json and dry_run:
                print_json(plan.to_json())
                return
            if not settings.as_json:
                _show(plan)
            if dry_run:
                return
            if (plan.changes or not plan.branch_exists) and not yes:
                _ask(plan)
            try:
                made = carry_out(book, plan, create_pr=create_pr)
                break
            except Stale as exc:
                if attempt == _ATTEMPTS - 1:
                    raise
                hint(str(exc))
    if settings.as_json:
        print_json(made.to_json())
        return
    if not made.files:
        made_too = "" if plan.branch_exists else f"; the branch {branch} was made"
        echo(f"{repo} holds all of it already: nothing was committed{made_too}")
        return
    echo(made.pull_request or made.url)
    hint(f"next: {to_type('show', name)}")


def _show(plan: "PublicationPlan") -> None:
    print_table(
        ("file", "", "bytes"),
        [(item.path, str(item.state), f"{item.size:,}") for item in plan.items],
    )
    where = plan.repo if plan.branch == "main" else f"{plan.repo} ({plan.branch})"
    seen = "private" if plan.private else "public"
    there = "" if plan.head else ", which will be made"
    size = sum(item.size for item in plan.changes)
    echo(f"\n{len(plan.changes)} files, {size:,} bytes, to the {seen} {where}{there}")
    if plan.card_diff:
        echo(f"\n{brief(plan.card_diff.rstrip(), longest=_LONGEST_CARD)}")
    for warning in plan.warnings:
        warn(warning)


def _ask(plan: "PublicationPlan") -> None:
    confirm(f"Publish {plan.name} to {plan.repo}?")


@click.command("pull")
@click.argument("repo")
@click.option(
    "--to", type=click.Path(path_type=Path), help="Folder to make [default: REPO's name]."
)
@click.option("--metadata-only", is_flag=True, help="Fetch no weights.")
@click.option(
    "--depth",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Generations of base_model to follow where a repository has no manifest.",
)
@click.option("--allow-pickle", is_flag=True, help="Fetch pickled files too; they can run code.")
@click.option("--trust-remote-code", is_flag=True, help="Fetch Python code too.")
@common_options
@click.pass_obj
def pull_command(
    settings: Settings,
    /,
    repo: str,
    to: Path | None,
    metadata_only: bool,
    depth: int,
    allow_pickle: bool,
    trust_remote_code: bool,
) -> None:
    """Record the lineage and scores of REPO (org/name, org/name@revision), and fetch its files."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from omnireg.hub import pull

    if settings.quiet or settings.as_json or not sys.stderr.isatty():
        disable_progress_bars()
    with settings.open_registry() as book:
        found = pull(
            book,
            repo,
            to=to,
            metadata_only=metadata_only,
            depth=depth,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
        )
    for warning in found.warnings:
        warn(warning)
    if settings.as_json:
        print_json(found.to_json())
        return
    where = f", {found.files} files in {found.folder}" if found.folder else ""
    known = f"recorded {', '.join(found.recorded)}" if found.recorded else "all of it was known"
    weights = found.fingerprint[:12] if found.fingerprint else "no fingerprint"
    echo(f"{found.name}: {weights}{where}; {known}")
    hint(f"next: {to_type('lineage', found.name)}")
