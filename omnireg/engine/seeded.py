"""Randomness that depends on the seed and the tensor's name alone, not on order or threads."""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

import torch


def tensor_seed(seed: int, name: str) -> int:
    """Return the seed of one output tensor: the first eight bytes of sha256(seed, name)."""
    return int.from_bytes(sha256(f"{seed}:{name}".encode()).digest()[:8], "little", signed=False)


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Give a tensor's merge a random state of its own, and the caller's back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(tensor_seed(seed, name))
        yield
