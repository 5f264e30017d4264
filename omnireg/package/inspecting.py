"""What a package holds and weighs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnireg.checkpoints.shards import DTYPE_SIZES, ByteReader, TensorHeader
from omnireg.package import Model, Package
from omnireg.strategies.kernels.views import count_set


@dataclass(frozen=True)
class Inspection:
    """The figures of a package.

    Attributes:
        modalities: (modality, model, share of all elements that its mask keeps).
        vector_density: share of the elements of τ★ that are not zero.
        bytes: of the base, the task vector (values and support) and the masks.
        backbone_bytes: of one backbone, dense.
        bound: bytes that values, support bitmap and masks within the support take at least.
    """

    modalities: tuple[tuple[str, Model, float], ...]
    vector_density: float
    bytes: Mapping[str, int]
    backbone_bytes: int
    bound: float

    @property
    def total(self) -> int:
        """Bytes of base, vector and masks."""
        return sum(self.bytes.values())

    @property
    def ratio(self) -> float:
        """Those bytes as a multiple of one backbone's."""
        return self.total / self.backbone_bytes

    def to_json(self) -> dict[str, Any]:
        """Return the figures as the JSON object of ``mmer inspect``."""
        return {
            "modalities": [
                {
                    "name": name,
                    "model": model.ref,
                    "mask_density": density,
                    "l1_recovered": model.l1_recovered,
                }
                for name, model, density in self.modalities
            ],
            "task_vector_density": self.vector_density,
            "bytes": {**self.bytes, "total": self.total},
            "ratio_to_one_model": self.ratio,
            "ratio_to_bound": (self.bytes["task_vector"] + self.bytes["masks"]) / self.bound,
        }


def inspect(package: Package) -> Inspection:
    """Measure a package: headers, and one look at the masks.

    Encoders and processors, which every host has anyway, are not counted.
    """
    coded = package.vector.values()
    elements = sum(tensor.numel for tensor in coded)
    kept = sum(tensor.values.numel for tensor in coded)
    values = sum(tensor.values.nbytes for tensor in coded)
    support = sum(tensor.support.nbytes for tensor in coded)
    masks = sum(mask.nbytes for tensor in coded for mask in tensor.masks.values())
    files = sum((package.folder / name).stat().st_size for name in package.vector_files)
    read = ByteReader()
    counts = {
        name: sum(_count(read, t.masks[name], t.values.numel) for t in coded)
        for name in package.models
    }
    embedded = package.base_folder
    base = sum(f.stat().st_size for f in embedded.glob("*.safetensors")) if embedded else 0
    return Inspection(
        tuple(
            (sense, model, counts[model.name] / elements)
            for sense, model in package.modalities.items()
        ),
        kept / elements,
        # headers and sums are the vector's
        {"base": base, "task_vector": files - masks, "masks": masks},
        sum(tensor.numel * DTYPE_SIZES[tensor.dtype] for tensor in coded),
        values + elements / 8 + len(package.models) * kept / 8 if support else 1,
    )


def _count(read: ByteReader, mask: TensorHeader, elements: int) -> int:
    if not elements:
        return 0
    return count_set(np.frombuffer(read(mask), np.uint8), elements)
