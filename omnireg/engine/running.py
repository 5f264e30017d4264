"""Run a plan with its engine, so that the result appears whole or can be gone on with."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnireg.backbones.alignment import align
from omnireg.backbones.grafting import check_nothing_lost
from omnireg.checkpoints import contents
from omnireg.checkpoints.checkpoint import Checkpoint, combine_digests
from omnireg.checkpoints.digests import file_sha256, remember_sha256
from omnireg.checkpoints.outputs import appearing, scratch_folder
from omnireg.checkpoints.shards import ByteReader
from omnireg.engine.journal import Journal, unfinished
from omnireg.engine.options import Options
from omnireg.engine.steps import Steps
from omnireg.engine.writer import write_file, write_side_files, writing_file
from omnireg.errors import PlanError
from omnireg.planning import Engine, Plan, Shape
from omnireg.planning.output import Output
from omnireg.planning.provenance import describe, versions
from omnireg.plugins.host import PluginHost
from omnireg.progress import Progress

if TYPE_CHECKING:
    from omnireg.engine.stream import Streamer


def run(
    planned: Plan, out: Path, how: Options, plugins: PluginHost, progress: Progress
) -> Steps[tuple[str, int]]:
    """Run a plan with its engine; return the result's fingerprint and how many files were kept."""
    if planned.planned_by_mergekit:
        return _run_mergekit_whole(planned, out, how, plugins), 0
    output = Output(planned, how.shard_bytes)
    if planned.engine is Engine.MERGEKIT:
        return _run_mergekit(output, out, how, plugins, progress), 0
    return (yield from _run_stream(output, out, how, plugins, progress))


def _run_stream(
    output: Output, out: Path, how: Options, plugins: PluginHost, progress: Progress
) -> Steps[tuple[str, int]]:
    with streamed(output, out, how, plugins) as (journal, streamer):
        resumed = len(journal.finished)
        streamer.check_nothing_lost()
        if resumed < len(output.files):
            streamer.survey(lambda done, total: progress("surveying", done, total, "chunks"))
        yield from _write(output, streamer.content, journal, progress)
        _complete(output.plan, output, journal.folder, how, journal.finished)
    return fingerprint(out, journal.finished), resumed


@contextmanager
def streamed(
    output: Output, out: Path, how: Options, plugins: PluginHost, *, side_outputs: bool = False
) -> Iterator[tuple[Journal, "Streamer"]]:
    """Yield a folder that becomes ``out`` or can be gone on with, and what computes its tensors."""
    from omnireg.engine.stream import streaming
    from omnireg.engine.tensors import Settings

    plugins.install()
    settings = Settings(
        output.plan, ByteReader(), how.seed, how.device, how.allow_nonfinite, side_outputs
    )
    begun = unfinished(out, _identity(output, how), resume=how.resume, check=settings.read.check)
    with begun as journal, streaming(output, settings, how.workers) as streamer:
        yield journal, streamer


def fingerprint(out: Path, digests: Mapping[str, str]) -> str:
    """Return the fingerprint of the finished files, and remember what each was hashed to."""
    for name, digest in digests.items():
        remember_sha256(out / name, digest)
    return combine_digests(digests.items())


def _write(
    output: Output,
    content: Callable[..., Any],
    journal: Journal,
    progress: Progress,
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


def _complete(
    planned: Plan, output: Output | None, folder: Path, how: Options, digests: Mapping[str, str]
) -> None:
    """Add what lies beside the weights, whose digests are known."""
    if output:
        write_side_files(output, folder)
    contents.write(folder, describe(planned, how.seed, how.fixed), digests)


def _run_mergekit(
    output: Output, out: Path, how: Options, plugins: PluginHost, progress: Progress
) -> str:
    from omnireg.engine.mergekit import merge_with_mergekit

    with appearing(out) as folder, _scratch(out) as scratch:
        staged = merge_with_mergekit(
            output,
            scratch,
            plugins=plugins,
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
        if planned_host := output.plan.host:
            planned_host.checkpoint.check_unchanged()
        _complete(output.plan, output, folder, how, digests)
    return fingerprint(out, digests)


def _run_mergekit_whole(planned: Plan, out: Path, how: Options, plugins: PluginHost) -> str:
    from omnireg.engine.mergekit import merge_whole

    with appearing(out) as folder:
        merge_whole(
            planned,
            folder,
            plugins=plugins,
            seed=how.seed,
            options=how.mergekit,
            max_bytes=how.shard_bytes,
            allow_nonfinite=how.allow_nonfinite,
        )
        _complete(planned, None, folder, how, {})
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
        "inputs": {str(file.resolve()): file_sha256(file) for file in files},
        "seed": how.seed,
        "options": how.fixed,
        "versions": versions(),
    }


def check_fits(planned: Plan) -> None:
    """Find out before the work, not after it, that a host has no place for the result.

    Raises:
        PlanError: it has none: no biases, or no head of its own.
    """
    if planned.planned_by_mergekit:
        return
    if planned.shape is Shape.PACKAGE:
        for item in planned.inputs:
            if item.role != "base":
                check_fits(replace(planned, shape=Shape.HOST, host=item.model, senses={}))
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
