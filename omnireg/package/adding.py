"""One more model in a package, without the originals of those that are in it.

A merge of all originals elects signs and averages anew, and that needs what trimming and election
threw away. In their place stand the decoupled models θ₀ + sᵢ·(mᵢ∘τ★), which are what a package
keeps of its originals, untrimmed, since they are sparse already.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omnireg.boundary.documents import read_json
from omnireg.checkpoints import contents
from omnireg.checkpoints.checkpoint import open_checkpoint
from omnireg.checkpoints.outputs import appearing
from omnireg.engine.options import Options
from omnireg.engine.running import check_fits
from omnireg.errors import ConfigError
from omnireg.moved import renamed
from omnireg.package import Package, fingerprint_of
from omnireg.package.extracting import extract
from omnireg.package.packager import write_package
from omnireg.planning import plan
from omnireg.plugins.host import PluginHost
from omnireg.progress import Progress, silent
from omnireg.recipe import Recipe, check_modality


@renamed(host="plugins")
def add(
    package: Package,
    ref: str,
    modality: str,
    out: Path,
    *,
    parameters: Mapping[str, Any] | None = None,
    plugins: PluginHost | None = None,
    progress: Progress = silent,
) -> str:
    """Write a package that holds one more model into the new folder ``out``.

    Args:
        package: the package to extend; it is not changed.
        ref: the new model, made of the package's base.
        modality: what it stands for; no modality of the package.
        out: folder to create.
        parameters: ``density`` and ``mask_lambda`` of the new model; the package's when absent.
        plugins: plugins to use; all installed ones when None.
        progress: called with (stage, done, total, detail).

    Returns:
        The fingerprint of the new package.

    Raises:
        ConfigError: the modality is taken, or a parameter is wrong.
        PlanError: the model does not extend the base.
        CheckpointError: the model or the package is missing or damaged.
    """
    try:
        check_modality(modality)
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc
    if modality in package.modalities or modality in package.models:
        raise ConfigError(
            f"{package.folder} has a modality {modality!r} already; choose another name for it"
        )
    said = _said(package, ref, modality, parameters or {})
    if contents.is_told(out) and contents.made_as(out, said):
        return fingerprint_of(out)  # by a run that was stopped before it was recorded
    with appearing(out) as folder:
        scratch = folder / ".parts"
        scratch.mkdir()
        try:
            places = {name: scratch / name for name in package.models}
            for name, place in places.items():
                extract(package, name, place, progress)
            plugins = plugins or PluginHost()
            trims = _trims(package, plugins)
            recipe = _recipe(package, places, ref, modality, parameters or {}, trims=trims)
            planned = plan(recipe, plugins, engine="stream")
            check_fits(planned)
            write_package(planned, scratch / "package", Options(), plugins, progress)
            _tell(package, places, scratch / "package", said)
            for file in (scratch / "package").iterdir():
                file.rename(folder / file.name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return Package(out).fingerprint


def _trims(package: Package, plugins: PluginHost) -> bool:
    """Whether the package's merge method keeps only a density of each task vector.

    Raises:
        ConfigError: the method is not installed.
    """
    found = plugins.methods().get(package.strategy)
    if found is None:
        raise ConfigError(
            f"{package.folder} was merged with {package.strategy!r}, which is not installed:"
            " install its plugin"
        )
    return any(parameter.name == "density" for parameter in found.load().spec.parameters)


def _recipe(
    package: Package, places: Mapping[str, Path], ref: str, modality: str,
    parameters: Mapping[str, Any], *, trims: bool,
) -> Recipe:  # fmt: skip
    shared = {key: value for key, value in package.parameters.items() if key != "density"}
    own, untrimmed = dict(parameters), {}
    if trims:
        own = {"density": package.parameters.get("density", 0.5), **parameters}
        untrimmed = {"parameters": {"density": 1.0}}
    senses = {sense: str(places[model.name]) for sense, model in package.modalities.items()}
    stand_ins = [{"model": str(place), **untrimmed} for place in places.values()]
    return Recipe.model_validate(
        {
            "merge_method": package.strategy,
            "base_model": str(package.base.checkpoint.folder),
            "models": [*stand_ins, {"model": ref, "parameters": own}],
            "parameters": shared,
            "omnireg": {
                "output": "package",
                "base": "embed" if package.base_folder else "reference",
                "modalities": {**senses, modality: ref},
            },
        }
    )


def _said(
    package: Package, ref: str, modality: str, parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what ``omnireg.json`` says of an addition."""
    model = open_checkpoint(ref)
    parents = [
        {"ref": str(package.folder), "role": "package", "fingerprint": package.fingerprint},
        {"ref": ref, "role": "model", "fingerprint": model.fingerprint},
    ]
    added = {"modality": modality, "ref": ref, "parameters": dict(parameters)}
    return {"strategy": package.strategy, "parents": parents, "added": added}


def _tell(
    package: Package, places: Mapping[str, Path], made: Path, added: Mapping[str, Any]
) -> None:
    """Say in the manifest what the stand-ins stand for, and where they came from."""
    manifest = read_json(made / contents.NAME)
    digests = manifest.pop("files")
    said = manifest["package"]
    names = {str(place): name for name, place in places.items()}
    for model in said["models"].values():
        if model["ref"] in names:
            original = package.models[names[model["ref"]]]
            model |= {
                "ref": original.ref,
                "fingerprint": original.fingerprint,
                "stands_in": package.fingerprint,
            }
    base = package.base_said
    said["base"] |= {"ref": base.ref, "fingerprint": base.fingerprint}
    said["parameters"] = package.parameters
    manifest |= added
    contents.write(made, manifest, digests)
