"""The files of a task vector and its masks.

How many elements are not zero is known when they are computed, so a file begins with room for its
header, which is written last.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnireg.checkpoints.digests import fresh_sha256
from omnireg.checkpoints.shards import ByteReader, group_into_shards, read_header
from omnireg.engine.journal import Journal
from omnireg.package import layout
from omnireg.package.coder import Coded
from omnireg.package.layout import L1, MASK, NORMS, SUPPORT, VALUES

Signatures = Mapping[str, tuple[str, tuple[int, ...]]]


class VectorWriter:
    """Writes them into a folder, and reads back the sums that lie in them."""

    def __init__(self, folder: Path, models: Sequence[str]) -> None:
        """Write for models of these names."""
        self._folder, self._models = folder, models

    def write(
        self,
        tensors: Signatures,
        max_bytes: int,
        coded: Callable[[Sequence[str]], Iterator[Coded]],
        journal: Journal,
    ) -> None:
        """Write every file that the journal does not have yet, and the index.

        ``coded`` yields the tensors of one file, in the order of the names it is given; they are
        cut into files by their dense size.
        """
        groups = group_into_shards(tensors, max_bytes)
        count = len(groups)
        names = [f"vector-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
        for name, group in zip(names, groups, strict=True):
            if name not in journal.finished:
                self._write_file(name, group, coded(sorted(group)))
                journal.enter(name, fresh_sha256(self._folder / name))
        signatures = {n: [dtype, list(shape)] for n, (dtype, shape) in sorted(tensors.items())}
        text = json.dumps({"files": names, "tensors": signatures}, indent=1) + "\n"
        (self._folder / layout.VECTOR).write_text(text, encoding="utf-8")

    def _write_file(self, name: str, group: Iterable[str], coded: Iterable[Coded]) -> None:
        room = len(_header(self._longest(group), 0))
        entries: dict[str, Any] = {}
        with (self._folder / name).open("wb") as stream:
            stream.seek(room)
            offset = 0
            for tensor in coded:
                for array, (dtype, data) in tensor.arrays.items():
                    stream.write(data.data.cast("B") if data.size else b"")
                    entries[array] = (dtype, data.shape, offset, offset + data.nbytes)
                    offset += data.nbytes
            stream.seek(0)
            stream.write(_header(entries, room))
            stream.flush()
            os.fsync(stream.fileno())

    def _longest(self, group: Iterable[str]) -> dict[str, Any]:
        """Return entries whose numbers are as long as those of the file can get."""
        far = 10**18
        suffixes = [VALUES, SUPPORT]
        suffixes += [end + model for model in self._models for end in (MASK, L1, NORMS)]
        return {name + end: ("BF16", (far, far), far, far) for name in group for end in suffixes}

    def recovered(self) -> dict[str, float]:
        """Return 1 − Σ|τᵢ − mᵢ∘τ★| / Σ|τᵢ| of every model."""
        found = {}
        for model, parts in self.sums(L1).items():
            whole, left = (
                math.fsum(float(both[side]) for both in parts.values()) for side in (0, 1)
            )
            found[model] = 1 - left / whole if whole else 1.0
        return found

    def sums(self, kind: str) -> dict[str, dict[str, NDArray[np.float64]]]:
        """Return sums that lie in the files, by model and tensor."""
        found: dict[str, dict[str, Any]] = {model: {} for model in self._models}
        read = ByteReader()
        for file in sorted(self._folder.glob("vector-*.safetensors")):
            for header in read_header(file).values():
                tensor, is_sum, model = header.name.rpartition(kind)
                if is_sum:
                    data = np.frombuffer(read(header), np.uint8).copy().view(np.float64)
                    found[model][tensor] = data.reshape(header.shape)
        return found


def scale_of(sums: Sequence[NDArray[np.float64]], power: int) -> float:
    """Return (Σ|τᵢ|ᵖ / Σ|mᵢ∘τ★|ᵖ)^(1/p) of all tensors whose sums are given."""
    whole, kept = (math.fsum(float(x) for both in sums for x in both[side]) for side in (0, 1))
    return float((whole / kept) ** (1 / power)) if kept else 1.0


def _header(entries: Mapping[str, Any], room: int) -> bytes:
    """Return a safetensors header of ``room`` bytes, or as long as it must be."""
    named = {
        name: {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}
        for name, (dtype, shape, start, stop) in sorted(entries.items())
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **named}, separators=(",", ":")).encode()
    text += b" " * max(room - 8 - len(text), -len(text) % 8)
    return len(text).to_bytes(8, "little") + text
