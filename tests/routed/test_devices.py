"""On a GPU, what comes out is what comes out without one: merges, packages, routing, scores."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from omnireg.demo import questions, story
from omnireg.demo.clips import Modality
from omnireg.demo.tasks import items
from omnireg.evaluation.items import read_items
from omnireg.evaluation.opening import open_subject
from omnireg.package import Package
from omnireg.package.extracting import extract
from omnireg.routed import Storage, load
from tests_support import Run, digit_probe, recipe, write_task
from zoo import read_weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")

SENSES: tuple[Modality, ...] = ("image", "audio", "video")
MODELS = "".join(f"  - model: words/{sense}\n" for sense in SENSES)
WEIGHTED = MODELS.replace("\n", "\n    parameters: {weight: 0.5}\n")
TWO = "  - model: words/image\n  - model: words/audio\n"
DENSITY = "parameters: {density: 0.4}\n"
#: a recipe of every method, with what makes it work: models, base, parameters
METHODS = {
    "average": (MODELS, "base", ""),
    "delta_weighted": (MODELS, "base", ""),
    "omni_ties": (MODELS, "base", "parameters: {density: 0.4, trim_scope: model}\n"),
    "mmer": (MODELS, "base", "parameters: {density: 0.4, mask_of: words/audio, rescale: l1}\n"),
    "emr": (MODELS, "base", ""),
    "consensus": (MODELS, "base", ""),
    "linear": (WEIGHTED, None, ""),
    "task_arithmetic": (WEIGHTED, "base", ""),
    "ties": (WEIGHTED, "base", DENSITY),
    "breadcrumbs": (WEIGHTED, "base", "parameters: {density: 0.6, gamma: 0.05}\n"),
    "slerp": (TWO, "words/image", "parameters: {t: 0.4}\n"),
    "nuslerp": (TWO.replace("\n", "\n    parameters: {weight: 0.5}\n"), None, ""),
    "multislerp": (WEIGHTED, None, ""),
    "karcher": (TWO, None, ""),
    "model_stock": (MODELS, "base", ""),
    "sce": (TWO, "base", "parameters: {select_topk: 0.5}\n"),
    "arcee_fusion": ("  - model: words/image\n", "base", ""),
    "nearswap": ("  - model: words/image\n", "base", "parameters: {t: 0.01}\n"),
}
#: of mergekit, that choose by rank or iterate: what is nearly equal falls the other way there
LOOSE = ("breadcrumbs", "karcher", "model_stock", "sce")
RANDOM = ("dare_ties", "dare_linear", "della", "della_linear")
PACKED = {
    "mmer": "{density: 0.5, rescale: l1, rescale_scope: model}",
    "emr": "{}",
}


def write(method: str, models: str, base: str | None, more: str) -> None:
    """Write the recipe of a merge to ``r.yml``."""
    Path("r.yml").write_text(recipe(method, models, base, more))


def merged(run: Run, out: str, *options: str) -> dict[str, Any]:
    """Merge ``r.yml`` and return the receipt."""
    done = run("merge", "r.yml", out, "--json", *options)
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def assert_close(
    found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], share: float = 1e-4
) -> None:
    """As close as sums in another order leave numbers of eight bits: some differ in the last."""
    assert found.keys() == wanted.keys()
    size = sum(float(wanted[k].double().abs().sum()) for k in wanted)
    gap = sum(float((found[k].double() - wanted[k].double()).abs().sum()) for k in wanted)
    other = sum(int((found[k] != wanted[k]).sum()) for k in wanted)
    assert gap <= share * size, f"{other} differ, by {gap / size:.2g} of all"


@pytest.mark.parametrize("method", METHODS)
def test_a_merge_is_the_same(here: Path, run: Run, method: str) -> None:
    """Torch on the GPU in both engines; what has a compiled pass is not left to it by the first."""
    write(method, *METHODS[method])
    merged(run, "cpu")
    wanted = read_weights(here / "cpu")
    scoped = "trim_scope" in METHODS[method][2]
    for engine in ("stream",) if scoped else ("stream", "mergekit"):
        receipt = merged(run, engine, "--engine", engine, "--device", "cuda")
        assert receipt["engine"] == engine
        assert_close(read_weights(here / engine), wanted, 1e-2 if method in LOOSE else 1e-4)


@pytest.mark.parametrize("method", RANDOM)
def test_randomness_repeats(here: Path, run: Run, method: str) -> None:
    """A GPU has random numbers of its own, the same at every run."""
    write(method, WEIGHTED, "base", "parameters: {density: 0.5}\n")
    first, again = (merged(run, out, "--device", "cuda") for out in ("first", "again"))
    assert first["fingerprint"] == again["fingerprint"]
    assert first["fingerprint"] != merged(run, "cpu")["fingerprint"]


def test_a_rerun_computes_where_the_merge_did(here: Path, run: Run) -> None:
    """The device is recorded with the run."""
    write("dare_ties", WEIGHTED, "base", "parameters: {density: 0.5}\n")
    merged(run, "out", "--device", "cuda", "--seed", "7")
    again = run("--json", "verify", "out", "--rerun")
    assert again.code == 0, again.err + again.out


def test_bad_numbers_are_found_there_too(here: Path, run: Run) -> None:
    """Before anything is written."""
    shutil.copytree(here / "words" / "image", here / "bad")
    for file in (here / "bad").glob("*.safetensors"):
        from safetensors.torch import save_file

        held = load_file(file)
        next(iter(held.values())).view(-1)[3] = float("nan")
        save_file(held, file, {"format": "pt"})
    write("omni_ties", MODELS.replace("words/image", "bad"), "base", "")
    refused = run("merge", "r.yml", "out", "--device", "cuda")
    assert refused.code == 1
    assert "NaN" in refused.err
    assert not (here / "out").exists()


@pytest.fixture(scope="module", params=PACKED)
def packages(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A package of the family's hosts, made on the CPU, and one made on the GPU."""
    from omnireg.cli import main

    folder = tmp_path_factory.mktemp(request.param)
    listed = "".join(f"  - model: {story.FAMILY / sense}\n" for sense in SENSES)
    (folder / "r.yml").write_text(
        f"merge_method: {request.param}\nbase_model: {story.FAMILY / 'base'}\nmodels:\n{listed}"
        f"parameters: {PACKED[request.param]}\nomnireg: {{output: package}}\n"
    )
    for device in ("cpu", "cuda"):
        command = ["merge", folder / "r.yml", folder / device, "--no-record", "--device", device]
        assert main([str(word) for word in command]) == 0
    return folder / "cpu", folder / "cuda"


