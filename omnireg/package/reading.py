"""Read a package: its vector and masks, decoupled tensors, and whole hosts."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnireg.alignment import LanguageModel, find_language_model
from omnireg.checkpoint import Checkpoint, combine_digests, open_checkpoint
from omnireg.digests import file_sha256, fresh_sha256
from omnireg.errors import CheckpointError, did_you_mean
from omnireg.hookspecs import HostLayout
from omnireg.package import layout
from omnireg.package.layout import MASK, SUPPORT, VALUES, HostFile, Part
from omnireg.shards import DTYPE_SIZES, ByteReader, TensorHeader, read_header
from omnireg.strategies.kernels import coding, decoupling
from omnireg.strategies.thresholds import Kind
from omnireg.tensors import TORCH_DTYPES, as_bytes, as_tensor

#: as plain numbers, which compiled code takes ten times sooner than members of an enumeration
KINDS = {"BF16": int(Kind.BF16), "F16": int(Kind.F16), "F32": int(Kind.F32)}
_STORAGE: Mapping[str, Any] = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32}
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Model:
    """One model of a package.

    Attributes:
        name: of its mask and its folder: the first modality it stands for.
        ref: the reference it was made of.
        fingerprint: of that checkpoint.
        architecture: its class.
        l1_recovered: 1 − ‖τᵢ − mᵢ∘τ★‖₁ / ‖τᵢ‖₁, before any scale.
        scale: the factor of the masked vector, one for all tensors or by tensor.
        stands_in: fingerprint of the package whose decoupled model stood in for the original when
            another was added; None if the original was merged.
    """

    name: str
    ref: str
    fingerprint: str
    architecture: str
    l1_recovered: float
    scale: float | Mapping[str, float] = 1.0
    stands_in: str | None = None

    def factor(self, tensor: str) -> float:
        """Return the factor of one tensor."""
        if isinstance(self.scale, Mapping):
            return float(self.scale.get(tensor, 1.0))
        return self.scale


@dataclass(frozen=True)
class Coded:
    """A tensor of the task vector: where its arrays lie."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    values: TensorHeader
    support: TensorHeader
    masks: Mapping[str, TensorHeader]

    @property
    def numel(self) -> int:
        """Number of elements, zeros included."""
        return prod(self.shape)


@dataclass(frozen=True)
class Arrays:
    """What a backbone tensor is formed of, as bytes where they lie in the files.

    Support and masks can be read in words of eight bytes, at any address.
    """

    dtype: str
    numel: int
    base: Bytes
    support: Bytes
    values: Bytes
    masks: Mapping[str, Bytes]


