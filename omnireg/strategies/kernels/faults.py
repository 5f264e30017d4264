"""A line for the one failure that Python cannot catch: a mapped file that loses its end.

Files are looked at before each chunk, so that a shortened one is an ordinary error. If it happens
while a kernel reads, the system stops the process with SIGBUS; then this says why, in compiled code
that takes nothing of Python. What is finished is kept for the next run, as after any kill.
"""

import ctypes
import signal
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types

from omnireg.strategies.kernels.formats import callback, intrinsic

_LINE = (
    b"error: a file lost its end while it was read: somebody shortened an input; wait until nobody"
    b" writes to it, and run the same command again\n"
)


_kept: list[Any] = []


@intrinsic
def _say_and_leave(typingctx: Any) -> Any:
    """Write the line to stderr and end the process with 1; both are safe in a signal's handler."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        module, byte, word = builder.module, ir.IntType(8), ir.IntType(64)
        text = ir.GlobalVariable(module, ir.ArrayType(byte, len(_LINE)), "omnireg_fault_line")
        text.initializer = ir.Constant(text.value_type, bytearray(_LINE))
        text.global_constant, text.linkage = True, "internal"
        number = ir.IntType(32)
        write = _function(module, "write", word, [number, byte.as_pointer(), word])
        leave = _function(module, "_exit", ir.VoidType(), [number])
        place = builder.bitcast(text, byte.as_pointer())
        builder.call(write, [number(2), place, word(len(_LINE))])
        builder.call(leave, [number(1)])
        return context.get_dummy_value()

    return types.void(), generate


def _function(module: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, arguments), name)


def _handle(number: int) -> None:
    _say_and_leave()


@cache
def tell() -> None:
    """Give SIGBUS its line, in a process that has no other use for it."""
    if signal.getsignal(signal.SIGBUS) is not signal.SIG_DFL:
        return
    handler = callback(types.void(types.int32), _handle)
    # the library keeps nothing alive
    _kept.append(handler)
    library = ctypes.CDLL(None)
    library.signal.restype = ctypes.c_void_p
    library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    library.signal(signal.SIGBUS, handler.address)
