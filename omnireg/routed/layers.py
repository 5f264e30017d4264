"""Modules of a backbone that run every token with the weights of its route.

A module is kept once, without weights. Tokens of one forward pass are grouped by route; each group
is run through a copy that holds the route's weights (``materialised``), or through weights that are
formed for the moment (``packed``).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor, nn

from omnireg.routed.routes import Route
from omnireg.routed.weights import Weights

#: elements of a matrix that are formed at a time when nothing is kept
BLOCK = 1 << 20


class Storage(StrEnum):
    """Whether weight sets are kept, or formed whenever they are used."""

    MATERIALISED = "materialised"
    PACKED = "packed"


@dataclass(frozen=True)
class Group:
    """The tokens of one route, by their place in the flattened batch; None means all."""

    route: Route
    places: Tensor | None


@dataclass
class Pass:
    """What the modules have to know of the forward pass that they are in."""

    storage: Storage = Storage.MATERIALISED
    groups: Sequence[Group] = ()
    #: of the tokens whose logits are asked for
    kept: Sequence[Group] = ()
    #: (3, batch, length) places in time, height and width, where a host has them
    positions: Tensor | None = None
    _last: tuple[Tensor, list[Tensor]] | None = field(default=None, repr=False)

    @contextmanager
    def of(
        self, storage: Storage, groups: Sequence[Group], kept: Sequence[Group]
    ) -> Iterator[None]:
        """Be in a pass for the duration of a block."""
        self.storage, self.groups, self.kept = storage, groups, kept
        try:
            yield
        finally:
            self.groups, self.kept, self.positions, self._last = (), (), None, None

    def split(self, x: Tensor) -> list[Tensor]:
        """Return the tokens of every group; several modules in a row read the same tensor."""
        if self._last is None or self._last[0] is not x:
            flat = x.flatten(0, 1)
            parts = [flat if g.places is None else flat[g.places] for g in self.groups]
            self._last = (x, parts)
        return self._last[1]


def join(parts: Sequence[Tensor], groups: Sequence[Group], shape: Sequence[int]) -> Tensor:
    """Put what was computed of every group back in the order of the tokens."""
    if len(parts) == 1:
        return parts[0].reshape(*shape, *parts[0].shape[1:])
    whole = parts[0].new_empty((sum(map(len, parts)), *parts[0].shape[1:]))
    for part, group in zip(parts, groups, strict=True):
        whole[group.places] = part
    return whole.reshape(*shape, *parts[0].shape[1:])


class Routed(nn.Module):
    """A module with weights, run on every token with those of its route."""

    def __init__(self, module: nn.Module, names: dict[str, str], weights: Weights, now: Pass):
        """Take a module on the meta device, and the backbone's name of each of its parameters."""
        super().__init__()
        # in a tuple, so that it is no part of this module: it has no weights to move
        self._form = (module,)
        self._names = names
        self._weights, self._now = weights, now
        self.sets = nn.ModuleDict()

    def forward(self, x: Tensor) -> Tensor:
        """Run every token of (batch, length, …) with the weights of its route."""
        groups = self._now.groups
        if len(groups) == 1:
            return self._run(groups[0].route, x)
        parts = [
            self._run(group.route, part)
            for group, part in zip(groups, self._now.split(x), strict=True)
        ]
        return join(parts, groups, x.shape[:2])

    def _run(self, route: Route, x: Tensor) -> Tensor:
        if self._now.storage is Storage.MATERIALISED:
            found: Tensor = self.materialised(route)(x)
            return found
        if isinstance(self._form[0], nn.Linear):
            return self._linear(route, x)
        formed = self._formed(route, x.device)
        made: Tensor = torch.func.functional_call(self._form[0], formed, (x,))
        return made

    def materialised(self, route: Route) -> nn.Module:
        """Return the module with the weights of a route, formed when first asked for."""
        key = str(route)
        if key not in self.sets:
            copy = _emptied(self._form[0])
            device = next(iter(self.parameters()), torch.empty(0)).device
            for name, tensor in self._formed(route, device).items():
                setattr(copy, name, nn.Parameter(tensor, requires_grad=False))
            self.sets[key] = copy
        return self.sets[key]

    def _formed(self, route: Route, device: torch.device) -> dict[str, Tensor]:
        return {
            own: self._weights.form(name, route).reshape(self._weights.shape(name)).to(device)
            for own, name in self._names.items()
        }

    def _linear(self, route: Route, x: Tensor) -> Tensor:
        """Multiply with some rows of the matrix at a time, which then need not leave the cache."""
        rows, width = self._weights.shape(self._names["weight"])
        bias = self._formed_bias(route, x.device)
        out = x.new_empty((*x.shape[:-1], rows))
        step = max(1, BLOCK // width)
        room = torch.empty(min(rows, step) * width, dtype=self._weights.dtype)
        for first in range(0, rows, step):
            stop = min(rows, first + step)
            form = self._weights.form(
                self._names["weight"], route, first * width, stop * width, room
            )
            part = bias[first:stop] if bias is not None else None
            matrix = form.view(-1, width).to(x.device)
            out[..., first:stop] = nn.functional.linear(x, matrix, part)
        return out

    def _formed_bias(self, route: Route, device: torch.device) -> Tensor | None:
        name = self._names.get("bias")
        return self._weights.form(name, route).to(device) if name else None


def _emptied(module: nn.Module) -> nn.Module:
    """Return a copy of a module without its parameters."""
    copy = module.__new__(type(module))
    copy.__dict__ = {**module.__dict__, "_parameters": dict.fromkeys(module._parameters)}
    return copy
