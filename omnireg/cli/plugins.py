"""``omnireg plugins`` and ``omnireg strategies``."""

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
from omnireg.host import PluginHost, Strategy

if TYPE_CHECKING:
    from mergekit.merge_methods.base import ParameterSpec


@click.command("plugins")
@common_options
@click.pass_obj
def plugins_command(settings: Settings) -> None:
    """List every distribution on the entry point ``omnireg``, the broken ones too."""
    plugins = [plugin.to_json() for plugin in PluginHost().plugins]
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
    """List every merge method that can be used: the plugins' and mergekit's own."""
    methods = PluginHost().methods().values()
    found = [_described(strategy) for strategy in methods if strategy.load_or_warn()]
    if settings.as_json:
        print_json(found)
        return
    columns = ("name", "pretty_name", "distribution", "version", "parameters")
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
        "pretty_name": spec.pretty_name,
        "reference": spec.reference_url,
        "distribution": strategy.origin.distribution,
        "version": strategy.origin.version,
        "accelerated": is_accelerated(method),
        "parameters": [_parameter(parameter) for parameter in spec.parameters],
    }


def _parameter(parameter: "ParameterSpec") -> dict[str, Any]:
    return {
        "name": parameter.name,
        "scope": parameter.scope.value,
        "type": _type_name(parameter.value_type),
        "default": None if parameter.required else parameter.default,
        "required": parameter.required,
        "description": parameter.description,
    }


def _type_name(kind: Any) -> str:
    from pydantic import TypeAdapter

    schema = TypeAdapter(kind).json_schema()
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
