"""``omnireg db``: migrations and integrity."""

import click

from omnireg.cli.output import Settings, common_options, print_json
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
@common_options
@click.pass_obj
def check_command(settings: Settings) -> None:
    """Look for damage; exit 1 if there is any."""
    with settings.open_registry() as book:
        problems = book.check()
        _print(settings, book.current(), problems)
    if problems:
        raise RegistryError(f"the registry is damaged: {'; '.join(problems)}")


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
        click.echo(f"revision {revision or 'none'}" + ("" if problems else ", ok"))
