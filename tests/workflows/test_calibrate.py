"""Choosing MMER's settings: from the weights alone, or by a score."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import omnireg
from omnireg.demo import story
from omnireg.errors import ConfigError, EvaluationError
from omnireg.package import Package
from omnireg.planning import plan
from omnireg.plugins.host import PluginHost
from omnireg.recipe import parse_recipe, read_recipe
from omnireg.workflows import Calibration, calibrate, parse_grid
from omnireg.workflows.closeness import Closeness, measure
from omnireg.workflows.grid import points, with_parameters
from tests_support import Run

SENSES = ("image", "audio", "video")
MODELS = "".join(f"  - model: {story.FAMILY / sense}\n" for sense in SENSES)
TEXT = (
    f"merge_method: mmer\nbase_model: {story.FAMILY / 'base'}\nmodels:\n{MODELS}"
    "omnireg: {output: package}\n"
)


# grids


def test_grids_are_read() -> None:
    """Lists of anything, and ranges with their end."""
    found = parse_grid(["density=0.2:0.5:0.1", "mask_rule=ratio,distance", "directional=true"])
    assert found == {
        "density": [0.2, 0.3, 0.4, 0.5], "mask_rule": ["ratio", "distance"], "directional": [True],
    }  # fmt: skip
    assert len(list(points(found))) == 8
    for slip in ("density", "density=", "=1", "density=1:0:0.1", "density=a:b:c", "density=0:1:0"):
        with pytest.raises(ConfigError, match="--grid"):
            parse_grid([slip])
    with pytest.raises(ConfigError, match="twice"):
        parse_grid(["density=1", "density=2"])


def test_recipes_get_other_parameters() -> None:
    """For all, in the place of what a model had, or for each."""
    recipe = parse_recipe(
        "merge_method: mmer\nbase_model: b\nparameters: {scale: 2.0}\nmodels:\n"
        "  - {model: x, parameters: {density: 0.1, weight: 3}}\n  - model: y\n"
    )
    made = with_parameters(recipe, {"density": 0.4}, {"y": {"mask_lambda": 0.3}})
    assert made.parameters == {"scale": 2.0, "density": 0.4}
    assert [entry.parameters for entry in made.models or ()] == [
        {"weight": 3}, {"mask_lambda": 0.3},
    ]  # fmt: skip
    assert made.digest != recipe.digest


# from the weights


def test_closeness_is_computed_by_hand() -> None:
    """τ = (3, 4), k = (3, 0)."""
    one = Closeness(absolute=7, distance=4, square=25, kept=9, product=9)
    assert one.l1 == pytest.approx(3 / 7)
    assert one.l2 == pytest.approx(1 - 4 / 5)
    assert one.cosine == pytest.approx(3 / 5)
    assert one.fit == pytest.approx(3 / 5 - math.log(5 / 3) / 2)
    both = one + one
    assert (both.l1, both.l2, both.cosine, both.fit) == (one.l1, one.l2, one.cosine, one.fit)
    assert Closeness().l1 == Closeness().l2 == Closeness().fit == 1
    assert Closeness(square=1).fit == -math.inf


@pytest.mark.parametrize(
    "parameters",
    [
        {"density": 0.4},
        {"density": 0.3, "scale": 1.5, "mask_rule": "distance", "directional": False},
        {"density": 0.5, "mask_lambda": 0.25},
    ],
)
def test_what_is_foreseen_is_what_a_package_has(tmp_path: Path, parameters: dict[str, Any]) -> None:
    """The L1 that a package says it recovered, which compiled code has measured."""
    recipe = with_parameters(parse_recipe(TEXT), parameters)
    [found] = measure(plan(recipe, PluginHost()), [recipe], sample=0)
    omnireg.merge(recipe, tmp_path / "omni", record=False)
    for model in Package(tmp_path / "omni").models.values():
        assert found[model.ref].l1 == pytest.approx(model.l1_recovered, rel=1e-5)
    [sampled] = measure(plan(recipe, PluginHost()), [recipe], sample=8192)
    for ref, whole in found.items():
        assert sampled[ref].fit == pytest.approx(whole.fit, abs=0.05)


def test_rescaling_gives_the_length_back() -> None:
    """With rescale: l2 the decoupled vector of every tensor is as long as the original."""
    recipe = with_parameters(parse_recipe(TEXT), {"density": 0.2, "rescale": "l2"})
    [found] = measure(plan(recipe, PluginHost()), [recipe], sample=0)
    for each in found.values():
        assert each.kept == pytest.approx(each.square, rel=1e-3)
        assert each.fit == pytest.approx(each.cosine, abs=1e-3)


def test_what_the_recipe_says_is_kept() -> None:
    """Only what nobody has set is searched; each model gets the λ that suits it."""
    text = TEXT.replace("omnireg:", "parameters: {density: 0.5, scale: 1.0}\nomnireg:")
    found = calibrate(text, sample=0)
    assert {tuple(t.point) for t in found.trials} == {("mask_lambda",)}
    assert set(found.lambdas) == set(SENSES)
    for sense in SENSES:
        best = max(found.trials, key=lambda t: t.values[sense])
        assert found.lambdas[sense] == best.point["mask_lambda"]
    assert found.value >= found.trials[0].mean
    assert found.recipe.parameters is not None
    assert found.recipe.parameters["density"] == 0.5
    assert parse_recipe(found.text).digest == found.recipe.digest
    named = calibrate(text, {"density": [0.3], "mask_lambda": [0.5]}, by="l1", sample=0)
    assert [dict(t.point) for t in named.trials] == [{"density": 0.3, "mask_lambda": 0.5}]


# by a score


def _wanted(package: Path) -> Mapping[str, float]:
    """Like density 0.4, and a λ of its own for every modality."""
    said = json.loads((package / "omnireg.json").read_text())["package"]["parameters"]
    wanted = {"image": 0.25, "audio": 0.5, "video": 0.75}
    return {
        s: -abs(said["mask_lambda"] - w) - abs(said["density"] - 0.4) for s, w in wanted.items()
    }


GRID = {"density": [0.2, 0.4], "mask_lambda": [0.25, 0.5, 0.75]}


def test_a_score_by_modality_chooses_for_each_model(tmp_path: Path) -> None:
    """All six settings are merged and scored once; a second search remembers them."""
    surface, asked = tmp_path / "trials.jsonl", []

    def score(package: Path) -> Mapping[str, float]:
        asked.append(package)
        return _wanted(package)

    def search() -> Calibration:
        return calibrate(TEXT, GRID, score=score, score_name="mine", surface=surface)

    found = search()
    assert len(asked) == len(found.trials) == 6
    assert not asked[0].exists()
    assert found.shared == {"density": 0.4}
    assert found.lambdas == {"image": 0.25, "audio": 0.5, "video": 0.75}
    assert found.value == 0
    own = [(entry.parameters or {})["mask_lambda"] for entry in found.recipe.models or ()]
    assert own == [0.25, 0.5, 0.75]
    omnireg.merge(found.recipe, tmp_path / "omni", record=False)
    again = search()
    assert len(asked) == 6
    assert again.to_json() == found.to_json()


def test_one_number_chooses_one_setting() -> None:
    """λ is shared then."""
    found = calibrate(TEXT, GRID, score=lambda package: sum(_wanted(package).values()))
    assert found.shared == {"density": 0.4, "mask_lambda": 0.5}
    assert found.lambdas == {}
    assert found.recipe.parameters == {"density": 0.4, "mask_lambda": 0.5}


# the command


def test_the_command_line(tmp_path: Path, run: Run) -> None:
    """A table, a heat map and a recipe that can be merged."""
    (tmp_path / "mmer.yml").write_text(TEXT)
    how = ("mmer", "calibrate", "mmer.yml", "--grid", "density=0.3,0.5", "--grid", "scale=1,1.5")
    done = run(*how, "--out", "best.yml", "--plot", "map.png")
    assert done.code == 0, done.err
    assert "chosen:" in done.out
    assert (tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"
    recipe, text = read_recipe(tmp_path / "best.yml")
    assert text.startswith("# chosen by fit")
    assert text in done.out
    assert run(*how, "--out", "-").out == text
    assert run("merge", "best.yml", "omni").code == 0
    assert recipe.omnireg.output == "package"
    told = json.loads(run(*how, "--json", "--by", "l2").out)
    assert told["criterion"] == "l2"
    assert len(told["trials"]) == 4
    assert "exists" in run(*how, "--out", "best.yml").err
    (tmp_path / "score.py").write_text(
        "import json, sys\nsaid = json.load(open(sys.argv[1] + '/omnireg.json'))\n"
        "print('some words')\nprint(-abs(said['package']['parameters']['scale'] - 1.4))\n"
    )
    scored = run(
        "mmer", "calibrate", "mmer.yml", "--grid", "density=0.3", "--grid", "scale=1:2:0.5",
        "--grid", "mask_lambda=0.5", "--score-command", f"{sys.executable} score.py {{}}", "--json",
    )  # fmt: skip
    assert scored.code == 0, scored.err
    assert json.loads(scored.out)["chosen"]["scale"] == 1.5


def test_mistakes_are_told(tmp_path: Path, run: Run) -> None:
    """Before anything is merged, and without a traceback."""
    with pytest.raises(ConfigError, match="did you mean 'density'"):
        calibrate(TEXT, {"densty": [0.3]})
    with pytest.raises(ConfigError, match="density"):
        calibrate(TEXT, {"density": [1.3]})
    with pytest.raises(ConfigError, match="no such criterion 'best'"):
        calibrate(TEXT, {"density": [0.3]}, by="best")
    with pytest.raises(ConfigError, match="has no masks"):
        calibrate(TEXT.replace("mmer", "omni_ties"))
    with pytest.raises(ConfigError, match="one tensor at a time"):
        calibrate(TEXT, {"trim_scope": ["model"]})
    one: dict[str, list[Any]] = {"density": [0.3], "scale": [1.0], "mask_lambda": [0.5]}
    for wrong in (math.nan, 10**400, {}, {"image": "good"}, {"image": True}):
        with pytest.raises(EvaluationError):
            calibrate(TEXT, one, score=lambda package, said=wrong: said)  # type: ignore[misc]
    (tmp_path / "old.jsonl").write_text("nothing\n")
    with pytest.raises(ConfigError, match="holds no trials"):
        calibrate(TEXT, one, score=lambda package: 1.0, surface=tmp_path / "old.jsonl")
    (tmp_path / "mmer.yml").write_text(TEXT)
    small = ("--grid", "density=0.3", "--grid", "scale=1", "--grid", "mask_lambda=0.5")
    for command, said in (
        ("no-such-program", "no program 'no-such-program'"),
        (f"{sys.executable} -c 'raise SystemExit(3)'", "failed with 3"),
        ("echo well", "print a number"),
        (r"printf '\377'", "print a number"),
        (f"{sys.executable} -c 'print(100000 * chr(91))'", "print a number"),
        ("echo NaN", "print a number"),
        ("'unclosed", "--score-command"),
    ):
        slip = run("mmer", "calibrate", "mmer.yml", *small, "--score-command", command)
        assert slip.code == 1
        assert said in slip.err
        assert "Traceback" not in slip.err
    flat = run("mmer", "calibrate", "mmer.yml", *small, "--plot", "x.png")
    assert "more than one value" in flat.err
    for option in ("--plot", "--out", "--surface"):
        nowhere = run("mmer", "calibrate", "mmer.yml", option, "nowhere/file")
        assert "make it first" in nowhere.err
    other = run("mmer", "calibrate", "mmer.yml", "--grid", "scale=1,2", "--plot", "x.nonsense")
    assert "ends in one of .png" in other.err


def test_sampling_takes_even_pieces() -> None:
    """Small tensors whole; of large ones evenly spaced pieces."""
    from omnireg.workflows.closeness import _sampled

    tensor = torch.arange(1 << 16)
    assert _sampled(tensor, 0) is tensor
    assert _sampled(tensor, 1 << 16) is tensor
    found = _sampled(tensor, 1 << 14)
    assert len(found) == 1 << 14
    assert found[4096] == 4 * 4096


def test_settings_are_scored_by_tasks(run: Run, tmp_path: Path) -> None:
    """Each model's λ is chosen by its own modality's questions, put to the whole package."""
    from omnireg.demo import questions

    questions.write(tmp_path / "asked", SENSES)
    (tmp_path / "r.yml").write_text(TEXT)
    files = [questions.file_of(tmp_path / "asked", sense) for sense in SENSES]
    done = run(
        "mmer", "calibrate", tmp_path / "r.yml", "--grid", "mask_lambda=0.5,4",
        "--tasks", ",".join(map(str, files)), "--limit", "12", "--dtype", "float32",
        "--no-chat-template", "--max-new-tokens", "8", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert set(found["trials"][0]["values"]) == set(SENSES)
    assert found["mask_lambda"] == dict.fromkeys(SENSES, 0.5)
    both = run(
        "mmer", "calibrate", tmp_path / "r.yml", "--tasks", files[0], "--score-command", "true"
    )
    assert both.code == 1
    assert "leave one out" in both.err
