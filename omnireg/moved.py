"""Modules that moved: the old name imports the new module, with a warning, for one version."""

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

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
