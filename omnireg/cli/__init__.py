"""The command line: parse, call, print. Commands are imported only when they are used."""

import errno
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from omnireg.boundary.text import brief
from omnireg.cli.endings import exit_code_of, own_streams, terminable
from omnireg.cli.output import (
    Settings,
    check_printed,
    common_options,
    complain,
    echo,
    explain_usage,
    flush,
    listen,
)
from omnireg.errors import OmniregError, did_you_mean
from omnireg.version import __version__

#: command → (module, one line of help), so that --help imports none of them
COMMANDS = {
    "demo": ("demo", "Merge, score and compare a tiny real family, offline, in minutes."),
    "plan": ("plan", "Show what a merge would read, do and write, from headers alone."),
    "merge": ("merge", "Merge what a recipe declares, and record it."),
    "verify": ("plan", "Compare a checkpoint's files with its record, or merge it again."),
    "mergekit": ("merge", "Run a command of mergekit with every plugin registered."),
    "mmer": ("mmer", "Look into a decoupled package, or take one model out of it."),
    "backbone": ("backbone", "Take the language model out of a host, or put one back in."),
    "add": ("checkpoints", "Record a checkpoint."),
    "list": ("checkpoints", "List recorded checkpoints."),
    "show": ("checkpoints", "Show one recorded checkpoint."),
    "lineage": ("checkpoints", "Show what a checkpoint was made of and what was made of it."),
    "eval": ("evaluate", "Measure a checkpoint and record its scores."),
    "scores": ("scores", "Show, add or import the scores of a checkpoint."),
    "leaderboard": ("scoring", "Rank checkpoints by a benchmark."),
    "compare": ("scoring", "Set checkpoints beside a reference, benchmark by benchmark."),
    "report": ("report", "Put all that is known of a checkpoint on one page."),
    "check": ("scoring", "Look for signatures of failure in a checkpoint's scores."),
    "sweep": ("sweep", "Merge a grid of settings, score and rank them."),
    "analyze": ("analyze", "Look into checkpoints: shift, heads, t-SNE."),
    "apply": ("declare", "Bring the registry to what manifests declare."),
    "export": ("declare", "Write the registry as a manifest."),
    "publish": ("hub", "Publish a checkpoint to the Hugging Face Hub, with its lineage."),
    "pull": ("hub", "Record the lineage of a repository on the Hub, and fetch its files."),
    "events": ("declare", "Show who changed what, and when."),
    "sql": ("declare", "Ask the registry in SQL; nothing can be written."),
    "strategies": ("plugins", "List every merge method that can be used."),
    "plugins": ("plugins", "List every plugin, the broken ones too."),
    "new-plugin": ("new_plugin", "Write the skeleton of a plugin of your own."),
    "db": ("database", "Look after the registry's database."),
}


class _Passed(Exception):
    """What click is not to see: it takes an end of file, or a broken pipe, for the user's doing."""

    def __init__(self, what: BaseException) -> None:
        super().__init__(what)
        self.what = what


@contextmanager
def _past_click() -> Iterator[None]:
    try:
        yield
    except (EOFError, KeyboardInterrupt, OSError) as exc:
        raise _Passed(exc) from exc


class LazyGroup(click.Group):
    """A group whose commands live in modules of their own."""

    @_past_click()
    def make_context(self, *args: Any, **more: Any) -> click.Context:
        """Parse what stands before the command's name."""
        return super().make_context(*args, **more)

    @_past_click()
    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the story they tell."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command by name."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"omnireg.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the one-line helps without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the closest command for an unknown one."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no command {args[0]!r}{did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="omnireg")
@common_options
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Merge multimodal checkpoints without training, and never lose track of them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return 0 when done, 1 when it failed, 2 on wrong usage."""
    settings = Settings()
    listen()
    # of an interrupt amid a transaction it would print a traceback; the transaction is taken back
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    try:
        with terminable():
            code = _called(arguments, settings)
            flush()
    except click.ClickException as exc:
        explain_usage(exc)
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt) as exc:
        more = "; the same command goes on with what is finished" if settings.goes_on else ""
        echo(f"interrupted{more}", err=True)
        return exit_code_of(exc)
    except OmniregError as exc:
        if settings.traceback:
            raise
        complain(exc)
        return 1
    except OSError as exc:
        if settings.traceback or exc.errno != errno.ENAMETOOLONG:
            raise
        complain(OmniregError(f"{brief(str(exc.filename))} is too long for a name; check it"))
        return 1
    return code


def _called(arguments: Sequence[str] | None, settings: Settings) -> int:
    """Return the exit code of a command.

    Raises:
        NotPrinted: what click itself printed, such as help, did not leave.
    """
    try:
        code = cli.main(args=arguments, obj=settings, standalone_mode=False)
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except _Passed as exc:
        passed = exc.what
    else:
        return code if isinstance(code, int) else 0
    if isinstance(passed, OSError):
        check_printed(passed)
    raise passed


def console() -> None:
    """Entry point of the console scripts."""
    with own_streams():
        code = main()
    sys.exit(code)
