"""What every command shares: the common options, and how data and progress are printed.

Data goes to stdout, everything else to stderr.
"""

import json
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from omnireg import plots
from omnireg.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from omnireg.registry import Registry

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Settings:
    """The common options, wherever on the command line they stood.

    Attributes:
        goes_on: whether the command, if it is stopped, finds again what it had finished; it says so
            itself.
    """

    registry: str | None = None
    as_json: bool = False
    quiet: bool = False
    verbose: int = 0
    traceback: bool = False
    goes_on: bool = False

    def open_registry(self) -> "Registry":
        """Return the registry that was named, or the default one."""
        from omnireg.registry import Registry

        return Registry(self.registry)


def _keep(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        settings = ctx.ensure_object(Settings)
        if value:
            setattr(settings, name, value)
        if name in ("quiet", "verbose") and value:
            level = logging.ERROR if settings.quiet else logging.INFO
            logging.getLogger("omnireg").setLevel(level)

    return callback


def common_options(command: F) -> F:
    """Add the options that every command takes, before or after its name."""
    options = (
        click.option(
            "--registry",
            metavar="URL",
            expose_value=False,
            callback=_keep("registry"),
            help="Registry to use [default: $OMNIREG_REGISTRY, else registry.db here].",
        ),
        click.option(
            "--json",
            is_flag=True,
            expose_value=False,
            callback=_keep("as_json"),
            help="Print one JSON document.",
        ),
        click.option(
            "-q",
            "--quiet",
            is_flag=True,
            expose_value=False,
            callback=_keep("quiet"),
            help="No progress, no hints.",
        ),
        click.option(
            "-v",
            "--verbose",
            count=True,
            expose_value=False,
            callback=_keep("verbose"),
            help="Say more on stderr.",
        ),
        click.option(
            "--traceback",
            is_flag=True,
            expose_value=False,
            callback=_keep("traceback"),
            help="Show the traceback of an error.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


class DefaultGroup(click.Group):
    """A group that takes ``NAME`` where a subcommand could stand."""

    default = "list"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert the default subcommand unless another one is named."""
        first = next((arg for arg in args if not arg.startswith("-")), None)
        helped = any(arg in ("-h", "--help") for arg in args)
        if len(args) > 1 and first not in self.commands and not args[1].startswith("-"):
            shown = [name for name, command in self.commands.items() if not command.hidden]
            if close := did_you_mean(str(first), shown):
                ctx.fail(f"no command {first!r}{close}")
        if first not in self.commands and not (helped and first is None):
            args = [self.default, *args]
        return super().parse_args(ctx, args)


@contextmanager
def interrupted_after() -> Iterator[None]:
    """Put an interrupt off until the block is done; amid an import, libraries swallow it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def check_files(*files: Path | None, plot: Path | None = None) -> None:
    """Refuse files that could not be written, before the work.

    Raises:
        ConfigError: the folder of one is not there, or the plot cannot be drawn.
    """
    for file in filter(None, (*files, plot)):
        if not file.absolute().parent.is_dir():
            raise ConfigError(f"there is no folder {file.parent} for {file.name}; make it first")
        if file.is_dir():
            raise ConfigError(f"{file} is a folder; name a file")
    if plot is not None:
        plots.check(plot)


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print aligned columns on stdout, numbers to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        numeric = any(isinstance(row[index], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def hint(message: str) -> None:
    """Say something helpful on stderr, unless asked to be quiet."""
    if not click.get_current_context().ensure_object(Settings).quiet:
        click.echo(message, err=True)


@contextmanager
def progress_bar(quiet: bool, *, at_once: bool = True) -> Iterator[Callable[..., None]]:
    """Yield a callback (stage, done, total, detail) that draws a bar on stderr, if a person looks.

    Without ``at_once`` there is none before the first call, so that others can draw theirs. While
    the stage is "writing", done and total are bytes: the bar shows GB and GB/s.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TransferSpeedColumn,
    )

    head = (TextColumn("{task.description:>10}"), BarColumn())
    tail = (TimeElapsedColumn(), TextColumn("{task.fields[detail]}"))
    console = Console(stderr=True)
    hidden = quiet or not sys.stderr.isatty()
    counted = Progress(*head, MofNCompleteColumn(), *tail, console=console, transient=True)
    written = Progress(
        *head, DownloadColumn(), TransferSpeedColumn(), *tail, console=console, transient=True
    )
    counted.disable = written.disable = hidden
    showing: list[tuple[Progress, Any]] = []

    def show(bar: Progress) -> Any:
        if not showing or showing[0][0] is not bar:
            while showing:
                showing.pop()[0].stop()
            bar.start()
            showing.append((bar, bar.add_task("planning", total=None, detail="")))
        return showing[0][1]

    def update(stage: str, done: int, total: int, detail: str = "") -> None:
        bar = written if stage == "writing" else counted
        bar.update(show(bar), description=stage, completed=done, total=total, detail=detail)

    if at_once:
        show(counted)
    try:
        yield update
    finally:
        for bar, _ in showing:
            bar.stop()
