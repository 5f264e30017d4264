"""Where plugins are found: entry points of installed distributions, and single files.

A distribution's metadata may be damaged, and then only that distribution is broken.
"""

import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from omnireg.boundary.files import read_bytes
from omnireg.errors import PluginError, did_you_mean
from omnireg.hookspecs import PROJECT
from omnireg.plugins.isolation import reason, tell

DISABLE_VARIABLE = "OMNIREG_DISABLE_PLUGINS"
#: what the version of a single-file plugin begins with; the file's digest follows
FILE_VERSION = "sha256:"
_EVERYTHING = {"1", "all", "*", "true"}
_METADATA = "entry_points.txt"

#: imports a plugin's module and returns it
Load = Callable[[], Any]


@dataclass(frozen=True)
class Origin:
    """The distribution that a strategy or a layout came from."""

    distribution: str
    version: str
    entry_point: str

    @property
    def is_ours(self) -> bool:
        """Whether it comes with omnireg."""
        return self.distribution == PROJECT

    @property
    def file_version(self) -> str | None:
        """The version, if this is a single-file plugin."""
        return self.version if self.version.startswith(FILE_VERSION) else None

    @property
    def way_out(self) -> str:
        """What to do when a name of this origin is taken."""
        if self.file_version:
            return f"choose another name in {self.entry_point}"
        return f"uninstall {self.distribution}, or set {self.turned_off}"

    @property
    def turned_off(self) -> str:
        """What leaves it out."""
        if self.file_version:
            return f"no --plugin {self.entry_point}"
        return f"{DISABLE_VARIABLE}={self.distribution}"


def installed() -> list[tuple[Origin, Load]]:
    """Return every entry point in the group ``omnireg``, omnireg's own first."""
    found: dict[str, list[tuple[Origin, Load]]] = {}
    for distribution in importlib.metadata.distributions():
        entries = list(_entries(distribution))
        if entries:
            # of one that is there twice, the first on the path is imported
            found.setdefault(plain(entries[0][0].distribution), entries)
    every = [each for entries in found.values() for each in entries]
    return sorted(
        every,
        key=lambda each: (not each[0].is_ours, each[0].distribution, each[0].entry_point),
    )


def _entries(distribution: importlib.metadata.Distribution) -> Iterator[tuple[Origin, Load]]:
    try:
        entries = [entry for entry in distribution.entry_points if entry.group == PROJECT]
        if entries and not (distribution.metadata["Name"] and distribution.version):
            raise PluginError("no name or version")  # as a removal that failed leaves it
    except Exception as exc:
        if _has_plugins(distribution):
            yield _damaged(distribution, exc)
        return
    for entry in entries:
        name, version = distribution.metadata["Name"], distribution.version
        origin = Origin(name, version, f"{entry.name} = {entry.value}")
        yield origin, partial(_load_entry, entry, origin)


def _has_plugins(distribution: importlib.metadata.Distribution) -> bool:
    try:
        return f"[{PROJECT}" in (distribution.read_text(_METADATA) or "")
    except UnicodeDecodeError as exc:
        return f"[{PROJECT}".encode() in exc.object
    except Exception:
        return False


def _damaged(distribution: importlib.metadata.Distribution, exc: Exception) -> tuple[Origin, Load]:
    place = str(getattr(distribution, "_path", "somewhere"))
    name = Path(place).name.removesuffix(".dist-info").rpartition("-")[0] or place
    error = PluginError(
        f"its metadata in {place} are damaged ({reason(exc)}); remove that folder and install it"
        " again"
    )

    def load() -> Any:
        raise error

    return Origin(name, "unknown", _METADATA), load


def _load_entry(entry: importlib.metadata.EntryPoint, origin: Origin) -> Any:
    """Return an entry point's module, if its distribution supports this omnireg."""
    if not origin.is_ours and entry.dist is not None:
        _check_supported(origin, entry.dist.requires)
    return entry.load()


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


# turned off


def plain(name: str) -> str:
    """Return a distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


class TurnedOff:
    """The plugins that the environment turns off."""

    def __init__(self) -> None:
        words = os.environ.get(DISABLE_VARIABLE, "").split(",")
        self._words = {plain(word): word.strip() for word in words if word.strip()}
        self._all = bool(_EVERYTHING & set(self._words))

    def __contains__(self, origin: Origin) -> bool:
        """Whether a plugin is turned off; omnireg's own never are."""
        return not origin.is_ours and (self._all or plain(origin.distribution) in self._words)

    def check(self, plugins: Iterable[Origin]) -> None:
        """Warn of words that turn nothing off."""
        known = {plain(each.distribution): each.distribution for each in plugins}
        for word, written in self._words.items():
            if word == PROJECT:
                tell(f"{DISABLE_VARIABLE}: what comes with omnireg cannot be turned off")
            elif word not in known and word not in _EVERYTHING:
                others = [name for key, name in known.items() if key != PROJECT]
                tell(
                    f"{DISABLE_VARIABLE}: no plugin {written!r} is installed"
                    f"{did_you_mean(word, others)}; omnireg plugins lists them"
                )


# single files


def in_file(path: Path) -> tuple[Origin, Load]:
    """Return a single-file plugin; its version is the sha256 of what is loaded.

    Raises:
        PluginError: the file cannot be read.
    """
    source = read_bytes(path, error=PluginError)
    digest = sha256(source).hexdigest()
    origin = Origin(path.name, f"{FILE_VERSION}{digest}", str(path))

    def load() -> ModuleType:
        module = _module_of(path, source, digest)
        _check_says_supported(module, origin)
        return module

    return origin, load


def _module_of(path: Path, source: bytes, digest: str) -> ModuleType:
    """Run what was read and nothing else: the file, or what Python keeps of it, may differ."""
    name = f"_omnireg_plugin_{digest[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or not isinstance(spec.loader, SourceFileLoader):
        raise PluginError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _check_says_supported(module: ModuleType, origin: Origin) -> None:
    """Refuse a file whose ``OMNIREG`` (such as ``">=0.1,<1"``) does not allow this omnireg."""
    allowed = getattr(module, "OMNIREG", None)
    if allowed is None:
        return
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        _check_supported(origin, [f"{PROJECT}{SpecifierSet(allowed)}"])
    except (InvalidSpecifier, TypeError, AttributeError) as exc:
        raise PluginError(
            f"OMNIREG = {allowed!r} says no versions of omnireg; write such as '>=0.1,<1'"
        ) from exc
