"""The plugin host: load every plugin in isolation and know where each strategy came from.

Plugins are loaded one by one behind a guard, so that a broken one is listed as broken instead of
stopping everybody else. Built-in strategies and layouts enter through the same hooks.
"""

import importlib.metadata
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from omnireg import hookspecs
from omnireg.errors import PluginError, did_you_mean
from omnireg.hookspecs import PROJECT, Evaluator, HostLayout
from omnireg.plugins.contract import checked_layout, chosen_name
from omnireg.plugins.installed import (
    DISABLE_VARIABLE,
    FILE_VERSION,
    Load,
    Origin,
    TurnedOff,
    in_file,
    installed,
)
from omnireg.plugins.isolation import tell
from omnireg.plugins.offers import (
    Plugin,
    RegisteredEvaluator,
    Status,
    Strategy,
    importing,
)

if TYPE_CHECKING:
    from mergekit.merge_methods import MergeMethod

__all__ = [
    "DISABLE_VARIABLE",
    "FILE_VERSION",
    "Origin",
    "Plugin",
    "PluginHost",
    "RegisteredEvaluator",
    "Status",
    "Strategy",
]

_HOOKS = (
    "omnireg_register_strategies",
    "omnireg_register_hosts",
    "omnireg_register_evaluators",
)
#: what plugins made known to mergekit in this process; whatever else it knows is its own
_installed: "dict[str, MergeMethod]" = {}


