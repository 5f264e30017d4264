"""The one door to mergekit's machinery: stage inputs, run its planner and executor, check.

mergekit is never handed a host. Inputs are staged as plain tensors in the base's own layout, the
architecture is spelled out from the plan instead of being inferred, and what was written is
compared with the plan, tensor by tensor.
"""

import importlib.metadata
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from omnireg.backbone import (
    EMBEDDING,
    TORCH_DTYPES,
    VOCABULARY,
    BackboneReader,
    align,
    as_bytes,
    as_tensor,
    check_nothing_lost,
    extract,
    graft,
)
from omnireg.checkpoint import Checkpoint
from omnireg.errors import CheckpointError, MergeError, OmniregError, PlanError
from omnireg.host import PluginHost
from omnireg.planning import Input, Plan, Shape, names_a_model, same_place
from omnireg.shards import SHARD_BYTES, ByteReader, TensorHeader, write_shards

Progress = Callable[[str, int, int], None]
_LAYER = re.compile(r"\.(\d+)\.")
_FLOATS = ("F64", "F32", "F16", "BF16")


def merge_with_mergekit(
    plan: Plan,
    folder: Path,
    scratch: Path,
    *,
    host: PluginHost,
    seed: int,
    options: Mapping[str, Any],
    allow_nonfinite: bool,
    progress: Progress,
) -> None:
    """Run a plan with mergekit and write the finished checkpoint into ``folder``.

    Raises:
        CheckpointError: an input holds NaN or Inf.
        ConfigError: the method refused a parameter.
        MergeError: mergekit failed, or wrote anything else than the plan.
    """
    host.install()
    if options.get("num_threads"):
        torch.set_num_threads(int(options["num_threads"]))
    if plan.planned_by_mergekit:
        for item in plan.inputs if not allow_nonfinite else ():
            _check_carried(item.model.checkpoint, tuple(item.model.checkpoint.tensors))
        _run_whole(plan, folder, {**options, "random_seed": seed})
        return
    _check_fits_host(plan)
    staged = {}
    for number, item in enumerate(plan.inputs):
        progress("reading", number, len(plan.inputs))
        staged[item.ref] = _stage(plan, item, scratch / f"input-{number}", allow_nonfinite)
    if plan.shape is Shape.HOST and plan.host and not allow_nonfinite:
        _check_carried(plan.host.checkpoint, plan.host.carried)
    merged = scratch / "merged"
    _run_planner(plan, staged, merged, seed, options, progress)
    result = Checkpoint("the merged backbone", merged)
    _check_written(plan, result)
    progress("writing", 0, 1)
    finished = scratch / "finished"
    _finish(plan, result, finished, _shard_bytes(options))
    for file in finished.iterdir():
        file.rename(folder / file.name)


def _check_fits_host(plan: Plan) -> None:
    """Find out before the work, not after it, that the host has no place for the result."""
    if plan.host is None:
        return
    models = [plan.reference, *(item.model for item in plan.inputs)]
    odd = next((m.checkpoint.ref for m in models if not m.tied_in_effect), None)
    if plan.host.tied and odd:
        raise PlanError(
            f"{plan.host.checkpoint.ref} ties its head to its embedding, but {odd} does not; carry"
            " a host with a head of its own, or set omnireg.output: backbone"
        )
    check_nothing_lost(plan.reference, align(plan.host, plan.reference), ByteReader())


def _finish(plan: Plan, result: Checkpoint, out: Path, max_bytes: int) -> None:
    """Give the merged tensors the files of the base or of the host that carries them."""
    own = {n: t for n, t in result.tensors.items() if n not in plan.reference.carried}
    merged = replace(plan.reference, tensors=own, carried=())
    if plan.host is None:
        extract(merged, out, max_bytes=max_bytes)
        if not plan.reference.is_host:
            _write_base_config(plan, out, tied=merged.tied)
        return
    graft(merged, plan.host, out)
    read = ByteReader()
    for name in plan.reference.carried if plan.shape is Shape.WHOLE else ():
        place = plan.host.checkpoint.tensors[name]
        with (out / place.file.name).open("r+b") as stream:
            stream.seek(place.start)
            stream.write(_cast(read(result.tensors[name]), result.tensors[name], place.dtype))


