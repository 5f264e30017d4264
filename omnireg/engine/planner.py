"""mergekit's planner with every tensor's randomness seeded by its name."""

from typing import Any

import torch
from mergekit.graph import Task
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
from mergekit.plan import MergePlanner

from omnireg.engine.seeded import seeded


class SeededTask(Task[Any]):  # type: ignore[misc]
    """A merge of one tensor under a random state of its own."""

    inner: ExecuteMergeMethodTask
    seed: int

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

    def execute(self, **arguments: Any) -> torch.Tensor | None:
        """Merge, leaving the caller's random state as it was."""
        with seeded(self.seed, self.inner.output_weight.name):
            merged: torch.Tensor | None = self.inner.execute(**arguments)
        return merged


class SeededPlanner(MergePlanner):  # type: ignore[misc]
    """mergekit's planner, with every tensor's merge seeded by its name."""

    def __init__(self, seed: int, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._seed = seed

    def plan_tensor(self, *arguments: Any, **named: Any) -> None:
        """Plan one tensor as mergekit does, then wrap its task."""
        before = len(self._tensors)
        super().plan_tensor(*arguments, **named)
        for index in range(before, len(self._tensors)):
            weight, task = self._tensors[index]
            self._tensors[index] = (weight, SeededTask(inner=task, seed=self._seed))
