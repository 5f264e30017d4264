"""An ordinary host checkpoint out of a package: θ₀ + m∘τ★ among the host's own encoders."""

from pathlib import Path
from typing import Any

from omnireg.checkpoints import contents
from omnireg.checkpoints.checkpoint import combine_digests
from omnireg.checkpoints.digests import remember_sha256
from omnireg.checkpoints.outputs import appearing, copy_files
from omnireg.engine.writer import write_file
from omnireg.package import Model, Package, fingerprint_of, layout
from omnireg.planning.provenance import versions
from omnireg.progress import Progress, silent

_OURS = (layout.SHELL, layout.FILES)


def extract(
    package: Package,
    modality: str,
    out: Path,
    progress: Progress = silent,
) -> str:
    """Write the host of a modality into the new folder ``out`` and return its fingerprint.

    The files are those that a merge with ``mask_of`` and ``output: host`` would have written, byte
    for byte, but for ``omnireg.json``, which names the package.

    Raises:
        CheckpointError: no such modality, a damaged package, or another base than it refers to.
        MergeError: ``out`` cannot be written; nothing is left there.
    """
    model = package.model_of(modality)
    if contents.is_told(out) and contents.made_as(out, told(package, model, modality)):
        return fingerprint_of(out)  # by a run that was stopped before it was recorded
    files = package.host_files(model)
    total, done = sum(file.size for file in files), 0

    def wrote(size: int) -> None:
        nonlocal done
        done += size
        progress("writing", done, total, "")

    with appearing(out) as folder:
        digests = {
            file.name: write_file(folder, file, package.content(file, model), wrote)
            for file in files
        }
        place = package.host_folder(model)
        copy_files([file for file in sorted(place.iterdir()) if file.name not in _OURS], folder)
        package.read.check()
        contents.write(folder, told(package, model, modality), digests)
    for name, digest in digests.items():
        remember_sha256(out / name, digest)
    return combine_digests(digests.items())


def told(package: Package, model: Model, modality: str) -> dict[str, Any]:
    """Return what ``omnireg.json`` says: which package the model was taken out of."""
    return {
        "strategy": package.strategy,
        "versions": versions(),
        "parents": [
            {"ref": str(package.folder), "role": "package", "fingerprint": package.fingerprint}
        ],
        "extracted": {
            "modality": modality,
            "model": {"ref": model.ref, "fingerprint": model.fingerprint},
        },
    }
