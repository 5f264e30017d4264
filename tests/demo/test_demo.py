"""The tiny real family and the story it tells: data, checkpoints, and honest figures."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

from omnireg.checkpoints.checkpoint import open_checkpoint
from omnireg.checkpoints.loading import quiet
from omnireg.demo import questions, story, tasks
from omnireg.evaluation.opening import open_subject
from omnireg.hookspecs import Result
from omnireg.planning import open_model
from omnireg.plugins.host import PluginHost
from tests_support import Run

MODALITIES = ("base", "image", "audio", "video")
ITEMS = 200


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> story.Story:
    """The whole story, with 200 items per modality."""
    return story.tell(tmp_path_factory.mktemp("demo") / "demo", items=ITEMS)


@pytest.mark.parametrize("modality", MODALITIES)
def test_splits_are_large_disjoint_and_the_same_every_time(modality: Any) -> None:
    """At least 1 000 test items; no medium or question of one split is in another."""
    splits = {split: tasks.items(modality, split) for split in ("train", "validation", "test")}
    assert len(splits["test"]) >= 1000
    assert len(splits["validation"]) >= 300

    def content(items: Any) -> set[object]:
        if modality == "base":
            return {(item.prompt, item.answer) for item in items}
        return {array.tobytes() for item in items for array in item.media}

    seen = {split: content(items) for split, items in splits.items()}
    assert not seen["test"] & seen["validation"]
    assert not seen["test"] & seen["train"]
    again = tasks.items(modality, "test")
    assert [i.prompt for i in again] == [i.prompt for i in splits["test"]]
    assert content(again) == seen["test"]


def test_the_shipped_digits_are_scikit_learns() -> None:
    """Same images and labels as ``load_digits``, so that it is not needed to run."""
    shipped = np.load(Path(tasks.__file__).parent / "digits.npz")
    theirs = load_digits()
    arrays = {shipped[name].ndim: shipped[name] for name in shipped.files}
    assert np.array_equal(arrays[3], theirs.images.astype(np.uint8))
    assert np.array_equal(arrays[1], theirs.target)


def test_the_family_is_small_complete_and_one_backbone() -> None:
    """A few MB; every folder is a complete checkpoint whose language model fits the base."""
    files = [file for file in story.FAMILY.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 8_000_000
    plugins = PluginHost()
    base = open_model(str(story.FAMILY / "base"), plugins)
    assert sum(t.numel for t in base.tensors.values()) == pytest.approx(5e5, rel=0.3)
    for sense in story.SENSES:
        host = open_model(str(story.FAMILY / sense), plugins)
        assert host.is_host
        assert open_checkpoint(str(story.FAMILY / sense)).vocabulary is not None


def test_placeholders_of_different_hosts_clash(told: story.Story) -> None:
    """The same id means another token in another host, as it does in real families."""
    meanings: dict[int, set[str]] = {}
    for sense in story.SENSES:
        vocabulary = open_checkpoint(str(story.FAMILY / sense)).vocabulary
        assert vocabulary is not None
        for index, token in vocabulary.tokens.items():
            meanings.setdefault(index, set()).add(token)
    assert any(len(tokens) > 1 for tokens in meanings.values())


def count(result: Result) -> int:
    """Return how many answers were right."""
    return round(result.value * (result.n or 0))


def test_mmer_keeps_most_and_the_base_in_a_host_least(told: story.Story) -> None:
    """MMER is ahead of every other method by 20 points; the base's language model is last."""
    kept = {row.method: row.mean_retention for row in told.rows}
    others = [kept[name] for name in ("average", "delta_weighted", "omni_ties")]
    assert kept["own model"] == 1
    assert kept["mmer"] >= max(others) + 0.20
    assert kept[story.IN_HOST] < min(others)


