"""What can run code when it is read is told by name and by content, and nothing else is."""

import bz2
import gzip
import io
import lzma
import pickle
import pickletools
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save as safetensors

from omnireg.boundary import pickles
from omnireg.errors import CheckpointError

_settings = settings(
    derandomize=True,
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Program:
    """What calls a function when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return print, ("run",)


def of(data: bytes) -> str | None:
    """Return what a file of these bytes is."""
    file = Path("data.dat")
    file.write_bytes(data)
    return pickles.of_file(file)


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin", "a.pt", "a.PTH", "a.ckpt", "a.pkl", "a.Pickle", "a.joblib", "a.dill",
        "a.cloudpickle", "a.h5", "a.keras", "a.nemo", "a.pdparams", "a.pkl.gz", "a.joblib.z",
        "a.pt.xz.gz", "sub/folder.d/a.th", "a.RData",
    ],
)  # fmt: skip
def test_names(name: str) -> None:
    """In any case, packed or not."""
    assert pickles.of_name(name)


@pytest.mark.parametrize(
    "name",
    ["a.safetensors", "a.gguf", "a.onnx", "a.msgpack", "a.npy", "a.npz", "a.json", "a.gz", "bin",
     ".bin.txt", "a.txt", "a.py", "tokenizer.model", ""],
)  # fmt: skip
def test_names_of_data(name: str) -> None:
    """What holds data alone is not told by its name."""
    assert pickles.of_name(name) is None


@pytest.mark.parametrize("protocol", range(6))
def test_programs(protocol: int) -> None:
    """Every protocol, however much harmless data comes first."""
    padded = ["x" * 300_000, list(range(3000)), {"a": 1.5}]
    for value in (Program(), OrderedDict(a=1), [*padded, Program()]):
        data = pickle.dumps(value, protocol)
        assert of(data) == "a pickle"
        assert of(b"N." + data) == "a pickle"
        assert of(pickletools.optimize(data)) == "a pickle"
    # without anything that is called, only a marked one is known to be one
    assert of(pickle.dumps(padded, protocol)) == ("a pickle" if protocol > 1 else None)


@pytest.mark.parametrize(
    "text",
    [
        b"cos\nsystem\n(S'x'\ntR.", b"(S'x'\nios\nsystem\n.", b"(cos\nsystem\nS'x'\no.",
        b"cos\nsystem\n(S'x'\ntR", b"I1\n0cos\nsystem\n(tR\x00garbage",
        b"\x80\x02cos\nsystem\n", b"\x80\x04\x8c\x02os\x8c\x06system\x93",
    ],
)  # fmt: skip
def test_programs_by_hand(text: bytes) -> None:
    """Also such as stop short, since what comes before was run by then."""
    assert of(text) == "a pickle"


@pytest.mark.parametrize(
    "pack",
    [gzip.compress, bz2.compress, lzma.compress, zlib.compress,
     lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
     lambda data: gzip.compress(b"") + gzip.compress(data),
     lambda data: gzip.compress(data)[:-6] + b"xxxxxx"],
)  # fmt: skip
def test_packed(pack: Callable[[bytes], bytes]) -> None:
    """As joblib packs, and with damage that comes after the harm."""
    for protocol in (0, 4):
        assert of(pack(pickle.dumps(Program(), protocol))) == "a packed file with a pickle"
        padded = pickle.dumps(["x" * 300_000, Program()], protocol)
        assert of(pack(padded)) == "a packed file with a pickle"
    assert of(pack(b"The text of a file, " * 5000)) is None
    assert of(pack(b"")) is None


def test_what_cannot_be_looked_into() -> None:
    """Nobody knows what is in it."""
    assert of(b"PK\x03\x04 no zip") == "a zip that cannot be looked into"
    hungry = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 28}]
    assert of(lzma.compress(b"x", filters=hungry)) == "a packed file that cannot be looked into"
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.txt", "x")
    assert of(made.getvalue()) == "a zip that cannot be looked into"


def test_archives() -> None:
    """PyTorch's own, and any other whose members are pickles by name or content."""
    for new in (True, False):
        made = io.BytesIO()
        torch.save({"a": torch.ones(2)}, made, _use_new_zipfile_serialization=new)
        assert of(made.getvalue()) == ("a zip with a pickle" if new else "a pickle")
    for name, data, found in (
        ("a.txt", b"x", None), ("a.pkl", b"x", "a pickle"), ("a/b", pickle.dumps(1), "a pickle"),
        ("m.bin", b"x", "PyTorch's pickle"),
    ):  # fmt: skip
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("first.txt", "x")
            archive.writestr(name, data)
        assert of(made.getvalue()) == (f"a zip with {found}" if found else None)
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w") as tar:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        assert of(made.getvalue()) == (f"a tar archive with {found}" if found else None)


def test_arrays() -> None:
    """NumPy pickles elements that are objects, alone or in a record, and no others."""
    for array, harmful in (
        (np.ones(3), False), (np.array([{}]), True), (np.array(["O"]), False),
        (np.zeros(1, [("a", "f4")]), False), (np.zeros(1, [("a", "O"), ("b", "f4")]), True),
    ):  # fmt: skip
        one, several = io.BytesIO(), io.BytesIO()
        np.save(one, array)
        np.savez(several, a=array)
        found = "a NumPy array of Python objects" if harmful else None
        assert of(one.getvalue()) == found
        assert of(several.getvalue()) == (f"a zip with {found}" if found else None)


@_settings
@given(st.dictionaries(st.text("abcdefgh.", min_size=1), st.integers(0, 700), max_size=20))
@example({"m" * size: 1 for size in range(570, 590)})
def test_weights_are_no_pickles(sizes: dict[str, int]) -> None:
    """Whatever the length of a header, with which a file of safetensors begins."""
    data = safetensors({name: np.zeros(size, np.uint8) for name, size in sizes.items()})
    assert of(data) is None


def test_headers_that_begin_like_a_pickle() -> None:
    """A header of 0x…0280 bytes begins with what marks a pickle of protocol 2."""
    for high in (*range(0, 0x100), 0x5D00, 0x1_0000):
        length = (high << 16) + 0x0280
        data = length.to_bytes(8, "little") + b'{"model.norm.weight":' + b" " * 2000
        assert of(data) is None, hex(length)


@_settings
@given(st.text(max_size=300))
@example("cat\ndog\nRat\n")
@example("(in the\nmiddle\nof it)\n")
@example("This is a text\n")
@example("Version 1\n" * 30)
@example("")
def test_text_is_no_pickle(text: str) -> None:
    """However it begins."""
    assert of(text.encode(errors="replace")) is None


@_settings
@given(st.binary(max_size=300), st.sampled_from([b"", b"\x80\x04", b"cos\nsystem\n", b"(", b"PK"]))
def test_no_bytes_are_a_surprise(data: bytes, start: bytes) -> None:
    """There is an answer to all of them."""
    found = of(start + data)
    assert found is None or isinstance(found, str)


@_settings
@given(st.recursive(st.none() | st.integers() | st.text() | st.binary() | st.floats(),
                    lambda some: st.lists(some) | st.dictionaries(st.text(), some), max_leaves=30),
       st.integers(0, 5))  # fmt: skip
def test_whatever_is_pickled_with_a_program(value: Any, protocol: int) -> None:
    """It is found behind any values."""
    assert of(pickle.dumps([value, Program()], protocol)) == "a pickle"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A folder, a pipe, and what is not there."""
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError, match="cannot read"):
            pickles.of_file(path)
