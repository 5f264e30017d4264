"""The plugin host: load every plugin in isolation and know where each strategy came from.

Plugins are loaded one by one behind a guard, so that a broken one is listed as broken instead of
stopping everybody else. Built-in strategies and layouts enter through the same hooks.
"""

import importlib.metadata
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from omnireg import hookspecs
from omnireg.errors import PluginError, did_you_mean
from omnireg.hookspecs import PROJECT, Evaluator, HostLayout

if TYPE_CHECKING:
    from mergekit.merge_methods import MergeMethod

DISABLE_VARIABLE = "OMNIREG_DISABLE_PLUGINS"
#: what the version of a single-file plugin begins with; the file's digest follows
FILE_VERSION = "sha256:"
_HOOKS = (
    "omnireg_register_strategies",
    "omnireg_register_hosts",
    "omnireg_register_evaluators",
)
_log = logging.getLogger(PROJECT)
#: what plugins made known to mergekit in this process; whatever else it knows is its own
_installed: "dict[str, MergeMethod]" = {}


class Status(StrEnum):
    """Whether a plugin could be loaded."""

    OK = "ok"
    BROKEN = "broken"


@dataclass(frozen=True)
class Origin:
    """The distribution that a strategy or a layout came from."""

    distribution: str
    version: str
    entry_point: str

    @property
    def file_version(self) -> str | None:
        """The version, if this is a single-file plugin."""
        return self.version if self.version.startswith(FILE_VERSION) else None

    @property
    def way_out(self) -> str:
        """What to do when a name of this origin is taken."""
        if self.file_version:
            return f"choose another name in {self.entry_point}"
        return f"uninstall {self.distribution}, or set {DISABLE_VARIABLE}={self.distribution}"


@dataclass(frozen=True)
class Strategy:
    """A registered merge method, imported only when asked for."""

    name: str
    target: "MergeMethod | str"
    origin: Origin

    def load(self) -> "MergeMethod":
        """Return the mergekit method.

        Raises:
            PluginError: the target cannot be imported or is not a merge method of this name.
        """
        method = _imported(self.target, f"strategy {self.name!r}", self.origin)
        spec = getattr(method, "spec", None)
        if getattr(spec, "name", None) != self.name:
            raise PluginError(
                f"strategy {self.name!r} of {self.origin.distribution} is not a mergekit"
                f" MergeMethod of that name; ask its author"
            )
        return method

    def load_or_warn(self) -> "MergeMethod | None":
        """Return the mergekit method, or say why it cannot be used and return None."""
        try:
            return self.load()
        except PluginError as exc:
            _log.warning("%s", exc)
            return None


@dataclass(frozen=True)
class RegisteredEvaluator:
    """A registered evaluator, imported only when asked for."""

    name: str
    target: "Evaluator | str"
    origin: Origin

    def load(self) -> Evaluator:
        """Return the evaluator.

        Raises:
            PluginError: the target cannot be imported, or is no evaluator of this name.
        """
        found = _imported(self.target, f"evaluator {self.name!r}", self.origin)
        if getattr(found, "name", None) != self.name or not hasattr(found, "evaluate"):
            raise PluginError(
                f"evaluator {self.name!r} of {self.origin.distribution} is no evaluator of that"
                " name; ask its author"
            )
        evaluator: Evaluator = found
        return evaluator


def _imported(target: Any, what: str, origin: Origin) -> Any:
    """Return an object, or what ``"module:attribute"`` names."""
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except Exception as exc:
        raise PluginError(
            f"{what} of {origin.distribution} cannot be imported from {target}: {_reason(exc)};"
            " reinstall or remove that distribution"
        ) from exc


