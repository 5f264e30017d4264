"""Write the files of an output: allocated at once, hashed while they are written."""

import json
import os
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path

from omnireg.alignment import EMBEDDING, HEAD
from omnireg.checkpoint import INDEX
from omnireg.errors import MergeError
from omnireg.loading import write_text_config
from omnireg.outputs import copy_files
from omnireg.planning.output import Output, OutputFile
from omnireg.shards import write_index
from omnireg.tensors import usual_dtype

Data = bytes | memoryview


def write_file(
    folder: Path, file: OutputFile, content: Iterable[Data], wrote: Callable[[int], None]
) -> str:
    """Write a file's header and content, flush it to the disk and return its sha256.

    Raises:
        MergeError: the content is not as long as was planned.
    """
    digest = sha256(file.header)
    with (folder / file.name).open("wb", buffering=0) as stream:
        os.posix_fallocate(stream.fileno(), 0, max(file.size, 1))
        _write(stream.fileno(), file.header)
        for data in content:
            _write(stream.fileno(), data)
            digest.update(data)
            wrote(len(data))
        written = stream.tell()
        if written != file.size:
            raise MergeError(f"{file.name} has {written} bytes instead of {file.size}")
        os.fsync(stream.fileno())
    return digest.hexdigest()


def _write(handle: int, data: Data) -> None:
    view = memoryview(data)
    while len(view):
        view = view[os.write(handle, view[: 1 << 30]) :]


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
