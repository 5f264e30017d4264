"""``omnireg new-plugin``."""

from pathlib import Path
from shlex import quote

import click

from omnireg.cli.output import Settings, common_options, echo, hint, print_json
from omnireg.errors import to_type


@click.command("new-plugin")
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@common_options
@click.pass_obj
def new_plugin_command(settings: Settings, name: str, folder: Path | None) -> None:
    """Write the skeleton of a plugin with the strategy NAME into FOLDER [default: omnireg-NAME].

    A distribution with an entry point, a strategy that works, and tests that pass.
    """
    from omnireg.testing.skeleton import write_plugin

    place = write_plugin(name, folder)
    files = sorted(str(file.relative_to(place)) for file in place.rglob("*") if file.is_file())
    if settings.as_json:
        print_json({"name": name, "folder": str(place), "files": files})
        return
    for file in files:
        echo(place / file)
    look = to_type("strategies", "show", name)
    hint(f"\nnext: pip install -e {quote(str(place))} && pytest {quote(str(place))}\n      {look}")
