"""``omnireg backbone extract`` and ``omnireg backbone graft``."""

from pathlib import Path

import click

from omnireg.cli.output import Settings, common_options, echo, hint, print_json


@click.group("backbone")
@common_options
def backbone_command() -> None:
    """Take the language model out of a host, or put one back in."""


@backbone_command.command("extract")
@click.argument("host")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--base", metavar="REF", help="Write it in this base's layout and vocabulary.")
@common_options
@click.pass_obj
def extract_command(settings: Settings, host: str, out: Path, base: str | None) -> None:
    """Write the language model of HOST as the text checkpoint OUT."""
    from omnireg.backbones.grafting import extract
    from omnireg.planning import open_model
    from omnireg.plugins.host import PluginHost

    plugins = PluginHost()
    reference = open_model(base, plugins) if base else None
    report = extract(open_model(host, plugins), out, base=reference)
    _print(settings, report.to_json(), f"{out}: the language model of {host}")


@backbone_command.command("graft")
@click.argument("backbone")
@click.argument("host")
@click.argument("out", type=click.Path(path_type=Path))
@common_options
@click.pass_obj
def graft_command(settings: Settings, backbone: str, host: str, out: Path) -> None:
    """Write HOST with its language model replaced by BACKBONE as the checkpoint OUT."""
    from omnireg.backbones.grafting import graft
    from omnireg.planning import open_model
    from omnireg.plugins.host import PluginHost

    plugins = PluginHost()
    report = graft(open_model(backbone, plugins), open_model(host, plugins), out)
    _print(settings, report.to_json(), f"{out}: {host} with the language model of {backbone}")


def _print(settings: Settings, report: dict[str, dict[str, object]], said: str) -> None:
    if settings.as_json:
        print_json(report)
        return
    tensors = report["tensors"]
    echo(said)
    echo(f"tensors: {tensors['mapped']} mapped, {tensors['carried']} carried")
    if tensors["absent"]:
        hint(f"absent: {tensors['absent']}")
