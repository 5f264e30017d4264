"""Files that the command line names for what it writes."""

from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from omnireg import plots
from omnireg.errors import ConfigError

STDOUT = Path("-")


class TextFile(click.ParamType):  # type: ignore[type-arg]
    """A file for text; ``-`` is stdout, ``./-`` a file."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path, or :data:`STDOUT`."""
        found = Path(value)
        return found.absolute() if found == STDOUT and value not in ("-", STDOUT) else found

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete names of files."""
        return click.Path().shell_complete(ctx, param, incomplete)


def check_files(*files: Path | None, plot: Path | None = None) -> None:
    """Refuse files that could not be written, before the work.

    Raises:
        ConfigError: the folder of one is not there, or the plot cannot be drawn.
    """
    for file in (file for file in (*files, plot) if file not in (None, STDOUT)):
        assert file is not None
        if not file.absolute().parent.is_dir():
            raise ConfigError(f"there is no folder {file.parent} for {file.name}; make it first")
        if file.is_dir():
            raise ConfigError(f"{file} is a folder; name a file")
    if plot is not None:
        plots.check(plot)
