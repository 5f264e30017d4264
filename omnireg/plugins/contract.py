"""What plugins hand over, checked when they do: the values of :mod:`omnireg.hookspecs`."""

import json
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from numbers import Integral, Real
from typing import Any

from omnireg.boundary.text import is_plain, shown
from omnireg.errors import EvaluationError, PluginError
from omnireg.hookspecs import HostLayout, Result, Sense

_LONGEST = 60


def written(value: Any) -> str:
    """Return a value as a message shows it, on one line and not too long."""
    return shown(" ".join(repr(value).split()), _LONGEST)


def is_name(value: Any) -> bool:
    """Whether a value is text that can stand for something on one line."""
    return isinstance(value, str) and bool(value.strip()) and is_plain(value)


# names


def chosen_name(what: str, offered: Any, name: str | None, own: Any) -> str:
    """Return the name that a strategy or an evaluator is registered under.

    Args:
        what: ``strategy`` or ``evaluator``.
        offered: what is registered.
        name: what the plugin calls it.
        own: its own name, if it was not registered lazily.

    Raises:
        PluginError: there is none, or it is no name.
    """
    if isinstance(offered, str):
        if name is None or not name:
            raise PluginError(f"{what} {offered!r} is registered lazily without a name")
        module, _, attribute = offered.partition(":")
        if not module or not attribute:
            raise PluginError(f"{what} {written(offered)} has to be 'module:attribute'")
    found = name or own
    if not is_name(found):
        raise PluginError(f"{what} {written(offered)} has the name {written(found)}, which is none")
    return str(found)


# host layouts


def checked_layout(layout: Any) -> HostLayout:
    """Return a host layout whose values are what they should be.

    Raises:
        PluginError: says which one is not.
    """
    if not isinstance(layout, HostLayout):
        raise PluginError(f"{written(layout)} is no HostLayout")
    if not _is_names(layout.architectures) or not layout.architectures:
        raise _wrong(layout, "architectures", "a tuple of names such as ('MyModel',)")
    for field in ("carried", "ignored"):
        if not _is_names(getattr(layout, field)):
            raise _wrong(layout, field, "a tuple of patterns such as ('vision_tower.*',)")
    if not isinstance(layout.text_architecture, str):
        raise _wrong(layout, "text_architecture", "a name")
    if not isinstance(layout.senses, Mapping) or not all(map(is_name, layout.senses)):
        raise _wrong(layout, "senses", "a mapping from modalities to Sense(…)")
    for modality, sense in layout.senses.items():
        if not _is_sense(sense):
            raise PluginError(
                f"HostLayout for {written(layout.architectures)}: senses[{modality!r}] is"
                f" {written(sense)}; it has to be a Sense with a tuple of config keys and the name"
                " of an argument"
            )
    return layout


def _is_names(value: Any) -> bool:
    """Whether a value is several names; text alone would be taken for its letters."""
    return isinstance(value, tuple | list) and all(map(is_name, value))


def _is_sense(sense: Any) -> bool:
    return isinstance(sense, Sense) and _is_names(sense.placeholder) and is_name(sense.argument)


def _wrong(layout: HostLayout, field: str, wanted: str) -> PluginError:
    return PluginError(
        f"HostLayout for {written(layout.architectures)}: {field} is"
        f" {written(getattr(layout, field))}; it has to be {wanted}"
    )


# results


def checked_result(result: Any, who: str) -> Result:
    """Return a result whose values are what they should be, numbers as Python's own.

    Args:
        result: what was given.
        who: gave it, for messages.

    Raises:
        EvaluationError: says which value is not.
    """
    if not isinstance(result, Result):
        raise EvaluationError(f"{who} gives {written(result)}, which is no Result")
    named = f"{who}: its result on {written(result.benchmark)}"
    for field in ("benchmark", "metric"):
        if not is_name(getattr(result, field)):
            raise EvaluationError(f"{named} has the {field} {written(getattr(result, field))}")
    for field in ("filter", "split", "ability", "modality"):
        found = getattr(result, field)
        if found is not None and not is_name(found):
            raise EvaluationError(f"{named} has the {field} {written(found)}, which is no text")
    for field in ("setup", "details"):
        _check_plain_data(getattr(result, field), f"{named}: {field}")
    return replace(
        result,
        value=_number(result.value, f"{named} has the value"),
        stderr=_or_none(_number, result.stderr, f"{named} has the stderr"),
        n=_or_none(_count, result.n, f"{named} has the n"),
        n_shot=_or_none(_count, result.n_shot, f"{named} has the n_shot"),
        higher_is_better=_truth(result.higher_is_better, f"{named} has the higher_is_better"),
        partial=_truth(result.partial, f"{named} has the partial"),
    )


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not isfinite(value):
        raise EvaluationError(f"{what} {written(value)}, which is no finite number")
    return float(value)


def _count(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise EvaluationError(f"{what} {written(value)}, which is no count")
    return int(value)


def _truth(value: Any, what: str) -> bool:
    if type(value).__name__ not in ("bool", "bool_"):  # numpy's own is no subclass
        raise EvaluationError(f"{what} {written(value)}, which is neither true nor false")
    return bool(value)


def _or_none(check: Any, value: Any, what: str) -> Any:
    return None if value is None else check(value, what)


def _check_plain_data(value: Any, what: str) -> None:
    if not isinstance(value, Mapping):
        raise EvaluationError(f"{what} is {written(value)}, which is no mapping")
    try:
        json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as exc:
        raise EvaluationError(f"{what} is no plain data: {exc}") from exc
