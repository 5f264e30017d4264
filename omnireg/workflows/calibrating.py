"""Choose the settings of MMER: by what the weights say, or by a score.

Each model's mask depends on its own λᵢ alone, so where every model has a value of its own, λᵢ is
chosen for each model by itself.
"""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from omnireg.errors import ConfigError
from omnireg.planning import Plan, plan
from omnireg.plugins.host import PluginHost
from omnireg.recipe import Recipe, as_recipe
from omnireg.workflows.closeness import measure
from omnireg.workflows.grid import as_yaml, points, with_parameters
from omnireg.workflows.trials import Notebook, Score, Trial, check_alike, numbers

LAMBDA = "mask_lambda"
#: what is tried where neither the recipe nor the user says what
DEFAULTS: Mapping[str, Sequence[Any]] = {
    "density": (0.3, 0.5, 0.7, 1.0),
    "scale": (1.0, 1.25, 1.5, 2.0),
}
DEFAULT_LAMBDAS = {"ratio": (0.25, 0.375, 0.5, 0.625, 0.75), "distance": (0.5, 1.0, 2.0)}
#: elements of a tensor that are looked at
SAMPLE = 1 << 18

Progress = Callable[[str, int, int], None]


class Criterion(StrEnum):
    """What is maximised without scores, averaged over the models; k is sᵢ·(mᵢ∘τ★).

    ``fit``: cos(τᵢ, k) − ½·|ln(‖k‖₂/‖τᵢ‖₂)|. ``l1``, ``l2``: 1 − ‖τᵢ − k‖ₚ/‖τᵢ‖ₚ.
    ``cosine``: cos(τᵢ, k).
    """

    FIT = "fit"
    L1 = "l1"
    L2 = "l2"
    COSINE = "cosine"


