"""Files that the user names for what a command writes: whole or as they were, whatever they are."""

import json
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

import omnireg
from omnireg.analysis.salience import Asked, read_run, write_run
from omnireg.boundary.files import replacing, write_text
from omnireg.checkpoints.outputs import appearing, other_file
from omnireg.cli import main
from omnireg.demo.story import FAMILY
from omnireg.errors import ConfigError, EvaluationError, MergeError, OmniregError, PublishError
from omnireg.hub.client import translated
from omnireg.registry import Parent, Registry
from omnireg.workflows.trials import Notebook, Trial
from tests_support import Outcome, Run

#: options that name a file, and how what they write begins
OPTIONS = {
    "export --out": b"omnireg: 1",
    "report mine --out": b"# mine",
    "report mine --format html --out": b"<!doctype html>",
    "report mine --plot": b"\x89PNG",
}
TEXTS = {option: begins for option, begins in OPTIONS.items() if "plot" not in option}
PROGRAM = "from omnireg.cli import console; console()"
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")


@pytest.fixture
def book(tmp_path: Path) -> None:
    """A registry with a model, its base, and scores of both."""
    with Registry(tmp_path / "registry.db") as made:
        made.add_checkpoint("base", kind="base")
        made.add_checkpoint("mine", kind="finetuned", parents=[Parent("base", "finetuned_from")])
        for name, value in (("mine", 0.25), ("base", 0.5)):
            made.add_score(name, "known", value)


@pytest.fixture(params=list(OPTIONS))
def option(request: pytest.FixtureRequest, book: None) -> str:
    """An option that names a file."""
    return str(request.param)


def write(run: Run, option: str, file: Path | str) -> Outcome:
    """Run a command that writes to a file."""
    return run(*option.split(), file)


def name_for(option: str) -> str:
    """Return a file's name that the option takes."""
    return "f.png" if "plot" in option else "f.txt"


def refused(done: Outcome, *words: str) -> None:
    """Check that a command failed with one line that has these words in it."""
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1), done
    for word in words:
        assert word in done.err


# what a name leads to


def test_a_file_keeps_its_mode(option: str, run: Run, tmp_path: Path) -> None:
    """Its content is new, and nothing else is left in the folder."""
    file = tmp_path / name_for(option)
    file.write_text("old")
    file.chmod(0o640)
    before = set(tmp_path.iterdir())
    assert write(run, option, file).code == 0
    assert file.read_bytes().startswith(OPTIONS[option])
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert {p for p in tmp_path.iterdir() if not p.name.startswith("registry.db")} <= before


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_a_link(option: str, run: Run, tmp_path: Path, there: bool) -> None:
    """What it leads to is written, whether it was there or not."""
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "target", tmp_path / name_for(option)
    if there:
        target.write_text("old")
    link.symlink_to(target)
    assert write(run, option, link).code == 0
    assert link.is_symlink()
    assert target.read_bytes().startswith(OPTIONS[option])


def test_a_pipe_is_written_to(option: str, run: Run, tmp_path: Path) -> None:
    """Who reads from it gets all of it, and it is still a pipe."""
    pipe, got = tmp_path / name_for(option), []
    os.mkfifo(pipe)
    both = os.open(pipe, os.O_RDWR)  # so that neither end waits for the other
    with pipe.open("rb") as stream:
        reader = threading.Thread(target=lambda: got.append(stream.read()))
        reader.start()
        done = write(run, option, pipe)
        os.close(both)
        reader.join()
    assert done.code == 0, done
    assert got[0].startswith(OPTIONS[option])
    assert pipe.is_fifo()


def test_a_pipe_that_nobody_reads(option: str, run: Run, tmp_path: Path) -> None:
    """One line, at once."""
    pipe = tmp_path / name_for(option)
    os.mkfifo(pipe)
    refused(write(run, option, pipe), "nobody reads from this pipe", str(pipe))
    assert pipe.is_fifo()


@pytest.mark.parametrize("device", ["null", "full"])
def test_a_device_of_characters(option: str, run: Run, tmp_path: Path, device: str) -> None:
    """It is written to; what it says is said."""
    real, link = Path("/dev") / device, tmp_path / name_for(option)
    if not real.exists():
        pytest.skip(f"no {real} here")
    link.symlink_to(real)
    done = write(run, option, link)
    if device == "null":
        assert done.code == 0, done
    else:
        refused(done, f"cannot write {link}: No space left on device")
    assert real.is_char_device()
    assert link.is_symlink()


@root
def test_a_disk_is_refused(option: str, run: Run, tmp_path: Path) -> None:
    """Nobody means to write a page over it."""
    disk = tmp_path / name_for(option)
    try:
        os.mknod(disk, 0o600 | stat.S_IFBLK, os.makedev(7, 250))
    except OSError:
        pytest.skip("no devices can be made here")
    refused(write(run, option, disk), "it is a device; name a file")
    assert disk.is_block_device()


