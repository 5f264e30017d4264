"""``omnireg plugins`` and ``omnireg strategies``."""

import json
from typing import TYPE_CHECKING, Any

import click

from omnireg.cli.output import (
    DefaultGroup,
    Settings,
    common_options,
    echo,
    print_json,
    print_table,
    short,
)
from omnireg.errors import ConfigError, did_you_mean
from omnireg.plugins.host import PluginHost, Status, Strategy

if TYPE_CHECKING:
    from mergekit.merge_methods.base import ParameterSpec


@click.command("plugins")
@click.option(
    "--check", is_flag=True, help="Import what plugins name lazily too, which takes seconds."
)
@common_options
@click.pass_obj
def plugins_command(settings: Settings, check: bool) -> None:
    """List every distribution on the entry point ``omnireg``, the broken ones too."""
    host = PluginHost()
    if check:
        host.check()
    plugins = [plugin.to_json() for plugin in host.plugins]
    if settings.as_json:
        print_json(plugins)
        return
    columns = ("distribution", "version", "entry_point", "status", "strategies", "error")
    rows = [[", ".join(v) if isinstance(v := p[c], list) else v for c in columns] for p in plugins]
    print_table(columns, rows)


@click.group("strategies", cls=DefaultGroup)
@common_options
def strategies_command() -> None:
    """List every merge method that can be used, or show one."""


@strategies_command.command("list", hidden=True)
@common_options
@click.pass_obj
def list_strategies(settings: Settings) -> None:
    """List every merge method: the plugins' and mergekit's own; broken ones say why."""
    methods = PluginHost().methods().values()
    found = [_described(s) if s.load_or_warn() else _broken(s) for s in methods]
    if settings.as_json:
        print_json(found)
        return
    columns = ["name", "pretty_name", "distribution", "version", "parameters"]
    if any(s["error"] for s in found):
        columns += ["status", "error"]
    rows = [[_brief(s[c]) for c in columns] for s in found]
    print_table(columns, rows)


@strategies_command.command("show")
@click.argument("name")
@common_options
@click.pass_obj
def show_strategy(settings: Settings, name: str) -> None:
    """Show a merge method and its parameters."""
    methods = PluginHost().methods()
    if name not in methods:
        hint = did_you_mean(name, methods)
        raise ConfigError(f"unknown strategy {name!r}{hint}; see: omnireg strategies")
    found = _described(methods[name])
    if settings.as_json:
        print_json(found)
        return
    echo(f"{found['name']} · {short(found['pretty_name'])}")
    see = f", see {short(found['reference'])}" if found["reference"] else ""
    echo(f"from {found['distribution']} {found['version']}{see}")
    columns = ("name", "scope", "type", "default", "required", "description")
    print_table(columns, [[_brief(p[c]) for c in columns] for p in found["parameters"]])


def _described(strategy: Strategy) -> dict[str, Any]:
    from omnireg.strategies.kernels.choose import is_accelerated

    method = strategy.load()
    spec = method.spec
    return {
        "name": spec.name,
        "pretty_name": _text(spec.pretty_name),
        "reference": _text(spec.reference_url),
        "distribution": strategy.origin.distribution,
        "version": strategy.origin.version,
        "accelerated": is_accelerated(method),
        "parameters": [_parameter(parameter) for parameter in spec.parameters],
        "status": str(Status.OK),
        "error": None,
    }


def _broken(strategy: Strategy) -> dict[str, Any]:
    """Return a merge method that cannot be imported, as one that can is described."""
    return {
        "name": strategy.name,
        "pretty_name": None,
        "reference": None,
        "distribution": strategy.origin.distribution,
        "version": strategy.origin.version,
        "accelerated": False,
        "parameters": [],
        "status": str(Status.BROKEN),
        "error": strategy.problem,
    }


def _parameter(parameter: "ParameterSpec") -> dict[str, Any]:
    return {
        "name": parameter.name,
        "scope": str(getattr(parameter.scope, "value", parameter.scope)),
        "type": _type_name(parameter.value_type),
        "default": None if parameter.required else _plain(parameter.default),
        "required": parameter.required,
        "description": _text(parameter.description),
    }


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _plain(value: Any) -> Any:
    """Return a default as JSON can say it; a plugin's may be anything."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return str(value)
    return value


def _type_name(kind: Any) -> str:
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    try:
        schema = TypeAdapter(kind).json_schema()
    except PydanticUserError:  # a type of a plugin's own, which JSON has no word for
        return str(getattr(kind, "__name__", "any"))
    schema = schema if "anyOf" not in schema else schema["anyOf"][0]
    if "enum" in schema:
        return " | ".join(schema["enum"])
    low = {"minimum": "[", "exclusiveMinimum": "("}
    high = {"maximum": "]", "exclusiveMaximum": ")"}
    start = next((f"{sign}{schema[k]:g}" for k, sign in low.items() if k in schema), "")
    end = next((f"{schema[k]:g}{sign}" for k, sign in high.items() if k in schema), "")
    limits = f" in {start or '(-∞'}, {end or '∞)'}" if start or end else ""
    return f"{schema.get('type', 'any')}{limits}"


def _brief(value: Any) -> Any:
    if isinstance(value, list):
        return ", ".join(item["name"] for item in value)
    return str(value).lower() if isinstance(value, bool) else value
