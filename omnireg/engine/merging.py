"""Merge and record: the one function behind ``omnireg merge``."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnireg.alignment import align
from omnireg.backbone import check_nothing_lost
from omnireg.checkpoint import Checkpoint, combine_digests
from omnireg.digests import remember_sha256
from omnireg.engine.journal import Journal, unfinished
from omnireg.engine.provenance import describe, versions
from omnireg.engine.steps import Steps, finish, side_by_side
from omnireg.engine.writer import write_file, write_side_files, writing_file
from omnireg.errors import ConfigError, PlanError
from omnireg.host import PluginHost
from omnireg.outputs import appearing, check_free, scratch_folder
from omnireg.planning import Engine, Plan, Shape, plan
from omnireg.planning.output import Output
from omnireg.recipe import Recipe, as_recipe
from omnireg.shards import SHARD_BYTES, ByteReader

if TYPE_CHECKING:
    from omnireg.registry import Registry

#: called with (stage, done, total, detail); bytes while a stage is "writing"
Progress = Callable[[str, int, int, str], None]


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


@dataclass(frozen=True)
class Options:
    """How a merge is run, beside what it merges.

    Attributes:
        seed: for methods with randomness; each tensor's depends on it and its name alone.
        threads: workers of the stream engine; all cores when None.
        resume: go on with an unfinished merge of the same recipe into the same folder.
        allow_nonfinite: merge inputs that hold NaN or Inf.
        mergekit: mergekit's own merge options by name.
    """

    seed: int = 0
    threads: int | None = None
    resume: bool = True
    allow_nonfinite: bool = False
    mergekit: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shard_bytes(self) -> int:
        """At which size shards are cut."""
        return int(self.mergekit.get("out_shard_size") or SHARD_BYTES)

    @property
    def fixed(self) -> dict[str, Any]:
        """What the bytes of the result depend on, beside recipe and seed."""
        return {
            "shard_bytes": self.shard_bytes,
            "device": self.device,
            "allow_nonfinite": self.allow_nonfinite,
        }

    @property
    def device(self) -> str:
        """Where a method's torch code runs."""
        return "cuda" if self.mergekit.get("cuda") else str(self.mergekit.get("device") or "cpu")


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
    host: PluginHost | None = None,
    options: Mapping[str, Any] | None = None,
    allow_nonfinite: bool = False,
    progress: Progress = lambda stage, done, total, detail: None,
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
        host: plugins to use; all installed ones when None.
        options: mergekit's own merge options by name.
        allow_nonfinite: merge inputs that hold NaN or Inf.
        progress: called with (stage, done, total, detail); bytes while a stage is "writing".

    Raises:
        OmniregError: see :mod:`omnireg.errors`; nothing is left at ``out``. What was finished is
            kept in ``OUT.partial`` if running again may help.
    """
    how = Options(seed, threads, resume, allow_nonfinite, options or {})
    book = (registry or _default_registry()) if record else None
    plugins = host or PluginHost()
    return finish(_merging(recipe, Path(out), name, engine, how, book, plugins, progress))


@dataclass(frozen=True)
class Job:
    """One of several merges: what, where to, and under which name."""

    recipe: Recipe
    out: Path
    name: str


def merge_together(
    jobs: Sequence[Job],
    *,
    engine: str = "auto",
    threads: int | None = None,
    registry: "Registry | None" = None,
    record: bool = True,
    host: PluginHost | None = None,
    progress: Progress = lambda stage, done, total, detail: None,
) -> list[Receipt]:
    """Merge several recipes of the same inputs side by side, see :func:`merge`.

    The outputs are written chunk by chunk in turn, so that what one merge has read is still in
    memory when the others need it: the disk is read once for all. Packages, and what mergekit
    runs, are made one after the other.

    Raises:
        OmniregError: one of them failed; what was finished of the others is kept for resuming.
    """
    book = (registry or _default_registry()) if record else None
    plugins = host or PluginHost()
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
    book: "Registry | None", host: PluginHost, progress: Progress,
) -> Steps[Receipt]:  # fmt: skip
    parsed, text = as_recipe(recipe)
    check_free(out)
    chosen = name or parsed.omnireg.name or out.name
    if book:
        book.check_name_free(chosen, recipe_digest=parsed.digest)
    if any(not Path(ref).expanduser().exists() for ref in parsed.references):
        # whether everything fits is known from headers, before a byte of weights is fetched
        plan(parsed, host, engine=engine, weights=False)
    planned = plan(parsed, host, engine=engine)
    if book:
        # the registry takes a moment to import; a merge that is not recorded does not need it
        from omnireg.engine import recording

        run_id = recording.start(book, chosen, out, planned, text, how.seed)
    began = time.monotonic()
    try:
        fingerprint, resumed = yield from _run(planned, out, how, host, progress)
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


def _default_registry() -> "Registry":
    from omnireg.registry import Registry

    return Registry()


def _run(
    planned: Plan, out: Path, how: Options, host: PluginHost, progress: Progress
) -> Steps[tuple[str, int]]:
    """Run a plan with its engine; return the result's fingerprint and how many files were kept."""
    if how.mergekit.get("num_threads"):
        import torch

        torch.set_num_threads(int(how.mergekit["num_threads"]))
    if planned.planned_by_mergekit:
        return _run_mergekit_whole(planned, out, how, host), 0
    if planned.shape is Shape.PACKAGE:
        return _run_package(planned, out, how, host, progress)
    _check_fits_host(planned)
    output = Output(planned, how.shard_bytes)
    if planned.engine is Engine.MERGEKIT:
        return _run_mergekit(output, out, how, host, progress), 0
    return (yield from _run_stream(output, out, how, host, progress))