def _cast(data: memoryview, header: TensorHeader, dtype: str) -> bytes | memoryview:
    if header.dtype == dtype:
        return data
    return as_bytes(as_tensor(data, header).to(TORCH_DTYPES()[dtype]))


def _write_base_config(plan: Plan, out: Path, *, tied: bool) -> None:
    """The base's own ``config.json``, with the head and dtype that were written."""
    config = dict(plan.reference.checkpoint.config)
    if not tied:
        config["tie_word_embeddings"] = False
    dtype = plan.recipe.out_dtype or plan.recipe.dtype
    if dtype:
        config["dtype" if "torch_dtype" not in config else "torch_dtype"] = dtype
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (out / "config.json").write_text(text, encoding="utf-8")


def _shard_bytes(options: Mapping[str, Any]) -> int:
    return int(options.get("out_shard_size") or SHARD_BYTES)


# Staging


def _stage(plan: Plan, item: Input, folder: Path, allow_nonfinite: bool) -> Path:
    folder.mkdir(parents=True)
    reader, raw = BackboneReader(item.alignment), ByteReader()
    carried = item.model.checkpoint.tensors if plan.shape is Shape.WHOLE else {}
    fill = _fills_absent(plan, item)
    reference = {i.ref: i for i in plan.inputs}.get(plan.reference.checkpoint.ref, item)
    names = [n for n in plan.tensors if fill or n not in item.alignment.absent or n in VOCABULARY]

    def content(name: str) -> bytes | memoryview:
        if name in carried:
            data: bytes | memoryview = raw(carried[name])
        elif name in item.alignment.absent and name not in VOCABULARY:
            data = BackboneReader(reference.alignment)(name)
        else:
            data = reader(name)
        if not allow_nonfinite:
            _check_finite(item.ref, name, signatures[name], data)
        return data

    signatures = {n: _signature(n, item, reference, carried, reader) for n in names}
    write_shards(folder, signatures, content)
    config = plan.reference.checkpoint.folder / "config.json"
    (folder / "config.json").write_bytes(config.read_bytes())
    return folder


def _signature(
    name: str,
    item: Input,
    reference: Input,
    carried: Mapping[str, TensorHeader],
    reader: BackboneReader,
) -> tuple[str, tuple[int, ...]]:
    if name in carried:
        return carried[name].dtype, carried[name].shape
    if name in item.alignment.absent and name not in VOCABULARY:
        return BackboneReader(reference.alignment).signature(name)
    return reader.signature(name)


def _fills_absent(plan: Plan, item: Input) -> bool:
    """Whether a parameter names this input, so that it must have every tensor.

    Where it has none its task vector is zero, and so is the base's own copy's.
    """
    spec = plan.strategy.load().spec
    named = [p.name for p in spec.parameters if names_a_model(p)]
    chosen = [v for n in named if isinstance(v := (plan.recipe.parameters or {}).get(n), str)]
    return same_place(item.ref) in [same_place(ref) for ref in chosen]


def _check_finite(
    ref: str, name: str, signature: tuple[str, tuple[int, ...]], data: bytes | memoryview
) -> None:
    dtype, shape = signature
    if dtype not in _FLOATS:
        return
    header = TensorHeader(name, dtype, shape, Path(), 0, len(data))
    if not bool(torch.isfinite(as_tensor(data, header)).all()):
        raise CheckpointError(
            f"{ref}: tensor {name} holds NaN or Inf; fix the checkpoint, or pass --allow-nonfinite"
        )


def _check_carried(checkpoint: Checkpoint, names: tuple[str, ...]) -> None:
    read = ByteReader()
    for name in names:
        header = checkpoint.tensors[name]
        _check_finite(checkpoint.ref, name, (header.dtype, header.shape), read(header))


# Running


def _configuration(plan: Plan, place: Mapping[str, str]) -> dict[str, Any]:
    """Return a private copy of the recipe with every reference replaced by where it is staged."""
    data = plan.recipe.without_block()
    by_place = {same_place(ref): target for ref, target in place.items()}

    def moved(node: Any) -> Any:
        if isinstance(node, dict):
            return {k: moved(v) for k, v in node.items()}
        if isinstance(node, list):
            return [moved(v) for v in node]
        return by_place.get(same_place(node), node) if isinstance(node, str) else node

    named = {p.name for p in plan.strategy.load().spec.parameters if names_a_model(p)}

    def walk(node: Any, key: str = "") -> Any:
        if key in ("model", "base_model", "tokenizer_source", "source") or key in named:
            return moved(node)
        if isinstance(node, dict):
            return {k: walk(v, k) for k, v in node.items()}
        return [walk(v, key) for v in node] if isinstance(node, list) else node

    return dict(walk(data))


