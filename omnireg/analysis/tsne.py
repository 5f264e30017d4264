"""Where models lie beside each other: one point each, by how far every tensor is from a reference.

A model's features are the L2 norms of (model − reference), one for each tensor. t-SNE as the code
of arXiv 2506.01872 has it: perplexity min(30, n − 1), a fixed seed. PCA is the alternative whose
result does not depend on chance.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnireg.analysis.vectors import Vectors
from omnireg.errors import ConfigError
from omnireg.plugins.host import PluginHost

SEED = 0
_MOST_PERPLEXITY = 30


class Method(StrEnum):
    """How features become two coordinates."""

    TSNE = "tsne"
    PCA = "pca"


@dataclass(frozen=True)
class Map:
    """Models as points.

    Attributes:
        reference: what they were compared with.
        method: how the coordinates were found.
        perplexity: of t-SNE.
        seed: of t-SNE.
        explained: of PCA, the share of the variance along each coordinate.
        places: coordinates by model.
        features: ‖model − reference‖₂ of every tensor, by model, in the order of ``tensors``.
        tensors: the tensors.
    """

    reference: str
    method: Method
    perplexity: float | None
    seed: int | None
    explained: tuple[float, float] | None
    places: dict[str, tuple[float, float]]
    features: dict[str, list[float]]
    tensors: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``analyze tsne``."""
        return {
            "reference": self.reference,
            "method": str(self.method),
            "perplexity": self.perplexity,
            "seed": self.seed,
            "explained": list(self.explained) if self.explained else None,
            "models": [
                {"name": name, "x": x, "y": y, "distance": float(np.linalg.norm(features))}
                for (name, (x, y)), features in zip(
                    self.places.items(), self.features.values(), strict=True
                )
            ],
        }


def place(
    models: Sequence[str],
    reference: str,
    *,
    method: Method | str = Method.TSNE,
    seed: int = SEED,
    threads: int | None = None,
    plugins: PluginHost | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Map:
    """Place models by how far each of their tensors is from a reference, in one pass.

    Raises:
        ConfigError: too few models, no such method, or scikit-learn is missing.
        OmniregError: a checkpoint is missing or damaged, or does not fit.
    """
    if method not in list(Method):
        raise ConfigError(f"no method {method!r}: choose one of {', '.join(Method)}")
    least = 3 if method == Method.TSNE else 2
    if len(models) < least:
        raise ConfigError(f"{method} needs {least} models or more beside the reference")
    vectors = Vectors.of(reference, models, plugins)
    names, rows = [], []
    for name, sums in vectors.sums(threads=threads, tick=tick):
        names.append(name)
        rows.append(sums.norms)
    features = np.array(rows).T
    perplexity = explained = None
    if method == Method.PCA:
        found, explained = _pca(features)
    else:
        perplexity = float(min(_MOST_PERPLEXITY, len(models) - 1))
        found = _tsne(features, perplexity, seed)
    return Map(
        reference,
        Method(method),
        perplexity,
        seed if method == Method.TSNE else None,
        explained,
        {model: (float(x), float(y)) for model, (x, y) in zip(models, found, strict=True)},
        {model: row.tolist() for model, row in zip(models, features, strict=True)},
        tuple(names),
    )


def _tsne(features: NDArray[np.float64], perplexity: float, seed: int) -> NDArray[np.float64]:
    try:
        from sklearn.manifold import TSNE
    except ImportError as exc:
        raise ConfigError(
            "t-SNE needs scikit-learn: pip install 'omnireg[plots]', or take --method pca"
        ) from exc
    found: NDArray[np.float64] = TSNE(
        n_components=2, perplexity=perplexity, random_state=seed
    ).fit_transform(features)
    return found


def _pca(features: NDArray[np.float64]) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Return the first two principal components; each points to its largest loading."""
    centred = features - features.mean(0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[:2] * np.sign(
        directions[np.arange(2), np.abs(directions[:2]).argmax(1)]
    ).reshape(-1, 1)
    shares = sizes[:2] ** 2 / max(float((sizes**2).sum()), np.finfo(float).tiny)
    return centred @ directions.T, (float(shares[0]), float(shares[1]))