def _run_stream(
    output: Output, out: Path, how: Options, host: PluginHost, progress: Progress
) -> Steps[tuple[str, int]]:
    from omnireg.engine.stream import streaming
    from omnireg.engine.tensors import Settings

    host.install()
    settings = Settings(output.plan, ByteReader(), how.seed, how.device, how.allow_nonfinite)
    threads = how.threads or os.cpu_count() or 1
    with (
        unfinished(out, _identity(output, how), resume=how.resume) as journal,
        streaming(output, settings, threads) as streamer,
    ):
        resumed = len(journal.finished)
        streamer.check_nothing_lost()
        if resumed < len(output.files):
            streamer.survey(lambda done, total: progress("surveying", done, total, "chunks"))
        yield from _write(output, streamer.content, journal, progress)
        _complete(output.plan, output, journal.folder, how)
    return _fingerprint(out, journal.finished), resumed


def _run_package(
    planned: Plan, out: Path, how: Options, host: PluginHost, progress: Progress
) -> tuple[str, int]:
    from omnireg.engine.packaging import Packager
    from omnireg.engine.stream import streaming
    from omnireg.engine.tensors import Settings

    if planned.engine is Engine.MERGEKIT:
        raise ConfigError("only the stream engine writes packages; use --engine auto")
    host.install()
    for item in planned.inputs:
        if item.role != "base":
            _check_fits_host(replace(planned, shape=Shape.HOST, host=item.model, senses={}))
    output = Output(planned, how.shard_bytes)
    settings = Settings(
        planned, ByteReader(), how.seed, how.device, how.allow_nonfinite, side_outputs=True
    )
    threads = how.threads or os.cpu_count() or 1
    with (
        unfinished(out, _identity(output, how), resume=how.resume) as journal,
        streaming(output, settings, threads) as streamer,
    ):
        resumed = len(journal.finished)
        streamer.survey(lambda done, total: progress("surveying", done, total, "chunks"))
        packager = Packager(planned, settings, journal, threads)
        packager.write(
            streamer.jobs,
            how.shard_bytes,
            lambda done, total: progress("coding", done, total, "elements"),
        )
        said = describe(planned, how.seed, how.fixed, {"package": packager.manifest()})
        (journal.folder / "omnireg.json").write_text(said, encoding="utf-8")
    return _fingerprint(out, journal.finished), resumed


