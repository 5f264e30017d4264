"""Read a package: its vector and masks, decoupled tensors, and whole hosts.

Nothing in a package is believed: documents are validated, names stay inside, arrays are as long as
they must be, and files are what they were when they were written.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnireg.backbones.alignment import HEAD, LanguageModel, find_language_model
from omnireg.boundary.documents import read_json, validated
from omnireg.checkpoints import contents
from omnireg.checkpoints.checkpoint import Checkpoint, combine_digests, open_checkpoint
from omnireg.checkpoints.digests import file_sha256, fresh_sha256
from omnireg.checkpoints.shards import DTYPE_SIZES, ByteReader, TensorHeader, read_header
from omnireg.checkpoints.tensors import TORCH_DTYPES, as_bytes, as_tensor
from omnireg.errors import CheckpointError, did_you_mean
from omnireg.hookspecs import HostLayout
from omnireg.package import layout
from omnireg.package.layout import (
    MASK,
    SUPPORT,
    VALUES,
    HostFile,
    PackageSaid,
    Part,
    Piece,
    VectorSaid,
)
from omnireg.strategies.kernels import faults
from omnireg.strategies.kernels.views import Stored, finite, padded
from omnireg.strategies.thresholds import Kind

#: as plain numbers, which compiled code takes ten times sooner than members of an enumeration
KINDS = {"BF16": int(Kind.BF16), "F16": int(Kind.F16), "F32": int(Kind.F32)}
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


class Package:
    """A package in a folder; tensors are read when they are asked for.

    Raises:
        CheckpointError: the folder is no package, of a newer format, damaged, or edited.
    """

    def __init__(self, folder: Path | str, *, trust: bool = False) -> None:
        """Read the manifest, and compare every file but the weights with its digest.

        Weights are compared when they are read. ``trust`` compares nothing.
        """
        self.folder = Path(folder)
        told = contents.read(self.folder, trust=trust)
        if told is None or told.package is None:
            if not self.folder.is_dir():
                raise CheckpointError(f"there is no folder {self.folder}")
            raise CheckpointError(f"{folder} is not a package; make one with output: package")
        if told.package.get("version") != layout.VERSION:
            raise CheckpointError(
                f"{folder} has package format {told.package.get('version')}, this omnireg reads"
                f" {layout.VERSION}: upgrade omnireg"
            )
        _refuse_links(self.folder)
        self.told = told
        self._said = validated(PackageSaid, told.package, self.folder / layout.MANIFEST)
        checked = told.files if not trust else {}
        self._trusts = trust
        if not trust:
            contents.check(self.folder, told, weights=False)
        self._host_files: dict[str, list[HostFile]] = {}
        #: reads the package's files, once each was found to be what it was when it was written
        self.read = ByteReader({self.folder / name: digest for name, digest in checked.items()})

    def check(self) -> None:
        """Make sure that all files are what they were when they were written.

        Raises:
            CheckpointError: names those that are not.
        """
        contents.check(self.folder, self.told)

    # what is in it

    @property
    def strategy(self) -> str:
        """The merge method that its task vector and masks come from."""
        return self.told.strategy or "mmer"

    @cached_property
    def models(self) -> dict[str, Model]:
        """Every model by name."""
        return {name: Model(name, **dict(said)) for name, said in self._said.models.items()}

    @property
    def modalities(self) -> dict[str, Model]:
        """The model of every modality."""
        return {sense: self.models[name] for sense, name in self._said.modalities.items()}

    @property
    def parameters(self) -> dict[str, Any]:
        """The shared parameters that it was merged with."""
        return dict(self._said.parameters)

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
        said = self._said.base
        if said.embedded and not (self.folder / layout.BASE).is_dir():
            raise CheckpointError(f"{self.folder} has lost its base/; download or copy it again")
        where = str(self.folder / layout.BASE) if said.embedded else said.ref
        checkpoint = open_checkpoint(where)
        if said.embedded:
            # under the names that digests are known by
            checkpoint = Checkpoint(where, self.folder / layout.BASE)
        elif checkpoint.fingerprint != said.fingerprint:
            raise CheckpointError(
                f"{where} is {checkpoint.fingerprint[:12]}, but {self.folder} was made of"
                f" {said.fingerprint[:12]}: give the base it was made of"
            )
        plain = HostLayout((checkpoint.architecture,))
        return find_language_model(checkpoint, {checkpoint.architecture: plain})

    @property
    def base_folder(self) -> Path | None:
        """Where the base is embedded; None if it is only referred to."""
        return self.folder / layout.BASE if self._said.base.embedded else None

    @property
    def base_said(self) -> layout.BaseSaid:
        """The base as the manifest names it."""
        return self._said.base

    @cached_property
    def _index(self) -> VectorSaid:
        where = self.folder / layout.VECTOR
        if not where.is_file():
            raise CheckpointError(f"{self.folder} is not a package: it has no {layout.VECTOR}")
        return validated(VectorSaid, read_json(where, unique=True), where)

    @property
    def vector_files(self) -> list[str]:
        """The files of the task vector and its masks."""
        return self._index.files

    @cached_property
    def vector(self) -> dict[str, Coded]:
        """Every tensor of the task vector, by its name in the base.

        Raises:
            CheckpointError: arrays are missing, or do not fit together or the base.
        """
        headers: dict[str, TensorHeader] = {}
        for file in self.vector_files:
            headers |= read_header(self.folder / file)
        found = {}
        for name, (dtype, shape) in self._index.tensors.items():
            wanted = [name + VALUES, name + SUPPORT, *(name + MASK + m for m in self.models)]
            if missing := [array for array in wanted if array not in headers]:
                raise self._damaged(f"{', '.join(missing[:3])} is in none of its files")
            values, support, *masks = (headers[array] for array in wanted)
            coded = Coded(
                name, dtype, shape, values, support, dict(zip(self.models, masks, strict=True))
            )
            self._check(coded)
            found[name] = coded
        return found

    def _check(self, coded: Coded) -> None:
        kept, bits = coded.values.numel, (coded.support, *coded.masks.values())
        fits = coded.support.nbytes == padded(coded.numel) and kept <= coded.numel
        fits &= all(mask.nbytes == padded(kept) for mask in coded.masks.values())
        fits &= all(array.dtype == "U8" for array in bits) and coded.values.dtype == coded.dtype
        if not fits:
            raise self._damaged(f"the arrays of {coded.name} do not fit together")
        names = {*self.base.tensors, *((HEAD,) if self.base.tied else ())}
        own = self.base.header(coded.name) if coded.name in names else None
        if own is None or (own.dtype, own.shape) != (coded.dtype, coded.shape):
            raise self._damaged(f"{coded.name} is another tensor in the base")

    def _damaged(self, what: str) -> CheckpointError:
        if not self._trusts:
            self.check()  # which names the file, if it is another one by now
        return CheckpointError(
            f"{self.folder} is damaged: {what}; download or copy the package again"
        )

    @property
    def fingerprint(self) -> str:
        """Identity of the package, as of a checkpoint; names are relative to the folder."""
        return _fingerprint(self.folder, file_sha256)

    # tensors

    def task_vector(self, name: str) -> Bytes:
        """Return τ★ of one tensor as stored, zeros included, as bytes."""
        return self._stored(name, base=False).expanded().view(np.uint8)

    def mask(self, name: str, model: Model) -> NDArray[np.bool_]:
        """Return a model's mask of one tensor, over all its elements."""
        stored = self._stored(name, base=False)
        support = _bits(stored.support, stored.numel)
        support[support] = _bits(stored.masks[model.name], stored.kept)
        return support

    def arrays(self, name: str) -> Stored:
        """Return what one tensor is formed of, where it lies in the files.

        Support and masks can be read in words of eight bytes, at any address.

        Raises:
            CheckpointError: the files do not fit together, or are not what was written.
        """
        return self._stored(name, base=True)

    def _stored(self, name: str, *, base: bool) -> Stored:
        faults.guard()
        coded = self.vector[name]
        size = DTYPE_SIZES[coded.dtype]
        return Stored(
            KINDS[coded.dtype],
            coded.numel,
            self._bytes(self.base.header(name), size) if base else None,
            self._bytes(coded.support, 1),
            self._bytes(coded.values, size)[: coded.values.nbytes],
            {model: self._bytes(mask, 1) for model, mask in coded.masks.items()},
        )

    def decoupled(self, name: str, model: Model | None) -> Bytes:
        """Return θ₀ + s·(m∘τ★) of one tensor, as bytes; θ₀ + τ★ without a model."""
        stored = self.arrays(name)
        out = np.empty(stored.numel * DTYPE_SIZES[self.vector[name].dtype], np.uint8)
        kept = [(stored.masks[model.name], model.factor(name))] if model else []
        stored.form([kept], 0, stored.numel, 0, stored.kind, [out])
        if not self._trusts and not finite(stored.kind, out, stored.numel):
            raise self._damaged(f"{name} is not finite with the mask of {model and model.name}")
        return out

    def _bytes(self, header: TensorHeader, word: int = 8) -> Bytes:
        """Return a tensor's bytes at an address that words of so many bytes can be read from."""
        data = np.frombuffer(self.read(header), np.uint8)
        if not data.size:
            # an empty array has no address
            return np.zeros(8, np.uint8)
        return data.copy() if data.ctypes.data % word else data

    # hosts

    def host_folder(self, model: Model) -> Path:
        """Return where what is a host's own lies."""
        return self.folder / layout.HOSTS / model.name

    def host_files(self, model: Model) -> list[HostFile]:
        """Return the files of a host.

        Raises:
            CheckpointError: they are not put together from what is in the package.
        """
        if model.name in self._host_files:
            return self._host_files[model.name]
        where = self.host_folder(model) / layout.FILES
        found = list(layout.from_json(read_json(where, unique=True), where))
        shell = read_header(self.host_folder(model) / layout.SHELL)
        for file in found:
            for piece in file.pieces:
                self._check_parts(piece, shell, where)
        self._host_files[model.name] = found
        return found

    def _check_parts(self, piece: Piece, shell: Mapping[str, TensorHeader], where: Path) -> None:
        """Refuse a piece whose parts are not there, or are not as long as it."""
        total = 0
        for part in piece.parts:
            size = 1 if part.own else DTYPE_SIZES[piece.dtype]
            there = shell[part.name].nbytes if part.own and part.name in shell else None
            if not part.own and part.name in self.vector:
                there = self.vector[part.name].numel
            if there is None or not part.start <= part.stop <= there:
                raise self._damaged(f"{where.name} takes {piece.name} from where nothing lies")
            total += (part.stop - part.start) * size
        if total != piece.nbytes:
            raise self._damaged(f"the parts of {piece.name} in {where.name} do not fit together")

    def content(self, file: HostFile, model: Model) -> Iterator[bytes | memoryview]:
        """Yield the bytes of a host's file after its header."""
        shell = read_header(self.host_folder(model) / layout.SHELL)
        last: tuple[str, Bytes] | None = None
        for piece in file.pieces:
            for part in piece.parts:
                if part.own:
                    yield self.read(shell[part.name])[part.start : part.stop]
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


