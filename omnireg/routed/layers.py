"""Modules of a backbone that run every token with the weights of its route.

A module is kept once, without weights. Tokens of one forward pass are grouped by route; each group
is run with weights that are kept (``materialised``), or formed for the moment (``packed``).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor, nn

from omnireg.routed.routes import Route
from omnireg.routed.weights import CPU, Weights

#: elements of weights that are formed at a time when nothing is kept: by the processor, whose cache
#: they then need not leave, and on an accelerator, which every call costs
_BLOCK, _WIDE_BLOCK = 1 << 22, 1 << 25


class Storage(StrEnum):
    """Whether weight sets are kept, or formed whenever they are used."""

    MATERIALISED = "materialised"
    PACKED = "packed"


@dataclass(frozen=True)
class Group:
    """The tokens of one route, by their places in the flattened batch."""

    route: Route
    places: Tensor | slice


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

    @property
    def routes(self) -> list[Route]:
        """The routes of the groups."""
        return [group.route for group in self.groups]

    def split(self, x: Tensor) -> list[Tensor]:
        """Return the tokens of every group; several modules in a row read the same tensor."""
        if self._last is None or self._last[0] is not x:
            flat = x.flatten(0, 1)
            self._last = (x, [flat[group.places] for group in self.groups])
        return self._last[1]


def block(device: torch.device) -> int:
    """Return how many elements of weights to form at a time."""
    return _BLOCK if device == CPU else _WIDE_BLOCK


def join(parts: Sequence[Tensor], groups: Sequence[Group], shape: Sequence[int]) -> Tensor:
    """Put what was computed of every group back in the order of the tokens."""
    whole = parts[0].new_empty((sum(map(len, parts)), *parts[0].shape[1:]))
    for part, group in zip(parts, groups, strict=True):
        whole[group.places] = part
    return whole.reshape(*shape, *parts[0].shape[1:])


class Routed(nn.Module):
    """A module with weights, run on every token with those of its route."""

    def __init__(
        self, module: nn.Module, names: dict[str, str], weights: Weights, now: Pass
    ) -> None:
        """Take a module on the meta device, and the backbone's name of each of its parameters."""
        super().__init__()
        # in a tuple, so that it is no part of this module: it has no weights to move
        self._form = (module,)
        self._names = names
        self._weights, self._now = weights, now
        #: route → the module with its weights
        self.sets = nn.ModuleDict()

    def forward(self, x: Tensor) -> Tensor:
        """Run every token of (batch, length, …) with the weights of its route."""
        groups, routes = self._now.groups, self._now.routes
        if len(groups) == 1:
            # as it is: a call with other shapes may round otherwise
            [whole] = self._run([x], routes)
            return whole
        return join(self._run(self._now.split(x), routes), groups, x.shape[:2])

    def _run(self, parts: Sequence[Tensor], routes: Sequence[Route]) -> list[Tensor]:
        device = parts[0].device
        packed = self._now.storage is Storage.PACKED
        modules = self._formed(routes, device) if packed else self.materialised(routes, device)
        return [module(part) for module, part in zip(modules, parts, strict=True)]

    def materialised(self, routes: Sequence[Route], device: torch.device) -> list[nn.Module]:
        """Return the module with the weights of each route, formed when first asked for."""
        new = [route for route in routes if str(route) not in self.sets]
        for route, module in zip(new, self._formed(new, device) if new else [], strict=True):
            self.sets[str(route)] = module
        return [self.sets[str(route)] for route in routes]

    def _formed(self, routes: Sequence[Route], device: torch.device) -> list[nn.Module]:
        modules = [_emptied(self._form[0]) for _ in routes]
        for own, name in self._names.items():
            shape = self._weights.shape(name)
            count = torch.Size(shape).numel()
            # what is kept is formed once: what it is formed of need not be on the device
            place = device if self._now.storage is Storage.PACKED else CPU
            rows = [torch.empty(count, dtype=self._weights.dtype, device=place) for _ in routes]
            self._weights.form_all(name, routes, 0, count, rows)
            for module, row in zip(modules, rows, strict=True):
                tensor = row.reshape(shape).to(device)
                setattr(module, own, nn.Parameter(tensor, requires_grad=False))
        return modules


def _emptied(module: nn.Module) -> nn.Module:
    """Return a copy of a module without its parameters."""
    copy: nn.Module = module.__new__(type(module))
    copy.__dict__ = {**module.__dict__, "_parameters": dict.fromkeys(module._parameters)}
    return copy


class RoutedLinear(Routed):
    """A linear map; packed, some rows are formed at a time and then need not leave the cache."""

    def _run(self, parts: Sequence[Tensor], routes: Sequence[Route]) -> list[Tensor]:
        if self._now.storage is Storage.MATERIALISED:
            return super()._run(parts, routes)
        rows, width = self._weights.shape(self._names["weight"])
        device = parts[0].device
        out = [x.new_empty((*x.shape[:-1], rows)) for x in parts]
        step = max(1, block(device) // (width * len(routes)))
        room = self._weights.room(len(routes) * min(rows, step) * width, device)
        sets = room.view(len(routes), -1)
        for first in range(0, rows, step):
            stop = min(rows, first + step)
            formed = sets[:, : (stop - first) * width].unbind()
            span = first * width, stop * width
            self._weights.form_all(self._names["weight"], routes, *span, formed)
            for x, whole, matrix in zip(parts, out, formed, strict=True):
                whole[..., first:stop] = nn.functional.linear(x, matrix.view(-1, width))
        return self._biased(out, routes)

    def _biased(self, parts: list[Tensor], routes: Sequence[Route]) -> list[Tensor]:
        if name := self._names.get("bias"):
            for part, route in zip(parts, routes, strict=True):
                part += self._weights.form(name, route, device=part.device)
        return parts
