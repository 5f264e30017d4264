"""mergekit's planner: every tensor's randomness seeded by its name, every result checked."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from mergekit.graph import Task
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
from mergekit.plan import MergePlanner

from omnireg.engine.results import Like
from omnireg.engine.seeded import seeded
from omnireg.engine.translated import translated


class CheckedTask(Task[Any]):  # type: ignore[misc]
    """A merge of one tensor: under a random state of its own, if seeded, and checked."""

    inner: ExecuteMergeMethodTask
    seed: int | None

    def arguments(self) -> dict[str, Task[Any]]:
        """Return what the merge depends on."""
        found: dict[str, Task[Any]] = self.inner.arguments()
        return found

    def group_label(self) -> str | None:
        """Return where the inputs lie, so that they are read in order."""
        label: str | None = self.inner.group_label()
        return label

    def uses_accelerator(self) -> bool:
        """Return whether the method runs on an accelerator."""
        return bool(self.inner.uses_accelerator())

    def execute(self, tensors: dict[Any, torch.Tensor], **more: Any) -> torch.Tensor | None:
        """Merge, leaving the caller's random state as it was."""
        name = self.inner.output_weight.name
        with translated(self.inner.method_name, name), self._seeded(name):
            like = Like.of(tensors.values()) if tensors else None
            merged = self.inner.execute(tensors=self._own(tensors), **more)
            return like.merged(merged) if like and merged is not None else None

    def _own(self, tensors: dict[Any, torch.Tensor]) -> dict[Any, torch.Tensor]:
        """Return inputs that a method may write to; unseeded plans make several tensors of one."""
        if self.seed is not None:
            return tensors
        return {key: tensor.clone() for key, tensor in tensors.items()}

    def _seeded(self, name: str) -> Any:
        return nullcontext() if self.seed is None else seeded(self.seed, name)


class CheckedPlanner(MergePlanner):  # type: ignore[misc]
    """mergekit's planner, with every tensor's merge checked and, given a seed, seeded."""

    def __init__(self, *arguments: Any, seed: int | None = None, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._seed = seed

    def plan_tensor(self, *arguments: Any, **named: Any) -> None:
        """Plan one tensor as mergekit does, then wrap its task."""
        before = len(self._tensors)
        super().plan_tensor(*arguments, **named)
        for index in range(before, len(self._tensors)):
            weight, task = self._tensors[index]
            self._tensors[index] = (weight, CheckedTask(inner=task, seed=self._seed))


@contextmanager
def checking() -> Iterator[None]:
    """Let mergekit's own run of a merge plan with checks; it offers no other way."""
    from mergekit import merge

    module: Any = merge
    plain = module.MergePlanner
    module.MergePlanner = CheckedPlanner
    try:
        yield
    finally:
        module.MergePlanner = plain
