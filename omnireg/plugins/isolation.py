"""A plugin's code behind a guard: it may fail, but not end, silence or rearrange the process.

What such code prints goes to stderr, since stdout is data. What it changes of the process is put
back: warning filters, signal handlers, the working folder, logging, torch's default dtype. Whatever
it raises but an interrupt is one line that names it. An ``os._exit``, a crash of compiled code and
what threads do later are beyond any guard.
"""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock, Timer, current_thread, main_thread
from typing import Any

from omnireg.boundary.text import shown
from omnireg.hookspecs import PROJECT

#: after so many seconds of importing a plugin, somebody who waits is told which one it is
PATIENCE = 10.0
_LONGEST = 400
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_log = logging.getLogger(PROJECT)
_told: set[str] = set()


def tell(message: str) -> None:
    """Warn of something, once in a process."""
    if message not in _told:
        _told.add(message)
        _log.warning("%s", shown(message))


def said(exc: BaseException) -> str:
    """Return what an error says, on one line; empty where that cannot be had."""
    try:
        return shown(" ".join(str(exc).split()), _LONGEST)
    except KeyboardInterrupt:
        raise
    except BaseException:
        return ""


def reason(exc: BaseException) -> str:
    """Return an error's kind and what it says, on one line."""
    text = said(exc)
    return f"{type(exc).__name__}: {text}" if text else f"{type(exc).__name__}()"


@contextmanager
def guarded(failed: Callable[[str], Exception]) -> Iterator[None]:
    """Run a plugin's code contained; of whatever it raises but an interrupt make an error.

    Args:
        failed: returns the error, given the reason.
    """
    try:
        with contained():
            yield
    except KeyboardInterrupt:
        raise
    except BaseException as exc:
        raise failed(reason(exc)) from exc


@contextmanager
def contained() -> Iterator[None]:
    """Send to stderr what is printed meanwhile, and put back what was changed of the process."""
    put_back = [remember() for remember in _REMEMBERED]
    _aside.enter()
    try:
        yield
    finally:
        _aside.leave()
        for each in put_back:
            each()


@contextmanager
def told_if_slow(doing: str, way_out: str) -> Iterator[None]:
    """Say on stderr what is being done, if it takes long, and how to get out of it."""
    message = f"still {doing} after {PATIENCE:g} s; Ctrl-C stops it; to do without it: {way_out}"
    timer = Timer(PATIENCE, tell, [message])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Aside:
    """Stdout led to stderr, also for compiled code and other programs; entered many times over."""

    def __init__(self) -> None:
        self._lock, self._depth = Lock(), 0
        self._streams: tuple[Any, Any] = (None, None)
        self._kept: int | None = None

    def enter(self) -> None:
        """Lead it away, if nobody has."""
        with self._lock:
            self._depth += 1
            if self._depth > 1:
                return
            self._streams = (sys.stdout, sys.stderr)
            _flush()
            self._kept = _led(2, 1)
            sys.stdout = sys.stderr

    def leave(self) -> None:
        """Lead it back, if nobody else needs it away."""
        with self._lock:
            self._depth -= 1
            if self._depth:
                return
            _flush()
            sys.stdout, sys.stderr = self._streams
            if self._kept is not None:
                os.dup2(self._kept, 1)
                os.close(self._kept)


_aside = _Aside()


def _led(to: int, descriptor: int) -> int | None:
    """Make a descriptor mean another one's file; return a new one for its own, if it has one."""
    try:
        kept = os.dup(descriptor)
    except OSError:
        return None
    try:
        os.dup2(to, descriptor)
    except OSError:
        os.close(kept)
        return None
    return kept


def _flush() -> None:
    """Write out what Python and C have of stdout."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    with suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).fflush(None)


# what is put back: each of these remembers something, and returns what restores it


def _filters() -> Callable[[], None]:
    """Warning filters: what was there stays; new ones for all warnings of a kind go."""
    module: Any = warnings
    before, show = list(module.filters), module.showwarning

    def put_back() -> None:
        added = [each for each in module.filters if each not in before and not _sweeping(each)]
        module.showwarning = show
        if module.filters != added + before:
            module.filters[:] = added + before
            with warnings.catch_warnings():  # entered, it makes the interpreter look again
                pass

    return put_back


def _sweeping(entry: Any) -> bool:
    _, message, category, module, _ = entry
    return message is None and module is None and category.__module__ == "builtins"


def _handlers() -> Callable[[], None]:
    """Handlers of the signals that end a process; only the main thread can set them."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def put_back() -> None:
        if current_thread() is not main_thread():
            return
        for number, handler in before.items():
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)

    return put_back


def _folder() -> Callable[[], None]:
    """The working folder, which relative paths of a command start from."""
    before = _here()

    def put_back() -> None:
        if before is not None and _here() != before:
            with suppress(OSError):
                os.chdir(before)

    return put_back


def _here() -> Path | None:
    with suppress(OSError):
        return Path.cwd()
    return None


def _logging() -> Callable[[], None]:
    """What is logged at all, and where to."""
    root = logging.getLogger()
    before = (root.level, list(root.handlers), root.manager.disable)

    def put_back() -> None:
        if (root.level, root.handlers, root.manager.disable) != before:
            root.setLevel(before[0])
            root.handlers[:] = before[1]
            logging.disable(before[2])

    return put_back


def _numbers() -> Callable[[], None]:
    """The dtype that torch gives to tensors of which nobody says one."""
    before = _default_dtype()

    def put_back() -> None:
        now, torch = _default_dtype(), sys.modules.get("torch")
        if torch is not None and now is not None and now != (before or torch.float32):
            torch.set_default_dtype(before or torch.float32)

    return put_back


def _default_dtype() -> Any:
    ask = getattr(sys.modules.get("torch"), "get_default_dtype", None)
    return ask() if ask else None


_REMEMBERED = (_filters, _handlers, _folder, _logging, _numbers)
