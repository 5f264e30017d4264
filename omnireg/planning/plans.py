"""A merge that is known to fit: what is merged from where, under which name, in which dtype."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from omnireg.backbones.alignment import HEAD, LAYER, Alignment, LanguageModel
from omnireg.backbones.sources import Source, aligned, source
from omnireg.checkpoints.checkpoint import Checkpoint
from omnireg.planning.parameters import Resolver, names_a_model, same_place
from omnireg.plugins.host import Strategy
from omnireg.recipe import Recipe

Signature = tuple[str, tuple[int, ...]]
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


class Shape(StrEnum):
    """What the result is: a text backbone, one host around it, whole models merged, a package."""

    BACKBONE = "backbone"
    HOST = "host"
    WHOLE = "whole"
    PACKAGE = "package"


@dataclass(frozen=True)
class Input:
    """One checkpoint of a plan, lined up with the model whose layout the merge uses."""

    ref: str
    role: str
    alignment: Alignment

    @property
    def model(self) -> LanguageModel:
        """The checkpoint's language model."""
        return self.alignment.model


class Engine(StrEnum):
    """Who runs a plan."""

    STREAM = "stream"
    MERGEKIT = "mergekit"


@dataclass(frozen=True)
class Merged:
    """One tensor that is merged.

    Attributes:
        dtype: in which it is written, by its safetensors name.
        sources: the inputs that have it, in the order of the recipe.
        position: of its layer, from 0 to 1; 0 outside the layers.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    sources: tuple[Source, ...]
    position: float


@dataclass(frozen=True)
class Plan:
    """A merge that is known to fit.

    Attributes:
        inputs: in the order of the recipe, an unlisted base last (as mergekit takes them).
        reference: the language model in whose layout the backbones are merged.
        host: whose encoders the result carries (shape ``host`` and ``whole``).
        senses: of a package, the model of every modality.
        planned_by_mergekit: the recipe asks for what only mergekit's own planner does (slices,
            modules, tokenizer surgery), on text models.
    """

    recipe: Recipe
    strategy: Strategy
    inputs: tuple[Input, ...]
    reference: LanguageModel
    shape: Shape
    host: LanguageModel | None
    engine: Engine = Engine.STREAM
    planned_by_mergekit: bool = False
    senses: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def own_head(self) -> bool:
        """Whether the merged backbone needs a head beside its embedding."""
        return not self.reference.tied or not all(i.model.tied_in_effect for i in self.inputs)

    @cached_property
    def merged(self) -> dict[str, Merged]:
        """Every merged tensor, by the name it is merged under."""
        names = [name for name in self.reference.tensors if name != HEAD]
        names += [HEAD] if self.own_head else []
        names += self.reference.carried if self.shape is Shape.WHOLE else ()
        return {name: self._merged(name) for name in names}

    @property
    def tensors(self) -> dict[str, Signature]:
        """Dtype and shape of every merged tensor."""
        return {name: (tensor.dtype, tensor.shape) for name, tensor in self.merged.items()}

    @cached_property
    def optional(self) -> frozenset[str]:
        """Names that some input explainably lacks."""
        return frozenset(n for i in self.inputs for n in i.alignment.absent if n != HEAD)

    def checkpoint(self, ref: str) -> Checkpoint:
        """Return a parent's checkpoint by its reference."""
        found = next((item.model for item in self.inputs if item.ref == ref), self.host)
        assert found is not None
        return found.checkpoint

    @property
    def parents(self) -> list[tuple[str, str, float | None]]:
        """Return (reference, role, weight) of every direct parent."""
        found = [(i.ref, i.role, self._weight(i)) for i in self.inputs]
        if self.shape is Shape.HOST and self.host is not None:
            found.append((self.host.checkpoint.ref, "host", None))
        return found

    def _weight(self, item: Input) -> float | None:
        """The weight of one input, where the method has such a parameter and it is one number."""
        spec = self.strategy.load().spec
        declared = next((p for p in spec.parameters if p.name == "weight"), None)
        if declared is None:
            return None
        entry = next((e for e in self.recipe.models or () if e.model == item.ref), None)
        if item.role == "base" and not (entry and "weight" in (entry.parameters or {})):
            return None  # a base that only stands by has no weight of its own
        default = None if declared.required else declared.default
        blocks = ((entry and entry.parameters) or {}, self.recipe.parameters or {})
        weight = next((block["weight"] for block in blocks if "weight" in block), default)
        return float(weight) if isinstance(weight, int | float) else None

    @property
    def modalities(self) -> list[str]:
        """What the result takes in besides text."""
        return sorted(self.host.layout.senses if self.host else self.senses)

    @cached_property
    def resolver(self) -> Resolver:
        """What gives every tensor its parameters."""
        order = [item.ref for item in self.inputs]
        return Resolver(self.recipe, self.strategy.load().spec, order)

    def _merged(self, name: str) -> Merged:
        sources = tuple(s for item in self.inputs if (s := self._source(item, name)))
        dtype = self.recipe.out_dtype or self.recipe.dtype
        code = DTYPES[dtype] if dtype else promoted([s.dtype for s in sources])
        return Merged(name, code, sources[0].shape, sources, self._position(name))

    def _source(self, item: Input, name: str) -> Source | None:
        """Where an input has a tensor; None where it explainably lacks it."""
        if name in self.reference.carried:
            return source(item.ref, item.model.checkpoint.tensors[name])
        if name in item.alignment.absent and name != HEAD:
            return source(item.ref, self.reference.header(name)) if self._is_named(item) else None
        return aligned(item.ref, item.alignment, name)

    def _is_named(self, item: Input) -> bool:
        """Whether a parameter names this input, so that it must have every tensor.

        Where it has none its task vector is zero, and so is the base's own copy's.
        """
        named = [p.name for p in self.strategy.load().spec.parameters if names_a_model(p)]
        chosen = [v for n in named if isinstance(v := (self.recipe.parameters or {}).get(n), str)]
        return same_place(item.ref) in [same_place(ref) for ref in chosen]

    def _position(self, name: str) -> float:
        """Where a tensor stands between the first layer, 0, and the last, 1."""
        layer = LAYER.search(name) if name in self.reference.tensors else None
        if not layer:
            return 0.0
        return int(layer[1]) / (self.reference.depth - 1) if self.reference.depth > 1 else 1.0


def promoted(dtypes: list[str]) -> str:
    """Return the dtype that holds all of these, as torch promotes them."""
    kinds = set(dtypes)
    if len(kinds) == 1:
        return dtypes[0]
    return "F64" if "F64" in kinds else "F32"
