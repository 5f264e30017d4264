"""Names, documents, files and text from outside: taken as meant, or refused in one line."""

import json
import os
import stat
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from omnireg.boundary import documents, files, names, text
from omnireg.errors import CheckpointError, ConfigError, OmniregError

HOSTILE = (
    "", ".", "..", "../x", "a/../b", "a/..", "/etc/passwd", "//x", "a//b", "a/", "./a", "a\\b",
    "C:", "a:b", "NUL", "nul.txt", "a/COM1", "lpt9.safetensors", "a.", "a ", "x" * 256, "é" * 128,
    "a\nb", "a\x1bb", "a\0b", "\u202ex", "a\u2028b", "\ud800",
    "/".join("a" * 40 for _ in range(200)),
)  # fmt: skip


@pytest.mark.parametrize("name", [*HOSTILE, None, 3, ["a"], b"a"], ids=ascii)
def test_a_name_that_leaves_the_folder_is_refused(name: Any, tmp_path: Path) -> None:
    """Whatever is not plainly below the folder, on any system, in one line that shows it safely."""
    for door in (names.relative, names.part):
        with pytest.raises(CheckpointError) as refused:
            door(name, "index.json")
        assert text.is_plain(str(refused.value))
    with pytest.raises(CheckpointError):
        names.place(tmp_path, name, "index.json")


@pytest.mark.parametrize(
    "name", ["a", "a.b-c_d", "a/b/c.json", "über/日本", ".gitattributes", "..a", "a b"]
)
def test_a_plain_name_is_taken(name: str, tmp_path: Path) -> None:
    """Letters of any script, dots, spaces inside, folders."""
    assert names.relative(name, "x") == name
    assert names.place(tmp_path, name, "x") == tmp_path / name


@settings(max_examples=400, derandomize=True)
@given(
    st.text(max_size=40)
    | st.lists(st.sampled_from(("a", "..", ".", "", "/", "\\")), max_size=6).map("/".join)
)
def test_no_name_leads_outside(name: str) -> None:
    """What is accepted stays below the folder, by the system's own reckoning."""
    root = Path("/root/of/all")
    try:
        found = names.place(root, name, "x")
    except CheckpointError:
        return
    assert Path(os.path.normpath(found)).is_relative_to(root)
    assert found != root


def test_a_link_on_the_way_is_refused(tmp_path: Path) -> None:
    """A link could lead anywhere, at the end of a name or amid it."""
    (tmp_path / "link").symlink_to("/tmp")
    for name in ("link", "link/x"):
        with pytest.raises(CheckpointError, match="is a symbolic link"):
            names.place(tmp_path, name, "x")


# documents


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "Infinity"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", "5000 digits"),
        ('{"a": "\\ud800"}', "no valid text"),
        ('{"\\udfff": 1}', "no valid text"),
        ('{"a": 1, "a": 2}', "stands twice"),
        ("{", "damaged"),
        ("", "damaged"),
        ("\xff\xfe", "damaged"),
    ],
)
def test_json_that_cannot_be_is_refused(raw: str, said: str) -> None:
    """One line that names the file and what is wrong, whatever the parser raises."""
    with pytest.raises(CheckpointError, match=said) as refused:
        documents.parse_json(raw.encode("latin-1"), "config.json", unique=True)
    assert str(refused.value).startswith("config.json is damaged")
    assert "\n" not in str(refused.value)


def test_what_real_configs_have_is_taken() -> None:
    """A byte order mark, surrogate pairs, and infinity where it is asked for."""
    assert documents.parse_json(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}', "x") == {"a": "😀"}
    assert documents.parse_json(b'{"a": [0.0, Infinity]}', "x", infinite=True)["a"][1] > 1e300
    with pytest.raises(CheckpointError, match="NaN"):
        documents.parse_json(b'{"a": NaN}', "x", infinite=True)


def bomb(levels: int) -> str:
    """Return YAML of some hundred bytes that stands for 9 ** levels words."""
    letters = "abcdefghij"[:levels]
    lines = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    lines += [f"{c}: &{c} [{','.join([f'*{p}'] * 9)}]" for p, c in pairwise(letters)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (bomb(9), "far larger than it looks"),
        ("a: &a '" + "x" * 50_000 + "'\nb: [" + "*a," * 5000 + "]", "far larger than it looks"),
        ("a: &a [*a]", "inside of what it names"),
        ("a: 1\na: 2", "stands here twice"),
        ("? [a]\n: 1", "a key is one word"),
        ("a: [1, 2", "no valid YAML"),
        ("a: 2001-99-99", "no valid YAML"),
        ('a: "\\ud800"', "no valid YAML"),
        ("[" * 5000, "nested too deeply"),
        ("a: !!python/object:os.system x", "no valid YAML"),
    ],
    ids=range(10),
)
def test_yaml_that_cannot_be_is_refused(raw: str, said: str) -> None:
    """Bombs, knots, keys given twice, dates that are none; at once, in one line."""
    with pytest.raises(ConfigError, match=said) as refused:
        documents.parse_yaml(raw, "r.yml", error=ConfigError)
    assert "\n" not in str(refused.value)