class PluginHost:
    """Every plugin of this environment, the built-in ones first."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self.plugins: list[Plugin] = []
        #: distributions that the user turned off
        self.disabled: list[str] = []
        off, every = TurnedOff(), installed()
        off.check(origin for origin, _ in every)
        for origin, load in every:
            if origin in off:
                self.disabled.append(origin.distribution)
            elif (plugin := self._load(origin, load)).status is Status.BROKEN:
                tell(f"plugin {origin.distribution} is broken: {plugin.error}")

    def load_file(self, path: Path) -> None:
        """Load a single-file plugin, in place of what was loaded from that file before.

        Its version is the sha256 of the file.

        Raises:
            PluginError: the file is missing or broken.
        """
        origin, load = in_file(path)
        self._forget(origin)
        plugin = self._load(origin, load)
        if plugin.status is Status.BROKEN:
            raise PluginError(f"plugin {path} is broken: {plugin.error}")
        if not (plugin.strategies or plugin.layouts or plugin.evaluators):
            raise PluginError(
                f"plugin {path} registers nothing; write a function that is marked @hookimpl and"
                f" named as one of {', '.join(_HOOKS)}"
            )

    @property
    def strategies(self) -> dict[str, Strategy]:
        """Every registered strategy by name.

        Raises:
            PluginError: two distributions claim one name.
        """
        return _by_name("strategy", (s for p in self.plugins for s in p.strategies))

    @property
    def layouts(self) -> dict[str, HostLayout]:
        """Every host layout by architecture name.

        Raises:
            PluginError: two distributions claim one architecture.
        """
        found: dict[str, tuple[HostLayout, Origin]] = {}
        for plugin in self.plugins:
            for layout in plugin.layouts:
                for architecture in layout.architectures:
                    other, origin = found.setdefault(architecture, (layout, plugin.origin))
                    if other is not layout:
                        raise PluginError(
                            f"host class {architecture!r} is registered by both"
                            f" {origin.distribution} and {plugin.origin.distribution};"
                            f" {plugin.origin.way_out}"
                        )
        return {name: layout for name, (layout, _) in found.items()}

    @property
    def evaluators(self) -> dict[str, RegisteredEvaluator]:
        """Every registered evaluator by name.

        Raises:
            PluginError: two distributions claim one name.
        """
        return _by_name("evaluator", (e for p in self.plugins for e in p.evaluators))

    def methods(self) -> dict[str, Strategy]:
        """Return every merge method that somebody offers: the plugins' and mergekit's own.

        One that cannot be imported is among them, and says so when it is loaded.

        Raises:
            PluginError: two distributions, or a plugin and mergekit, claim one name.
        """
        origin = Origin("mergekit", importlib.metadata.version("mergekit"), "mergekit")
        found = self.strategies
        for name, method in _mergekits_own().items():
            own = Strategy(name, method, origin)
            ours = found.setdefault(name, own)
            if ours is own:
                continue
            if ours.load_or_warn() is None:
                found[name] = own
            elif ours.load() is not method:
                raise PluginError(
                    f"strategy {name!r} of {ours.origin.distribution} has the name of a method of"
                    f" mergekit; {ours.origin.way_out}"
                )
        return dict(sorted(found.items()))

    def install(self) -> None:
        """Make every plugin's strategies known to mergekit, in place of those of another host.

        Raises:
            PluginError: a name clash; a strategy that cannot be imported only warns.
        """
        from mergekit.merge_methods import register, registry

        own = _mergekits_own()
        for name, strategy in self.methods().items():
            if name not in own and (method := strategy.load_or_warn()):
                registry._METHODS.pop(name, None)  # mergekit offers no other way
                register(method)
                _installed[name] = method

    def check(self) -> None:
        """Import what was registered lazily, so that what cannot be used of it is known."""
        for plugin in self.plugins:
            if plugin.status is Status.OK:
                plugin.check()

    def broken(self) -> list[Plugin]:
        """Return the plugins that could not be loaded."""
        return [plugin for plugin in self.plugins if plugin.status is Status.BROKEN]

    def _forget(self, origin: Origin) -> None:
        """Drop a plugin that was loaded from the same place."""
        name = _registered_as(origin)
        if self._manager.has_plugin(name):
            self._manager.unregister(name=name)
        self.plugins = [p for p in self.plugins if _registered_as(p.origin) != name]

    def _load(self, origin: Origin, load: Load) -> Plugin:
        plugin = Plugin(origin)
        self.plugins.append(plugin)
        try:
            with importing(f"plugin {origin.distribution}", origin, PluginError):
                module = load()
                self._manager.register(module, _registered_as(origin))
                plugin.hooks = sorted(
                    caller.name for caller in self._manager.get_hookcallers(module) or ()
                )
                self._check_hooks(plugin.hooks)
                self._call(module, plugin)
        except PluginError as exc:
            plugin.breaks(str(exc))
        return plugin

    def _check_hooks(self, hooks: Iterable[str]) -> None:
        for hook in hooks:
            if hook not in _HOOKS:
                raise PluginError(f"unknown hook {hook!r}{did_you_mean(hook, _HOOKS)}")

    def _call(self, module: Any, plugin: Plugin) -> None:
        others = [p for p in self._manager.get_plugins() if p is not module]

        def strategy(method: "MergeMethod | str", *, name: str | None = None) -> None:
            own = None if isinstance(method, str) else method.spec.name
            chosen = chosen_name("strategy", method, name, own)
            plugin.strategies.append(Strategy(chosen, method, plugin.origin))

        def layout(layout: HostLayout) -> None:
            plugin.layouts.append(checked_layout(layout))

        def evaluator(found: "Evaluator | str", *, name: str | None = None) -> None:
            own = None if isinstance(found, str) else found.name
            chosen = chosen_name("evaluator", found, name, own)
            plugin.evaluators.append(RegisteredEvaluator(chosen, found, plugin.origin))

        offers: tuple[Any, ...] = (strategy, layout, evaluator)
        for hook, register in zip(_HOOKS, offers, strict=True):
            self._manager.subset_hook_caller(hook, others)(register=register)


def _registered_as(origin: Origin) -> str:
    return f"{origin.distribution}:{origin.entry_point}"


_Registered = TypeVar("_Registered", Strategy, RegisteredEvaluator)


def _by_name(what: str, registered: Iterable[_Registered]) -> dict[str, _Registered]:
    """Return what plugins registered, by name.

    Raises:
        PluginError: two distributions claim one name.
    """
    found: dict[str, _Registered] = {}
    for each in registered:
        other = found.setdefault(each.name, each)
        if other is not each:
            raise PluginError(
                f"{what} {each.name!r} is registered by both"
                f" {other.origin.distribution} {other.origin.version} and"
                f" {each.origin.distribution} {each.origin.version};"
                f" {each.origin.way_out}"
            )
    return found


def _mergekits_own() -> "dict[str, MergeMethod]":
    from mergekit.merge_methods import registered_methods

    every = {method.spec.name: method for method in registered_methods()}
    return {name: method for name, method in every.items() if _installed.get(name) is not method}
