"""Merge and record: the one function behind ``omnireg merge``."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnireg.checkpoints import contents
from omnireg.checkpoints.outputs import check_free
from omnireg.engine.options import Options
from omnireg.engine.running import check_fits, run
from omnireg.engine.steps import Steps, finish, side_by_side
from omnireg.moved import renamed
from omnireg.package import fingerprint_of
from omnireg.planning import Plan, Shape, plan
from omnireg.planning.provenance import describe
from omnireg.plugins.host import PluginHost
from omnireg.progress import Progress, silent
from omnireg.recipe import Recipe, as_recipe

if TYPE_CHECKING:
    from omnireg.registry import Registry


@dataclass(frozen=True)
class Receipt:
    """What a finished merge is called, where it is, and what identifies it."""

    name: str
    fingerprint: str
    out: Path
    engine: str
    run_id: int | None
    seconds: float
    resumed_shards: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the receipt as ``omnireg merge --json`` prints it."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "out": str(self.out),
            "engine": self.engine,
            "run_id": self.run_id,
            "seconds": round(self.seconds, 3),
            "resumed_shards": self.resumed_shards,
        }


@renamed(host="plugins")
def merge(
    recipe: Recipe | Path | str,
    out: Path | str,
    *,
    name: str | None = None,
    engine: str = "auto",
    seed: int = 0,
    threads: int | None = None,
    resume: bool = True,
    registry: "Registry | None" = None,
    record: bool = True,
    plugins: PluginHost | None = None,
    options: Mapping[str, Any] | None = None,
    allow_nonfinite: bool = False,
    progress: Progress = silent,
) -> Receipt:
    """Merge what a recipe declares into the folder ``out`` and record it.

    Args:
        recipe: a recipe, the path of one, or its YAML text.
        out: folder to create; it appears by rename when everything is in it.
        name: name in the registry; the recipe's, else the folder's.
        engine: ``stream``, ``mergekit``, or ``auto``: stream for all that it can plan.
        seed: for methods with randomness; each tensor's depends on it and its name alone.
        threads: workers of the stream engine; all cores when None.
        resume: go on with an unfinished merge of the same recipe into the same folder.
        registry: where to record; the default registry when None.
        record: False leaves no trace in the registry.
        plugins: plugins to use; all installed ones when None.
        options: mergekit's own merge options by name.
        allow_nonfinite: merge inputs that hold NaN or Inf.
        progress: called with (stage, done, total, detail); bytes while a stage is "writing".

    Raises:
        OmniregError: see :mod:`omnireg.errors`; nothing is left at ``out``. What was finished is
            kept in ``OUT.partial`` if running again may help.
    """
    how = Options(seed, threads, resume, allow_nonfinite, options or {})
    book = (registry or _default_registry()) if record else None
    plugins = plugins or PluginHost()
    return finish(_merging(recipe, Path(out), name, engine, how, book, plugins, progress))


@dataclass(frozen=True)
class Job:
    """One of several merges: what, where to, and under which name."""

    recipe: Recipe
    out: Path
    name: str


@renamed(host="plugins")
def merge_together(
    jobs: Sequence[Job],
    *,
    engine: str = "auto",
    threads: int | None = None,
    registry: "Registry | None" = None,
    record: bool = True,
    plugins: PluginHost | None = None,
    progress: Progress = silent,
) -> list[Receipt]:
    """Merge several recipes of the same inputs side by side, see :func:`merge`.

    The outputs are written chunk by chunk in turn, so that what one merge has read is still in
    memory when the others need it: the disk is read once for all. Packages, and what mergekit
    runs, are made one after the other.

    Raises:
        OmniregError: one of them failed; what was finished of the others is kept for resuming.
    """
    book = (registry or _default_registry()) if record else None
    plugins = plugins or PluginHost()
    workers = max(1, (threads or os.cpu_count() or 1) // max(len(jobs), 1))
    how = Options(threads=workers)
    told = _Together(progress, len(jobs))
    return side_by_side(
        [
            _merging(j.recipe, j.out, j.name, engine, how, book, plugins, told.of(number))
            for number, j in enumerate(jobs)
        ]
    )


class _Together:
    """The progress of several merges as one."""

    def __init__(self, progress: Progress, count: int) -> None:
        self._progress, self._written = progress, [(0, 0)] * count

    def of(self, number: int) -> Progress:
        """Return what one of them reports to."""

        def update(stage: str, done: int, total: int, detail: str) -> None:
            if stage == "writing":
                self._written[number] = (done, total)
                done, total = (sum(sizes) for sizes in zip(*self._written, strict=True))
                detail = f"{len(self._written)} merges"
            self._progress(stage, done, total, detail)

        return update


def _merging(
    recipe: Recipe | Path | str, out: Path, name: str | None, engine: str, how: Options,
    book: "Registry | None", plugins: PluginHost, progress: Progress,
) -> Steps[Receipt]:  # fmt: skip
    parsed, text = as_recipe(recipe)
    if not (book and contents.is_told(out)):
        check_free(out)
    chosen = name if name is not None else parsed.omnireg.name or out.name
    if book:
        strategy = plugins.strategies.get(parsed.merge_method)
        plugin = strategy.origin.file_version if strategy else None
        book.check_name_free(chosen, recipe_digest=parsed.digest, plugin=plugin)
    if any(not Path(ref).expanduser().exists() for ref in parsed.references):
        # whether everything fits is known from headers, before a byte of weights is fetched
        plan(parsed, plugins, engine=engine, weights=False)
    planned = plan(parsed, plugins, engine=engine)
    how.check(planned)
    check_fits(planned)
    for model in filter(None, (planned.reference, planned.host)):
        _ = model.checkpoint.side_files  # what is there now is copied at the end, or missed
    began = time.monotonic()
    _hash_inputs(planned, progress)
    made = _made_before(planned, out, how, book, chosen)
    if book:
        # the registry takes a moment to import; a merge that is not recorded does not need it
        from omnireg import recording

        run_id = recording.start(book, chosen, out, planned, text, how.seed)
    try:
        how.apply()
        if made is None and planned.shape is Shape.PACKAGE:
            from omnireg.package.packager import write_package  # brings torch

            made = write_package(planned, out, how, plugins, progress)
        fingerprint, resumed = made or (yield from run(planned, out, how, plugins, progress))
        if book:
            progress("recording", 0, 1, "")
            recording.finish(book, run_id, chosen, planned, out, fingerprint)
    except BaseException as exc:
        if book:
            recording.fail(book, run_id, exc)
        raise
    seconds = time.monotonic() - began
    number = run_id if book else None
    return Receipt(chosen, fingerprint, out, str(planned.engine), number, seconds, resumed)


def _hash_inputs(planned: Plan, progress: Progress) -> None:
    """Find out what every input is before the work, so that the end of it is one step.

    Raises:
        InputChanged: an input is no longer what was planned with.
    """
    refs = [ref for ref, _, _ in planned.parents]
    for done, ref in enumerate(refs):
        progress("hashing", done, len(refs), ref)
        _ = planned.checkpoint(ref).fingerprint


def _made_before(
    planned: Plan, out: Path, how: Options, book: "Registry | None", name: str
) -> tuple[str, int] | None:
    """Return what an earlier run made and was stopped before it could record; None if nothing is.

    Raises:
        MergeError: something else is there, or the same and recorded already.
    """
    if not out.exists():
        return None
    said = describe(planned, how.seed, how.fixed)
    known = book.get(name) if book and book.exists() else None
    is_recorded = known is not None and known.source == str(out.resolve())
    if book is None or is_recorded or not contents.made_as(out, said):
        check_free(out)
    (out / contents.JOURNAL).unlink(missing_ok=True)
    return fingerprint_of(out), len(list(out.rglob("*.safetensors")))


def _default_registry() -> "Registry":
    from omnireg.registry import Registry

    return Registry()
