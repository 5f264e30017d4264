"""What long work reports to."""

from typing import Protocol


class Progress(Protocol):
    """Called while work goes on."""

    def __call__(self, stage: str, done: int, total: int, detail: str) -> None:
        """Take note of how far a stage is.

        Args:
            stage: what is being done, such as ``"hashing"`` or ``"writing"``.
            done: how much of it is done; bytes while a stage is ``"writing"``.
            total: how much there is to do; 0 if that is not known.
            detail: which part of it, in words.
        """


def silent(stage: str, done: int, total: int, detail: str) -> None:
    """Report nothing."""