def test_one_routed_model_is_all_of_them_and_the_base(told: story.Story) -> None:
    """Each modality scores as its own merge; text alone as the base; two senses above chance."""
    rows = {row.method: row for row in told.rows}
    routed, alone = rows[story.ROUTED], rows["mmer"]
    for sense in story.SENSES:
        assert count(routed.scores[sense]) == pytest.approx(count(alone.scores[sense]), abs=1)
    assert routed.base_tasks is not None
    assert routed.base_tasks.value == told.base.value
    for pair, score in told.pairs.items():
        assert score.value > told.chance[pair] + 0.3


def test_extending_a_modality_cost_language(told: story.Story) -> None:
    """On the base's tasks every host's own language model is far behind the base."""
    assert told.base.value > 0.85
    for score in told.hosts_on_base_tasks.values():
        assert score.value < told.base.value - 0.15


def test_every_figure_is_counted_and_recorded(told: story.Story) -> None:
    """Counts, standard errors, and the same values in the registry with their conditions."""
    from omnireg.registry import Registry

    with Registry(told.folder / "registry.db") as book:
        (score,) = [s for s in book.scores("mmer-image") if s.benchmark == "tiny-image"]
        assert book.check() == []
        parents = {(p.name, str(p.role)) for p in book.find("mmer-image").parents}
    row = next(row for row in told.rows if row.method == "mmer")
    shown = row.scores["image"]
    assert (score.value, score.n, score.partial) == (shown.value, shown.n, True)
    assert shown.n == ITEMS
    assert score.stderr == pytest.approx((score.value * (1 - score.value) / shown.n) ** 0.5)
    assert parents == {
        ("image", "model"), ("audio", "model"), ("video", "model"), ("base", "base"),
        ("image", "host"),
    }  # fmt: skip


def test_a_corrupted_model_scores_less(tmp_path: Path) -> None:
    """Noise on one layer of a host's language model: its figure falls."""
    shutil.copytree(story.FAMILY / "audio", tmp_path / "audio")
    file = tmp_path / "audio" / "model.safetensors"
    tensors = load_file(file)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if "language_model.model.layers.1." in name:
            noise = torch.randn(tensor.shape, generator=generator)
            tensors[name] = (tensor.float() + 0.3 * noise).to(tensor.dtype)
    save_file(tensors, file, metadata={"format": "pt"})
    questions.write(tmp_path, ["audio"])
    file = questions.file_of(tmp_path, "audio")
    sound = story.measure(story.FAMILY / "audio", file, ITEMS)
    damaged = story.measure(tmp_path / "audio", file, ITEMS)
    assert damaged.value < sound.value - 0.2


def test_the_same_model_scores_the_same_whatever_the_batch() -> None:
    """Padding and batching do not change an answer's count by more than rounding may."""
    asked = tasks.items("image", "test")[:60]
    with quiet():
        subject = open_subject(story.FAMILY / "image", dtype="float32")
    counts = [count(questions.score(subject, asked, batch_size=size)) for size in (7, 60)]
    assert abs(counts[0] - counts[1]) <= 1


def test_a_second_run_keeps_what_the_first_one_merged(told: story.Story, run: Run) -> None:
    """Finished merges are verified and kept; the printed table and the JSON agree."""
    before = {p.name: p.stat().st_mtime_ns for p in told.folder.glob("*/model.safetensors")}
    done = run("demo", told.folder, "--items", "20")
    assert done.code == 0, done.err
    after = {p.name: p.stat().st_mtime_ns for p in told.folder.glob("*/model.safetensors")}
    assert before == after
    assert "mean retention" in done.out
    assert "mmer-image" in done.out
    assert "next: cd" in done.err
    shown = json.loads(run("demo", told.folder, "--items", "20", "--json").out)
    assert [row["method"] for row in shown["rows"]] == [
        "own model", "base in host", "average", "delta_weighted", "omni_ties", "mmer",
        story.ROUTED,
    ]  # fmt: skip


def test_a_folder_of_something_else_is_refused(tmp_path: Path, run: Run) -> None:
    """The demo does not write into a folder it did not make."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    done = run("demo", tmp_path / "mine")
    assert done.code == 1
    assert "holds something else" in done.err
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