def _refuse_links(folder: Path) -> None:
    """Refuse a package with links to what is not part of it; the Hub's cache is made of links.

    Raises:
        CheckpointError: names a link.
    """
    whole = folder.resolve()
    cache = whole.parents[1] / "blobs" if whole.parent.name == "snapshots" else whole
    for path in whole.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(cache):
            raise CheckpointError(
                f"{path} is a link to something outside of the package; copy the file itself there"
            )


def _bits(data: Bytes, count: int) -> NDArray[np.bool_]:
    return np.unpackbits(data, count=count, bitorder="little").view(np.bool_)


def is_package(folder: Path) -> bool:
    """Whether a folder is a package."""
    return (folder / layout.VECTOR).is_file()


def fingerprint_of(folder: Path, *, fresh: bool = False) -> str:
    """Return the fingerprint of a checkpoint or a package; ``fresh`` reads every byte again."""
    if is_package(folder):
        return _fingerprint(folder, fresh_sha256 if fresh else file_sha256)
    checkpoint = Checkpoint(str(folder), folder)
    return checkpoint.fresh_fingerprint() if fresh else checkpoint.fingerprint


def _fingerprint(folder: Path, sha256: Callable[[Path], str]) -> str:
    files = sorted(folder.rglob("*.safetensors"))
    return combine_digests((file.relative_to(folder).as_posix(), sha256(file)) for file in files)
