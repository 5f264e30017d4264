"""What happens when a mapped file loses its end while compiled code reads it.

The system says so with a signal that Python cannot catch, SIGBUS, and would end the process without
a word. The handler here is compiled and takes nothing of Python. Where the file is one of ours it
puts zeros in the place of what is gone, so that the read ends; whoever read looks at the state of
the file before believing anything (:meth:`omnireg.checkpoints.shards.ByteReader.check`), and tells
which file it was. Anywhere else it says a line and ends the process.
"""

import ctypes
import mmap
import signal
import sys
from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from omnireg.checkpoints import shards
from omnireg.strategies.kernels.formats import callback, intrinsic, long_at, word_at

_LINE = (
    b"error: a file lost its end while it was read: somebody shortened an input; wait until nobody"
    b" writes to it, and run the same command again\n"
)
_SLOTS = 4096
#: begin and end of every map, zeros where there is none
_maps = np.zeros(2 * _SLOTS, np.uint64)
#: what the library must be able to call for as long as there is a process
_kept: list[Any] = []
_NUMBER, _WORD, _BYTE = ir.IntType(32), ir.IntType(64), ir.IntType(8)
#: that an address has nothing behind it, of a SIGBUS's reasons
_NO_PAGE = 2
_MASK = ~np.uint64(mmap.PAGESIZE - 1)


def _intrinsic(returns: Any, takes: tuple[Any, ...], write: Callable[..., Any]) -> Any:
    """Return what compiled code can call, given what writes its instructions."""

    def typed(typingctx: Any, *arguments: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            found = write(builder, *values)
            return context.get_dummy_value() if returns is types.void else found

        return returns(*takes), generate

    return typed


def _library(builder: Any, name: str, returns: Any, *values: Any) -> Any:
    """Call a function of the C library."""
    module, kinds = builder.module, [value.type for value in values]
    known = module.globals.get(name)
    function = known or ir.Function(module, ir.FunctionType(returns, kinds), name)
    return builder.call(function, values)


def _table(builder: Any) -> Any:
    """Return the handler's own variable: where the table of maps is."""
    module, name = builder.module, "omnireg_table_of_maps"
    if name not in module.globals:
        made = ir.GlobalVariable(module, _WORD, name)
        made.initializer, made.linkage = _WORD(0), "internal"
    return module.globals[name]


@intrinsic
def _set_table(typingctx: Any, place: Any) -> Any:
    """Remember where the table of maps is."""
    return _intrinsic(types.void, (types.int64,), lambda b, at: b.store(at, _table(b)))(typingctx)


@intrinsic
def _get_table(typingctx: Any) -> Any:
    """Return where the table of maps is, 0 before it was set."""
    return _intrinsic(types.int64, (), lambda b: b.load(_table(b)))(typingctx)


@intrinsic
def _put_zeros(typingctx: Any, page: Any) -> Any:
    """Map a page of zeros in the place of one that is gone."""

    def write(builder: Any, page: Any) -> Any:
        place = builder.inttoptr(page, _BYTE.as_pointer())
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10  # and fixed
        return builder.ptrtoint(
            _library(
                builder, "mmap", _BYTE.as_pointer(), place, _WORD(mmap.PAGESIZE),
                _NUMBER(mmap.PROT_READ), _NUMBER(flags), _NUMBER(-1), _WORD(0),
            ),
            _WORD,
        )  # fmt: skip

    return _intrinsic(types.int64, (types.uint64,), write)(typingctx)


@intrinsic
def _say_and_leave(typingctx: Any) -> Any:
    """Write the line to stderr and end the process with 1."""

    def write(builder: Any) -> None:
        kind = ir.ArrayType(_BYTE, len(_LINE))
        text = ir.GlobalVariable(builder.module, kind, "omnireg_fault_line")
        text.initializer, text.linkage = ir.Constant(kind, bytearray(_LINE)), "internal"
        place = builder.bitcast(text, _BYTE.as_pointer())
        _library(builder, "write", _WORD, _NUMBER(2), place, _WORD(len(_LINE)))
        _library(builder, "_exit", ir.VoidType(), _NUMBER(1))

    return _intrinsic(types.void, (), write)(typingctx)


def _handle(number: int, info: int, context: int) -> None:
    """Handle the signal; with a negative number, learn where the table of maps is."""
    if number < 0:
        _set_table(info)
        return
    table = _get_table()
    if table != 0 and long_at(info + 8, 1)[0] == _NO_PAGE:
        place, maps = word_at(info + 16, 1)[0], word_at(table, 2 * _SLOTS)
        for slot in range(_SLOTS):
            if maps[2 * slot] <= place < maps[2 * slot + 1]:
                if _put_zeros(place & _MASK) != -1:
                    return
                break
    _say_and_leave()


class _Action(ctypes.Structure):
    """``struct sigaction`` of Linux's C libraries."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_byte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


@cache
def guard() -> None:
    """Handle the signal from now on, in a process on Linux that has no other use for it."""
    if sys.platform != "linux" or signal.getsignal(signal.SIGBUS) is not signal.SIG_DFL:
        return
    handler = callback(types.void(types.int32, types.int64, types.int64), _handle)
    handler.ctypes(-1, _maps.ctypes.data, 0)
    action = _Action(handler=handler.address, flags=0x4)  # with what happened, and where
    _kept.append(handler)
    ctypes.CDLL(None).sigaction(int(signal.SIGBUS), ctypes.byref(action), None)
    shards.watch = _watch


_lock = Lock()


def _watch(begin: int, length: int) -> None:
    """Note a map, or that it ended: a length of 0. More than fit are not guarded."""
    with _lock:
        wanted = np.uint64(begin if not length else 0)
        found = np.flatnonzero(_maps[::2] == wanted)
        if len(found):
            slot = 2 * int(found[0])
            # the end first, so that there is never a range that was none
            _maps[slot + 1] = 0
            _maps[slot] = begin if length else 0
            _maps[slot + 1] = begin + length if length else 0
