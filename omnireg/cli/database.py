"""``omnireg db``: migrations and integrity."""

import click

from omnireg.cli.output import Settings, common_options, echo, print_json, progress_bar
from omnireg.errors import RegistryError


@click.group("db")
@common_options
def db_command() -> None:
    """Look after the registry's database."""


@db_command.command("upgrade")
@common_options
@click.pass_obj
def upgrade_command(settings: Settings) -> None:
    """Create the schema, or bring an older one up to date."""
    with settings.open_registry() as book:
        _print(settings, book.upgrade(), [])


@db_command.command("current")
@common_options
@click.pass_obj
def current_command(settings: Settings) -> None:
    """Show the schema's revision."""
    with settings.open_registry() as book:
        _print(settings, book.current(), [])


@db_command.command("check")
@click.option("--no-files", is_flag=True, help="Look at the database alone.")
@common_options
@click.pass_obj
def check_command(settings: Settings, no_files: bool) -> None:
    """Look for damage, and for recorded folders that hold other weights; exit 1 if there is any."""
    from omnireg.merging.verifying import mismatches

    with settings.open_registry() as book, progress_bar(settings.quiet) as progress:
        problems = book.check()
        if not problems and not no_files:
            problems = mismatches(book, progress)
        revision = book.current()
    _print(settings, revision, problems)
    if problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise RegistryError(f"the registry does not hold true: {problems[0]}{more}")


@db_command.command("seal")
@common_options
@click.pass_obj
def seal_command(settings: Settings) -> None:
    """Make the file one to ship: read by default, written only when --registry names it."""
    with settings.open_registry() as book:
        book.seal()
        _print(settings, book.current(), [])


def _print(settings: Settings, revision: str | None, problems: list[str]) -> None:
    if settings.as_json:
        print_json({"revision": revision, "ok": not problems, "problems": problems})
    else:
        echo(f"revision {revision or 'none'}" + ("" if problems else ", ok"))
        for problem in problems:
            echo(problem)
