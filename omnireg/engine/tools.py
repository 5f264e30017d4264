"""mergekit's other commands, with every plugin registered in their process."""

import importlib.metadata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from omnireg.checkpoints.checkpoint import open_checkpoint
from omnireg.errors import (
    CheckpointError,
    ConfigError,
    MergeError,
    OmniregError,
    did_you_mean,
    to_type,
)
from omnireg.planning.parameters import check_parameters
from omnireg.plugins.host import PluginHost
from omnireg.plugins.isolation import reason
from omnireg.recipe import Recipe, read_recipe

_CARD_HINT = (
    "mergekit's model card asks the Hub about relative paths; use absolute ones, or add"
    " --no-write-model-card"
)


@dataclass(frozen=True)
class Advice:
    """What to say before a mergekit command, and what to type after it."""

    warnings: tuple[str, ...] = ()
    next_step: str | None = None


def mergekit_tools() -> dict[str, importlib.metadata.EntryPoint]:
    """Return mergekit's own commands by the name after ``mergekit-``."""
    scripts = importlib.metadata.distribution("mergekit").entry_points.select(
        group="console_scripts"
    )
    return {script.name.removeprefix("mergekit-"): script for script in scripts}


def run_tool(tool: str, arguments: Sequence[str], plugins: PluginHost) -> None:
    """Run a command of mergekit in this process.

    Raises:
        ConfigError: mergekit has no such command.
        MergeError: the command failed.
    """
    tools = mergekit_tools()
    if tool not in tools:
        raise ConfigError(
            f"mergekit has no command {tool!r}{did_you_mean(tool, tools)}; it has"
            f" {', '.join(sorted(tools))}"
        )
    plugins.install()
    command = tools[tool].load()
    try:
        command.main(
            args=list(arguments), prog_name=f"omnireg mergekit {tool}", standalone_mode=False
        )
    except (
        click.ClickException, click.Abort, click.exceptions.Exit, OmniregError, KeyboardInterrupt
    ):  # fmt: skip
        raise
    except BaseException as exc:
        if not isinstance(exc, Exception):  # no command of mergekit ends well by an exit
            ended = f"it was ended by {reason(exc)}, in its own code or a plugin's"
            raise MergeError(f"mergekit {tool}: {ended}") from exc
        message = " ".join(str(exc).split()) or type(exc).__name__
        local = isinstance(exc, OSError) and exc.filename  # a file here, not one of the Hub
        offline = isinstance(exc, OSError) or type(exc).__module__.startswith("httpx")
        hint = _CARD_HINT if offline and tool in ("yaml", "multi") else "--traceback shows where"
        raise MergeError(f"mergekit {tool}: {message}{'' if local else f' ({hint})'}") from exc


def advise(tool: str, arguments: Sequence[str], plugins: PluginHost) -> Advice:
    """Look at what ``mergekit yaml CONFIG OUT`` is about to do.

    mergekit loses the language model of a multimodal host without an error, so hosts are warned
    about, and it passes over parameters that it does not know; and since it records nothing, the
    line that would is offered.
    """
    plain = [argument for argument in arguments if not argument.startswith("-")]
    if tool != "yaml" or len(plain) < 2:
        return Advice()
    try:
        recipe, _ = read_recipe(Path(plain[0]))
    except ConfigError:
        return Advice()
    warnings = [_warning(ref) for ref in recipe.references if _is_host(ref, plugins)]
    return Advice((*warnings, *_slips(recipe, plugins)), _add_line(recipe, plain[1]))


def _slips(recipe: Recipe, plugins: PluginHost) -> Iterator[str]:
    """Say what mergekit passes over, or looks for elsewhere."""
    for ref in recipe.references:
        if ("/" not in ref or ref[0] in "./~") and not Path(ref).expanduser().exists():
            yield f"there is no folder {ref}: mergekit looks for it on the Hub"
    strategy = plugins.methods().get(recipe.merge_method)
    if strategy is not None:
        try:
            check_parameters(recipe, strategy.load().spec, first_pass=True)
        except OmniregError as exc:
            yield f"{exc}; mergekit may pass over that"


def _is_host(ref: str, plugins: PluginHost) -> bool:
    if not Path(ref).is_dir():
        return False
    try:
        layout = plugins.layouts.get(open_checkpoint(ref, weights=False).architecture)
    except CheckpointError:
        return False
    return bool(layout and layout.senses)


def _warning(ref: str) -> str:
    return (
        f"{ref} is a multimodal host: mergekit may drop its language model or its encoders without"
        " an error; use omnireg merge"
    )


def _add_line(recipe: Recipe, out: str) -> str:
    named = [f"{recipe.base_model}=base"] if recipe.base_model else []
    named += [entry.model for entry in recipe.merged_models]
    parents = (word for name in named for word in ("--parent", name))
    return to_type("add", out, "--kind", "merged", *parents)
