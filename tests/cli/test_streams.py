"""Standard streams that are full, closed or odd: what cannot be printed is not lost in silence."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click
import pytest

from omnireg.cli import output
from omnireg.cli.output import echo
from omnireg.registry import Registry
from tests_support import Run, is_odd

PROGRAM = "from omnireg.cli import console; console()"


def started(*arguments: str, **more: object) -> subprocess.Popen[bytes]:
    """Start ``omnireg ARGS`` in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen(command, **{**streams, **more})  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def some(tmp_path: Path) -> Path:
    """A registry with more in it than a pipe holds."""
    with Registry(tmp_path / "registry.db") as book:
        book.add_checkpoint("a", kind="base", notes="x" * 200_000)
    return tmp_path


#: a table, JSON, text, and what click prints by itself
PRINTING = [
    ("list",),
    ("--json", "show", "a"),
    ("export",),
    ("--help",),
    ("list", "--help"),
    ("--version",),
]


def told_once(said: bytes, code: int) -> None:
    """Check that a command said in one line that it could not print."""
    assert code == 1
    assert said.startswith(b"error: cannot write to stdout: "), said
    assert said.count(b"\n") == 1, said


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("command", PRINTING, ids=" ".join)
def test_nobody_reads(
    some: Path, command: Sequence[str], buffered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe whose reader has gone: one line, exit 1, and quiet at the interpreter's end."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "" if buffered else "1")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone, started(*command, stdout=gone) as process:
        _, said = process.communicate()
    told_once(said, process.returncode)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("command", PRINTING, ids=" ".join)
def test_no_room_for_what_is_printed(
    some: Path, command: Sequence[str], buffered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk behind stdout is told like that."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "" if buffered else "1")
    with Path("/dev/full").open("wb") as full, started(*command, stdout=full) as process:
        _, said = process.communicate()
    told_once(said, process.returncode)
    assert b"No space left" in said


def in_shell(line: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of shell, in which ``omnireg`` is this one."""
    script = f'omnireg() {{ {sys.executable} -c "{PROGRAM}" "$@"; }}; {line}'
    return subprocess.run(["bash", "-c", script], capture_output=True, check=False)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_streams_that_are_closed(some: Path) -> None:
    """Without stdout there is one line, without stderr none, and files are never mixed up."""
    done = in_shell("omnireg list >&-")
    told_once(done.stderr, done.returncode)
    done = in_shell("omnireg show nobody 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")
    done = in_shell("omnireg list 0<&- 2>&-")
    assert (done.returncode, done.stdout[:4]) == (0, b"name")
    done = in_shell("omnireg list 0<&- 1>&- 2>&-")
    assert done.returncode == 1
    with Registry("registry.db") as book:
        assert book.check() == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_no_room_for_an_error(some: Path) -> None:
    """The exit code says what stderr cannot."""
    with Path("/dev/full").open("wb") as full, started("show", "b", stderr=full) as process:
        process.communicate()
    assert process.returncode == 1


def test_a_stream_of_few_characters(some: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its encoding lacks is an escape, of JSON's kind in JSON."""
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    with started("sql", "select 'é‖' as a") as process:
        out, said = process.communicate()
    assert (out.split(), said) == ([b"a", b"\xe9\\u2016"], b"")
    with started("--json", "sql", "select 'é‖' as a") as process:
        out, said = process.communicate()
    assert json.loads(out) == [{"a": "é‖"}]


def test_a_defect_shows_no_odd_characters(tmp_path: Path) -> None:
    """A traceback goes through the door as well."""
    program = (
        "from omnireg.cli import console, cli\n"
        "import click\n"
        "def fail(*a, **k): raise KeyError('\\x1b[31m\\u202e')\n"
        "cli.invoke = fail\n"
        "console()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "list"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert not any(map(is_odd, done.stderr))


def test_an_end_of_file_is_no_interrupt(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """A defect of reading keeps its traceback; click would take it for the user's doing."""

    def torn(*_: object, **__: object) -> None:
        raise EOFError("torn")

    monkeypatch.setattr(Registry, "checkpoints", torn)
    with pytest.raises(EOFError, match="torn"):
        run("list")


def test_an_error_of_a_file_is_not_one_of_printing(
    monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """A pipe that broke elsewhere is not told as stdout's."""

    def torn(*_: object, **__: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(Registry, "checkpoints", torn)
    with pytest.raises(BrokenPipeError):
        run("list")


def test_a_question_shows_no_odd_characters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nobody is asked who is not there."""
    with pytest.raises(click.UsageError, match="nobody is there"):
        output.confirm("Publish?")
    here, there = os.openpty()
    os.write(here, b"y\n")
    with open(there) as terminal:  # noqa: PTH123 - a descriptor
        monkeypatch.setattr(sys, "stdin", terminal)
        output.confirm("Publish \x1b[31m\u202e?")
    os.close(here)
    assert not any(map(is_odd, capsys.readouterr().err))


def test_styles_are_ours(capsys: pytest.CaptureFixture[str]) -> None:
    """A terminal shows colour that a command asked for, never one that a text brings."""
    with click.Context(click.Command("x"), color=True).scope():
        echo("a\x1b[32mb", fg="red")
    assert capsys.readouterr().out == "\x1b[31ma\\x1b[32mb\x1b[0m\n"


def all_from(terminal: int) -> str:
    """Return all that was written to a terminal whose other end is closed, and close it."""
    found = b""
    with suppress(OSError):  # which is how a terminal ends
        while more := os.read(terminal, 100_000):
            found += more
    os.close(terminal)
    return found.decode()


def test_a_bar_shows_no_odd_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it take a detail for markup, or let it fill the line."""
    here, there = os.openpty()
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(all_from(here)))
    reader.start()
    with open(there, "w") as terminal:  # noqa: PTH123 - a descriptor
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "400")
        with output.progress_bar(False) as progress:
            progress("rea[/b]", 1, 2, "[/x]\x1b]0;t\x07\u202e" + "y" * 100_000)
    reader.join()
    [said] = found
    assert r"[/x]\x1b]0;t\x07\u202eyyy" in said
    assert "rea[/b]" in said
    assert "\x1b]0;" not in said
    assert "\u202e" not in said
