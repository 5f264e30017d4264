"""Do the files still match the record, and does merging again give the same bytes?"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from omnireg.boundary.names import relative
from omnireg.checkpoints import contents
from omnireg.checkpoints.checkpoint import open_checkpoint
from omnireg.errors import CheckpointError, ConfigError, RegistryError
from omnireg.merging.merges import merge
from omnireg.moved import renamed
from omnireg.package import fingerprint_of
from omnireg.planning.parameters import relocated
from omnireg.plugins.host import PluginHost
from omnireg.progress import Progress, silent
from omnireg.recipe import Recipe, parse_recipe
from omnireg.recording import find_record
from omnireg.registry import Checkpoint as Record
from omnireg.registry import Registry, Run


@dataclass(frozen=True)
class Verdict:
    """The recorded fingerprint beside the one that was found.

    Attributes:
        files: which files beside or among the weights are not as recorded, one line each.
        other_plugin: why merging again used another single-file plugin, if it did.
    """

    name: str
    expected: str
    found: str
    files: tuple[str, ...] = ()
    other_plugin: str | None = None

    @property
    def ok(self) -> bool:
        """Whether everything is as recorded."""
        return self.expected == self.found and not self.files

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as ``omnireg verify --json`` prints it."""
        return {
            "ok": self.ok,
            "expected": self.expected,
            "found": self.found,
            "files": list(self.files),
        }


@renamed(host="plugins")
def verify(
    book: Registry,
    name: str,
    *,
    rerun: bool = False,
    plugins: PluginHost | None = None,
    progress: Progress = silent,
) -> Verdict:
    """Compare a checkpoint with its record: all its files read anew, or merged from its inputs.

    Raises:
        RegistryError: it is not recorded, has no fingerprint, or nothing is known of how it was
            made or where its inputs are.
        CheckpointError: its files are not where they were recorded.
    """
    record = find_record(book, name)
    if not record.fingerprint or not record.source:
        raise RegistryError(
            f"{record.name} was recorded without a fingerprint or a place; record its files:"
            f" omnireg add FOLDER --name {record.name}"
        )
    other: str | None = None
    changed: tuple[str, ...] = ()
    if rerun:
        plugins = plugins or PluginHost()
        run = _run_of(book, record)
        other = _other_plugin(run, plugins)
        found = _merged_again(book, record, run, plugins, progress)
    else:
        if Path(record.source).is_absolute() and not Path(record.source).is_dir():
            raise CheckpointError(
                f"{record.name} was recorded at {record.source}, which is gone; if it was moved:"
                f" omnireg add FOLDER --name {quote(record.name)}"
            )
        place = Path(record.source)
        if place.is_dir():
            found = fingerprint_of(place, fresh=True)
            changed = tuple(changes(record, place, fresh=True))
        else:
            found = open_checkpoint(record.source, weights=False).fingerprint
    return Verdict(record.name, record.fingerprint, found, changed, other)


def changes(record: Record, folder: Path, *, fresh: bool = False) -> Iterator[str]:
    """Yield which files of a folder are not as they were recorded, one line each.

    What the registry does not know is compared with what the folder says of itself.
    """
    if record.files:
        for name in record.files:
            relative(name, f"the record of {record.name}", RegistryError)
        yield from contents.differences(folder, record.files, fresh=fresh)
        return
    try:
        told = contents.read(folder)
    except CheckpointError as exc:
        yield str(exc)
        return
    if told is not None and told.is_sealed:
        yield from contents.differences(folder, told.files, fresh=fresh)


def _other_plugin(run: Run, plugins: PluginHost) -> str | None:
    """Say that a single-file plugin is not the one that a run was made with."""
    strategy = plugins.strategies.get(str(run.strategy))
    now = strategy.origin.file_version if strategy else None
    if now is None or now == run.strategy_version:
        return None
    return (
        f"it was merged with {run.strategy_distribution} {str(run.strategy_version)[:19]}, and that"
        f" file is {now[:19]} now"
    )


