"""What every command shares: the common options, and how data and progress are printed.

Data goes to stdout, everything else to stderr.
"""

import json
import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, TypeVar

import click

from omnireg.boundary.files import reason
from omnireg.boundary.text import brief, json_text, one_line, shown
from omnireg.errors import ConfigError, OmniregError, did_you_mean

if TYPE_CHECKING:
    from omnireg.registry import Registry

F = TypeVar("F", bound=Callable[..., Any])
#: a longer value is cut, in a table and wherever else several stand side by side
LONGEST_VALUE = 400


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


class NotPrinted(OmniregError):
    """Standard output takes no more."""


def echo(text: object = "", *, err: bool = False, nl: bool = True, **style: Any) -> None:
    """Print text; the one way to stdout and stderr.

    What could move a cursor or turn the reading order is an escape; line breaks and tabs stay.

    Args:
        text: what to print.
        err: print it on stderr; what stderr does not take is lost.
        nl: end it with a line break.
        style: how a terminal shows it, see :func:`click.style`.

    Raises:
        NotPrinted: stdout is full, closed, or nobody reads it any more.
    """
    said = shown(str(text))
    _write(click.style(said, **style) if style else said, err=err, nl=nl)


def _write(text: str, *, err: bool, nl: bool) -> None:
    try:
        click.echo(text, err=err, nl=nl)
    except OSError as exc:
        if not err:
            raise _not_printed(exc) from exc


def flush() -> None:
    """Make sure that all that was printed has left.

    Raises:
        NotPrinted: stdout does not take it.
    """
    try:
        sys.stdout.flush()
    except OSError as exc:
        raise _not_printed(exc) from exc


def check_printed(exc: OSError) -> None:
    """Tell a failure of printing, such as click's of help, from any other.

    Raises:
        NotPrinted: it is one.
    """
    if any(frame.f_code is click.echo.__code__ for frame, _ in walk_tb(exc.__traceback__)):
        raise _not_printed(exc) from exc


def _not_printed(exc: OSError) -> NotPrinted:
    gone = isinstance(exc, BrokenPipeError)
    todo = "who read it has gone" if gone else "send it to a place that takes it"
    return NotPrinted(f"cannot write to stdout: {reason(exc)}; {todo}")


def short(value: object) -> str:
    """Return a value on one line, cut where it would flood a terminal."""
    return one_line(str(value), LONGEST_VALUE)


def complain(what: object, word: str = "error") -> None:
    """Print what is wrong as one line on stderr."""
    echo(f"{word}: {one_line(brief(str(what)), None)}", err=True)


def explain_usage(wrong: click.ClickException) -> None:
    """Print what click says of a wrong command line on stderr."""
    said = StringIO()
    wrong.show(said)
    echo(brief(said.getvalue().rstrip("\n"), longest=20_000), err=True)


class _Told(logging.Handler):
    """Prints what is logged on stderr, a traceback below it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        line, _, more = self.format(record).partition("\nTraceback")
        complain(line, logging.getLevelName(record.levelno))
        if more:
            echo(f"Traceback{more}", err=True)


def listen() -> None:
    """Print warnings of this process, unless somebody listens already."""
    logging.addLevelName(logging.WARNING, "warning")
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[_Told()])


def print_json(value: Any) -> None:
    """Print one JSON document on stdout.

    Raises:
        ConfigError: it holds what JSON cannot say.
    """
    utf8 = (getattr(sys.stdout, "encoding", None) or "utf-8").lower() in ("utf-8", "utf8")
    try:
        text = json.dumps(value, indent=2, ensure_ascii=not utf8, allow_nan=False)
    except ValueError as exc:
        where = _unspeakable(value)
        if where is None:
            raise
        raise ConfigError(f"JSON has no word for {where}; leave out --json to see it") from exc
    except RecursionError as exc:
        raise ConfigError("the answer is nested too deeply for --json; leave it out") from exc
    echo(json_text(text))


def _unspeakable(value: Any, path: str = "") -> str | None:
    """Return the first infinity or NaN in a value, and where it is."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} ({path.lstrip('.') or 'the answer'})"
    if isinstance(value, dict):
        parts = [(f"{path}.{key}", each) for key, each in value.items()]
    else:
        parts = [(f"{path}[{i}]", e) for i, e in enumerate(value)] if _is_list(value) else []
    return next(filter(None, (_unspeakable(each, at) for at, each in parts)), None)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print aligned columns on stdout, numbers to the right, every value on one line."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        numeric = any(isinstance(row[index], int | float) for row in rows)
        table.add_column(
            Text(short(column)), justify="right" if numeric else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    print_drawn(table, width=None if sys.stdout.isatty() else 200)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else short(value)


def print_drawn(drawing: Any, *, width: int | None = None, soft_wrap: bool = False) -> None:
    """Print what rich draws on stdout; the texts in it went through :func:`short`."""
    from rich.console import Console

    drawn = StringIO()
    console = Console(
        file=drawn, force_terminal=sys.stdout.isatty(), width=width, highlight=False,
        markup=False, emoji=False,
    )  # fmt: skip
    console.print(drawing, soft_wrap=soft_wrap)
    _write(drawn.getvalue(), err=False, nl=False)


def hint(message: str) -> None:
    """Say something helpful on stderr, unless asked to be quiet."""
    if not click.get_current_context().ensure_object(Settings).quiet:
        echo(brief(message), err=True)


def warn(message: str) -> None:
    """Say on stderr that something may not be as it should."""
    complain(message, "warning")


def confirm(question: str) -> None:
    """Ask whether to go on.

    Raises:
        click.Abort: no.
        click.UsageError: nobody is there to say so.
    """
    if not sys.stdin.isatty():
        raise click.UsageError("nobody is there to confirm this: add --yes, or --dry-run to look")
    click.confirm(short(question), abort=True, err=True)


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

    head = (TextColumn("{task.description:>10}", markup=False), BarColumn())
    tail = (TimeElapsedColumn(), TextColumn("{task.fields[detail]}", markup=False))
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
        bar.update(
            show(bar), description=one_line(stage, 20), completed=done, total=total,
            detail=one_line(detail, 60),
        )  # fmt: skip

    if at_once:
        show(counted)
    try:
        yield update
    finally:
        for bar, _ in showing:
            bar.stop()