def _fingerprint(out: Path, digests: Mapping[str, str]) -> str:
    """Return the fingerprint of the finished files, and remember what each was hashed to."""
    for name, digest in digests.items():
        remember_sha256(out / name, digest)
    return combine_digests(digests.items())


def _write(
    output: Output, content: Callable[..., Any], journal: Journal, progress: Progress
) -> Steps[None]:
    """Write the files that are not finished yet."""
    total = output.size
    done = sum(file.size for file in output.files if file.name in journal.finished)
    for number, file in enumerate(output.files):
        if file.name in journal.finished:
            continue

        def wrote(size: int, detail: str = f"file {number + 1} of {len(output.files)}") -> None:
            nonlocal done
            done += size
            progress("writing", done, total, detail)

        digest = yield from writing_file(journal.folder, file, content(file), wrote)
        journal.enter(file.name, digest)


def _complete(planned: Plan, output: Output | None, folder: Path, how: Options) -> None:
    """Add what lies beside the weights."""
    if output:
        write_side_files(output, folder)
    said = describe(planned, how.seed, how.fixed)
    (folder / "omnireg.json").write_text(said, encoding="utf-8")


def _run_mergekit(
    output: Output, out: Path, how: Options, host: PluginHost, progress: Progress
) -> str:
    from omnireg.engine.mergekit import merge_with_mergekit

    with appearing(out) as folder, _scratch(out) as scratch:
        staged = merge_with_mergekit(
            output,
            scratch,
            host=host,
            seed=how.seed,
            options=how.mergekit,
            allow_nonfinite=how.allow_nonfinite,
            progress=lambda stage, done, total: progress(stage, done, total, "tensors"),
        )
        staged.check_nothing_lost()
        digests = {
            file.name: write_file(folder, file, staged.content(file), lambda size: None)
            for file in output.files
        }
        _complete(output.plan, output, folder, how)
    return _fingerprint(out, digests)


def _run_mergekit_whole(planned: Plan, out: Path, how: Options, host: PluginHost) -> str:
    from omnireg.engine.mergekit import merge_whole

    with appearing(out) as folder:
        merge_whole(
            planned,
            folder,
            host=host,
            seed=how.seed,
            options=how.mergekit,
            max_bytes=how.shard_bytes,
            allow_nonfinite=how.allow_nonfinite,
        )
        _complete(planned, None, folder, how)
        return Checkpoint(str(out), folder).fingerprint


def _identity(output: Output, how: Options) -> dict[str, Any]:
    """Everything that the bytes of the result depend on."""
    planned = output.plan
    models = [item.model for item in planned.inputs] + ([planned.host] if planned.host else [])
    files = {file for model in models for file in model.checkpoint.weight_files}
    origin = planned.strategy.origin
    return {
        "recipe": planned.recipe.digest,
        "strategy": f"{planned.strategy.name} of {origin.distribution} {origin.version}",
        "inputs": {str(file.resolve()): _state(file) for file in files},
        "seed": how.seed,
        "options": how.fixed,
        "versions": versions(),
    }


def _state(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _check_fits_host(planned: Plan) -> None:
    """Find out before the work, not after it, that the host has no place for the result."""
    if planned.host is None:
        return
    models = [planned.reference, *(item.model for item in planned.inputs)]
    odd = next((m.checkpoint.ref for m in models if not m.tied_in_effect), None)
    if planned.host.tied and odd:
        raise PlanError(
            f"{planned.host.checkpoint.ref} ties its head to its embedding, but {odd} does not;"
            " carry a host with a head of its own, or set omnireg.output: backbone"
        )
    check_nothing_lost(planned.reference, align(planned.host, planned.reference), ByteReader())


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """Yield a folder on the disk of ``out`` for what is not part of it."""
    folder = scratch_folder(out)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
