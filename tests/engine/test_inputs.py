"""An input is what it was when it was planned with, or the merge stops and says which changed."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import omnireg
from omnireg.boundary.files import State
from omnireg.checkpoints.checkpoint import open_checkpoint
from omnireg.checkpoints.contents import NAME
from omnireg.checkpoints.digests import file_sha256, known_sha256
from omnireg.checkpoints.shards import ByteReader, read_header
from omnireg.engine import running, writer
from omnireg.errors import CheckpointError, InputChanged, MergeError
from omnireg.registry import Registry
from omnireg.testing.family import Family, make_family
from tests_support import Run

METHODS = ("average", "omni_ties", "delta_weighted", "linear", "breadcrumbs")


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """The conformance family."""
    return make_family(tmp_path_factory.mktemp("family"))


@pytest.fixture
def inputs(originals: Family, tmp_path: Path) -> tuple[Path, list[Path]]:
    """A base and two models that a test may write to."""
    places = []
    for name, source in (("base", originals.base), *enumerate(originals.models[:2])):
        place = tmp_path / str(name)
        place.mkdir()
        for file in source.iterdir():
            (place / file.name).write_bytes(file.read_bytes())
        places.append(place)
    return places[0], places[1:]


def recipe(method: str, base: Path, models: list[Path]) -> str:
    """Return the recipe of a merge."""
    parameters = "parameters: {weight: 0.5, density: 0.5}\n" if method == "breadcrumbs" else ""
    if method == "linear":
        parameters = "parameters: {weight: 0.5}\n"
    listed = "".join(f"  - model: {model}\n" for model in models)
    head = "" if method in ("linear", "average") else f"base_model: {base}\n"
    return f"merge_method: {method}\n{head}models:\n{listed}{parameters}"


def after(pieces: int, act: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something to the inputs after so many pieces were written."""
    writing = writer.writing_file

    def wrapped(folder: Path, file: Any, content: Any, wrote: Any) -> Any:
        def interrupted() -> Iterator[Any]:
            for number, data in enumerate(content):
                if number == pieces:
                    act()
                yield data

        return writing(folder, file, interrupted(), wrote)

    monkeypatch.setattr(running, "writing_file", wrapped)


def rewrite(file: Path) -> None:
    """Change bytes in place, the length as it was."""
    with file.open("r+b") as stream:
        stream.seek(-8, os.SEEK_END)
        stream.write(b"\1\2\3\4\5\6\7\0")


