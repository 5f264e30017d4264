"""Merge multimodal checkpoints that share one language model, and never lose their lineage."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from omnireg.hookspecs import HostLayout, Sense, hookimpl
from omnireg.moved import forward as _forward
from omnireg.version import __version__ as __version__

if TYPE_CHECKING:
    from omnireg.hub import publish, pull
    from omnireg.merging import merge
    from omnireg.planning import plan
    from omnireg.recipe import Recipe
    from omnireg.registry import Registry
    from omnireg.routed import load

_forward()

__all__ = [
    "HostLayout",
    "Recipe",
    "Registry",
    "Sense",
    "hookimpl",
    "load",
    "merge",
    "plan",
    "publish",
    "pull",
]

_LAZY = {
    "Recipe": "omnireg.recipe",
    "Registry": "omnireg.registry",
    "load": "omnireg.routed",
    "merge": "omnireg.merging",
    "plan": "omnireg.planning",
    "publish": "omnireg.hub",
    "pull": "omnireg.hub",
}


def __getattr__(name: str) -> Any:
    """Import the rest of the public names on first use, so that ``import omnireg`` is cheap."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'omnireg' has no attribute {name!r}")
