"""How the process ends: Ctrl-C and SIGTERM stop it alike, and what is finished is kept."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import pytest

from omnireg.cli import main
from omnireg.cli.endings import Terminated, exit_code_of, interrupted_after, terminable
from omnireg.demo.story import FAMILY
from omnireg.registry import Registry
from tests_support import Run

GOES_ON = "interrupted; the same command goes on with what is finished\n"
#: stands in a function of omnireg and sends the signal to its own process
STOPPED = """
import os, signal, sys, time
from omnireg.cli import console
from omnireg.{module} import {name} as place
def stop(*_, **__):
    try:
        os.kill(os.getpid(), {number})
        time.sleep(60)
    finally:
        print("cleaned up", file=sys.stderr)
place.{function} = stop
console()
"""


def stopped(
    place: str, function: str, number: int, *arguments: str
) -> "subprocess.CompletedProcess[str]":
    """Run a command in a process that gets a signal when it comes to a function."""
    module, _, name = place.rpartition(".")
    program = STOPPED.format(module=module, name=name, function=function, number=int(number))
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_merge_that_is_stopped(
    tmp_path: Path, run: Run, number: signal.Signals, code: int
) -> None:
    """Its run is recorded as interrupted, and the same command goes on."""
    (tmp_path / "r.yml").write_text("merge_method: average\nmodels:\n  - model: a\n  - model: b\n")
    for name in "ab":
        shutil.copytree(FAMILY / "base", tmp_path / name)
    done = stopped("engine.running", "_complete", number, "merge", "r.yml", "out")
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == "cleaned up\n" + GOES_ON
    with Registry() as book:
        [killed] = book.runs()
    assert (killed.status, killed.error) == ("failed", "interrupted")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial").is_dir()
    again = run("merge", "r.yml", "out")
    assert again.code == 0, again.err
    assert "1 files kept" in again.out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_look_that_is_stopped(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """There is nothing to go on with, and nothing of the kind is said."""
    done = stopped("registry.Registry", "checkpoints", number, "list")
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == "cleaned up\ninterrupted\n"


def test_sigterm_belongs_to_others_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler is there while a command runs, and only where there was none."""
    seen = []

    def look(*_: object, **__: object) -> list[object]:
        seen.append(signal.getsignal(signal.SIGTERM))
        return []

    monkeypatch.setattr(Registry, "checkpoints", look)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert run("list").code == 0
    assert seen.pop() not in (signal.SIG_DFL, None)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    for other in (signal.SIG_IGN, lambda number, frame: None):
        signal.signal(signal.SIGTERM, other)
        try:
            assert run("list").code == 0
            assert seen.pop() is other
            assert signal.getsignal(signal.SIGTERM) is other
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_another_thread_minds_no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python allows handlers in the main thread alone; a command runs in any."""
    codes: list[int] = []
    monkeypatch.setattr(Registry, "checkpoints", lambda *_, **__: [])
    thread = threading.Thread(target=lambda: codes.append(main(["list"])))
    thread.start()
    thread.join()
    assert codes == [0]


def test_a_forked_child_ends_as_ever() -> None:
    """A helper that is told to end does not raise in the middle of our code."""
    program = (
        "import os, signal, sys, time\n"
        "from omnireg.cli.endings import terminable\n"
        "with terminable():\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(60)\n"
        "    _, status = os.waitpid(child, 0)\n"
        "print(-os.WTERMSIG(status))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == (f"{-signal.SIGTERM}\n", "")


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_waits_for_an_import(number: int, raised: type[BaseException]) -> None:
    """Each of the two is put off until the block is done, and is itself then."""
    done = []

    def work() -> None:
        with terminable(), interrupted_after():
            os.kill(os.getpid(), number)
            done.append(1)

    with pytest.raises(raised) as caught:
        work()
    assert (caught.type, done) == (raised, [1])


def test_sigterm_amid_an_import_stays_with_its_owner() -> None:
    """Without a handler of ours it is not put off."""
    with interrupted_after():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler


def ask(answer: BaseException) -> None:
    """Do as click does when a question is answered by a signal."""
    try:
        raise answer
    except KeyboardInterrupt:
        raise click.Abort from None


@pytest.mark.parametrize(("cause", "code"), [(Terminated(), 143), (KeyboardInterrupt(), 130)])
def test_a_question_that_is_stopped(cause: BaseException, code: int) -> None:
    """What click makes of the two still tells them apart; somebody who says no is an interrupt."""
    with pytest.raises(click.Abort) as caught:
        ask(cause)
    assert exit_code_of(caught.value) == code
    assert exit_code_of(click.Abort()) == 130


class Dying:
    """Gets a signal while it is destroyed."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)
        for _ in range(1000):
            pass


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_amid_a_destructor_is_not_lost(number: int, raised: type[BaseException]) -> None:
    """The interpreter drops what is raised there; the signal comes once more."""

    def work() -> None:
        with terminable():
            dying = Dying(number)
            del dying
            time.sleep(10)
            pytest.fail("nobody stopped it")

    with pytest.raises(raised) as caught:
        work()
    assert caught.type is raised


def test_other_faults_of_destructors_are_told_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """By whoever did before."""
    seen: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: seen.append(what.exc_value))

    class Broken:
        def __del__(self) -> None:
            raise ValueError("odd")

    with terminable():
        Broken()
    assert [str(exc) for exc in seen] == ["odd"]
