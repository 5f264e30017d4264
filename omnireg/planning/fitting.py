"""Whether the checkpoints of a recipe fit together, and how."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property, partial
from pathlib import Path

from omnireg.alignment import (
    EMBEDDING,
    HEAD,
    LAYER,
    Alignment,
    LanguageModel,
    align,
    find_language_model,
)
from omnireg.checkpoint import Checkpoint, open_checkpoint
from omnireg.errors import ConfigError, PlanError, did_you_mean
from omnireg.host import PluginHost, Strategy
from omnireg.loading import check_complete
from omnireg.planning.packages import check_one_dtype, check_package, senses_of
from omnireg.planning.parameters import Resolver, check_parameters, names_a_model, same_place
from omnireg.recipe import Output, Recipe, as_recipe
from omnireg.sources import Source, aligned, source

Signature = tuple[str, tuple[int, ...]]
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


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


Opening = Callable[[str], LanguageModel]


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
        code = _DTYPES[dtype] if dtype else promoted([s.dtype for s in sources])
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


def plan(
    recipe: Recipe | Path | str,
    host: PluginHost | None = None,
    *,
    engine: str = "auto",
    weights: bool = True,
) -> Plan:
    """Plan a merge.

    Args:
        recipe: a recipe, the path of one, or its YAML text.
        host: plugins to use; all installed ones when None.
        engine: ``stream``, ``mergekit``, or ``auto``: stream for all that it can plan.
        weights: fetch the weights of inputs on the Hub; else headers alone, which are enough to
            know whether they fit, not to merge.

    Raises:
        ConfigError: the method, a parameter or the ``omnireg:`` block is wrong.
        CheckpointError: an input is missing or damaged.
        PlanError: the inputs do not fit together.
    """
    recipe, _ = as_recipe(recipe)
    host = host or PluginHost()
    strategy = _strategy(recipe, host)
    spec = strategy.load().spec
    reasons = what_only_mergekit_plans(recipe)
    chosen = _engine(engine, reasons)
    _check_dtypes(recipe)
    _check_inputs(recipe, strategy)
    surveys = chosen is Engine.STREAM and hasattr(strategy.load(), "survey")
    check_parameters(recipe, spec, first_pass=surveys)
    opened = partial(open_model, host=host, weights=weights)
    if reasons:
        return _left_to_mergekit(recipe, strategy, opened)
    models = {ref: opened(ref) for ref in recipe.references}
    reference = models[recipe.base_model or recipe.references[0]]
    inputs = tuple(
        Input(ref, "base" if ref == recipe.base_model else "model", align(models[ref], reference))
        for ref in _order(recipe)
    )
    return replace(_shaped(recipe, strategy, inputs, reference, opened), engine=chosen)


def _engine(asked: str, reasons: list[str]) -> Engine:
    if asked not in ("auto", *Engine):
        raise ConfigError(
            f"unknown engine {asked!r}{did_you_mean(asked, map(str, Engine))};"
            " use auto, stream or mergekit"
        )
    if asked == Engine.STREAM and reasons:
        raise ConfigError(
            f"the stream engine does not plan {', '.join(reasons)}; use --engine auto"
        )
    return Engine.MERGEKIT if reasons or asked == Engine.MERGEKIT else Engine.STREAM


def _shaped(
    recipe: Recipe,
    strategy: Strategy,
    inputs: tuple[Input, ...],
    reference: LanguageModel,
    opened: Opening,
) -> Plan:
    wanted, carrier = recipe.omnireg.output, recipe.omnireg.host
    hosts = [i for i in inputs if i.model.is_host]
    classes = {i.model.checkpoint.architecture for i in inputs}
    if wanted is Output.PACKAGE:
        check_package(recipe, strategy, reference)
        senses = senses_of(recipe, [i.model for i in inputs if i.role != "base"])
        made = Plan(recipe, strategy, inputs, reference, Shape.PACKAGE, None, senses=senses)
        check_one_dtype({n: (reference.header(n).dtype, t.dtype) for n, t in made.merged.items()})
        return made
    if recipe.omnireg.modalities or recipe.omnireg.base != "embed":
        raise ConfigError("omnireg.modalities and omnireg.base are for output: package; drop them")
    if wanted is Output.BACKBONE and carrier:
        raise ConfigError("omnireg.host is given but omnireg.output is backbone; drop one of them")
    if wanted is Output.HOST or carrier:
        if carrier is None and len(hosts) != 1:
            listed = ", ".join(i.ref for i in hosts) or "none of the inputs is one"
            raise ConfigError(f"omnireg.output: host needs omnireg.host; choose a host: {listed}")
        chosen = _host_of(carrier or hosts[0].ref, inputs, reference, opened)
        _check_host_dtype(recipe, chosen)
        return Plan(recipe, strategy, inputs, reference, Shape.HOST, chosen)
    if wanted is None and len(classes) == 1 and hosts:
        _check_same_parts(inputs)
        _check_host_dtype(recipe, reference)
        return Plan(recipe, strategy, inputs, reference, Shape.WHOLE, reference)
    return Plan(recipe, strategy, inputs, reference, Shape.BACKBONE, None)


def _host_of(
    ref: str, inputs: tuple[Input, ...], reference: LanguageModel, opened: Opening
) -> LanguageModel:
    wanted = same_place(ref)
    known = next((i.model for i in inputs if same_place(i.ref) == wanted), None)
    model = known or opened(ref)
    if not model.is_host:
        raise ConfigError(f"omnireg.host: {ref} is a text model; name one that has encoders")
    align(model, reference)
    return model


def _check_host_dtype(recipe: Recipe, model: LanguageModel) -> None:
    """A host's shards are copied with their headers, so its dtype cannot change on the way."""
    has = model.header(EMBEDDING).dtype
    for key in ("dtype", "out_dtype"):
        asked = getattr(recipe, key)
        if asked and _DTYPES[asked] != has:
            name = next((n for n, code in _DTYPES.items() if code == has), has)
            raise ConfigError(
                f"{key}: {asked}, but {model.checkpoint.ref} is {name} and carries the result; drop"
                f" {key}, or save that checkpoint in {asked} first"
            )


