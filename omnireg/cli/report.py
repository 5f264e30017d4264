"""``omnireg report``."""

from pathlib import Path

import click

from omnireg.cli.files import STDOUT, TextFile, check_files
from omnireg.cli.output import Settings, common_options, echo, hint, print_json

_FILE = click.Path(path_type=Path)


@click.command("report")
@click.argument("name")
@click.option("--format", "form", type=click.Choice(["md", "html"]), default="md",
              show_default=True, help="Markdown, or one HTML file.")  # fmt: skip
@click.option("--out", type=TextFile(), help="Write it here [default: -, stdout].")
@click.option("--plot", type=_FILE, help="Draw retention by ability here.")
@click.option("--source", help="Only scores whose source, or evaluator, holds this text.")
@common_options
@click.pass_obj
def report_command(
    settings: Settings, name: str, form: str, out: Path | None, plot: Path | None,
    source: str | None,
) -> None:  # fmt: skip
    """Put all that is known of NAME on one page.

    What it was made of; what it kept of base, parents and siblings, by ability and by benchmark;
    signatures of failure; scores with their conditions; analyses.
    """
    from omnireg.workflows.reporting import report, write

    check_files(out, plot=plot)
    file = None if out == STDOUT else out
    with settings.open_registry() as book:
        found = report(book, name, source=source)
    text = write(found, file, form, plot)
    if settings.as_json:
        print_json(found.to_json())
    elif file is None:
        echo(text.rstrip())
    else:
        hint(f"written to {out}")
