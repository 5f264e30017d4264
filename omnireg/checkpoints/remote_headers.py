"""Folders that stand in for checkpoints on the Hub: all their headers, none of their weights.

A shard's header is a few kilobytes that a ranged request brings; the file that holds it is as long
as the real one, but empty after the header, so it takes no room. Plans are made of such folders,
merges never are.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omnireg.checkpoints.digests import cache_folder
from omnireg.checkpoints.outputs import appearing


def stand_in(client: Any, repo: str, commit: str, shards: Iterable[str], snapshot: Path) -> Path:
    """Return a folder with a repository's side files and the headers of its shards.

    Args:
        client: of the Hub.
        repo: ``org/name``.
        commit: of the repository.
        shards: the names of its safetensors files.
        snapshot: where its side files are.
    """
    folder = cache_folder() / "headers" / f"{repo.replace('/', '--')}-{commit}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with appearing(folder) as partial:
        for file in snapshot.iterdir():
            if file.is_file() and file.suffix != ".safetensors":
                shutil.copyfile(file, partial / file.name)
        for name in shards:
            found = client.parse_safetensors_file_metadata(repo, name, revision=commit)
            tensors = {
                tensor: {
                    "dtype": said.dtype,
                    "shape": list(said.shape),
                    "data_offsets": list(said.data_offsets),
                }
                for tensor, said in found.tensors.items()
            }
            _write(partial / name, tensors, found.metadata)
    return folder


def _write(file: Path, tensors: dict[str, dict[str, Any]], metadata: dict[str, str]) -> None:
    said = {"__metadata__": metadata, **tensors} if metadata else tensors
    # as the library writes it, so that the file is as long as the real one
    header = json.dumps(said, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    size = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + size)
