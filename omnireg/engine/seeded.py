"""One result on every machine: randomness by name, and ties of magnitude in index order.

A tensor's randomness depends on the seed and its name alone, not on order or threads. mergekit's
trims sort by magnitude without saying which of two equal ones comes first; here the first does.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from typing import Any

import torch


def tensor_seed(seed: int, name: str) -> int:
    """Return the seed of one output tensor: the first eight bytes of sha256(seed, name)."""
    return int.from_bytes(sha256(f"{seed}:{name}".encode()).digest()[:8], "little", signed=False)


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Give a tensor's merge a random state of its own and stable sorts, and undo both after it."""
    module: Any = torch
    plain = module.argsort
    with torch.random.fork_rng():
        torch.manual_seed(tensor_seed(seed, name))
        module.argsort = partial(plain, stable=True)
        try:
            yield
        finally:
            module.argsort = plain
