"""Write the files of an output: allocated at once, hashed while they are written."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Protocol, Self

from omnireg.backbones.alignment import EMBEDDING, HEAD
from omnireg.checkpoints.checkpoint import INDEX
from omnireg.checkpoints.loading import write_text_config
from omnireg.checkpoints.outputs import copy_files
from omnireg.checkpoints.shards import write_index
from omnireg.checkpoints.tensors import usual_dtype
from omnireg.engine.steps import Steps, finish
from omnireg.errors import MergeError
from omnireg.planning.output import Output

Data = bytes | memoryview
#: after so many bytes the disk is told to begin
_FLUSH = 1 << 27


class Planned(Protocol):
    """A file whose header and size are known before its content."""

    @property
    def name(self) -> str:
        """Name below the folder."""

    @property
    def header(self) -> bytes:
        """The bytes that come first."""

    @property
    def size(self) -> int:
        """Size of the whole file in bytes."""


def write_file(
    folder: Path, file: Planned, content: Iterable[Data], wrote: Callable[[int], None]
) -> str:
    """Write a file's header and content, flush it to the disk and return its sha256.

    Raises:
        MergeError: the content is not as long as was planned.
    """
    return finish(writing_file(folder, file, content, wrote))


def writing_file(
    folder: Path, file: Planned, content: Iterable[Data], wrote: Callable[[int], None]
) -> Steps[str]:
    """Do the same, piece of content by piece."""
    digest = sha256(file.header)
    with (folder / file.name).open("wb", buffering=0) as stream, _Disk(stream.fileno()) as disk:
        os.posix_fallocate(stream.fileno(), 0, max(file.size, 1))
        disk.write(file.header)
        for data in content:
            with disk.writing(data):
                digest.update(data)
            wrote(len(data))
            yield
        if disk.written != file.size:
            raise MergeError(f"{file.name} has {disk.written} bytes instead of {file.size}")
        disk.flush()
    return digest.hexdigest()


class _Disk:
    """One open file: written while the caller hashes, and flushed while it goes on."""

    def __init__(self, handle: int) -> None:
        self._handle, self.written, self._flushed = handle, 0, 0
        self._hands = ThreadPoolExecutor(2, thread_name_prefix="omnireg-disk")
        self._flush = self._hands.submit(lambda: None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._hands.shutdown()

    @contextmanager
    def writing(self, data: Data) -> Iterator[None]:
        """Write while the block runs."""
        write = self._hands.submit(self.write, data)
        yield
        write.result()
        if self.written - self._flushed >= _FLUSH and self._flush.done():
            self._flush.result()
            self._flushed = self.written
            self._flush = self._hands.submit(os.fdatasync, self._handle)

    def flush(self) -> None:
        """Wait until all that was written is on the disk."""
        self._flush.result()
        os.fsync(self._handle)

    def write(self, data: Data) -> None:
        """Write at the end."""
        view = memoryview(data)
        while len(view):
            size = os.write(self._handle, view[: 1 << 30])
            view, self.written = view[size:], self.written + size


def write_side_files(output: Output, folder: Path) -> None:
    """Write what travels with the weights: index, config, tokenizer, processor, templates."""
    plan = output.plan
    if plan.host:
        copy_files(plan.host.checkpoint.side_files, folder)
        index = plan.host.checkpoint.folder / INDEX
        copy_files([index] if index.exists() else [], folder)
        return
    if len(output.files) > 1:
        total = sum(piece.nbytes for file in output.files for piece in file.pieces)
        write_index(folder, output.index, total)
    copy_files(plan.reference.checkpoint.text_files, folder)
    tied = HEAD not in plan.merged
    if plan.reference.is_host:
        write_text_config(
            plan.reference.checkpoint,
            folder,
            text_architecture=plan.reference.layout.text_architecture,
            vocabulary=plan.merged[EMBEDDING].shape[0],
            tied=tied,
            dtype=usual_dtype(tensor.dtype for tensor in plan.merged.values()),
        )
    else:
        _write_base_config(output, folder, tied=tied)


def _write_base_config(output: Output, folder: Path, *, tied: bool) -> None:
    """The base's own ``config.json``, with the head and dtype that were written."""
    plan = output.plan
    config = dict(plan.reference.checkpoint.config)
    if not tied:
        config["tie_word_embeddings"] = False
    dtype = plan.recipe.out_dtype or plan.recipe.dtype
    if dtype:
        config["dtype" if "torch_dtype" not in config else "torch_dtype"] = dtype
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