def touch_back(file: Path) -> None:
    """Change bytes in place and set the time of the change back."""
    before = file.stat()
    rewrite(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "shortened to nothing": lambda file: os.truncate(file, 0),
    "shortened by a page": lambda file: os.truncate(file, file.stat().st_size - 4096),
    "rewritten in place": rewrite,
    "rewritten, its time set back": touch_back,
    "made longer": lambda file: os.truncate(file, file.stat().st_size + 100),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pieces", [0, 1, 5])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_stops_the_merge(
    method: str,
    pieces: int,
    change: str,
    inputs: tuple[Path, list[Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever happens to an input while it is merged: its name, no result, no record."""
    base, models = inputs
    file = models[0] / "model.safetensors"
    after(pieces, lambda: CHANGES[change](file), monkeypatch)
    with pytest.raises(InputChanged, match=str(file)):
        omnireg.merge(recipe(method, base, models), Path("out"), threads=2)
    assert not Path("out").exists()
    [run] = Registry().runs()
    assert (run.status, str(file) in str(run.error)) == ("failed", True)
    assert Registry().checkpoints() == []


def test_what_was_finished_is_kept(
    inputs: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that were finished before a change are gone on with, once it is undone."""
    base, models = inputs
    file = models[0] / "model.safetensors"
    before = file.read_bytes()
    text, small = recipe("average", base, models), {"out_shard_size": 2000}
    with monkeypatch.context() as patched:
        written: list[str] = []
        writing = writer.writing_file

        def counted(folder: Path, output: Any, content: Any, wrote: Any) -> Any:
            written.append(output.name)
            if len(written) == 3:
                rewrite(file)
            return writing(folder, output, content, wrote)

        patched.setattr(running, "writing_file", counted)
        with pytest.raises(InputChanged):
            omnireg.merge(text, Path("out"), options=small)
    assert Path("out.partial").is_dir()
    with pytest.raises(MergeError, match="unfinished merge that differs: inputs changed"):
        omnireg.merge(text, Path("out"), options=small)
    file.write_bytes(before)
    assert omnireg.merge(text, Path("out"), options=small).resumed_shards == 2
    whole = omnireg.merge(text, Path("whole"), options=small, record=False)
    assert open_checkpoint("./out").fingerprint == whole.fingerprint


def test_a_file_beside_the_weights_is_not_left_out(
    inputs: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A template that was there when the merge began, and is not when it is copied."""
    base, models = inputs
    template = base / "chat_template.jinja"
    template.write_text("{{ messages }}")
    after(1, template.unlink, monkeypatch)
    with pytest.raises(MergeError, match=r"chat_template\.jinja: No such file"):
        omnireg.merge(recipe("omni_ties", base, models), "out", record=False)
    assert not Path("out").exists()


def test_a_change_after_planning_is_noticed(inputs: tuple[Path, list[Path]]) -> None:
    """Bytes are those whose header was read, also when the file was replaced by another one."""
    _, models = inputs
    file = models[0] / "model.safetensors"
    header = next(iter(read_header(file).values()))
    other = file.with_name("other")
    other.write_bytes(file.read_bytes())
    other.replace(file)
    with pytest.raises(InputChanged, match=r"was replaced while it was used"):
        ByteReader()(header)


def test_a_file_is_compared_with_its_digest(inputs: tuple[Path, list[Path]]) -> None:
    """A reader that knows what a file should be refuses another one by name."""
    file = inputs[1][0] / "model.safetensors"
    header = next(iter(read_header(file).values()))
    assert ByteReader({file: file_sha256(file)})(header)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not what it was"):
        ByteReader({file: "0" * 64})(header)


def test_a_digest_is_of_one_state(tmp_path: Path) -> None:
    """A file whose bytes changed is hashed anew, its time set back or not."""
    file = tmp_path / "file"
    file.write_bytes(b"a" * 100)
    first, state = file_sha256(file), State.of(file)
    touch_back(file)
    assert known_sha256(file) is None
    assert file_sha256(file) != first
    with pytest.raises(InputChanged):
        file_sha256(file, state)


def test_an_edited_checkpoint_is_not_merged_under_its_old_name(
    inputs: tuple[Path, list[Path]],
) -> None:
    """The record says what was read, not what was remembered of the file."""
    base, models = inputs
    omnireg.merge(recipe("average", base, models), Path("one"))
    before = Registry().find("0").fingerprint
    touch_back(models[0] / "model.safetensors")
    omnireg.merge(recipe("average", base, models), Path("two"))
    parents = {parent.name: parent.fingerprint for parent in Registry().find("two").parents}
    assert before not in parents.values()


def test_a_process_is_not_killed_without_a_line(tmp_path: Path) -> None:
    """A mapped file that loses its end amid a read ends the process with a reason."""
    script = (
        "import mmap, os, sys, numpy as np\n"
        "from omnireg.strategies.kernels import faults\n"
        "faults.guard()\n"
        "file = open(sys.argv[1], 'w+b'); file.write(b'x' * 100_000); file.flush()\n"
        "view = mmap.mmap(file.fileno(), 100_000, access=mmap.ACCESS_READ)\n"
        "os.truncate(sys.argv[1], 0)\n"
        "np.frombuffer(view, np.uint8).sum()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "file")], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: a file lost its end while it was read")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_only_files_are_read(name: str, inputs: tuple[Path, list[Path]], run: Run) -> None:
    """A pipe or a device in the place of a file is refused at once."""
    place = inputs[1][0]
    (place / name).unlink()
    os.mkfifo(place / name)
    refused = run("add", place)
    assert refused.code == 1
    assert name in refused.err


# recorded, or completed


def test_a_merge_that_was_stopped_before_its_record_is_completed(
    inputs: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """The same command records what is there, and merges nothing again."""
    from omnireg import recording

    base, models = inputs
    Path("r.yml").write_text(recipe("omni_ties", base, models))
    with monkeypatch.context() as patched:

        def stopped(*arguments: Any) -> Any:
            raise KeyboardInterrupt

        patched.setattr(recording, "finish", stopped)
        assert run("merge", "r.yml", "out").code == 130
    assert Path("out").is_dir()
    before = (Path("out") / "model.safetensors").stat().st_mtime_ns
    assert run("merge", "r.yml", "out").code == 0
    assert (Path("out") / "model.safetensors").stat().st_mtime_ns == before
    assert len(Registry().find("out").parents) == 3
    assert [r.status for r in Registry().runs()] == ["done", "failed"]
    again = run("merge", "r.yml", "out")
    assert (again.code, "already exists" in again.err) == (1, True)


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", NAME])
def test_only_a_whole_result_is_completed(
    damage: str, inputs: tuple[Path, list[Path]], run: Run
) -> None:
    """A folder that is not what the merge would make is in the way, as any other."""
    base, models = inputs
    Path("r.yml").write_text(recipe("average", base, models))
    assert run("merge", "r.yml", "out", "--no-record").code == 0
    file = Path("out") / damage
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 1
    file.write_bytes(raw)
    refused = run("merge", "r.yml", "out")
    assert (refused.code, "already exists" in refused.err) == (1, True)


def test_another_merge_is_not_completed(inputs: tuple[Path, list[Path]], run: Run) -> None:
    """A folder that another recipe, seed or option made is in the way."""
    base, models = inputs
    Path("r.yml").write_text(recipe("average", base, models))
    Path("s.yml").write_text(recipe("omni_ties", base, models))
    assert run("merge", "r.yml", "out", "--no-record").code == 0
    for command in (("s.yml",), ("r.yml", "--seed", 3), ("r.yml", "--out-shard-size", "1k")):
        refused = run("merge", command[0], "out", *command[1:])
        assert (refused.code, "already exists" in refused.err) == (1, True)
    assert run("merge", "r.yml", "out").code == 0
