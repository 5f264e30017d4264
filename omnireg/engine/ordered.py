"""Results of a few threads, in the order in which they were asked for."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

T = TypeVar("T")


def in_order(pool: Executor, calls: Iterable[Callable[[], T]], ahead: int) -> Iterator[T]:
    """Yield the results of calls in order, while the pool works on the next few.

    Args:
        pool: who makes the calls.
        calls: taken one at a time, as results are.
        ahead: how many are made or wait at most, besides the one whose result is next.
    """
    waiting: deque[Future[T]] = deque()
    try:
        for call in calls:
            waiting.append(pool.submit(call))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def given(value: T) -> Callable[[], T]:
    """Return a call that gives what is made already.

    Torch code has its own threads, and its results may depend on them: it is run while calls are
    taken, outside any pool.
    """
    return lambda: value
