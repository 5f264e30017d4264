"""How the process ends: by signals, and with streams that nobody reads any more."""

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from types import FrameType, TracebackType
from typing import Any

from omnireg.boundary.text import shown
from omnireg.cli.output import echo

_formatted = warnings.formatwarning
#: seconds
_A_MOMENT = 0.01
_MODES = {0: os.O_RDONLY, 1: os.O_RDONLY, 2: os.O_WRONLY}


class Terminated(KeyboardInterrupt):
    """The process was asked to end, with SIGTERM; whatever minds an interrupt minds this too."""


@contextmanager
def terminable() -> Iterator[None]:
    """Make SIGTERM raise inside of the block, as Ctrl-C does, unless somebody handles it already.

    Neither is lost if it comes while an object is destroyed: it is sent once more.

    Raises:
        Terminated: it came.
    """
    if not _is_main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    owner, unraisable = os.getpid(), sys.unraisablehook

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a child that was forked meanwhile ends as it always did
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        raise Terminated

    def lost(what: Any) -> None:
        # it came while an object was destroyed, where the interpreter drops all exceptions
        if isinstance(what.exc_value, KeyboardInterrupt):
            _send_soon(_signal_of(what.exc_value))
        else:
            unraisable(what)

    signal.signal(signal.SIGTERM, end)
    sys.unraisablehook = lost
    try:
        yield
    finally:
        sys.unraisablehook = unraisable
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _send_soon(number: int) -> None:
    """Send a signal to this process in a moment, when it does something else."""
    timer = threading.Timer(_A_MOMENT, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


@contextmanager
def interrupted_after() -> Iterator[None]:
    """Put an interrupt off until the block is done; amid an import, libraries swallow it.

    Raises:
        KeyboardInterrupt: one came.
    """
    if not _is_main_thread():
        yield
        return
    came: list[int] = []
    minded = [n for n in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(n))]
    before = {n: signal.signal(n, lambda number, frame: came.append(number)) for n in minded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise Terminated if came[0] == signal.SIGTERM else KeyboardInterrupt


def exit_code_of(stopped: BaseException) -> int:
    """Return what a shell says of a process that a signal ended."""
    return 128 + _signal_of(stopped)


def _signal_of(stopped: BaseException) -> int:
    found: BaseException | None = stopped
    while found is not None and not isinstance(found, Terminated):
        found = found.__context__  # click's own exception stands in front
    return signal.SIGINT if found is None else signal.SIGTERM


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def own_streams() -> Iterator[None]:
    """Make the standard streams fit for the block, and let none of them fail after it.

    A stream that was closed is there and refuses what is written; characters that its encoding
    lacks are escapes; so are odd ones in a defect's traceback and in what libraries warn of.
    """
    for number in _MODES:
        _reopen(number)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.excepthook, warnings.formatwarning = _tell, _warning
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            _settle(stream)


def _reopen(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        # else the next file that is opened would be what others print to
        found = os.open(os.devnull, _MODES[number])
        name = ("stdin", "stdout", "stderr")[number]
        mode = "r" if number == 0 else "w"
        setattr(sys, name, open(found, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def _settle(stream: object) -> None:
    """Drop what cannot be written, which the interpreter would try once more at its end."""
    if not isinstance(stream, TextIOWrapper):
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _warning(*said: Any, **more: Any) -> str:
    return shown(_formatted(*said, **more))


def _tell(kind: type[BaseException], exc: BaseException, where: TracebackType | None) -> None:
    echo("".join(traceback.format_exception(kind, exc, where)).rstrip("\n"), err=True)
