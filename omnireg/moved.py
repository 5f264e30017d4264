"""Old names that still work for one version, with a warning: of modules and of arguments."""

import sys
import warnings
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
#: old name to new, of what plugins and scripts were shown to import
MOVED = {
    "omnireg.decoupled": "omnireg.package",
    "omnireg.host": "omnireg.plugins",
    "omnireg.shards": "omnireg.checkpoints.shards",
}


class _Forward(MetaPathFinder, Loader):
    """Finds old names, after everything else failed to."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        new = MOVED[module.__name__]
        warnings.warn(
            f"{module.__name__} moved to {new}; the old name will go with the next version",
            DeprecationWarning,
            stacklevel=2,
        )
        sys.modules[module.__name__] = import_module(new)


def forward() -> None:
    """Let old names be imported."""
    if not any(isinstance(finder, _Forward) for finder in sys.meta_path):
        sys.meta_path.append(_Forward())


def renamed(**names: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a function be called with the old names of its arguments, given as ``old="new"``."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            for old in names.keys() & kwargs.keys():
                warnings.warn(
                    f"{function.__name__}({old}=) is called {names[old]}= now; the old name will"
                    " go with the next version",
                    DeprecationWarning,
                    stacklevel=2,
                )
                kwargs[names[old]] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate
