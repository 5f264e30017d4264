"""What a folder of weights was made of, readable without a registry."""

import importlib.metadata
import sys
from collections.abc import Mapping
from typing import Any

from omnireg.planning import Plan


def versions() -> dict[str, str]:
    """Return the versions that a merge's bits can depend on."""
    names = ("omnireg", "mergekit", "torch", "transformers", "safetensors", "numpy", "numba")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": sys.version.split()[0], **found}


def describe(
    plan: Plan, seed: int, options: Mapping[str, Any], more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return what ``omnireg.json`` says, without digests.

    Args:
        plan: what was merged.
        seed: of the run.
        options: those that the bytes depend on.
        more: what a package says of itself.
    """
    origin = plan.strategy.origin
    data: dict[str, Any] = {
        "recipe_digest": plan.recipe.digest,
        "strategy": plan.strategy.name,
        "strategy_distribution": origin.distribution,
        "strategy_version": origin.version,
        "engine": str(plan.engine),
        "seed": seed,
        "options": dict(options),
        "versions": versions(),
        "parents": [
            {"ref": ref, "role": role, "fingerprint": plan.checkpoint(ref).fingerprint}
            for ref, role, _ in plan.parents
        ],
    }
    return data | dict(more or {})
