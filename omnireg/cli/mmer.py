"""``omnireg mmer``: decoupled packages."""

from pathlib import Path
from typing import Any

import click

from omnireg.checkpoints.contents import is_told
from omnireg.checkpoints.outputs import check_free
from omnireg.cli.calibrate import calibrate_command
from omnireg.cli.output import (
    Settings,
    common_options,
    echo,
    hint,
    print_json,
    print_table,
    progress_bar,
)
from omnireg.errors import to_type

_FILE = click.Path(path_type=Path)
_trust_option = click.option(
    "--trust", is_flag=True, help="Do not compare the package's files with their digests."
)


@click.group("mmer")
@common_options
def mmer_command() -> None:
    """Look into a decoupled package, ask it, add to it, or take one model out.

    A package is made by ``omnireg merge`` with ``output: package``, by mmer and other strategies
    that have masks.
    """


mmer_command.add_command(calibrate_command)


def _check_name_free(settings: Settings, name: str, out: Path) -> None:
    """Find out before the work that the result could not be recorded."""
    with settings.open_registry() as book:
        known = book.get(name) if book.exists() else None
        if not is_told(out) or (known and known.source == str(out.resolve())):
            check_free(out)
        book.check_name_free(name, kind=None)


@mmer_command.command("inspect")
@click.argument("package", type=click.Path(path_type=Path))
@common_options
@click.pass_obj
def inspect_command(settings: Settings, package: Path) -> None:
    """Show what PACKAGE holds, and how many bytes it takes."""
    from omnireg.package import Package
    from omnireg.package.inspecting import inspect

    found = inspect(Package(package)).to_json()
    if settings.as_json:
        print_json(found)
        return
    rows: list[tuple[Any, ...]] = [
        (m["name"], m["model"], f"{m['mask_density']:.1%}", f"{m['l1_recovered']:.1%}")
        for m in found["modalities"]
    ]
    print_table(("modality", "model", "mask keeps", "L1 recovered"), rows)
    echo(f"\ntask vector: {found['task_vector_density']:.1%} of its elements are not zero")
    for part, size in found["bytes"].items():
        echo(f"{part.replace('_', ' '):<12}{size:>16,} bytes")
    echo(
        f"{found['ratio_to_one_model']:.2f} × one model; vector and masks are"
        f" {found['ratio_to_bound']:.3f} × what their contents need at least"
    )


@mmer_command.command("extract")
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--modality", required=True, help="Whose model to take out.")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--name", help="Name in the registry [default: OUT's].")
@click.option("--no-record", is_flag=True, help="Leave the registry alone.")
@_trust_option
@common_options
@click.pass_obj
def extract_command(
    settings: Settings,
    package: Path,
    modality: str,
    out: Path,
    name: str | None,
    no_record: bool,
    trust: bool,
) -> None:
    """Write the model of one modality in PACKAGE as an ordinary checkpoint into OUT."""
    from omnireg.package import Package
    from omnireg.package.extracting import extract
    from omnireg.recording import record_extraction

    opened, chosen = Package(package, trust=trust), name or out.name
    if not no_record:
        _check_name_free(settings, chosen, out)
    with progress_bar(settings.quiet) as progress:
        fingerprint = extract(opened, modality, out, progress)
    if not no_record:
        with settings.open_registry() as book:
            record_extraction(book, opened, modality, out, chosen)
    if settings.as_json:
        print_json({"name": chosen, "fingerprint": fingerprint, "out": str(out)})
        return
    echo(f"{out}: {fingerprint[:12]}, {modality} of {package}")
    if not no_record:
        hint(f"next: {to_type('lineage', chosen)}")


@mmer_command.command("add")
@click.argument("package", type=click.Path(path_type=Path))
@click.argument("model")
@click.option("--modality", required=True, help="What the new model stands for.")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--density", type=float, help="Of the new model [default: the package's].")
@click.option("--mask-lambda", type=float, help="Of the new model [default: the package's].")
@click.option("--name", help="Name in the registry [default: OUT's].")
@click.option("--no-record", is_flag=True, help="Leave the registry alone.")
@_trust_option
@common_options
@click.pass_obj
def add_command(
    settings: Settings,
    package: Path,
    model: str,
    modality: str,
    out: Path,
    density: float | None,
    mask_lambda: float | None,
    name: str | None,
    no_record: bool,
    trust: bool,
) -> None:
    """Write PACKAGE with MODEL as one more into OUT.

    The originals of the models in it are not needed: what the package keeps of them stands in.
    """
    from omnireg.package import Package
    from omnireg.package.adding import add
    from omnireg.recording import record_addition

    opened, chosen = Package(package, trust=trust), name or out.name
    if not no_record:
        _check_name_free(settings, chosen, out)
    given = {"density": density, "mask_lambda": mask_lambda}
    own = {key: value for key, value in given.items() if value is not None}
    with progress_bar(settings.quiet) as progress:
        fingerprint = add(opened, model, modality, out, parameters=own, progress=progress)
    if not no_record:
        with settings.open_registry() as book:
            record_addition(book, opened, out, chosen, model)
    if settings.as_json:
        print_json({"name": chosen, "fingerprint": fingerprint, "out": str(out)})
        return
    echo(f"{out}: {fingerprint[:12]}, {package} and {modality}")
    if not no_record:
        hint(f"next: {to_type('mmer', 'inspect', out)}")


@mmer_command.command("generate")
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--prompt", required=True, help="What to ask.")
@click.option("--image", multiple=True, type=_FILE, help="A picture.")
@click.option("--audio", multiple=True, type=_FILE, help="A sound: WAV.")
@click.option("--video", multiple=True, type=_FILE, help="A video: GIF, a folder of images, .npy.")
@click.option(
    "--media", multiple=True, metavar="MODALITY=FILE", help="A medium of any other modality."
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--text-routing", default="auto", show_default=True, help="Weights of text tokens.")
@click.option(
    "--storage", default="materialised", show_default=True, help="materialised or packed."
)
@click.option("--dtype", help="To compute in [default: the package's].")
@click.option("--device", default="cpu", show_default=True)
@_trust_option
@click.option("--chat/--no-chat", default=True, help="Use the tokenizer's chat template.")
@common_options
@click.pass_obj
def generate_command(
    settings: Settings,
    /,
    package: Path,
    prompt: str,
    image: tuple[Path, ...],
    audio: tuple[Path, ...],
    video: tuple[Path, ...],
    media: tuple[str, ...],
    **how: Any,
) -> None:
    """Ask the model in PACKAGE, with any mix of media; every token runs with its own weights.

    Media whose placeholder the prompt does not have are put before it.
    """
    from omnireg.routed.asking import ask

    files = [("image", f) for f in image] + [("audio", f) for f in audio]
    files += [("video", f) for f in video] + [_modality_file(said) for said in media]
    answer = ask(package, prompt, files, **how)
    print_json(answer.to_json()) if settings.as_json else echo(answer.text)


def _modality_file(said: str) -> tuple[str, Path]:
    modality, equals, file = said.partition("=")
    if not equals or not modality or not file:
        raise click.BadParameter(f"{said}: give MODALITY=FILE")
    return modality, Path(file)
