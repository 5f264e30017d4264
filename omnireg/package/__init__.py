"""The decoupled package: one base, one sparse task vector, a mask per modality, every encoder."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from omnireg.package.reading import Model, Package, fingerprint_of, is_package

if TYPE_CHECKING:
    from omnireg.package.adding import add
    from omnireg.package.extracting import extract
    from omnireg.package.inspecting import Inspection, inspect

__all__ = [
    "Inspection",
    "Model",
    "Package",
    "add",
    "extract",
    "fingerprint_of",
    "inspect",
    "is_package",
]
#: what works on packages, and brings the engine with it
_LAZY = {
    "Inspection": "inspecting",
    "add": "adding",
    "extract": "extracting",
    "inspect": "inspecting",
}


def __getattr__(name: str) -> Any:
    """Import the rest on first use; whoever only reads a package needs no engine."""
    if name in _LAZY:
        return getattr(import_module(f"omnireg.package.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'omnireg.package' has no attribute {name!r}")
