"""A recipe's parameters: checked against the method's declaration, resolved for every tensor."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import TypeAdapter, ValidationError

from omnireg.errors import ConfigError, did_you_mean
from omnireg.hookspecs import ListedModel, Scope
from omnireg.plugins.isolation import contained, reason
from omnireg.recipe import Recipe

if TYPE_CHECKING:
    from mergekit.merge_methods.base import MergeMethodSpec, ParameterSpec

_LISTED = get_args(ListedModel)[1]


def check_parameters(recipe: Recipe, spec: "MergeMethodSpec", *, first_pass: bool) -> None:
    """Check every parameter of a recipe against the method's declaration.

    Raises:
        ConfigError: unknown, in the wrong place, out of range, missing, or a whole-model scope
            where the engine makes no ``first_pass`` over the weights.
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
                valid = _check_value(recipe, known[name], value, f"{where}.{name}")
                if valid is Scope.MODEL and not first_pass:
                    raise _no_first_pass(name, f"{where}.{name}")
    for parameter in spec.parameters:
        _check_present(recipe, parameter)


def _leaves(setting: Any, where: str) -> Iterator[Any]:
    """Yield the plain values of a setting: itself, a gradient's, or each condition's."""
    conditions = _conditions(setting)
    for condition in conditions:
        yield from _plain(_value_of(condition, where), where)
    if not conditions:
        yield from _plain(setting, where)


def _conditions(setting: Any) -> list[Any]:
    """Return the conditions of a setting; a value and a gradient have none."""
    items = setting if isinstance(setting, list) else [setting]
    return items if any(isinstance(item, Mapping) for item in items) else []


def _value_of(condition: Any, where: str) -> Any:
    """Return what a parameter is where the filter of a condition fits."""
    if not isinstance(condition, Mapping) or {"value"} != set(condition) - {"filter"}:
        raise ConfigError(f"{where}: a condition has the keys value and (optional) filter")
    found = condition.get("filter")
    if not isinstance(found, str | None):
        raise ConfigError(f"{where}: filter: {found!r} is no part of a tensor's name")
    return condition["value"]


def _plain(setting: Any, where: str) -> Iterator[Any]:
    """Yield a value, or those of a gradient over the layers."""
    values = setting if isinstance(setting, list) else [setting]
    if not values or any(isinstance(value, list | Mapping) for value in values):
        raise ConfigError(
            f"{where}: {setting!r}: give one value, a list of values for a gradient over the"
            " layers, or conditions"
        )
    yield from values


def idle_filters(recipe: Recipe, tensors: Iterable[str]) -> Iterator[str]:
    """Say of every filter of a checked recipe that no tensor's name has in it what it may mean."""
    names = list(tensors)
    parts = sorted({part for name in names for part in name.split(".")})
    for where, block in recipe.parameter_blocks():
        for name, setting in block.items():
            for condition in _conditions(setting):
                wanted = condition.get("filter")
                if wanted not in (None, "*") and not any(wanted in tensor for tensor in names):
                    yield (
                        f"{where}.{name}: no tensor has {wanted!r} in its name, so this filter does"
                        f" nothing{did_you_mean(wanted, parts)}"
                    )


def _no_first_pass(name: str, where: str) -> ConfigError:
    return ConfigError(
        f"{where}: model needs a first pass over all weights, which only the streaming engine"
        f" makes, for strategies that have one; use {name}: tensor"
    )


def _check_value(recipe: Recipe, parameter: "ParameterSpec", value: Any, where: str) -> Any:
    valid = _valid(parameter, value, f"{where}: {value!r}")
    if isinstance(value, bool) and type(valid) in (int, float):
        raise ConfigError(f"{where}: {str(value).lower()}: Input should be a number")
    if names_a_model(parameter) and valid is not None:
        listed = [entry.model for entry in recipe.merged_models]
        if same_place(valid) not in [same_place(ref) for ref in listed]:
            raise ConfigError(
                f"{where}: {value!r} is not a listed model; choose one of: {', '.join(listed)}"
            )
    return valid


def _valid(parameter: "ParameterSpec", value: Any, where: str) -> Any:
    """Return a value as the method's type takes it; that type may be a plugin's own code.

    Raises:
        ConfigError: it does not.
    """
    try:
        with contained():
            return parameter.validate(value)
    except ValidationError as exc:
        raise ConfigError(f"{where}: {exc.errors()[0]['msg']}") from exc
    except KeyboardInterrupt:
        raise
    except BaseException as exc:
        raise ConfigError(f"{where}: {reason(exc)}") from exc


def names_a_model(parameter: "ParameterSpec") -> bool:
    """Whether a parameter's type is :data:`omnireg.hookspecs.ListedModel`, optional or not."""
    kinds = (parameter.value_type, *get_args(parameter.value_type))
    return any(_LISTED in get_args(kind)[1:] for kind in kinds)


_REFERENCES = ("model", "base_model", "tokenizer_source", "source", "host", "modalities")