@dataclass
class Plugin:
    """One entry point: where it came from, what it registered, or why it is broken."""

    origin: Origin
    status: Status = Status.OK
    error: str | None = None
    strategies: list[Strategy] = field(default_factory=list)
    layouts: list[HostLayout] = field(default_factory=list)
    evaluators: list[RegisteredEvaluator] = field(default_factory=list)
    hooks: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the plugin as ``omnireg plugins --json`` prints it."""
        return {
            "distribution": self.origin.distribution,
            "version": self.origin.version,
            "entry_point": self.origin.entry_point,
            "status": str(self.status),
            "error": self.error,
            "strategies": [strategy.name for strategy in self.strategies],
            "evaluators": [evaluator.name for evaluator in self.evaluators],
            "hooks": self.hooks,
        }


class PluginHost:
    """Every plugin of this environment, the built-in ones first."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self.plugins: list[Plugin] = []
        #: distributions that the user turned off
        self.disabled: list[str] = []
        disabled = _disabled()
        for entry, origin in _entry_points():
            if origin.distribution != PROJECT and disabled(origin):
                self.disabled.append(origin.distribution)
                continue
            self._load(origin, partial(_supported_entry, entry, origin))

    def load_file(self, path: Path) -> None:
        """Load a single-file plugin, in place of what was loaded from that file before.

        Its version is the sha256 of the file.

        Raises:
            PluginError: the file is missing or broken.
        """
        try:
            digest = sha256(path.read_bytes()).hexdigest()
        except OSError as exc:
            raise PluginError(f"cannot read plugin {path}: {exc.strerror}") from exc
        origin = Origin(path.name, f"{FILE_VERSION}{digest}", str(path))
        self._forget(origin)
        plugin = self._load(origin, lambda: _supported_file(path, digest, origin), warn=False)
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
        """Return every usable merge method: the plugins' and mergekit's own.

        Raises:
            PluginError: two distributions, or a plugin and mergekit, claim one name.
        """
        origin = Origin("mergekit", importlib.metadata.version("mergekit"), "mergekit")
        found = self.strategies
        for name, method in _mergekits_own().items():
            ours = found.setdefault(name, Strategy(name, method, origin))
            if ours.origin is not origin and ours.load() is not method:
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

    def broken(self) -> list[Plugin]:
        """Return the plugins that could not be loaded."""
        return [plugin for plugin in self.plugins if plugin.status is Status.BROKEN]

    def _forget(self, origin: Origin) -> None:
        """Drop a plugin that was loaded from the same place."""
        name = _registered_as(origin)
        if self._manager.has_plugin(name):
            self._manager.unregister(name=name)
        self.plugins = [p for p in self.plugins if _registered_as(p.origin) != name]

    def _load(self, origin: Origin, load: Callable[[], Any], *, warn: bool = True) -> Plugin:
        plugin = Plugin(origin)
        self.plugins.append(plugin)
        try:
            module = load()
            self._manager.register(module, _registered_as(origin))
            plugin.hooks = sorted(
                caller.name for caller in self._manager.get_hookcallers(module) or ()
            )
            self._check_hooks(plugin.hooks)
            self._call(module, plugin)
        except (Exception, SystemExit) as exc:
            plugin.status, plugin.error = Status.BROKEN, _reason(exc)
            plugin.strategies.clear()
            plugin.layouts.clear()
            plugin.evaluators.clear()
            if warn:
                _log.warning("plugin %s is broken: %s", origin.distribution, plugin.error)
        return plugin

    def _check_hooks(self, hooks: Iterable[str]) -> None:
        for hook in hooks:
            if hook not in _HOOKS:
                raise PluginError(f"unknown hook {hook!r}{did_you_mean(hook, _HOOKS)}")

    def _call(self, module: Any, plugin: Plugin) -> None:
        others = [p for p in self._manager.get_plugins() if p is not module]

        def strategy(method: "MergeMethod | str", *, name: str | None = None) -> None:
            chosen = name or ("" if isinstance(method, str) else method.spec.name)
            if not chosen:
                raise PluginError(f"strategy {method!r} is registered lazily without a name")
            plugin.strategies.append(Strategy(chosen, method, plugin.origin))

        def evaluator(found: "Evaluator | str", *, name: str | None = None) -> None:
            chosen = name or ("" if isinstance(found, str) else found.name)
            if not chosen:
                raise PluginError(f"evaluator {found!r} is registered lazily without a name")
            plugin.evaluators.append(RegisteredEvaluator(chosen, found, plugin.origin))

        offers: tuple[Any, ...] = (strategy, plugin.layouts.append, evaluator)
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


def _entry_points() -> list[tuple[importlib.metadata.EntryPoint, Origin]]:
    found = []
    for distribution in importlib.metadata.distributions():
        for entry in distribution.entry_points:
            if entry.group == PROJECT:
                name, version = distribution.metadata["Name"], distribution.version
                found.append((entry, Origin(name, version, f"{entry.name} = {entry.value}")))
    unique = {(origin.distribution, origin.entry_point): (entry, origin) for entry, origin in found}
    return sorted(
        unique.values(),
        key=lambda pair: (pair[1].distribution != PROJECT, pair[1].distribution, pair[0].name),
    )


def _supported_entry(entry: importlib.metadata.EntryPoint, origin: Origin) -> Any:
    """Return an entry point's module, if its distribution supports this omnireg."""
    if origin.distribution != PROJECT and entry.dist is not None:
        _check_supported(origin, entry.dist.requires)
    return entry.load()


def _disabled() -> Callable[[Origin], bool]:
    names = {name.strip().lower() for name in os.environ.get(DISABLE_VARIABLE, "").split(",")}
    everything = bool(names & {"1", "all", "*", "true"})

    def disabled(origin: Origin) -> bool:
        return everything or origin.distribution.lower() in names

    return disabled


def _check_supported(origin: Origin, requirements: Iterable[str] | None) -> None:
    """Refuse a plugin that says it was made for another omnireg.

    Raises:
        PluginError: says which versions it supports.
    """
    from packaging.requirements import InvalidRequirement, Requirement

    ours = importlib.metadata.version(PROJECT)
    for text in requirements or ():
        try:
            needed = Requirement(text)
        except InvalidRequirement:
            continue
        if needed.name.lower() != PROJECT or (needed.marker and not needed.marker.evaluate()):
            continue
        if not needed.specifier.contains(ours, prereleases=True):
            raise PluginError(
                f"{origin.distribution} {origin.version} supports omnireg{needed.specifier}, this"
                f" is {ours}: install another version of one of the two"
            )


def _supported_file(path: Path, digest: str, origin: Origin) -> ModuleType:
    """Return a file's module, if its ``OMNIREG`` (such as ``">=0.1,<1"``) allows this omnireg."""
    module = _module_from(path, digest)
    said = getattr(module, "OMNIREG", None)
    if said is not None:
        from packaging.specifiers import InvalidSpecifier, SpecifierSet

        try:
            _check_supported(origin, [f"{PROJECT}{SpecifierSet(said)}"])
        except (InvalidSpecifier, TypeError, AttributeError) as exc:
            raise PluginError(
                f"OMNIREG = {said!r} says no versions of omnireg; write such as '>=0.1,<1'"
            ) from exc
    return module


def _module_from(path: Path, digest: str) -> ModuleType:
    name = f"_omnireg_plugin_{digest[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _reason(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {' '.join(str(exc).split())}" if str(exc) else repr(exc)
