"""``omnireg plan`` and ``omnireg verify``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from omnireg.cli.merge import engine_option, plugin_option, plugins
from omnireg.cli.output import (
    Settings,
    common_options,
    echo,
    hint,
    print_drawn,
    print_json,
    progress_bar,
    short,
)
from omnireg.errors import to_type

if TYPE_CHECKING:
    from omnireg.engine.outlook import Outlook
    from omnireg.merging.verifying import Verdict


@click.command("plan")
@click.argument("config", type=click.Path(path_type=Path))
@engine_option
@plugin_option
@click.option("--tensors", is_flag=True, help="List every tensor, and what it is made of.")
@common_options
@click.pass_obj
def plan_command(
    settings: Settings, config: Path, engine: str, plugin_file: Path | None, tensors: bool
) -> None:
    """Show what the recipe CONFIG would read, do and write, from headers alone."""
    from omnireg.engine.outlook import outlook
    from omnireg.planning import plan

    found = outlook(plan(config, plugins(plugin_file), engine=engine, weights=False))
    if settings.as_json:
        print_json(found.to_json())
        return
    _print(found, tensors=tensors)
    hint(f"next: {to_type('merge', config, 'OUT')}")


def _print(found: "Outlook", *, tensors: bool) -> None:
    from rich.filesize import decimal
    from rich.tree import Tree

    data = found.to_json()
    counts = data["tensors"]
    top = Tree(f"{data['strategy']} by the {data['engine']} engine, digest {data['digest'][:12]}")
    inputs = top.add("inputs")
    for item in data["inputs"]:
        known = f", fingerprint {item['fingerprint'][:12]}" if item["fingerprint"] else ""
        inputs.add(f"{short(item['ref'])} ({item['role']}{known})")
    top.add(
        f"tensors: {counts['merged']} merged ({counts['fused']} by a compiled pass),"
        f" {counts['carried']} carried, {len(counts['absent'])} absent"
    )
    for name in counts["absent"]:
        top.children[-1].add(short(name))
    size = decimal(data["output"]["bytes"])
    files = top.add(
        f"output: {size} in {data['output']['shards']} files"
        if data["files"]
        else f"output: a package of at most {size}, encoders apart"
    )
    for file in data["files"]:
        branch = files.add(
            f"{file['name']}: {decimal(file['bytes'])}, {len(file['tensors'])} tensors"
        )
        for tensor in file["tensors"] if tensors else ():
            made = ", ".join(f"{short(r)}: {short(name)}" for r, name in tensor["inputs"].items())
            branch.add(
                f"{short(tensor['name'])} {tensor['dtype']} @{tensor['offset']}:"
                f" {made or 'carried'}"
            )
    top.add(f"memory: about {decimal(data['peak_memory_bytes'])} at most")
    print_drawn(top, soft_wrap=True)


@click.command("verify")
@click.argument("name")
@click.option("--rerun", is_flag=True, help="Merge again in a scratch folder, and compare that.")
@plugin_option
@common_options
@click.pass_obj
def verify_command(settings: Settings, name: str, rerun: bool, plugin_file: Path | None) -> None:
    """Compare all files of NAME with what was recorded; exit 1 if they differ.

    The weights have the fingerprint; config, tokenizer and the like are compared one by one.
    """
    from omnireg.merging.verifying import verify

    with settings.open_registry() as book, progress_bar(settings.quiet) as progress:
        verdict = verify(book, name, rerun=rerun, plugins=plugins(plugin_file), progress=progress)
    if settings.as_json:
        print_json(verdict.to_json())
    else:
        what = "merged again" if rerun else "the files"
        same = verdict.found == verdict.expected
        said = "as recorded" if same else f"NOT as recorded, {verdict.expected}"
        echo(f"{verdict.name}: {what}: {verdict.found}: {said}")
        for change in verdict.files:
            echo(f"{verdict.name}: {change}")
    if not verdict.ok:
        hint(_advice(verdict, rerun))
        raise click.exceptions.Exit(1)


def _advice(verdict: "Verdict", rerun: bool) -> str:
    if rerun and verdict.other_plugin:
        return f"{verdict.other_plugin}: find the old one, and name it with --plugin"
    if rerun:
        return "next: compare the versions in its omnireg.json with those installed"
    if verdict.found == verdict.expected:
        again = to_type("add", "FOLDER", "--name", verdict.name)
        return f"the weights are as recorded; if the other changes are yours, record them: {again}"
    return (
        "next: omnireg lineage shows what it was made of; --rerun tells whether merging again gives"
        " the recorded bytes"
    )