def test_folders_and_sockets_are_refused(option: str, run: Run, tmp_path: Path) -> None:
    """So is a name below a file, and a file below no folder."""
    (tmp_path / f"folder-{name_for(option)}").mkdir()
    refused(write(run, option, f"folder-{name_for(option)}"), "is a folder; name a file")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(name_for(option))  # a longer path would not fit
        refused(write(run, option, name_for(option)), "it is a socket; name a file")
    (tmp_path / "file").write_text("")
    assert write(run, option, f"file/{name_for(option)}").code == 1
    assert write(run, option, f"none/{name_for(option)}").code == 1


def test_a_long_name(run: Run, book: None) -> None:
    """A file may be called whatever the file system takes."""
    assert run("export", "--out", "x" * 255).code == 0
    refused(run("export", "--out", "x" * 256), "File name too long")


def test_what_could_not_be_finished(tmp_path: Path) -> None:
    """The old content stays, and nothing lies beside it."""
    file = tmp_path / "f"
    file.write_text("old")

    def torn() -> None:
        with replacing(file) as stream:
            stream.write(b"new")
            raise EvaluationError("torn")

    with pytest.raises(EvaluationError):
        torn()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def small_files() -> None:
    """Let this process write no long files, as a full disk would."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


def test_no_room_for_a_file(tmp_path: Path) -> None:
    """The old content stays, and nothing lies beside it."""
    (tmp_path / "f").write_text("old")
    program = "from omnireg.boundary.files import *; write_text(Path('f'), 'x' * 5000)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False,
        preexec_fn=small_files,
    )  # fmt: skip
    assert "ConfigError: cannot write f: File too large" in done.stderr
    assert (tmp_path / "f").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_file_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not replaced behind its owner's back."""
    file = tmp_path / "f"
    file.write_text("old")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anything
    with pytest.raises(ConfigError, match=r"cannot write .*f: Permission denied"):
        write_text(file, "new")
    assert file.read_text() == "old"


# stdout


@pytest.mark.parametrize("option", TEXTS)
def test_a_dash_is_stdout(option: str, run: Run, book: None, tmp_path: Path) -> None:
    """The same as without the option; ``./-`` is a file."""
    said = write(run, option, "-")
    assert said.code == 0
    assert said == run(*option.split()[:-1])
    assert said.out.encode().startswith(OPTIONS[option])
    assert not (tmp_path / "-").exists()
    assert write(run, option, "./-").code == 0
    assert (tmp_path / "-").read_bytes().startswith(OPTIONS[option])


def test_a_chart_has_a_name(run: Run, book: None) -> None:
    """Its ending says what kind of picture it is, so that a dash does not do."""
    refused(run("report", "mine", "--plot", "-"), "name a file that ends in")


@bash
@pytest.mark.parametrize("option", TEXTS)
def test_what_a_shell_has_open(option: str, book: None, tmp_path: Path) -> None:
    """Its pipes are written to, and what its files hold already stays."""
    command = f'{sys.executable} -c "{PROGRAM}" -q {option}'

    def shell(line: str) -> bytes:
        done = subprocess.run(["bash", "-c", line], capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b""), done
        return done.stdout

    begins = OPTIONS[option]
    assert shell(f"{command} >(cat) | cat").startswith(begins)
    assert shell(f"{command} /dev/stdout").startswith(begins)
    assert shell(f"{command} /dev/fd/3 3>&1").startswith(begins)
    shell(f"echo before > log; {command} /dev/stdout >> log; echo after >> log")
    log = (tmp_path / "log").read_bytes()
    assert log.startswith(b"before\n" + begins)
    assert log.endswith(b"after\n")


# other files


def test_an_export_stays_whole(run: Run, book: None, tmp_path: Path) -> None:
    """Both of its forms hold the same."""
    assert run("export", "--out", "e.yaml").code == 0
    assert run("export", "--out", "e.jsonl").code == 0
    found = yaml.safe_load((tmp_path / "e.yaml").read_text())
    lines = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert [line["checkpoint"] for line in lines if "checkpoint" in line] == found["checkpoints"]


def test_answers_of_heads_go_through_links(tmp_path: Path) -> None:
    """They appear whole where a link leads."""
    link, run_of = tmp_path / "a.jsonl.gz", {"x": Asked("A", (1.0, 0.0))}
    (tmp_path / "target").write_text("old")
    link.symlink_to("target")
    write_run(link, run_of)
    assert read_run(link) == run_of
    assert link.is_symlink()
    with pytest.raises(EvaluationError, match="cannot write"):
        write_run(tmp_path / "none" / "a.gz", run_of)


