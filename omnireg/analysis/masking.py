"""Take one attention head out of a model, in either of the two ways that are known."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import Tensor

from omnireg.checkpoints.loading import language_model_of
from omnireg.errors import EvaluationError
from omnireg.evaluation.model import Subject


class Mask(StrEnum):
    """How a head is taken out."""

    ZERO = "zero"
    UNIFORM = "uniform"


@dataclass
class Attention:
    """The attention of one layer.

    Attributes:
        values: the projection whose output is what heads attend to.
        output: the projection whose input is what all heads say.
        heads: how many there are.
        groups: how many heads share one value head.
    """

    values: Any
    output: Any
    heads: int
    groups: int

    @contextmanager
    def masked(self, number: int, way: Mask) -> Iterator[Callable[[], None]]:
        """Take a head out; yields what to call before a new batch."""
        seen = _Seen()

        def replace(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            said = args[0].clone()
            width = said.shape[-1] // self.heads
            mine = slice(number * width, (number + 1) * width)
            said[..., mine] = 0 if way is Mask.ZERO else seen.mean(number // self.groups, width)
            return (said, *args[1:])

        def look(_: Any, __: Any, values: Tensor) -> None:
            seen.add(values)

        hooks = [self.output.register_forward_pre_hook(replace)]
        if way is Mask.UNIFORM:
            hooks.append(self.values.register_forward_hook(look))
        try:
            yield seen.reset
        finally:
            for hook in hooks:
                hook.remove()


class _Seen:
    """The values of all positions so far, added up."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def reset(self) -> None:
        """Begin with another batch."""
        self._sum, self._count = None, 0

    def add(self, values: Tensor) -> None:
        """Take in (batch, positions, width)."""
        more = values.float().sum(1, keepdim=True)
        self._sum = more if self._sum is None else self._sum + more
        self._count += values.shape[1]

    def mean(self, head: int, width: int) -> Tensor:
        """Return (batch, 1, width) of one value head."""
        assert self._sum is not None
        return self._sum[..., head * width : (head + 1) * width] / self._count


def attentions_of(subject: Subject) -> list[Attention]:
    """Return the attention of every layer of the language model.

    Raises:
        EvaluationError: it has an unknown form.
    """
    language: Any = subject.model.get_submodule(language_model_of(subject.model))
    config = language.config
    heads = getattr(config, "num_attention_heads", 0)
    shared = getattr(config, "num_key_value_heads", None) or heads
    found = []
    for layer in getattr(language, "layers", ()):
        attention = getattr(layer, "self_attn", None)
        values, output = getattr(attention, "v_proj", None), getattr(attention, "o_proj", None)
        if values is None or output is None or not heads:
            raise EvaluationError(
                f"{subject.folder}: a layer of {type(language).__name__} has no self_attn with"
                " v_proj and o_proj, so its heads cannot be masked"
            )
        found.append(Attention(values, output, heads, heads // shared))
    if not found:
        raise EvaluationError(
            f"{subject.folder}: no layers with heads were found; of a package, take one model out"
            " first: omnireg mmer extract"
        )
    return found