def relocated(data: Any, spec: "MergeMethodSpec", places: Mapping[str, str]) -> Any:
    """Return a recipe's data with every reference to a checkpoint replaced by its place."""
    by_place = {same_place(ref): target for ref, target in places.items()}
    keys = {*_REFERENCES, *(p.name for p in spec.parameters if names_a_model(p))}

    def walk(node: Any, is_reference: bool) -> Any:
        if isinstance(node, Mapping):
            return {key: walk(value, is_reference or key in keys) for key, value in node.items()}
        if isinstance(node, list):
            return [walk(value, is_reference) for value in node]
        named = is_reference and isinstance(node, str)
        return by_place.get(same_place(node), node) if named else node

    return {key: walk(value, key in keys) for key, value in data.items()}


def _check_present(recipe: Recipe, parameter: "ParameterSpec") -> None:
    if not parameter.required or parameter.name in (recipe.parameters or {}):
        return
    if parameter.scope == "shared":
        raise ConfigError(f"{recipe.merge_method} needs the parameter {parameter.name!r}")
    own = {entry.model: entry.parameters or {} for entry in recipe.models or ()}
    if recipe.base_model and parameter.scope == "input" and recipe.models is not None:
        own.setdefault(recipe.base_model, {})
    for ref, block in own.items():
        if parameter.scope == "non_base" and ref == recipe.base_model:
            continue
        if parameter.name not in block:
            unlisted = ref == recipe.base_model and ref not in recipe.listed
            hint = ", which counts as one of its models: list it, or drop base_model"
            raise ConfigError(
                f"{recipe.merge_method} needs the parameter {parameter.name!r} for {ref}"
                f"{hint if unlisted else ''}"
            )


def same_place(ref: str) -> str:
    """Return a reference in a form that is equal for equal folders."""
    path = Path(ref).expanduser()
    return os.path.realpath(path) if path.exists() else ref


@dataclass(frozen=True)
class Bound:
    """The values of a method's parameters for one tensor.

    Attributes:
        shared: one value for the whole merge, by parameter.
        per_input: by reference of an input, then by parameter.
    """

    shared: Mapping[str, Any]
    per_input: Mapping[str, Mapping[str, Any]]


class Resolver:
    """Resolves a recipe's parameters as mergekit does: per model, by filter and by gradient.

    mergekit's resolver is asked only where a setting has filters or gradients, since importing it
    takes seconds; plain values are the same for every tensor.
    """

    def __init__(self, recipe: Recipe, spec: "MergeMethodSpec", order: Sequence[str]) -> None:
        """Prepare for the inputs in ``order``, an unlisted base last."""
        self._spec, self._order, self._base = spec, order, recipe.base_model
        own = {entry.model: entry.parameters or {} for entry in recipe.models or ()}
        self._own = {ref: self._by_ref(own.get(ref, {})) for ref in order}
        self._shared = self._by_ref(recipe.parameters or {})
        settings = [v for block in (self._shared, *self._own.values()) for v in block.values()]
        self._plain = not any(isinstance(setting, list | Mapping) for setting in settings)

    def _by_ref(self, block: Mapping[str, Any]) -> dict[str, Any]:
        """Return a block of parameters in which a model has the name that its entry has."""
        return dict(relocated(block, self._spec, {ref: ref for ref in self._order}))

    def bind(self, tensor: str, position: float) -> Bound:
        """Return the values for a tensor at ``position`` in the layers, 0 first and 1 last."""
        return self._bound_once if self._plain else self._resolved(tensor, position)

    @cached_property
    def _bound_once(self) -> Bound:
        def value(parameter: "ParameterSpec", *blocks: Mapping[str, Any]) -> Any:
            for block in blocks:
                if parameter.name in block:
                    given = block[parameter.name]
                    return _valid(parameter, given, f"{self._spec.name}: {parameter.name!r}")
            where = f"{self._spec.name}: the default of {parameter.name!r}"
            return _valid(parameter, parameter.default, where)

        per_input = {
            ref: {
                p.name: value(p, own, self._shared)
                for p in self._spec.input_parameters
                if ref != self._base or p.scope == "input"
            }
            for ref, own in self._own.items()
        }
        return Bound(
            {p.name: value(p, self._shared) for p in self._spec.shared_parameters}, per_input
        )

    def _resolved(self, tensor: str, position: float) -> Bound:
        from mergekit.parameter_resolver import resolve_parameters

        shared, own = self._settings
        named: Any = resolve_parameters(
            self._spec,
            tensor_name=tensor,
            inputs=dict.fromkeys(self._order, tensor),
            sources=lambda ref: (own[ref], shared) if ref is not None else (shared,),
            base_model=self._base,
            t=position,
        )
        return Bound(*named)

    @cached_property
    def _settings(self) -> tuple[Any, dict[str, Any]]:
        """The blocks as mergekit's own types."""
        from mergekit.config import ParameterSetting

        read = TypeAdapter(dict[str, ParameterSetting]).validate_python
        return read(self._shared), {ref: read(block) for ref, block in self._own.items()}