def _check_same_parts(inputs: tuple[Input, ...]) -> None:
    first = inputs[0].model
    for other in (i.model for i in inputs[1:]):
        odd = set(first.carried) ^ set(other.carried)
        if odd:
            raise PlanError(
                f"{first.checkpoint.ref} and {other.checkpoint.ref} are of one class but hold"
                f" different encoder tensors: {', '.join(sorted(odd)[:6])}; save both with the same"
                " version of transformers, or merge backbones (omnireg.output: backbone)"
            )


def open_model(ref: str, host: PluginHost, *, weights: bool = True) -> LanguageModel:
    """Open a checkpoint, make sure it is complete, and find its language model.

    Without ``weights`` only the headers of a checkpoint on the Hub are fetched.

    Raises:
        CheckpointError: missing, damaged or incomplete.
        PlanError: a class or a tensor that cannot be explained.
    """
    checkpoint = open_checkpoint(ref, weights=weights, headers=not weights)
    check_complete(checkpoint)
    return find_language_model(checkpoint, host.layouts)


def _order(recipe: Recipe) -> list[str]:
    listed = [entry.model for entry in recipe.models or ()]
    unlisted = recipe.base_model and recipe.base_model not in listed
    return [*listed, *([recipe.base_model] if unlisted and recipe.base_model else [])]


def _strategy(recipe: Recipe, host: PluginHost) -> Strategy:
    methods = host.methods()
    found = methods.get(recipe.merge_method)
    if found is None:
        broken = "; ".join(f"{p.origin.distribution}: {p.error}" for p in host.broken())
        raise ConfigError(
            f"unknown merge_method {recipe.merge_method!r}"
            f"{did_you_mean(recipe.merge_method, methods)}; see: omnireg strategies"
            + (f" (broken plugins: {broken})" if broken else "")
        )
    return found


def _check_dtypes(recipe: Recipe) -> None:
    for key in ("dtype", "out_dtype"):
        value = getattr(recipe, key)
        if value is not None and value not in _DTYPES:
            hint = did_you_mean(value, _DTYPES)
            raise ConfigError(f"{key}: unknown dtype {value!r}{hint}; use {', '.join(_DTYPES)}")


def _check_inputs(recipe: Recipe, strategy: Strategy) -> None:
    if recipe.models is None:
        return
    places = [same_place(ref) for ref in recipe.references]
    for ref, place in zip(recipe.references, places, strict=True):
        if places.count(place) > 1:
            raise ConfigError(f"{ref!r} is in the recipe under two names; list it once")
    spec = strategy.load().spec
    base = recipe.base_model
    if base is None and spec.contract.base == "required":
        raise ConfigError(
            f"{spec.name} needs base_model: the checkpoint the models were fine-tuned from"
        )
    try:
        spec.contract.validate_ids(_order(recipe), base)
    except ValueError as exc:
        raise ConfigError(f"{spec.name}: {exc}") from exc


def what_only_mergekit_plans(recipe: Recipe) -> list[str]:
    """Return what a recipe asks for that only mergekit's own planner does."""
    asked = {
        "slices": recipe.slices,
        "modules": recipe.modules,
        "tokenizer surgery": recipe.tokenizer or recipe.tokenizer_source,
        "chat_template": recipe.chat_template,
        "LoRA adapters": any("+" in ref for ref in recipe.references),
    }
    return [what for what, given in asked.items() if given]


def _left_to_mergekit(recipe: Recipe, strategy: Strategy, opened: Opening) -> Plan:
    """Slices, modules, tokenizer surgery and adapters, on text models, are mergekit's to plan."""
    inputs, found = [], {}
    for ref in recipe.references:
        plain = ref.partition("+")[0]
        found[ref] = model = opened(plain)
        if model.is_host:
            raise ConfigError(
                f"{ref} is a multimodal host, and mergekit loses a host's language model with"
                " slices, modules, tokenizer surgery or adapters; extract its backbone first:"
                f" omnireg backbone extract {plain} OUT"
            )
        role = "base" if ref == recipe.base_model else "model"
        inputs.append(Input(ref, role, align(model, model)))
    reference = found[recipe.base_model or recipe.references[0]]
    return Plan(
        recipe, strategy, tuple(inputs), reference, Shape.BACKBONE, None, Engine.MERGEKIT, True
    )
