"""``omnireg merge`` and ``omnireg mergekit``."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omnireg.cli.merge_options import MERGEKIT, SHARED
from omnireg.cli.output import Settings, common_options, echo, hint, print_json, progress_bar, warn
from omnireg.errors import to_type

if TYPE_CHECKING:
    from omnireg.plugins.host import PluginHost


engine_option = click.option(
    "--engine",
    type=click.Choice(["auto", "stream", "mergekit"]),
    default="auto",
    show_default=True,
    help="Which engine runs the merge.",
)
plugin_option = click.option(
    "--plugin",
    "plugin_file",
    type=click.Path(path_type=Path),
    metavar="FILE.py",
    help="Load a single-file plugin for this merge.",
)


def plugins(file: Path | None) -> "PluginHost":
    """Return the installed plugins, and the one in a file."""
    from omnireg.plugins.host import PluginHost

    plugins = PluginHost()
    if file:
        plugins.load_file(file)
    return plugins


class MergeCommand(click.Command):
    """Lists mergekit's own merge options under a heading of their own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Add them to ours."""
        super().__init__(*args, **kwargs)
        self.params.extend((*SHARED, *MERGEKIT))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options in two groups."""
        options = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]
        own = [p for p in options if p not in MERGEKIT]
        groups = {"Options": own, "Options of --engine mergekit": MERGEKIT}
        for heading, params in groups.items():
            with formatter.section(heading):
                records = (p.get_help_record(ctx) for p in params)
                formatter.write_dl([record for record in records if record])


@click.command("merge", cls=MergeCommand)
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--name", help="Name in the registry [default: the recipe's, else OUT's].")
@engine_option
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed for methods with randomness."
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="Workers of the stream engine [default: cores]."
)
@click.option("--no-resume", is_flag=True, help="Start over where OUT.partial is unfinished.")
@click.option("--no-record", is_flag=True, help="Leave the registry alone.")
@plugin_option
@click.option("--allow-nonfinite", is_flag=True, help="Merge inputs that hold NaN or Inf.")
@common_options
@click.pass_obj
def merge_command(
    settings: Settings,
    /,
    config: Path,
    out: Path,
    name: str | None,
    engine: str,
    seed: int,
    threads: int | None,
    no_resume: bool,
    no_record: bool,
    plugin_file: Path | None,
    allow_nonfinite: bool,
    **options: Any,
) -> None:
    """Merge what the recipe CONFIG declares into the new folder OUT, and record it.

    CONFIG is mergekit's YAML; its key ``omnireg:`` says what the result should be.
    """
    settings.goes_on = not no_resume and engine != "mergekit"
    from omnireg.merging import merge

    book = nullcontext(None) if no_record else settings.open_registry()
    with book as registry, progress_bar(settings.quiet) as progress:
        receipt = merge(
            config,
            out,
            name=name,
            engine=engine,
            seed=seed,
            threads=threads,
            resume=not no_resume,
            registry=registry,
            record=not no_record,
            plugins=plugins(plugin_file),
            options={name: value for name, value in options.items() if value is not None},
            allow_nonfinite=allow_nonfinite,
            progress=progress,
        )
    if settings.as_json:
        print_json(receipt.to_json())
        return
    resumed = f", {receipt.resumed_shards} files kept" if receipt.resumed_shards else ""
    echo(
        f"{receipt.out}: {receipt.fingerprint[:12]} in {receipt.seconds:.1f} s by the"
        f" {receipt.engine} engine{resumed}"
    )
    if not no_record:
        hint(f"next: {to_type('lineage', receipt.name)}")


@click.command(
    "mergekit",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    add_help_option=False,
)
@click.argument("tool")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@common_options
@click.pass_context
def mergekit_command(ctx: click.Context, tool: str, arguments: tuple[str, ...]) -> None:
    """Run mergekit's command TOOL (yaml, multi, moe, pytorch, …) with plugins registered.

    Nothing is recorded.
    """
    from omnireg.engine.tools import advise, run_tool
    from omnireg.plugins.host import PluginHost

    if tool in ("-h", "--help"):
        echo(ctx.get_help())
        return
    plugins = PluginHost()
    advice = advise(tool, arguments, plugins)
    for warning in advice.warnings:
        warn(warning)
    run_tool(tool, list(arguments), plugins)
    if advice.next_step:
        hint(f"not recorded; to record it: {advice.next_step}")
