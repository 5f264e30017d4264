"""The one door to mergekit's machinery: stage inputs, run its planner and executor, check.

mergekit is never handed a host. Inputs are staged as plain tensors in the base's own layout, the
architecture is spelled out from the plan instead of being inferred, and what was written is
compared with the plan, tensor by tensor.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnireg.backbones.alignment import EMBEDDING, LAYER, VOCABULARY
from omnireg.checkpoints.checkpoint import Checkpoint
from omnireg.checkpoints.shards import (
    DTYPE_SIZES,
    FLOATS,
    ByteReader,
    TensorHeader,
    write_shards,
)
from omnireg.checkpoints.tensors import TORCH_DTYPES, as_bytes, as_tensor
from omnireg.engine.tensors import check_finite, is_finite, made_nonfinite
from omnireg.engine.translated import translated
from omnireg.errors import MergeError
from omnireg.planning import Input, Plan
from omnireg.planning.output import Computed, Copied, Output, OutputFile, refuse_lost
from omnireg.planning.parameters import relocated
from omnireg.plugins.host import PluginHost

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Staged:
    """The tensors that mergekit merged, as the content of output files."""

    output: Output
    result: Checkpoint
    allow_nonfinite: bool

    def content(self, file: OutputFile) -> Iterator[bytes | memoryview]:
        """Yield the bytes of a file after its header, in order."""
        read, host = ByteReader(), self.output.plan.host
        for piece in file.pieces:
            carried = next((p.header for p in piece.parts if isinstance(p, Copied)), None)
            if carried and host and not self.allow_nonfinite:
                _check_finite(host.checkpoint.ref, carried.name, carried, read(carried))
            for part in piece.parts:
                if isinstance(part, Copied):
                    yield read(part.header)[part.start : part.stop]
                else:
                    yield self._computed(part, piece.dtype, read)

    def _computed(self, part: Computed, dtype: str, read: ByteReader) -> bytes | memoryview:
        header = self.result.tensors[part.name]
        size = DTYPE_SIZES[header.dtype]
        data = read(header)[part.start * size : part.stop * size]
        if header.dtype == dtype:
            return data
        flat = as_tensor(data, header.flat(part.stop - part.start))
        return as_bytes(flat.to(TORCH_DTYPES()[dtype]))

    def check_nothing_lost(self) -> None:
        """Refuse to leave out merged biases that the host has no place for."""
        read = ByteReader()
        lost = (t.name for t in self.output.lost)
        refuse_lost(self.output, [name for name in lost if any(read(self.result.tensors[name]))])


def merge_with_mergekit(
    output: Output,
    scratch: Path,
    *,
    plugins: PluginHost,
    seed: int,
    options: Mapping[str, Any],
    allow_nonfinite: bool,
    progress: Progress,
) -> Staged:
    """Merge a plan's tensors with mergekit, in ``scratch``.

    Raises:
        CheckpointError: an input holds NaN or Inf.
        ConfigError: the method refused a parameter.
        MergeError: mergekit failed, or wrote anything else than the plan.
    """
    plan = output.plan
    plugins.install()
    staged = {}
    for number, item in enumerate(plan.inputs):
        progress("reading", number, len(plan.inputs))
        staged[item.ref] = _stage(plan, item, scratch / f"input-{number}", allow_nonfinite)
    merged = scratch / "merged"
    settings = _options(options, out_shard_size=output.max_bytes)
    _run_planner(plan, staged, merged, seed, settings, progress)
    result = Checkpoint("the merged backbone", merged)
    _check_written(plan, result)
    if not allow_nonfinite:
        _check_made(plan, result)
    return Staged(output, result, allow_nonfinite)


def merge_whole(
    plan: Plan,
    folder: Path,
    *,
    plugins: PluginHost,
    seed: int,
    options: Mapping[str, Any],
    max_bytes: int,
    allow_nonfinite: bool,
) -> None:
    """Let mergekit plan by itself: text models only, absolute paths, a copy of the config.

    Raises:
        CheckpointError: an input holds NaN or Inf.
        MergeError: mergekit failed, or wrote nothing.
    """
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge

    from omnireg.engine.planner import checking

    plugins.install()
    read = ByteReader()
    for item in plan.inputs if not allow_nonfinite else ():
        for name, header in item.model.checkpoint.tensors.items():
            _check_finite(item.ref, name, header, read(header))
    places = {i.ref: _located(i) for i in plan.inputs}
    with translated(plan.recipe.merge_method), checking():
        config = MergeConfiguration.model_validate(_configuration(plan, places))
        run_merge(config, str(folder), options=_options({**options, "random_seed": seed}))
    read.check()
    for item in plan.inputs:
        item.model.checkpoint.check_unchanged()
    result = Checkpoint(str(folder), folder)
    if plan.reference.tensors and not result.tensors:
        raise MergeError("mergekit wrote no tensors")
    if not allow_nonfinite:
        _check_made(plan, result)
    _normalise(result, folder, max_bytes)


# Staging


def _stage(plan: Plan, item: Input, folder: Path, allow_nonfinite: bool) -> Path:
    """Write an input's tensors in the layout of the merge."""
    folder.mkdir(parents=True)
    sources = {n: s for n, t in plan.merged.items() for s in t.sources if s.ref == item.ref}
    signatures = {n: (s.dtype, s.shape) for n, s in sources.items()}
    read = ByteReader()

    def content(name: str) -> bytes | memoryview:
        data = sources[name].bytes(read)
        if not allow_nonfinite:
            header = TensorHeader(
                name, sources[name].dtype, sources[name].shape, folder, 0, len(data)
            )
            _check_finite(item.ref, name, header, data)
        return data

    write_shards(folder, signatures, content)
    read.check()
    config = plan.reference.checkpoint.folder / "config.json"
    (folder / "config.json").write_bytes(config.read_bytes())
    return folder


