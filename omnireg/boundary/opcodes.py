"""Whether bytes are a pickle: opcodes are walked over as Python's unpickler would, none is run."""

import lzma
import os
import re
import zlib
from collections.abc import Callable
from pickletools import OpcodeInfo, markobject, opcodes
from typing import IO, Any

#: what readers of packed files raise where a file is damaged
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)
#: so many opcodes are looked at, and so many bytes of what is packed
_OPCODES, _BYTES = 1_000_000, 1 << 28
_AT_ONCE = 1 << 16
_IMPORTS = ("GLOBAL", "INST", "STACK_GLOBAL")
_CALLS = ("INST", "OBJ", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD")
#: of opcodes that say the length of their argument: in how many bytes
_WIDTHS = {-2: 1, -3: 4, -4: 4, -5: 8}
_operations = {operation.code: operation for operation in opcodes}
_dotted = re.compile(rb"[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_pickle(stream: IO[bytes], size: int | None = None) -> bool:
    """Whether Python's unpickler would import or call something, or read a marked pickle.

    Protocols 0 and 1 have no mark and look like text; so of these only a program that imports
    something and calls it counts, in any pickle of several in a row.

    Args:
        stream: at the start of the file.
        size: of the file, if the stream can seek in it.

    Raises:
        MemoryError: what is packed goes on for too long.
    """
    walk = _Walk(stream, size)
    try:
        for _ in range(_OPCODES):
            if walk.step():
                return True
    except _Ended:
        return walk.marked and walk.steps > 1
    except ValueError:
        return False
    return True


class _Ended(Exception):
    """The file ended amid a pickle."""


class _Walk:
    """Goes through opcodes, and keeps count of the stack alone."""

    def __init__(self, stream: IO[bytes], size: int | None) -> None:
        self._stream, self._size, self._left = stream, size, _BYTES
        self._stack: list[Any] = []
        self._marks = 0
        self.marked = self._imported = False
        self.steps = 0

    def step(self) -> bool:
        """Take one opcode; return whether it proves a pickle that matters.

        Raises:
            ValueError: the unpickler would stop here with an error.
        """
        code = self._read(1)
        found = _operations.get(code.decode("latin-1"))
        if found is None:
            raise ValueError(code)
        self._argument(found)
        self._move(found)
        self.steps += 1
        if found.name == "STOP":
            self._stack, self._marks, self._imported = [], 0, False
            return self.marked
        self._imported |= found.name in _IMPORTS
        return self._imported and (self.marked or found.name in _CALLS)

    def _read(self, count: int) -> bytes:
        return self._taken(lambda: self._stream.read(count), count)

    def _taken(self, read: Callable[[], bytes], least: int) -> bytes:
        try:
            data = read()
        except DAMAGED as exc:
            raise _Ended from exc
        self._left -= len(data)
        if len(data) < least:
            raise _Ended
        if self._left < 0 and self._size is None:
            raise MemoryError("there is too much to look at")
        return data

    def _argument(self, found: OpcodeInfo) -> None:
        length = found.arg.n if found.arg else 0
        if length == -1:
            self._line(found.name)
        elif length < -1:
            self._skip(int.from_bytes(self._read(_WIDTHS[length]), "little"))
        else:
            self._check(found.name, self._read(length))

    def _check(self, name: str, argument: bytes) -> None:
        if name == "PROTO":
            self.marked |= self.steps == 0
            if argument[0] > 5:
                raise ValueError(name)
        far = name == "FRAME" and self._size is not None
        if far and int.from_bytes(argument, "little") > (self._size or 0):
            raise ValueError(name)

    def _skip(self, count: int) -> None:
        if self._size is not None:
            if count > self._size - self._stream.tell():
                raise _Ended
            self._stream.seek(count, os.SEEK_CUR)
            return
        while count:
            count -= len(self._read(min(count, _AT_ONCE)))

    def _line(self, name: str) -> None:
        """Read an argument that is one line, or two: only such as the unpickler takes."""
        if name in ("GLOBAL", "INST"):
            for _ in range(2):
                word = self._taken(lambda: self._stream.readline(1024), 1)
                if not _dotted.fullmatch(word.removesuffix(b"\n")):
                    raise ValueError(name)
            return
        line = start = self._taken(lambda: self._stream.readline(_AT_ONCE), 1)
        while not line.endswith(b"\n"):
            line = self._taken(lambda: self._stream.readline(_AT_ONCE), 1)
        if name in ("INT", "GET", "PUT"):
            int(start)
        elif name == "LONG":
            int(start.rstrip(b"L\n"))
        elif name == "FLOAT":
            float(start)
        elif name == "STRING" and start[:1] not in b"'\"":
            raise ValueError(name)

    def _move(self, found: OpcodeInfo) -> None:
        needed = len(found.stack_before)
        popped_mark = found.name == "POP" and self._stack[-1:] == [markobject]
        if markobject in found.stack_before or popped_mark:
            if not self._marks:
                raise ValueError(found.name)
            self._marks -= 1
            while self._stack.pop() is not markobject:
                pass
            needed = 0 if popped_mark else found.stack_before.index(markobject)
        if needed > len(self._stack):
            raise ValueError(found.name)
        if needed:
            del self._stack[-needed:]
        self._stack.extend(found.stack_after)
        self._marks += markobject in found.stack_after
