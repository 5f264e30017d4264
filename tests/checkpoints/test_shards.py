"""The container format: what is read is checked, and equal content is equal bytes."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from omnireg.checkpoints.digests import file_sha256
from omnireg.checkpoints.shards import (
    ByteReader,
    group_into_shards,
    lay_out,
    read_header,
    shard_names,
    write_shards,
)
from omnireg.errors import CheckpointError

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64", torch.bool: "BOOL"}


def tensors() -> dict[str, torch.Tensor]:
    """A few tensors of odd sizes and several dtypes, a scalar and an empty one among them."""
    return {
        "b": torch.arange(3, dtype=torch.int64),
        "a.half": torch.ones(3, dtype=torch.bfloat16),
        "a": torch.linspace(0, 1, 5),
        "flag": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
    }


def written(folder: Path, found: dict[str, torch.Tensor], most: int = 10**9) -> Path:
    """Write tensors with our writer."""
    folder.mkdir()
    data = {n: bytes(t.contiguous().reshape(-1).view(torch.uint8)) for n, t in found.items()}
    signatures = {n: (DTYPES[t.dtype], tuple(t.shape)) for n, t in found.items()}
    write_shards(folder, signatures, data.__getitem__, max_bytes=most)
    return folder


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    """Safetensors itself loads our file, every dtype and shape intact."""
    written(tmp_path / "out", tensors())
    loaded = load_file(tmp_path / "out" / "model.safetensors")
    assert set(loaded) == set(tensors())
    assert all(torch.equal(loaded[n], t) for n, t in tensors().items())


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    """Headers and bytes of a file that the library wrote."""
    file = tmp_path / "theirs.safetensors"
    save_file(tensors(), file, metadata={"format": "pt", "other": "x"})
    headers, read = read_header(file), ByteReader()
    for name, tensor in tensors().items():
        assert (headers[name].dtype, headers[name].shape) == (
            DTYPES[tensor.dtype],
            tuple(tensor.shape),
        )
        assert bytes(read(headers[name])) == bytes(tensor.reshape(-1).view(torch.uint8))


def test_equal_content_is_equal_bytes_whatever_the_order(tmp_path: Path) -> None:
    """Names in another order give the same file; the header starts on eight bytes."""
    backwards = dict(reversed(tensors().items()))
    one = written(tmp_path / "one", tensors()) / "model.safetensors"
    two = written(tmp_path / "two", backwards) / "model.safetensors"
    assert one.read_bytes() == two.read_bytes()
    assert int.from_bytes(one.read_bytes()[:8], "little") % 8 == 0
    assert file_sha256(one) == file_sha256(two)
    starts = [t.start % 8 for t in read_header(one).values() if t.dtype in ("I64", "F32")]
    assert set(starts) <= {0, 4}


def test_several_shards_have_an_index(tmp_path: Path) -> None:
    """Every tensor is in the shard that the index names; a large one stands alone."""
    folder = written(tmp_path / "out", tensors(), most=24)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    for name, shard in index["weight_map"].items():
        assert torch.equal(load_file(folder / shard)[name], tensors()[name])
    alone = group_into_shards({"a": ("F32", (100,)), "b": ("F32", (1,))}, 8)
    assert [list(group) for group in alone] == [["a"], ["b"]]
    assert shard_names(2) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_the_layout_is_known_before_the_data(tmp_path: Path) -> None:
    """Size and offsets of a planned shard are those of the written one."""
    folder = written(tmp_path / "out", tensors())
    file = folder / "model.safetensors"
    planned = lay_out(file, {n: (DTYPES[t.dtype], tuple(t.shape)) for n, t in tensors().items()})
    assert planned.size == file.stat().st_size
    assert planned.tensors == read_header(file)


@given(st.binary(max_size=200), st.integers(0, 400), st.binary(max_size=4))
def test_garbage_is_refused_and_never_crashes(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, cut: int, patch: bytes
) -> None:
    """Random bytes, and a good file cut or overwritten at random."""
    good = save({"a": torch.ones(7), "b": torch.ones(2, 2)})
    file = tmp_path_factory.getbasetemp() / "noise.safetensors"
    for data in (noise, good[:cut], good[:cut] + patch + good[cut + len(patch) :]):
        file.write_bytes(data)
        try:
            headers = read_header(file)
        except CheckpointError:
            continue
        assert all(t.end <= len(data) for t in headers.values())


def test_the_digest_cache_notices_a_changed_file(tmp_path: Path) -> None:
    """Same size, other bytes: another digest; and a cache that cannot be used does no harm."""
    file = tmp_path / "file"
    file.write_bytes(b"one")
    first = file_sha256(file)
    assert file_sha256(file) == first
    file.unlink()
    file.write_bytes(b"two")
    assert file_sha256(file) != first
    (tmp_path / "cache" / "digests.sqlite").write_bytes(b"not a database" * 99)
    assert file_sha256(file) != first
