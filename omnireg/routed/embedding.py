"""Embedding and head of the joint vocabulary."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from omnireg.backbones.alignment import EMBEDDING, HEAD
from omnireg.checkpoints.shards import read_header
from omnireg.checkpoints.tensors import as_tensor
from omnireg.package.layout import SHELL
from omnireg.routed.layers import Pass, Storage, block, join
from omnireg.routed.routes import Route
from omnireg.routed.vocabulary import JointVocabulary, Run
from omnireg.routed.weights import CPU, Weights


class Matrix:
    """The rows of an embedding or a head for any route, shared ones and those of one host."""

    def __init__(self, tensor: str, vocabulary: JointVocabulary, weights: Weights) -> None:
        """Choose the embedding or the head by its name in the base."""
        self._tensor, self._vocabulary, self._weights = tensor, vocabulary, weights
        self._owned: dict[tuple[str, str], Tensor] = {}
        base = EMBEDDING if tensor == EMBEDDING else vocabulary.base_head()
        self.height, self.width = weights.shape(base)
        self._base = [Run(False, base, 0, self.height)]

    def runs(self, model: str | None) -> Sequence[Run]:
        """Return the rows as they lie in a host; in the base without one."""
        if model is None:
            return self._base
        return self._vocabulary.runs(self._vocabulary.package.models[model], self._tensor)

    def rows(self, route: Route, start: int, stop: int, device: torch.device) -> Tensor:
        """Return rows ``start`` to ``stop`` of the host that a route is of, else of the base."""
        parts, at = [], 0
        for run in self.runs(route.model):
            first, last = max(start, at), min(stop, at + run.stop - run.start)
            if first < last:
                begin = run.start + first - at
                part = Run(run.own, run.tensor, begin, begin + last - first)
                parts.append(self._part(route, part, device))
            at += run.stop - run.start
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _part(self, route: Route, run: Run, device: torch.device) -> Tensor:
        if run.own:
            return self.own(str(route.model), run).to(device)
        first, last = run.start * self.width, run.stop * self.width
        return self._weights.form(run.tensor, route, first, last, device).view(-1, self.width)

    def own(self, model: str, run: Run) -> Tensor:
        """Return rows that only one host has."""
        key = (model, run.tensor)
        if key not in self._owned:
            package = self._vocabulary.package
            header = read_header(package.host_folder(package.models[model]) / SHELL)[run.tensor]
            found = as_tensor(package.read(header), header)
            self._owned[key] = found.to(self._weights.dtype, copy=True)
            package.read.check()
        return self._owned[key][run.start : run.stop]

    def base_rows(self, route: Route, rows: Sequence[int]) -> Tensor:
        """Return some of the base's rows."""
        return self._weights.rows(self._base[0].tensor, route, rows)


class Embedding(nn.Module):
    """Embeddings of joint ids. Rows are formed when they are looked up; none are kept."""

    own: Tensor
    base_row: Tensor
    own_row: Tensor

    def __init__(self, vocabulary: JointVocabulary, weights: Weights, now: Pass) -> None:
        """Read the rows that only one host has."""
        super().__init__()
        matrix = Matrix(EMBEDDING, vocabulary, weights)
        own = [
            matrix.own(model, run)
            for model in vocabulary.package.models
            for run in matrix.runs(model)
            if run.own
        ]
        none = torch.empty(0, matrix.width, dtype=weights.dtype)
        self.register_buffer("own", torch.cat([none, *own]), persistent=False)
        self.register_buffer("base_row", vocabulary.base_row, persistent=False)
        self.register_buffer("own_row", vocabulary.own_row, persistent=False)
        self._matrix, self._now = matrix, now

    def forward(self, ids: Tensor) -> Tensor:
        """Return (batch, length, width) of ids (batch, length)."""
        groups = self._now.groups
        parts = [self._look_up(group.route, ids.flatten()[group.places]) for group in groups]
        return join(parts, groups, ids.shape)

    def _look_up(self, route: Route, ids: Tensor) -> Tensor:
        wanted, place = torch.unique(self.base_row[ids], return_inverse=True)
        found = self._matrix.base_rows(route, wanted.tolist()).to(ids.device)[place]
        own = self.own_row[ids]
        found[own >= 0] = self.own[own[own >= 0]]
        return found


class Head(nn.Module):
    """Logits over the joint vocabulary.

    A token can only be followed by what the host of its route knows; the rest is -inf.
    """

    def __init__(self, vocabulary: JointVocabulary, weights: Weights, now: Pass) -> None:
        """Form nothing yet."""
        super().__init__()
        self._matrix = Matrix(HEAD, vocabulary, weights)
        self._size, self._now = vocabulary.size, now
        self._columns = vocabulary.columns
        self.sets = nn.ParameterDict()

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, kept, size) of hidden states (batch, kept, width)."""
        groups, flat = self._now.kept, x.flatten(0, 1)
        parts = []
        for group in groups:
            taken = flat[group.places]
            own = self._multiply(group.route, taken)
            columns = self._columns[group.route.model].to(x.device)
            every = own.new_full((len(taken), self._size), -torch.inf)
            every[:, columns] = own
            parts.append(every)
        return join(parts, groups, x.shape[:2])

    def _multiply(self, route: Route, x: Tensor) -> Tensor:
        height = len(self._columns[route.model])
        if self._now.storage is Storage.MATERIALISED:
            return nn.functional.linear(x, self.materialised(route, x.device))
        step = max(1, block(x.device) // self._matrix.width)
        out = x.new_empty(len(x), height)
        for first in range(0, height, step):
            stop = min(height, first + step)
            rows = self._matrix.rows(route, first, stop, x.device)
            out[:, first:stop] = nn.functional.linear(x, rows)
        return out

    def materialised(self, route: Route, device: torch.device) -> Tensor:
        """Return the whole matrix of a route, formed when first asked for."""
        key = str(route)
        if key not in self.sets:
            rows = self._matrix.rows(route, 0, len(self._columns[route.model]), CPU)
            self.sets[key] = nn.Parameter(rows.to(device), requires_grad=False)
        found: Tensor = self.sets[key]
        return found