def mismatches(book: Registry, progress: Progress = silent) -> list[str]:
    """Return which recorded folders hold other files than was recorded, one line each.

    Files that have not changed since they were hashed are not read again, and folders that are
    gone are no mismatch.
    """
    found = [
        record
        for record in book.checkpoints(limit=None)
        if record.fingerprint and record.source and Path(record.source).is_absolute()
    ]
    problems = []
    for done, record in enumerate(sorted(found, key=lambda each: each.name)):
        progress("checking", done, len(found), record.name)
        if Path(str(record.source)).is_dir():
            problems += list(_problems_of(record, Path(str(record.source))))
    return problems


def _problems_of(record: Record, folder: Path) -> Iterator[str]:
    try:
        now = fingerprint_of(folder)
        others = now != record.fingerprint
        if others:
            yield (
                f"{record.name} is recorded as {str(record.fingerprint)[:12]}, but {folder} holds"
                f" {now[:12]}"
            )
        for change in changes(record, folder):
            if not (others and ".safetensors was" in change):
                yield f"{record.name}: {folder}: {change}"
    except CheckpointError as exc:
        yield f"{record.name}: {exc}"


def _merged_again(
    book: Registry, record: Record, run: Run, plugins: PluginHost, progress: Progress
) -> str:
    told = _told(record)
    recipe = _relocated(parse_recipe(run.recipe_text or ""), told.parents, book, plugins)
    options = told.options
    with tempfile.TemporaryDirectory(prefix="omnireg-verify-") as scratch:
        receipt = merge(
            recipe,
            Path(scratch) / "again",
            engine=run.engine or "auto",
            seed=run.seed or 0,
            record=False,
            plugins=plugins,
            options={"out_shard_size": options.get("shard_bytes"), "device": options.get("device")},
            allow_nonfinite=bool(options.get("allow_nonfinite")),
            progress=progress,
        )
    return receipt.fingerprint


def _run_of(book: Registry, record: Record) -> Run:
    run = book.run_of(record.name)
    if run is None or not run.recipe_text:
        raise RegistryError(
            f"{record.name} was not merged here: no recipe is recorded to run again; without"
            " --rerun its files are compared with the record"
        )
    return run


def _told(record: Record) -> contents.Told:
    """Return ``omnireg.json``, which tells the recipe's references by fingerprint."""
    folder = Path(record.source or "")
    try:
        told = contents.read(folder)
    except CheckpointError as exc:
        raise RegistryError(f"the inputs of {record.name} cannot be found: {exc}") from exc
    if told is None:
        raise RegistryError(
            f"{folder / contents.NAME} is missing, so the inputs of {record.name} cannot be found;"
            " bring the folder back, or merge its recipe again"
        )
    return told


def _relocated(
    recipe: Recipe, parents: list[contents.Parent], book: Registry, plugins: PluginHost
) -> Recipe:
    """Return the recipe with every reference replaced by where its bytes lie today."""
    places = {parent.ref: _place(parent, book) for parent in parents}
    strategy = plugins.methods().get(recipe.merge_method)
    if strategy is None:
        raise ConfigError(
            f"{recipe.merge_method!r} is no strategy here: install the plugin that it came from, or"
            " name its file with --plugin"
        )
    spec = strategy.load().spec
    return Recipe.model_validate(
        relocated(recipe.model_dump(mode="json", exclude_none=True), spec, places)
    )


def _place(parent: contents.Parent, book: Registry) -> str:
    wanted = parent.fingerprint
    for record in book.by_fingerprint(wanted):
        folder = Path(record.source or "")
        if folder.is_dir() and fingerprint_of(folder, fresh=True) == wanted:
            return str(folder)
        if record.source and not folder.is_absolute():
            return record.source
    raise RegistryError(
        f"no folder with the bytes of {parent.ref} ({wanted[:12]}) is recorded; if you have them"
        f" elsewhere: omnireg add FOLDER"
    )