def test_trials_are_kept_in_files_alone(tmp_path: Path) -> None:
    """A pipe would wait for ever; half a trial is taken off a file, and its link stays."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="it is a pipe, not a file"):
        Notebook(tmp_path / "pipe", "score")
    book = Notebook(tmp_path / "real", "score")
    book.note("abc", Trial({"a": 1}, {"": 0.5}))
    with (tmp_path / "real").open("a") as stream:
        stream.write('{"recipe": "ha')
    (tmp_path / "link").symlink_to("real")
    assert Notebook(tmp_path / "link", "score").recall("abc") is not None
    assert (tmp_path / "real").read_text().count("\n") == 1
    assert (tmp_path / "link").is_symlink()


# who is to blame


def two_models(folder: Path) -> str:
    """Put two models into a folder and return a recipe that merges them."""
    for name in ("one", "two"):
        shutil.copytree(FAMILY / "base", folder / name)
    return "merge_method: average\nmodels:\n  - model: one\n  - model: two\n"


def test_an_input_that_is_gone_is_named(tmp_path: Path) -> None:
    """While a merge writes, what it could not read is not told as a lack of room."""
    text, how, file = two_models(tmp_path), {"out_shard_size": 200_000}, "two/model.safetensors"

    def watch(stage: str, done: int, total: int, detail: str) -> None:
        if stage == "writing":
            Path(file).unlink(missing_ok=True)

    with pytest.raises(OmniregError) as caught:
        omnireg.merge(text, "out", record=False, progress=watch, threads=1, options=how)
    said = str(caught.value)
    assert file in said
    assert "room" not in said
    assert not (tmp_path / "out").exists()


def failing(number: int, file: Path | str | None, other: Path | str | None = None) -> OSError:
    """Return what the system raises about a file."""
    return OSError(number, os.strerror(number), file, None, other)


def test_whose_file_failed(tmp_path: Path) -> None:
    """Others' files are named; ours, and all that there is no room for, are not others'."""
    out, scratch = tmp_path / "out", tmp_path / ".out.1.host.x"
    beside = tmp_path / f".out.{os.getpid()}.host.x" / "f"
    for own in (out, scratch / "a" / "b", tmp_path, beside, str(out), os.fsencode(out), None, 3):
        assert other_file(failing(2, own), out, scratch) is None  # type: ignore[arg-type]
    for number in (28, 122, 27):
        assert other_file(failing(number, "input"), out) is None
    for file in ("input", tmp_path / "out-2" / "f", tmp_path / "outer", "/somewhere/else"):
        said = other_file(failing(2, file), out, scratch)
        assert said == f"{file}: No such file or directory"


def test_a_folder_that_appears_blames_the_right_file(tmp_path: Path) -> None:
    """An input by its name, the output by its own."""
    for exc, said in (
        (failing(2, tmp_path / "input"), "cannot use .*input: No such file.*nothing was left"),
        (failing(28, tmp_path / "input"), "cannot write .*out: No space left"),
        (failing(5, None), "cannot write .*out: Input/output error"),
    ):
        with pytest.raises(MergeError, match=said), appearing(tmp_path / "out"):
            raise exc
        assert list(tmp_path.iterdir()) == []


def test_no_room_beside_a_registry(book: None, tmp_path: Path) -> None:
    """SQLite needs a little even for reading, and calls the lack of it an input/output error."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "list"], capture_output=True, text=True, check=False,
        preexec_fn=small_files,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: registry {tmp_path / 'registry.db'} has no room left on its disk: free some, then"
        " try again\n"
    )
    assert main(["list"]) == 0


@pytest.mark.parametrize(
    ("exc", "said", "unsaid"),
    [
        (RecursionError("too deep"), "cannot be understood (RecursionError)", "connection"),
        (json.JSONDecodeError("no", "x", 0), "cannot be understood (JSONDecodeError)", "network"),
        (failing(28, "cache/f"), "cache/f: No space left on device", "connection"),
        (failing(13, "cache/f"), "cache/f: Permission denied", "network"),
        (failing(104, None), "the connection to the Hub broke (ConnectionResetError)", "mend"),
        (RuntimeError("closed"), "the connection to the Hub broke (RuntimeError)", "mend"),
    ],
    ids=["deep", "no JSON", "full", "forbidden", "reset", "closed"],
)
def test_the_network_is_blamed_for_its_own(exc: Exception, said: str, unsaid: str) -> None:
    """Not for what the Hub sent, nor for this machine's disk."""
    with pytest.raises(PublishError) as caught, translated("org/name", "reading"):
        raise exc
    assert said in str(caught.value)
    assert unsaid not in str(caught.value)
