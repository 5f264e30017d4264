"""What MMER keeps of the tiny family: calibrated, label-free, and with parts of it left out.

    python tests/bench/retention.py FOLDER

Settings are chosen on the validation split and reported on the test split, by greedy generation.
"Retention" is a decoupled model's score / its own model's. Trials are kept in FOLDER.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import omnireg
from omnireg.demo import questions, story
from omnireg.demo.clips import Modality
from omnireg.demo.tasks import items
from omnireg.evaluation.opening import open_subject
from omnireg.package import Package
from omnireg.package.extracting import extract
from omnireg.package.inspecting import inspect
from omnireg.planning import plan
from omnireg.plugins.host import PluginHost
from omnireg.recipe import parse_recipe
from omnireg.workflows import Criterion, calibrate
from omnireg.workflows.closeness import measure
from omnireg.workflows.grid import with_parameters

SENSES: tuple[Modality, ...] = ("image", "audio", "video")
GRID: dict[str, list[Any]] = {
    "density": [0.2, 0.3, 0.5, 0.7, 1.0],
    "scale": [1.0, 1.25, 1.5, 2.0],
    "mask_lambda": [0.25, 0.375, 0.5, 0.625, 0.75],
}
TRIED: dict[str, dict[str, Any]] = {
    "the defaults (density 0.5, λ ½)": {},
    "without directional congruence": {"directional": False},
    "… and without dominance (λ 0)": {"directional": False, "mask_lambda": 0.0},
    "directional congruence alone (λ 0)": {"mask_lambda": 0.0},
    "mask_rule: distance": {"mask_rule": "distance"},
    "trim_scope: model": {"trim_scope": "model"},
    "density 0.2": {"density": 0.2},
    "density 0.2, rescale: l1": {"density": 0.2, "rescale": "l1"},
    "density 0.2, rescale: l2": {"density": 0.2, "rescale": "l2"},
    "density 0.2, rescale: l2, by model": {
        "density": 0.2, "rescale": "l2", "rescale_scope": "model",
    },
    "density 0.1": {"density": 0.1},
    "density 0.1, rescale: l2": {"density": 0.1, "rescale": "l2"},
    "density 0.1, rescale: l2, by model": {
        "density": 0.1, "rescale": "l2", "rescale_scope": "model",
    },
}  # fmt: skip


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def recipe() -> omnireg.Recipe:
    """Return the recipe without parameters."""
    models = "".join(f"  - model: {story.FAMILY / sense}\n" for sense in SENSES)
    return parse_recipe(
        f"merge_method: mmer\nbase_model: {story.FAMILY / 'base'}\nmodels:\n{models}"
        "omnireg: {output: package}\n"
    )


def _score(folder: Path, asked: Any) -> float:
    return questions.score(open_subject(folder, dtype="float32"), asked).value


class Retention:
    """Scores packages on one split."""

    def __init__(self, split: Any) -> None:
        self.asked = {sense: items(sense, split) for sense in SENSES}
        self.own = {s: _score(story.FAMILY / s, self.asked[s]) for s in SENSES}

    def __call__(self, package: Path) -> Mapping[str, float]:
        """Return the retention of every modality."""
        found: dict[str, float] = {}
        with tempfile.TemporaryDirectory() as folder:
            for sense in SENSES:
                out = Path(folder) / sense
                extract(Package(package), sense, out)
                score = _score(out, self.asked[sense])
                found[sense] = score / self.own[sense]
        return found


def report(name: str, made: omnireg.Recipe, retention: Retention) -> None:
    """Print a row of the table for the test split."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "package"
        omnireg.merge(made, out, record=False)
        found, size = retention(out), inspect(Package(out)).to_json()
    kept = " | ".join(f"{found[s]:.1%}" for s in SENSES)
    density = sum(m["mask_density"] for m in size["modalities"]) / len(SENSES)
    say(f"| {name} | {kept} | {np.mean(list(found.values())):.1%} | {density:.0%} |")


def ranks(values: list[float]) -> Any:
    """Return the places of values in order; equal ones share theirs."""
    array = np.array(values)
    return np.array([(array < v).sum() + ((array == v).sum() - 1) / 2 for v in array])


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    scored = calibrate(
        recipe(), GRID, score=Retention("validation"), score_name="retention on validation",
        surface=folder / "surface.jsonl",
    )  # fmt: skip
    test = Retention("test")
    say("| setting | image | audio | video | mean | mask keeps |")
    say("| --- | --- | --- | --- | --- | --- |")
    shown = {**scored.shared, "mask_lambda": scored.lambdas}
    report(f"calibrated on validation: {json.dumps(shown)}", scored.recipe, test)
    for criterion in Criterion:
        free = calibrate(recipe(), GRID, by=criterion, sample=0)
        shown = {**free.shared, "mask_lambda": free.lambdas}
        report(f"label-free, {criterion}: {json.dumps(shown)}", free.recipe, test)
    for name, parameters in TRIED.items():
        report(name, with_parameters(recipe(), {"density": 0.5, **parameters}), test)
    settings = [with_parameters(recipe(), trial.point) for trial in scored.trials]
    close = measure(plan(settings[0], PluginHost()), settings, sample=0)
    say(f"\nSpearman's rank correlation with the mean retention, {len(settings)} settings:\n")
    mean = ranks([trial.mean for trial in scored.trials])
    for criterion in Criterion:
        values = [float(np.mean([getattr(c, criterion) for c in each.values()])) for each in close]
        say(f"| {criterion} | {np.corrcoef(ranks(values), mean)[0, 1]:.2f} |")


if __name__ == "__main__":
    main()
