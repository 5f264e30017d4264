"""Merge and record: the one function behind ``omnireg merge``."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnireg.checkpoint import Checkpoint
from omnireg.engine import recording
from omnireg.engine.mergekit import describe, merge_with_mergekit
from omnireg.errors import ConfigError
from omnireg.host import PluginHost
from omnireg.outputs import appearing, check_free, scratch_folder
from omnireg.planning import plan
from omnireg.recipe import Recipe, parse_recipe, read_recipe
from omnireg.registry import Registry

Progress = Callable[[str, int, int], None]
ENGINES = ("auto", "mergekit")


@dataclass(frozen=True)
class Receipt:
    """What a finished merge is called, where it is, and what identifies it."""

    name: str
    fingerprint: str
    out: Path
    engine: str
    run_id: int | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the receipt as ``omnireg merge --json`` prints it."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "out": str(self.out),
            "engine": self.engine,
            "run_id": self.run_id,
            "seconds": round(self.seconds, 3),
            "resumed_shards": 0,
        }


def merge(
    recipe: Recipe | Path | str,
    out: Path | str,
    *,
    name: str | None = None,
    engine: str = "auto",
    seed: int = 0,
    registry: Registry | None = None,
    record: bool = True,
    host: PluginHost | None = None,
    options: Mapping[str, Any] | None = None,
    allow_nonfinite: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Receipt:
    """Merge what a recipe declares into the folder ``out`` and record it.

    Args:
        recipe: a recipe, the path of one, or its YAML text.
        out: folder to create; it appears by rename when everything is in it.
        name: name in the registry; the recipe's, else the folder's.
        engine: ``auto`` or ``mergekit``.
        seed: for methods with randomness; each tensor's depends on it and its name alone.
        registry: where to record; the default registry when None.
        record: False leaves no trace in the registry.
        host: plugins to use; all installed ones when None.
        options: mergekit's own merge options by name.
        allow_nonfinite: merge inputs that hold NaN or Inf.
        progress: called with (stage, done, total).

    Raises:
        OmniregError: see :mod:`omnireg.errors`; nothing is left at ``out``.
    """
    if engine not in ENGINES:
        raise ConfigError(f"unknown engine {engine!r}; use {' or '.join(ENGINES)}")
    parsed, text = _read(recipe)
    out = Path(out)
    host = host or PluginHost()
    check_free(out)
    chosen = name or parsed.omnireg.name or out.name
    book = (registry or Registry()) if record else None
    if book:
        book.check_name_free(chosen, recipe_digest=parsed.digest)
    planned = plan(parsed, host)
    run_id = recording.start(book, chosen, out, planned, text, seed) if book else None
    began = time.monotonic()
    try:
        with appearing(out) as folder, _scratch(out) as scratch:
            merge_with_mergekit(
                planned,
                folder,
                scratch,
                host=host,
                seed=seed,
                options=options or {},
                allow_nonfinite=allow_nonfinite,
                progress=progress,
            )
            (folder / "omnireg.json").write_text(describe(planned, seed), encoding="utf-8")
            progress("hashing", 0, 1)
            fingerprint = Checkpoint(chosen, folder).fingerprint
        progress("done", 1, 1)
        if book and run_id is not None:
            recording.finish(book, run_id, chosen, planned, out, fingerprint)
    except BaseException as exc:
        if book and run_id is not None:
            recording.fail(book, run_id, exc)
        raise
    return Receipt(chosen, fingerprint, out, "mergekit", run_id, time.monotonic() - began)


def _read(recipe: Recipe | Path | str) -> tuple[Recipe, str]:
    if isinstance(recipe, Recipe):
        return recipe, recipe.model_dump_json(exclude_none=True)
    if isinstance(recipe, Path):
        return read_recipe(recipe)
    return parse_recipe(recipe), recipe


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """Yield a folder on the disk of ``out`` for what is not part of it."""
    folder = scratch_folder(out)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
