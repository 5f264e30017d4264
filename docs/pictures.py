"""Draw what each method does: ``python docs/pictures.py`` writes ``explanation/methods.svg``.

The bars are computed by the strategies themselves, on ten made-up weights of three models.
"""

from pathlib import Path
from typing import Any

import torch
from mergekit.merge_methods import PerInputValues, TensorEntry, TensorGroup

from omnireg import plots
from omnireg.plugins.host import PluginHost

MODELS = ("image", "audio", "video")
VECTORS = torch.tensor(
    [
        [0.9, 0.7, -0.4, 0.1, 0.0, 0.8, -0.6, 0.3, 0.0, -0.9],
        [0.6, -0.5, -0.5, 0.0, 0.7, 0.1, 0.5, -0.2, 0.4, -0.1],
        [0.8, 0.2, 0.6, 0.9, 0.0, -0.7, -0.2, 0.0, 0.6, -0.8],
    ]
)
#: panel → strategy and what of its parameters is not the default
PANELS: dict[str, tuple[str, dict[str, Any]]] = {
    "average": ("average", {}),
    "delta_weighted, α₀ = 0.5": ("delta_weighted", {"temperature": 0.1}),
    "omni_ties, density 0.6": ("omni_ties", {"density": 0.6}),
    "mmer, mask of image": ("mmer", {"density": 0.6, "mask_of": "image"}),
    "mmer, mask of audio": ("mmer", {"density": 0.6, "mask_of": "audio"}),
}


def merged(strategy: str, said: dict[str, Any]) -> list[float]:
    """Return what a strategy adds to a base of zeros."""
    method = PluginHost().methods()[strategy].load()
    base = torch.zeros(VECTORS.shape[1])
    entries = [TensorEntry(name, v, False) for name, v in zip(MODELS, VECTORS, strict=True)]
    group = TensorGroup((TensorEntry("base", base, True), *entries))
    parameters: dict[str, Any] = {}
    for parameter in method.spec.parameters:
        value = said.get(parameter.name, parameter.default)
        if parameter.scope != "shared":
            refs = MODELS if parameter.scope == "non_base" else ("base", *MODELS)
            value = PerInputValues([(ref, value) for ref in refs])
        parameters[parameter.name] = value
    found: list[float] = method.merge_group(group, **parameters).tolist()
    return found


def main() -> None:
    """Draw the task vectors, and what every method makes of them."""
    path = Path(__file__).parent / "explanation" / "methods.svg"
    places = [str(i) for i in range(1, VECTORS.shape[1] + 1)]
    with plots.chart(path, 15, 3.2, panels=len(PANELS) + 1) as (first, *others):
        series = {n: v.tolist() for n, v in zip(MODELS, VECTORS, strict=True)}
        plots.bars(first, places, series, title="task vectors", y="τ", line=0)
        for axes, (title, (strategy, said)) in zip(others, PANELS.items(), strict=True):
            plots.bars(axes, places, {"": merged(strategy, said)}, title=title, line=0)
            axes.set_ylim(-1, 1)
            axes.sharey(first)


if __name__ == "__main__":
    main()
