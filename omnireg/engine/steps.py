"""Work in small steps, so that several pieces of it can go on side by side."""

from collections.abc import Generator, Sequence
from typing import TypeVar

T = TypeVar("T")
#: yields between steps and returns a result
Steps = Generator[None, None, T]


def finish(steps: Steps[T]) -> T:
    """Take all steps and return the result."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: T = done.value
            return result


def side_by_side(pieces: Sequence[Steps[T]]) -> list[T]:
    """Take one step of each in turn until all are done; an error in one stops all."""
    results: dict[int, T] = {}
    waiting = dict(enumerate(pieces))
    try:
        while waiting:
            for number, steps in list(waiting.items()):
                try:
                    next(steps)
                except StopIteration as done:
                    results[number] = done.value
                    del waiting[number]
    finally:
        for steps in waiting.values():
            steps.close()
    return [results[number] for number in range(len(pieces))]
