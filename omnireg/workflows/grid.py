"""Grids of parameters, and recipes with other parameters."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import yaml

from omnireg.boundary.documents import parse_yaml
from omnireg.errors import ConfigError
from omnireg.recipe import Recipe, validated

Point = Mapping[str, Any]
#: more values of one parameter are taken for a slip of the keyboard
_MOST = 1000


def parse_grid(options: Sequence[str]) -> dict[str, list[Any]]:
    """Read ``P=a,b,c`` and ``P=start:stop:step`` (stop included).

    Raises:
        ConfigError: one is neither, or a parameter is given twice.
    """
    found: dict[str, list[Any]] = {}
    for option in options:
        name, equals, said = option.partition("=")
        if not equals or not name or not said:
            raise ConfigError(f"--grid {option}: write P=a,b,c or P=start:stop:step")
        if name in found:
            raise ConfigError(f"--grid {option}: {name} is given twice")
        found[name] = _range(option, said) if said.count(":") == 2 else _list(option, said)
    return found


def _list(option: str, said: str) -> list[Any]:
    words = [word for word in said.split(",") if word.strip()]
    if not words:
        raise ConfigError(f"--grid {option}: write P=a,b,c or P=start:stop:step")
    return [parse_yaml(word, f"--grid {option}", error=ConfigError) for word in words]


def _range(option: str, said: str) -> list[float]:
    try:
        start, stop, step = (float(part) for part in said.split(":"))
    except ValueError as exc:
        raise ConfigError(f"--grid {option}: write numbers: start:stop:step") from exc
    steps = (stop - start) / step + 1e-9 if step else -1.0
    if not 0 <= steps < _MOST:  # which NaN is not either
        raise ConfigError(
            f"--grid {option}: from {start} to {stop} by {step} are not 1 to {_MOST} values"
        )
    return [round(start + number * step, 12) for number in range(int(steps) + 1)]


def points(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Yield every combination of the values of a grid."""
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def with_parameters(
    recipe: Recipe, shared: Point, per_model: Mapping[str, Point] | None = None
) -> Recipe:
    """Return a recipe with other parameters: ``shared`` for all, ``per_model`` by reference.

    What is given replaces what the recipe's models had of the same name.

    Raises:
        ConfigError: a value is none that a recipe can have.
    """
    data = recipe.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    data["parameters"] = {**(data.get("parameters") or {}), **shared}
    given = {name for point in (per_model or {}).values() for name in point}
    for name in given:
        data["parameters"].pop(name, None)
    for entry in data.get("models") or ():
        own = {k: v for k, v in (entry.get("parameters") or {}).items() if k not in shared}
        own |= (per_model or {}).get(entry["model"], {})
        entry.pop("parameters", None)
        if own:
            entry["parameters"] = own
    if not data["parameters"]:
        del data["parameters"]
    return validated(data, "the recipe with these parameters")


def as_yaml(recipe: Recipe, remark: str) -> str:
    """Return the text of a recipe, with a remark before it."""
    said = recipe.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    first = ("merge_method", "base_model", "models", "parameters")
    data = {key: said[key] for key in (*first, *said) if key in said}
    return f"# {remark}\n" + yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