def test_ordinary_aliases_are_taken() -> None:
    """Anchors and merge keys are what people write."""
    said = documents.parse_yaml(
        "x: &x {b: 1}\ny: {<<: *x, d: 2}\n" + bomb(3), "x", error=ConfigError
    )
    assert said["y"] == {"b": 1, "d": 2}


LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(VALUES)
def test_what_was_written_is_read(value: Any) -> None:
    """Any document that we or a library writes comes back, or is refused for a reason we know."""
    raw = json.dumps(value)
    said = attempt(lambda: documents.parse_json(raw, "x", infinite=True))
    assert said == value or "no valid text" in str(said)
    plain = yaml.safe_dump(value, allow_unicode=True)
    found = attempt(lambda: documents.parse_yaml(plain, "x", error=ConfigError))
    assert isinstance(found, ConfigError) or found == yaml.safe_load(plain)


def attempt(read: Callable[[], Any]) -> Any:
    """Return what was read, or the error of ours."""
    try:
        return read()
    except OmniregError as exc:
        return exc


@settings(max_examples=400, derandomize=True, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda s: s.encode(errors="replace")))
def test_anything_is_a_document_or_an_error(raw: bytes) -> None:
    """No bytes at all make the doors raise anything but an error of ours."""
    reads: tuple[Callable[[], Any], ...] = (
        lambda: documents.parse_json(raw, "x", unique=True),
        lambda: documents.parse_yaml(raw.decode(errors="replace"), "x", error=ConfigError),
    )
    for read in reads:
        found = attempt(read)
        assert not isinstance(found, OmniregError) or str(found).startswith("x")


# files


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """Pipes, devices and folders are refused at once; none of them is waited for."""
    os.mkfifo(tmp_path / "pipe")
    odd = {tmp_path / "pipe": "a pipe", Path("/dev/zero"): "a device", tmp_path: "a folder"}
    for place, said in odd.items():
        with pytest.raises(ConfigError, match=said):
            files.read_bytes(place, error=ConfigError)
    with pytest.raises(ConfigError, match="No such file"):
        files.read_text(tmp_path / "none", error=ConfigError)
    (tmp_path / "long").write_bytes(b"x" * 11)
    with pytest.raises(ConfigError, match="longer than 10 bytes"):
        files.read_bytes(tmp_path / "long", most=10, error=ConfigError)
    with pytest.raises(ConfigError, match="embedded null"):
        files.read_bytes(Path("a\0b"), error=ConfigError)


def test_a_file_appears_whole_or_stays(tmp_path: Path) -> None:
    """An error in between leaves the old file and nothing beside it; its mode is kept."""
    target = tmp_path / "f"
    target.write_text("old")
    target.chmod(0o640)
    with pytest.raises(TypeError), files.replacing(target) as stream:
        stream.writelines((b"half", None))  # type: ignore[arg-type]
    assert (target.read_text(), list(tmp_path.iterdir())) == ("old", [target])
    files.write_text(target, "new")
    assert (target.read_text(), stat.S_IMODE(target.stat().st_mode)) == ("new", 0o640)


def test_links_and_pipes_are_not_replaced(tmp_path: Path) -> None:
    """A link stays one and its file is written; a pipe gets the text, or nobody reads from it."""
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="cannot write"):
        files.write_text(pipe, "text")
    handle, got = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), []
    reader = threading.Thread(target=lambda: got.append(os.read(handle, 10)))
    files.write_text(pipe, "text")
    reader.start()
    reader.join()
    os.close(handle)
    assert (got, stat.S_ISFIFO(pipe.stat().st_mode)) == ([b"text"], True)


# text


@settings(max_examples=300, derandomize=True)
@given(st.text())
def test_shown_text_moves_nothing(raw: str) -> None:
    """No control, no direction, no half of a pair; all else as it was."""
    found = text.shown(raw)
    assert text.is_plain(found.replace("\n", "").replace("\t", ""))
    if text.is_plain(raw):
        assert found == raw
    found.encode()


@settings(max_examples=300, derandomize=True)
@given(st.dictionaries(st.text(), st.text()))
def test_json_text_is_the_same_document(value: dict[str, str]) -> None:
    """Escapes change how it is printed, not what it says."""
    safe = text.json_text(json.dumps(value, indent=1, ensure_ascii=False))
    assert json.loads(safe) == value
    assert text.is_plain(safe.replace("\n", ""))


def test_long_text_is_cut() -> None:
    """A name of a hundred thousand characters does not flood a terminal."""
    assert len(text.shown("x" * 100_000, 200)) < 250
    assert "100000 characters" in text.shown("x" * 100_000, 200)
