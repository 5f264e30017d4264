"""From a recipe to a plan: what will be read, merged, carried and written, from headers alone.

Everything that can be wrong with a recipe or with the way its checkpoints fit together is found
here, before a byte of weights is read or written.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from omnireg.backbone import (
    EMBEDDING,
    HEAD,
    Alignment,
    BackboneReader,
    LanguageModel,
    align,
    find_language_model,
)
from omnireg.checkpoint import open_checkpoint
from omnireg.errors import ConfigError, PlanError, did_you_mean
from omnireg.hookspecs import ListedModel, Scope
from omnireg.host import PluginHost, Strategy
from omnireg.loading import check_complete
from omnireg.recipe import Output, Recipe

if TYPE_CHECKING:
    from mergekit.merge_methods.base import MergeMethodSpec, ParameterSpec

Signature = tuple[str, tuple[int, ...]]
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
_LISTED = get_args(ListedModel)[1]


class Shape(StrEnum):
    """What the result is: a text backbone, one host around it, or whole models merged."""

    BACKBONE = "backbone"
    HOST = "host"
    WHOLE = "whole"


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


@dataclass(frozen=True)
class Plan:
    """A merge that is known to fit.

    Attributes:
        inputs: in the order of the recipe, an unlisted base last (as mergekit takes them).
        reference: the language model in whose layout the backbones are merged.
        host: whose encoders the result carries (shape ``host`` and ``whole``).
        planned_by_mergekit: the recipe asks for what only mergekit's own planner does (slices,
            modules, tokenizer surgery), on text models.
    """

    recipe: Recipe
    strategy: Strategy
    inputs: tuple[Input, ...]
    reference: LanguageModel
    shape: Shape
    host: LanguageModel | None
    planned_by_mergekit: bool = False

    @cached_property
    def own_head(self) -> bool:
        """Whether the merged backbone needs a head beside its embedding."""
        return not self.reference.tied or not all(i.model.tied_in_effect for i in self.inputs)

    @cached_property
    def tensors(self) -> dict[str, Signature]:
        """Dtype and shape of every merged tensor, by the name it is merged under."""
        names = [name for name in self.reference.tensors if name != HEAD]
        names += [HEAD] if self.own_head else []
        names += self.reference.carried if self.shape is Shape.WHOLE else ()
        return {name: self._signature(name) for name in names}

    @cached_property
    def optional(self) -> frozenset[str]:
        """Names that some input explainably lacks."""
        return frozenset(n for i in self.inputs for n in i.alignment.absent if n != HEAD)

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
        return sorted(self.host.layout.senses) if self.host else []

    def _signature(self, name: str) -> Signature:
        dtype = self.recipe.out_dtype or self.recipe.dtype
        if name in self.reference.carried:
            header = self.reference.checkpoint.tensors[name]
            return _DTYPES[dtype] if dtype else header.dtype, header.shape
        having = [
            i.alignment for i in self.inputs if name not in i.alignment.absent or name == HEAD
        ]
        signatures = [BackboneReader(alignment).signature(name) for alignment in having]
        return _DTYPES[dtype] if dtype else promoted([s[0] for s in signatures]), signatures[0][1]


def promoted(dtypes: list[str]) -> str:
    """Return the dtype that holds all of these, as torch promotes them."""
    kinds = set(dtypes)
    if len(kinds) == 1:
        return dtypes[0]
    return "F64" if "F64" in kinds else "F32"


def plan(recipe: Recipe, host: PluginHost | None = None) -> Plan:
    """Plan a merge.

    Raises:
        ConfigError: the method, a parameter or the ``omnireg:`` block is wrong.
        CheckpointError: an input is missing or damaged.
        PlanError: the inputs do not fit together.
    """
    host = host or PluginHost()
    strategy = _strategy(recipe, host)
    spec = strategy.load().spec
    _check_dtypes(recipe)
    _check_inputs(recipe, strategy)
    check_parameters(recipe, spec)
    if _needs_mergekit_planner(recipe):
        return _left_to_mergekit(recipe, strategy, host)
    models = {ref: open_model(ref, host) for ref in recipe.references}
    reference = models[recipe.base_model or recipe.references[0]]
    inputs = tuple(
        Input(ref, "base" if ref == recipe.base_model else "model", align(models[ref], reference))
        for ref in _order(recipe)
    )
    return _shaped(recipe, strategy, inputs, reference, host)


def _shaped(
    recipe: Recipe,
    strategy: Strategy,
    inputs: tuple[Input, ...],
    reference: LanguageModel,
    host: PluginHost,
) -> Plan:
    wanted, carrier = recipe.omnireg.output, recipe.omnireg.host
    hosts = [i for i in inputs if i.model.is_host]
    classes = {i.model.checkpoint.architecture for i in inputs}
    if wanted is Output.PACKAGE:
        raise ConfigError("omnireg.output: package is not supported yet; use host or backbone")
    if recipe.omnireg.modalities or recipe.omnireg.base != "embed":
        raise ConfigError("omnireg.modalities and omnireg.base are for output: package; drop them")
    if wanted is Output.BACKBONE and carrier:
        raise ConfigError("omnireg.host is given but omnireg.output is backbone; drop one of them")
    if wanted is Output.HOST or carrier:
        if carrier is None and len(hosts) != 1:
            listed = ", ".join(i.ref for i in hosts) or "none of the inputs is one"
            raise ConfigError(f"omnireg.output: host needs omnireg.host; choose a host: {listed}")
        chosen = _host_of(carrier or hosts[0].ref, inputs, reference, host)
        _check_host_dtype(recipe, chosen)
        return Plan(recipe, strategy, inputs, reference, Shape.HOST, chosen)
    if wanted is None and len(classes) == 1 and hosts:
        _check_same_parts(inputs)
        _check_host_dtype(recipe, reference)
        return Plan(recipe, strategy, inputs, reference, Shape.WHOLE, reference)
    return Plan(recipe, strategy, inputs, reference, Shape.BACKBONE, None)


def _host_of(
    ref: str, inputs: tuple[Input, ...], reference: LanguageModel, host: PluginHost
) -> LanguageModel:
    wanted = same_place(ref)
    known = next((i.model for i in inputs if same_place(i.ref) == wanted), None)
    model = known or open_model(ref, host)
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


def open_model(ref: str, host: PluginHost) -> LanguageModel:
    """Open a checkpoint, make sure it is complete, and find its language model.

    Raises:
        CheckpointError: missing, damaged or incomplete.
        PlanError: a class or a tensor that cannot be explained.
    """
    checkpoint = open_checkpoint(ref)
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


def same_place(ref: str) -> str:
    """Return a reference in a form that is equal for equal folders."""
    path = Path(ref).expanduser()
    return os.path.realpath(path) if path.exists() else ref


def check_parameters(recipe: Recipe, spec: "MergeMethodSpec") -> None:
    """Check every parameter of a recipe against the method's declaration.

    Raises:
        ConfigError: unknown, in the wrong place, out of range, missing, or a whole-model scope
            that this engine cannot serve.
    """
    known = {parameter.name: parameter for parameter in spec.parameters}
    for where, block in recipe.parameter_blocks():
        of_a_model = "models[" in where or "sources[" in where
        for name, setting in block.items():
            if name not in known:
                hint = did_you_mean(name, known) or f"; it has {', '.join(known) or 'none'}"
                raise ConfigError(f"{where}: {spec.name} has no parameter {name!r}{hint}")
            if of_a_model and known[name].scope == "shared":
                raise ConfigError(
                    f"{where}: {name!r} is one value for the whole merge; move it to the top-level"
                    " parameters"
                )
            for value in _leaves(setting, f"{where}.{name}"):
                _check_value(recipe, known[name], value, f"{where}.{name}")
    for parameter in spec.parameters:
        _check_present(recipe, parameter)


def _leaves(setting: Any, where: str) -> Iterator[Any]:
    """Yield the plain values of a setting: itself, a gradient's, or each condition's."""
    if isinstance(setting, list):
        for item in setting:
            yield from _leaves(item, where)
    elif isinstance(setting, Mapping):
        unknown = set(setting) - {"filter", "value"}
        if unknown or "value" not in setting:
            raise ConfigError(f"{where}: a condition has the keys value and (optional) filter")
        yield from _leaves(setting["value"], where)
    else:
        yield setting


def _check_value(recipe: Recipe, parameter: "ParameterSpec", value: Any, where: str) -> None:
    try:
        valid = parameter.validate(value)
    except ValidationError as exc:
        raise ConfigError(f"{where}: {value!r}: {exc.errors()[0]['msg']}") from exc
    if valid is Scope.MODEL:
        raise ConfigError(
            f"{where}: model needs a first pass over all weights, which only the streaming engine"
            f" makes; use {parameter.name}: tensor"
        )
    if names_a_model(parameter) and valid is not None:
        listed = [entry.model for entry in recipe.merged_models]
        if same_place(valid) not in [same_place(ref) for ref in listed]:
            raise ConfigError(
                f"{where}: {value!r} is not a listed model; choose one of: {', '.join(listed)}"
            )


def names_a_model(parameter: "ParameterSpec") -> bool:
    """Whether a parameter's type is :data:`omnireg.hookspecs.ListedModel`, optional or not."""
    kinds = (parameter.value_type, *get_args(parameter.value_type))
    return any(_LISTED in get_args(kind)[1:] for kind in kinds)