def _check_finite(ref: str, name: str, header: TensorHeader, data: bytes | memoryview) -> None:
    if header.dtype in FLOATS:
        check_finite(ref, name, as_tensor(data, header))


def _check_made(plan: Plan, result: Checkpoint) -> None:
    """Refuse NaN and Inf that the method made."""
    read = ByteReader()
    for name, header in result.tensors.items():
        if header.dtype in FLOATS and not is_finite(as_tensor(read(header), header)):
            raise made_nonfinite(plan.recipe.merge_method, name)


# Running


def _configuration(plan: Plan, places: Mapping[str, str]) -> dict[str, Any]:
    """Return a private copy of the recipe with every reference replaced by where it is staged."""
    moved = relocated(plan.recipe.without_block(), plan.strategy.load().spec, places)
    return dict(moved)


def _run_planner(
    plan: Plan,
    staged: Mapping[str, Path],
    out: Path,
    seed: int,
    settings: Any,
    progress: Progress,
) -> None:
    from mergekit.config import MergeConfiguration
    from mergekit.graph import Executor
    from mergekit.io.tasks import LoaderCache
    from transformers import AutoConfig

    from omnireg.engine.planner import CheckedPlanner

    places = {ref: str(path) for ref, path in staged.items()}
    with translated(plan.recipe.merge_method):
        config = MergeConfiguration.model_validate(_configuration(plan, places))
        LoaderCache().setup(options=settings)
        try:
            targets = CheckedPlanner(
                config,
                _architecture(plan),
                seed=seed,
                options=settings,
                out_model_config=AutoConfig.from_pretrained(next(iter(places.values()))),
            ).plan_to_disk(out_path=str(out))
            executor = Executor(
                targets=targets,
                math_device=settings.device,
                storage_device=settings.device if settings.low_cpu_memory else "cpu",
            )
            for done, _ in enumerate(executor.run(quiet=True), start=1):
                progress("merging", min(done, len(plan.tensors)), len(plan.tensors))
        finally:
            LoaderCache.loaders.clear()


def _architecture(plan: Plan) -> Any:
    """Spell out to mergekit every tensor of the plan, so that it infers nothing."""
    from mergekit.architecture import ModelArchitecture, ModuleDefinition, WeightInfo
    from mergekit.architecture.json_definitions import (
        JsonLayerTemplates,
        JsonModuleArchDef,
        JsonModuleArchitecture,
    )

    def weight(name: str, template: str | None = None) -> Any:
        return WeightInfo(
            name=template or name,
            optional=name in plan.optional,
            vocabulary_axis=0 if name in VOCABULARY else None,
        )

    layered = {n: m for n in plan.tensors if n in plan.reference.tensors and (m := LAYER.search(n))}
    first = [n for n, m in layered.items() if m[1] == "0"]
    templates = [weight(n, LAYER.sub(".${layer_index}.", n, count=1)) for n in first]
    loose = [n for n in plan.tensors if n not in layered]
    module = JsonModuleArchDef(
        model_type="",
        architectures=[],
        pre_weights=[weight(n) for n in loose if n == EMBEDDING],
        layer_templates=JsonLayerTemplates(weights=templates),
        post_weights=[weight(n) for n in loose if n != EMBEDDING],
        override_num_layers=plan.reference.depth,
    )
    definition = ModuleDefinition(architecture=JsonModuleArchitecture(definition=module))
    return ModelArchitecture(modules={"default": definition}, architectures=[], model_type="")


def _options(options: Mapping[str, Any], **changes: Any) -> Any:
    from mergekit.options import MergeOptions

    return MergeOptions(**{**options, "write_model_card": False, "quiet": True, **changes})


def _located(item: Input) -> str:
    _, plus, adapter = item.ref.partition("+")
    lora = str(Path(adapter).resolve()) if Path(adapter).exists() else adapter
    return f"{item.model.checkpoint.folder}{plus}{lora if plus else ''}"


def _normalise(result: Checkpoint, folder: Path, max_bytes: int) -> None:
    """Rewrite mergekit's shards with our headers, so that equal content is equal bytes."""
    aside = folder / ".mergekit"
    aside.mkdir()
    for file in (*result.weight_files, *folder.glob("*.safetensors.index.json")):
        file.rename(aside / file.name)
    moved = Checkpoint(result.ref, aside)
    read = ByteReader()
    signatures = {n: (t.dtype, t.shape) for n, t in moved.tensors.items()}
    write_shards(folder, signatures, lambda n: read(moved.tensors[n]), max_bytes=max_bytes)
    for file in aside.iterdir():
        file.unlink()
    aside.rmdir()


# Checking


def _check_written(plan: Plan, result: Checkpoint) -> None:
    # a method may return float32 for shorter inputs; the files are written in the plan's dtype
    written = {n: t.shape for n, t in result.tensors.items()}
    wrong = [n for n, merged in plan.merged.items() if written.get(n) != merged.shape]
    extra = [n for n in written if n not in plan.merged]
    if wrong or extra:
        raise MergeError(
            "mergekit wrote something else than the plan:"
            f" {', '.join(sorted(wrong + extra)[:8])} ({len(wrong)} wrong or missing,"
            f" {len(extra)} unexpected)"
        )