def _run_planner(
    plan: Plan,
    staged: Mapping[str, Path],
    out: Path,
    seed: int,
    options: Mapping[str, Any],
    progress: Progress,
) -> None:
    from mergekit.config import MergeConfiguration
    from mergekit.graph import Executor
    from mergekit.io.tasks import LoaderCache
    from transformers import AutoConfig

    from omnireg.engine.seeded import SeededPlanner

    settings = _options(options, out_shard_size=_shard_bytes(options))
    places = {ref: str(path) for ref, path in staged.items()}
    with _translated(plan):
        config = MergeConfiguration.model_validate(_configuration(plan, places))
        LoaderCache().setup(options=settings)
        try:
            targets = SeededPlanner(
                seed,
                config,
                _architecture(plan),
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

    layered = {
        n: m for n in plan.tensors if n in plan.reference.tensors and (m := _LAYER.search(n))
    }
    first = [n for n, m in layered.items() if m[1] == "0"]
    templates = [weight(n, _LAYER.sub(".${layer_index}.", n, count=1)) for n in first]
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

    given = {k: v for k, v in options.items() if k in MergeOptions.model_fields}
    return MergeOptions(**{**given, "write_model_card": False, "quiet": True, **changes})


@contextmanager
def _translated(plan: Plan) -> Iterator[None]:
    """Turn what mergekit raises for a user's mistake into one line of ours."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(max(level, logging.ERROR))
    try:
        with redirect_stdout(sys.stderr):
            yield
    except OmniregError:
        raise
    except Exception as exc:
        message = " ".join(str(exc).split())
        if "No space left" in message:
            raise MergeError(
                f"the disk is full ({message}); free some space and run again"
            ) from exc
        said = message.removeprefix(f"{plan.recipe.merge_method}: ")
        raise MergeError(f"{plan.recipe.merge_method}: {said or type(exc).__name__}") from exc
    finally:
        logging.getLogger().setLevel(level)


def _run_whole(plan: Plan, folder: Path, options: Mapping[str, Any]) -> None:
    """Let mergekit plan by itself: text models only, absolute paths, a copy of the config."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge

    places = {i.ref: _located(i) for i in plan.inputs}
    with _translated(plan):
        config = MergeConfiguration.model_validate(_configuration(plan, places))
        run_merge(config, str(folder), options=_options(options))
    result = Checkpoint(str(folder), folder)
    if plan.reference.tensors and not result.tensors:
        raise MergeError("mergekit wrote no tensors")
    _normalise(result, folder, _shard_bytes(options))


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
    written = {n: (t.dtype, t.shape) for n, t in result.tensors.items()}
    wrong = [n for n in plan.tensors if written.get(n) != plan.tensors[n]]
    extra = [n for n in written if n not in plan.tensors]
    if wrong or extra:
        raise MergeError(
            "mergekit wrote something else than the plan:"
            f" {', '.join(sorted(wrong + extra)[:8])} ({len(wrong)} wrong or missing,"
            f" {len(extra)} unexpected)"
        )


# Provenance


def versions() -> dict[str, str]:
    """Return the versions that a merge's bits can depend on."""
    names = ("omnireg", "mergekit", "torch", "transformers", "safetensors", "numpy")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": sys.version.split()[0], **found}


def describe(plan: Plan, seed: int) -> str:
    """Return ``omnireg.json``: what a folder was made of, readable without a registry."""
    origin = plan.strategy.origin
    data = {
        "format": 1,
        "recipe_digest": plan.recipe.digest,
        "strategy": plan.strategy.name,
        "strategy_distribution": origin.distribution,
        "strategy_version": origin.version,
        "engine": "mergekit",
        "seed": seed,
        "versions": versions(),
        "parents": [
            {
                "ref": item.ref,
                "role": item.role,
                "fingerprint": item.model.checkpoint.fingerprint,
            }
            for item in plan.inputs
        ],
    }
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