def _check_present(recipe: Recipe, parameter: "ParameterSpec") -> None:
    if not parameter.required or parameter.name in (recipe.parameters or {}):
        return
    for entry in recipe.models or ():
        is_base = entry.model == recipe.base_model
        if parameter.scope == "non_base" and is_base:
            continue
        if parameter.scope == "shared" or parameter.name not in (entry.parameters or {}):
            raise ConfigError(
                f"{recipe.merge_method} needs the parameter {parameter.name!r}"
                + ("" if parameter.scope == "shared" else f" for {entry.model}")
            )


def _needs_mergekit_planner(recipe: Recipe) -> bool:
    return bool(
        recipe.slices
        or recipe.modules
        or recipe.tokenizer
        or recipe.tokenizer_source
        or recipe.chat_template
        or any("+" in ref for ref in recipe.references)
    )


def _left_to_mergekit(recipe: Recipe, strategy: Strategy, host: PluginHost) -> Plan:
    """Slices, modules, tokenizer surgery and adapters, on text models, are mergekit's to plan."""
    inputs, found = [], {}
    for ref in recipe.references:
        plain = ref.partition("+")[0]
        found[ref] = model = open_model(plain, host)
        if model.is_host:
            raise ConfigError(
                f"{ref} is a multimodal host, and mergekit loses a host's language model with"
                " slices, modules, tokenizer surgery or adapters; extract its backbone first:"
                f" omnireg backbone extract {plain} OUT"
            )
        role = "base" if ref == recipe.base_model else "model"
        inputs.append(Input(ref, role, align(model, model)))
    reference = found[recipe.base_model or recipe.references[0]]
    return Plan(recipe, strategy, tuple(inputs), reference, Shape.BACKBONE, None, True)