def test_a_package_is_the_same(packages: tuple[Path, Path], tmp_path: Path) -> None:
    """Every model that is extracted from it."""
    for sense in SENSES:
        for package in packages:
            extract(Package(package), sense, tmp_path / package.name / sense)
        one, other = (read_weights(tmp_path / package.name / sense) for package in packages)
        assert_close(one, other)


@pytest.mark.parametrize("storage", Storage)
def test_a_routed_model_answers_the_same(packages: tuple[Path, Path], storage: Storage) -> None:
    """All senses in one batch: logits as on the CPU, and the words that follow."""
    asked = [items(sense, "test")[5] for sense in SENSES]
    media: dict[str, Any] = {item.modality: list(item.media) for item in asked}
    found = []
    for device in ("cpu", "cuda"):
        model = load(Package(packages[0]), storage=storage, dtype="float32", device=device)
        inputs = model.processor([item.prompt for item in asked], **media).to(device)
        with torch.no_grad():
            logits = model(**inputs).logits.cpu()
        words = model.generate(**inputs, max_new_tokens=6, do_sample=False).cpu()
        found.append((logits, words, inputs["attention_mask"].cpu().bool()))
    (wanted, said, real), (logits, words, _) = found
    torch.testing.assert_close(logits[real], wanted[real], rtol=1e-3, atol=1e-3)
    assert words.equal(said)


def test_scores_are_the_same(run: Run, packages: tuple[Path, Path], tmp_path: Path) -> None:
    """Hosts, text models and packages, by files of items and by the harness."""
    questions.write(tmp_path, ("base", *SENSES))
    assert run("add", story.FAMILY / "base").code == 0
    for sense in SENSES:
        assert run("add", story.FAMILY / sense, "--parent", "base").code == 0
    assert run("add", packages[0], "--name", "omni").code == 0
    for name, sense in (("base", "base"), ("image", "image"), ("omni", "audio")):
        how = ("eval", name, "--tasks", questions.file_of(tmp_path, sense), "--json",
               "--dtype", "float32", "--max-new-tokens", "8", "--limit", "60",
               "--no-chat-template")  # fmt: skip
        values = []
        for device in ("cpu", "cuda"):
            done = run(*how, "--device", device)
            assert done.code == 0, done.err
            values.append(json.loads(done.out)[0]["value"])
        assert abs(values[0] - values[1]) <= 1 / 60


def test_the_harness_runs_there(run: Run, tmp_path: Path) -> None:
    """A task of lm-evaluation-harness."""
    pytest.importorskip("lm_eval")
    questions.write(tmp_path, ["base"])
    items = [i for i in read_items(questions.file_of(tmp_path, "base")) if i.answers][::30]
    place = write_task(tmp_path / "tasks", [{"q": i.prompt, "a": i.answers[0]} for i in items])
    assert run("add", story.FAMILY / "base").code == 0
    values = []
    for device in ("cpu", "cuda"):
        done = run("eval", "base", "--tasks", "tiny_words", "--include-path", place, "--json",
                   "--dtype", "float32", "--batch-size", "64", "--device", device)  # fmt: skip
        assert done.code == 0, done.err
        values.append(json.loads(done.out)[0]["value"])
    assert abs(values[0] - values[1]) <= 1 / len(items)


def test_heads_are_masked_there(run: Run, tmp_path: Path) -> None:
    """The same divergence for every head."""
    file = digit_probe(tmp_path)
    assert run("add", story.FAMILY / "image").code == 0
    found = []
    for device in ("cpu", "cuda"):
        done = run("analyze", "heads", "image", "--probe", file, "--no-chat-template",
                   "--layer", "0", "--dtype", "float32", "--device", device, "--json")  # fmt: skip
        assert done.code == 0, done.err
        found.append([head["kl_true"] for head in json.loads(done.out)["heads"]])
    assert found[1] == pytest.approx(found[0], rel=1e-2, abs=1e-4)


def test_a_host_answers_there(tmp_path: Path) -> None:
    """A picture, a sound and a video, each by its host."""
    questions.write(tmp_path, SENSES)
    for sense in SENSES:
        asked = list(read_items(questions.file_of(tmp_path, sense)))[:8]
        said = [
            [answer.text for answer in open_subject(
                story.FAMILY / sense, device=device, dtype="float32"
            ).respond(asked, max_new_tokens=6, chat=False)]
            for device in ("cpu", "cuda")
        ]  # fmt: skip
        assert said[0] == said[1]