@dataclass(frozen=True)
class Calibration:
    """The surface, and what was chosen.

    Attributes:
        criterion: what was maximised.
        trials: every setting, the best first.
        shared: the chosen parameters that all models share.
        lambdas: the chosen λᵢ by modality; empty where it was not searched, or is shared.
        value: what the chosen setting gets.
        recipe: the recipe with the chosen parameters.
    """

    criterion: str
    trials: tuple[Trial, ...]
    shared: Mapping[str, Any]
    lambdas: Mapping[str, float]
    value: float
    recipe: Recipe

    @property
    def text(self) -> str:
        """The chosen recipe as YAML."""
        return as_yaml(self.recipe, f"chosen by {self.criterion}: {self.value:.4f}")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``mmer calibrate``."""
        return {
            "criterion": self.criterion,
            "value": self.value,
            "chosen": dict(self.shared),
            "mask_lambda": dict(self.lambdas),
            "recipe": self.text,
            "trials": [
                {"point": dict(t.point), "values": dict(t.values), "mean": t.mean}
                for t in self.trials
            ],
        }


def calibrate(
    recipe: Recipe | Path | str,
    grid: Mapping[str, Sequence[Any]] | None = None,
    *,
    by: Criterion | str = Criterion.FIT,
    score: Score | None = None,
    score_name: str = "score",
    sample: int = SAMPLE,
    surface: Path | None = None,
    plugins: PluginHost | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Calibration:
    """Try settings of a recipe of MMER and choose the best.

    Args:
        recipe: a recipe with ``merge_method: mmer`` and ``output: package``.
        grid: parameter → values to try; density, scale and mask_lambda, as far as the recipe does
            not set them, when None.
        by: what to maximise without scores.
        score: called with the folder of a package; returns one number, or one for each modality.
            Higher is better. Without it nothing is merged: the weights are looked at.
        score_name: what the number is called.
        sample: without scores, of how many elements of each tensor to look at; 0 for all.
        surface: a JSON Lines file of finished trials; they are not tried again.
        plugins: plugins to use; all installed ones when None.
        progress: called with (stage, done, total).

    Raises:
        ConfigError: no such parameter or value, or a recipe of another kind.
        EvaluationError: the score is not a number.
    """
    parsed, _ = as_recipe(recipe)
    if parsed.merge_method != "mmer":
        raise ConfigError(
            f"{parsed.merge_method} has no masks to calibrate; merge_method: mmer has"
        )
    plugins = plugins or PluginHost()
    data = parsed.model_dump(exclude_unset=True)
    data["omnireg"] = {**data.get("omnireg", {}), "output": "package", "base": "reference"}
    trial = Recipe.model_validate(data)
    settings = list(points(grid or _defaults(parsed)))
    planned = plan(with_parameters(trial, settings[0]), plugins)
    if score is None:
        chosen = str(Criterion(by)) if by in list(Criterion) else _no_criterion(by)
        trials = _by_weights(planned, trial, settings, chosen, sample, progress)
    else:
        chosen = score_name
        trials = _by_score(trial, settings, score, score_name, surface, plugins, progress)
    return _choose(parsed, planned, trials, chosen)


def _no_criterion(by: str) -> str:
    raise ConfigError(f"no such criterion {by!r}: choose one of {', '.join(Criterion)}")


def _defaults(recipe: Recipe) -> dict[str, Sequence[Any]]:
    """Return what is searched when nobody says what: what the recipe does not set."""
    said = set(recipe.parameters or {})
    said |= {name for entry in recipe.models or () for name in entry.parameters or {}}
    rule = str((recipe.parameters or {}).get("mask_rule", "ratio"))
    defaults = {**DEFAULTS, LAMBDA: DEFAULT_LAMBDAS.get(rule, DEFAULT_LAMBDAS["ratio"])}
    return {name: values for name, values in defaults.items() if name not in said}


def _by_weights(
    planned: Plan, recipe: Recipe, settings: Sequence[Mapping[str, Any]], criterion: str,
    sample: int, progress: Progress,
) -> list[Trial]:  # fmt: skip
    recipes = [with_parameters(recipe, point) for point in settings]
    names = _names(planned)
    found = measure(
        planned, recipes, sample=sample, tick=lambda done, total: progress("looking", done, total)
    )
    return [
        Trial(point, {names[ref]: getattr(close, criterion) for ref, close in by_ref.items()})
        for point, by_ref in zip(settings, found, strict=True)
    ]


def _names(planned: Plan) -> dict[str, str]:
    """Return the first modality of every model, by reference."""
    names: dict[str, str] = {}
    for sense, ref in planned.senses.items():
        names.setdefault(ref, sense)
    return names


def _by_score(
    recipe: Recipe, settings: Sequence[Mapping[str, Any]], score: Score, by: str,
    surface: Path | None, plugins: PluginHost, progress: Progress,
) -> list[Trial]:  # fmt: skip
    from omnireg.merging import merge

    book = Notebook(surface, by)
    trials = []
    for number, point in enumerate(settings):
        progress("scoring", number, len(settings))
        made = with_parameters(recipe, point)
        known = book.recall(made.digest)
        if known:
            trials.append(Trial(point, known["values"]))
            continue
        with tempfile.TemporaryDirectory(prefix="omnireg-calibrate-") as folder:
            out = Path(folder) / "package"
            merge(made, out, record=False, plugins=plugins)
            trials.append(Trial(point, numbers(score(out))))
        check_alike(trials[0], trials[-1])
        book.note(made.digest, trials[-1])
    progress("scoring", len(settings), len(settings))
    return trials


def _choose(recipe: Recipe, planned: Plan, trials: Sequence[Trial], criterion: str) -> Calibration:
    """Choose the shared parameters by the mean, with each model's best λᵢ where it has its own."""
    names = set(_names(planned).values())
    separable = all(names <= set(trial.values) for trial in trials)
    together: dict[str, list[Trial]] = {}
    for trial in trials:
        shared = {k: v for k, v in trial.point.items() if k != LAMBDA or not separable}
        together.setdefault(json.dumps(shared, default=str), []).append(trial)

    def best(group: Sequence[Trial]) -> dict[str, Trial]:
        return {name: max(group, key=lambda t: t.values[name]) for name in group[0].values}

    def value(group: Sequence[Trial]) -> float:
        return sum(t.values[name] for name, t in best(group).items()) / len(group[0].values)

    group = max(together.values(), key=value)
    shared = {k: v for k, v in group[0].point.items() if k != LAMBDA or not separable}
    lambdas: dict[str, float] = {}
    if separable and LAMBDA in group[0].point:
        chosen = best(group)
        lambdas = {name: chosen[name].point[LAMBDA] for name in _names(planned).values()}
    alike = len(set(lambdas.values())) == 1
    per_model = {ref: {LAMBDA: lambdas[name]} for ref, name in _names(planned).items() if lambdas}
    everywhere = {**shared, LAMBDA: next(iter(lambdas.values()))} if alike else shared
    made = with_parameters(recipe, everywhere, None if alike else per_model)
    ranked = tuple(sorted(trials, key=lambda trial: -trial.mean))
    return Calibration(criterion, ranked, everywhere, lambdas, value(group), made)