class Package:
    """A package in a folder; tensors are read when they are asked for.

    Raises:
        CheckpointError: the folder is no package, of a newer format, or damaged.
    """

    def __init__(self, folder: Path | str) -> None:
        """Read the manifest."""
        self.folder = Path(folder)
        self.manifest = self._json(layout.MANIFEST)
        found = self.manifest.get("package")
        if not isinstance(found, dict) or found.get("format") != layout.FORMAT:
            raise CheckpointError(f"{folder} is not a package; make one with output: package")
        if found.get("version") != layout.VERSION:
            raise CheckpointError(
                f"{folder} has package format {found.get('version')}, this omnireg reads"
                f" {layout.VERSION}: upgrade omnireg"
            )
        self._said = found
        self._read = ByteReader()

    # what is in it

    @property
    def strategy(self) -> str:
        """The merge method that its task vector and masks come from."""
        return str(self.manifest.get("strategy") or "mmer")

    @cached_property
    def models(self) -> dict[str, Model]:
        """Every model by name."""
        return {name: Model(name, **said) for name, said in self._said["models"].items()}

    @property
    def modalities(self) -> dict[str, Model]:
        """The model of every modality."""
        return {sense: self.models[name] for sense, name in self._said["modalities"].items()}

    @property
    def parameters(self) -> dict[str, Any]:
        """The shared parameters that it was merged with."""
        return dict(self._said["parameters"])

    def model_of(self, modality: str) -> Model:
        """Return the model of a modality.

        Raises:
            CheckpointError: the package has no such modality; suggests the closest.
        """
        known = self.modalities
        if modality not in known:
            raise CheckpointError(
                f"{self.folder} has no modality {modality!r}{did_you_mean(modality, known)}: it has"
                f" {', '.join(known)}"
            )
        return known[modality]

    @cached_property
    def base(self) -> LanguageModel:
        """The backbone θ₀, embedded or where the reference says.

        Raises:
            CheckpointError: the referenced base has other bytes than the package was made of.
        """
        said = self._said["base"]
        place = str(self.folder / layout.BASE) if said["embedded"] else said["ref"]
        if said["embedded"] and not (self.folder / layout.BASE).is_dir():
            raise CheckpointError(f"{self.folder} has lost its base/; download or copy it again")
        checkpoint = open_checkpoint(place)
        if not said["embedded"] and checkpoint.fingerprint != said["fingerprint"]:
            raise CheckpointError(
                f"{place} is {checkpoint.fingerprint[:12]}, but {self.folder} was made of"
                f" {said['fingerprint'][:12]}: give the base it was made of"
            )
        plain = HostLayout((checkpoint.architecture,))
        return find_language_model(checkpoint, {checkpoint.architecture: plain})

    @property
    def base_folder(self) -> Path | None:
        """Where the base is embedded; None if it is only referred to."""
        return self.folder / layout.BASE if self._said["base"]["embedded"] else None

    @cached_property
    def _index(self) -> dict[str, Any]:
        return self._json(layout.VECTOR)

    @property
    def vector_files(self) -> list[str]:
        """The files of the task vector and its masks."""
        names = [str(name) for name in self._index["files"]]
        if any(Path(name).name != name for name in names):
            raise CheckpointError(f"{self.folder / layout.VECTOR} names a file outside: damaged")
        return names

    @cached_property
    def vector(self) -> dict[str, Coded]:
        """Every tensor of the task vector, by its name in the base."""
        index = self._index
        headers: dict[str, TensorHeader] = {}
        for file in self.vector_files:
            headers |= read_header(self.folder / file)
        found = {}
        for name, (dtype, shape) in index["tensors"].items():
            masks = {m: headers[name + MASK + m] for m in self.models}
            coded = Coded(
                name, dtype, tuple(shape), headers[name + VALUES], headers[name + SUPPORT], masks
            )
            self._check(coded)
            found[name] = coded
        return found

    def _check(self, coded: Coded) -> None:
        kept = coded.values.numel
        sizes = [coded.support.nbytes == layout.padded(coded.numel)]
        sizes += [mask.nbytes == layout.padded(kept) for mask in coded.masks.values()]
        if not all(sizes) or coded.values.dtype != coded.dtype:
            raise CheckpointError(
                f"{coded.values.file} is damaged: the arrays of {coded.name} do not fit together;"
                " download or copy the package again"
            )

    @property
    def weight_files(self) -> list[Path]:
        """Every safetensors file, by its name in the package."""
        return sorted(self.folder.rglob("*.safetensors"))

    @property
    def fingerprint(self) -> str:
        """Identity of the package, as of a checkpoint; names are relative to the folder."""
        return combine_digests(self._digests(file_sha256))

    def fresh_fingerprint(self) -> str:
        """Return the fingerprint of the bytes as they are now, whatever is remembered."""
        return combine_digests(self._digests(fresh_sha256))

    def _digests(self, sha256: Callable[[Path], str]) -> Iterator[tuple[str, str]]:
        for file in self.weight_files:
            yield file.relative_to(self.folder).as_posix(), sha256(file)

    # tensors

    def task_vector(self, name: str) -> Bytes:
        """Return τ★ of one tensor as stored, zeros included, as bytes."""
        coded = self.vector[name]
        out = np.empty(coded.numel, _STORAGE[coded.dtype])
        size = DTYPE_SIZES[coded.dtype]
        # held by name: an address keeps nothing alive
        support, values = self._bytes(coded.support), self._bytes(coded.values, size)
        coding.expand(KINDS[coded.dtype], _at(support), _at(values), 0, coded.numel, _at(out), 0)
        return out.view(np.uint8)

    def mask(self, name: str, model: Model) -> NDArray[np.bool_]:
        """Return a model's mask of one tensor, over all its elements."""
        coded = self.vector[name]
        support = _bits(self._bytes(coded.support), coded.numel)
        support[support] = _bits(self._bytes(coded.masks[model.name]), coded.values.numel)
        return support

    def arrays(self, name: str) -> Arrays:
        """Return what one tensor is formed of."""
        coded = self.vector[name]
        size = DTYPE_SIZES[coded.dtype]
        return Arrays(
            coded.dtype,
            coded.numel,
            self._bytes(self.base.header(name), size),
            self._bytes(coded.support, 1),
            self._bytes(coded.values, size),
            {model: self._bytes(mask, 1) for model, mask in coded.masks.items()},
        )

    def decoupled(self, name: str, model: Model | None) -> Bytes:
        """Return θ₀ + s·(m∘τ★) of one tensor, as bytes; θ₀ + τ★ without a model."""
        found = self.arrays(name)
        out = np.empty(found.numel, _STORAGE[found.dtype])
        masks = [_at(found.masks[model.name])] if model else []
        weights = [model.factor(name)] if model else []
        decoupling.form(
            KINDS[found.dtype], _at(found.base), _at(found.support), _at(found.values),
            np.array(masks, np.int64), np.array(weights, np.float32), np.array([0, len(masks)]),
            0, found.numel, 0, KINDS[found.dtype], np.array([_at(out)]), decoupling.WIDE,
        )  # fmt: skip
        return out.view(np.uint8)

    def _bytes(self, header: TensorHeader, word: int = 8) -> Bytes:
        """Return a tensor's bytes at an address that words of so many bytes can be read from."""
        data = np.frombuffer(self._read(header), np.uint8)
        if not data.size:
            # an empty array has no address
            return np.zeros(8, np.uint8)
        return data.copy() if data.ctypes.data % word else data

    # hosts

    def host_folder(self, model: Model) -> Path:
        """Return where what is a host's own lies."""
        return self.folder / layout.HOSTS / model.name

    def host_files(self, model: Model) -> list[HostFile]:
        """Return the files of a host."""
        name = f"{layout.HOSTS}/{model.name}/{layout.FILES}"
        try:
            return list(layout.from_json(self._parsed(name)))
        except (TypeError, KeyError, ValueError) as exc:
            raise CheckpointError(f"{self.folder / name} is damaged: {exc!r}") from exc

    def content(self, file: HostFile, model: Model) -> Iterator[bytes | memoryview]:
        """Yield the bytes of a host's file after its header."""
        shell = read_header(self.host_folder(model) / layout.SHELL)
        last: tuple[str, Bytes] | None = None
        for piece in file.pieces:
            for part in piece.parts:
                if part.own:
                    yield self._read(shell[part.name])[part.start : part.stop]
                    continue
                if last is None or last[0] != part.name:
                    last = (part.name, self.decoupled(part.name, model))
                yield self._cast(last[1], part, piece.dtype)

    def _cast(self, data: Bytes, part: Part, dtype: str) -> bytes | memoryview:
        coded = self.vector[part.name]
        size = DTYPE_SIZES[coded.dtype]
        piece = data.data[part.start * size : part.stop * size]
        if dtype == coded.dtype:
            return piece
        header = coded.values.flat(part.stop - part.start)
        return as_bytes(as_tensor(piece, header).to(TORCH_DTYPES()[dtype]))

    def _json(self, name: str) -> dict[str, Any]:
        data = self._parsed(name)
        if not isinstance(data, dict):
            raise CheckpointError(f"{self.folder / name} is damaged: expected a JSON object")
        return data

    def _parsed(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError as exc:
            if not self.folder.is_dir():
                raise CheckpointError(f"there is no folder {self.folder}") from exc
            raise CheckpointError(f"{self.folder} is not a package: it has no {name}") from exc
        except (OSError, ValueError) as exc:
            raise CheckpointError(f"cannot read {self.folder / name}: {exc}") from exc


def _bits(data: Bytes, count: int) -> NDArray[np.bool_]:
    return np.unpackbits(data, count=count, bitorder="little").view(np.bool_)


def _at(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


def is_package(folder: Path) -> bool:
    """Whether a folder is a package."""
    return (folder / layout.VECTOR).is_file()


def fingerprint_of(folder: Path, *, fresh: bool = False) -> str:
    """Return the fingerprint of a checkpoint or a package; ``fresh`` reads every byte again."""
    if is_package(folder):
        package = Package(folder)
        return package.fresh_fingerprint() if fresh else package.fingerprint
    checkpoint = Checkpoint(str(folder), folder)
    return checkpoint.fresh_fingerprint() if fresh else checkpoint.fingerprint
