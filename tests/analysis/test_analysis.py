"""What checkpoints are like inside: shift, heads, places; against independent computations."""

import gzip
import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.decomposition import PCA
from torch import Tensor
from transformers import AttentionInterface

from omnireg.analysis.heads import Probe, salience
from omnireg.analysis.masking import Mask, attentions_of
from omnireg.analysis.salience import Asked, Key, head, read_run, write_run
from omnireg.analysis.shift import shift
from omnireg.analysis.tsne import place
from omnireg.demo import questions, story
from omnireg.demo.tasks import items
from omnireg.errors import CheckpointError, ConfigError, EvaluationError, PlanError
from omnireg.evaluation.items import Item, Items
from omnireg.evaluation.model import Subject
from omnireg.evaluation.opening import open_subject
from omnireg.registry import Registry
from omnireg.strategies.task_vectors import SPAN
from tests_support import Run, digit_probe

DATA = Path(__file__).with_name("data")
BASE = story.FAMILY / "base"
HOSTS = [story.FAMILY / sense for sense in story.SENSES]


def words(folder: Path) -> dict[str, Tensor]:
    """Return a checkpoint's language model by canonical names, in float64."""
    found = load_file(folder / "model.safetensors")
    plain = {
        name.replace("language_model.model.", "model.")
        .replace("language_model.lm_head", "lm_head")
        .replace("model.language_model.", "model."): tensor.double()
        for name, tensor in found.items()
    }
    return {n: t for n, t in plain.items() if n.startswith(("model.layers", "model.norm"))}


# Shift


def test_shifts_are_those_of_the_definition() -> None:
    """Mean |θ − θ₀| of every tensor, layer and kind of module, on hosts of three classes."""
    found = shift(str(BASE), [str(host) for host in HOSTS])
    base = words(BASE)
    for model, folder in zip(found.models, HOSTS, strict=True):
        vectors = {name: words(folder)[name] - tensor for name, tensor in base.items()}
        for name, vector in vectors.items():
            assert model.tensors[name] == pytest.approx(float(vector.abs().mean()), rel=1e-5)
            assert model.norms[name] == pytest.approx(float(vector.norm()), rel=1e-5)
        for layer, value in enumerate(model.layers):
            own = [v.flatten() for n, v in vectors.items() if f"layers.{layer}." in n]
            assert value == pytest.approx(float(torch.cat(own).abs().mean()), rel=1e-5)
        queries = [v.flatten() for n, v in vectors.items() if n.endswith("q_proj.weight")]
        assert model.modules["self_attn.q_proj.weight"] == pytest.approx(
            float(torch.cat(queries).abs().mean()), rel=1e-5
        )
    assert set(found.models[0].tensors) - set(base) == {
        "model.embed_tokens.weight",
        "lm_head.weight",
    }
    assert found.to_json()["models"][0].keys() >= {"name", "delta_avg", "layers", "tensors"}


def family(folder: Path, vectors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> Path:
    """Write copies of the base with something added to one tensor; return their folder."""
    name = "model.layers.0.mlp.up_proj.weight"
    for model, vector in vectors.items():
        place = folder / model
        shutil.copytree(BASE, place)
        tensors = {n: t.to(dtype) for n, t in load_file(place / "model.safetensors").items()}
        flat = tensors[name].flatten()
        flat[: len(vector)] += vector.to(dtype)
        tensors[name] = flat.reshape(tensors[name].shape)
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_agreement_and_conflict_by_hand(tmp_path: Path) -> None:
    """Three vectors on five elements, in powers of two; the base in another number format."""
    family(
        tmp_path,
        {
            "a": torch.tensor([4.0, 4.0, -4.0, 0.0, 0.0]),
            "b": torch.tensor([8.0, -8.0, -8.0, 8.0, 0.0]),
            "c": torch.tensor([0.0, 0.0, 2.0, 2.0, 2.0]),
        },
    )
    found = shift(str(BASE), [str(tmp_path / name) for name in "abc"])
    a, b, c = found.models
    numel = found.numel
    assert [round(m.delta_avg * numel, 6) for m in found.models] == [12, 32, 6]
    assert [m.largest for m in found.models] == [4, 8, 2]
    assert [round(m.moved * numel) for m in found.models] == [3, 4, 3]
    pairs = {tuple(Path(m).name for m in p.models): p for p in found.pairs}
    assert pairs["a", "b"].cosine == pytest.approx(32 / math.sqrt(48 * 256))
    assert pairs["a", "b"].sign_agreement == pytest.approx(2 / 3)
    assert pairs["a", "c"].sign_agreement == 0
    assert pairs["b", "c"].cosine == pytest.approx(0)
    assert found.conflict == pytest.approx(2 / 5)
    assert found.conflict_by_layer[1:] == (0, 0, 0)
    assert pairs["a", "b"].layers[1] is None
    assert a.relative < b.relative
    assert c.layers[0] > 0


def test_a_model_that_is_the_base_has_no_shift(tmp_path: Path) -> None:
    """Zero everywhere, and nothing divides by it."""
    family(tmp_path, {"same": torch.zeros(1)})
    found = shift(str(BASE), [str(tmp_path / "same"), str(HOSTS[0])])
    assert found.models[0].delta_avg == found.models[0].moved == 0
    assert found.pairs[0].cosine is None
    assert found.pairs[0].sign_agreement is None
    assert found.conflict == 0


def test_threads_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few elements, many threads or one."""
    from omnireg.analysis import vectors

    monkeypatch.setattr(vectors, "SPAN", 1000)
    models = [str(host) for host in HOSTS]
    many, one = (shift(str(BASE), models, threads=n).to_json() for n in (7, 1))
    assert many == one
    assert SPAN > 1000


def test_what_cannot_be_compared_is_refused(tmp_path: Path, run: Run) -> None:
    """NaN, other architectures, missing folders, a checkpoint named twice."""
    family(tmp_path, {"nan": torch.tensor([math.nan])})
    with pytest.raises(CheckpointError, match="NaN or Inf"):
        shift(str(BASE), [str(tmp_path / "nan")])
    with pytest.raises(ConfigError, match="named twice"):
        shift(str(BASE), [str(HOSTS[0]), str(HOSTS[0])])
    done = run("analyze", "shift", BASE, tmp_path / "none")
    assert done.code == 1
    assert "error:" in done.err
    config = json.loads((BASE / "config.json").read_text())
    shutil.copytree(BASE, tmp_path / "wide")
    (tmp_path / "wide" / "config.json").write_text(json.dumps({**config, "hidden_size": 32}))
    with pytest.raises((CheckpointError, PlanError)):
        shift(str(BASE), [str(tmp_path / "wide")])
    assert run("analyze", "shift", BASE, HOSTS[0], "--plot", tmp_path / "no" / "p.png").code == 1


def test_shifts_are_recorded_and_drawn(run: Run, tmp_path: Path) -> None:
    """By the names of the registry; only if all are in it."""
    assert run("add", BASE).code == 0
    first = run("analyze", "shift", BASE, HOSTS[0], HOSTS[1])
    assert first.code == 0, first.err
    assert "not recorded" in first.err
    for host in HOSTS[:2]:
        assert run("add", host, "--parent", "base").code == 0
    plot = tmp_path / "s.png"
    done = run("analyze", "shift", "base", "image", HOSTS[1], "--plot", plot, "--json")
    assert done.code == 0, done.err
    shown = json.loads(done.out)
    assert [model["name"] for model in shown["models"]] == ["image", "audio"]
    with Image.open(plot) as drawn:
        assert drawn.width > 500
    with Registry() as book:
        (analysis,) = book.analyses("audio", "shift")
    assert analysis.against == "base"
    assert analysis.result["delta_avg"] == shown["models"][1]["delta_avg"]
    assert analysis.result["pairs"][0]["models"] == ["image", "audio"]
    table = run("analyze", "shift", "base", "image", "audio").out
    assert "elements in conflict" in table


# Heads: figures


def run_of(**logits: list[float]) -> dict[str, Asked]:
    """Return a run whose answers are A."""
    return {name: Asked("A", tuple(values)) for name, values in logits.items()}


def test_divergences_by_hand() -> None:
    """Two options: p = (3/4, 1/4), q = (1/2, 1/2)."""
    p, q = run_of(x=[math.log(3), 0.0]), run_of(x=[1.0, 1.0])
    found = head(2, 5, p, q, {"x": Key("A", 1)})
    entropy = 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert found.kl_true == pytest.approx(entropy + math.log(2))
    assert found.kl_lm_extend == pytest.approx((entropy - 0.5) / 2)
    assert (found.layer, found.head, found.accuracy, found.prob_accuracy) == (2, 5, 1.0, 0.0)
    same = head(0, 0, p, p, None)
    assert same.kl_true == pytest.approx(0)
    assert same.accuracy is None
    certain = head(0, 0, run_of(x=[1e4, 0.0]), q, None)
    assert certain.kl_true == pytest.approx(math.log(2))


def test_torch_agrees_on_both_divergences() -> None:
    """Its kl_div with logarithms, and with probabilities where they belong."""
    rng = np.random.default_rng(0)
    before, after = (
        run_of(**{str(i): rng.normal(size=4).tolist() for i in range(20)}) for _ in range(2)
    )
    found = head(0, 0, before, after, None)
    p, q = (
        torch.tensor([a.logits for a in r.values()], dtype=torch.float64).softmax(-1)
        for r in (before, after)
    )
    divergence = torch.nn.functional.kl_div
    assert found.kl_true == pytest.approx(float(divergence(q.log(), p, reduction="batchmean")))
    assert found.kl_lm_extend == pytest.approx(float(divergence(q, p, reduction="none").mean()))


def test_released_figures_are_reproduced(run: Run, tmp_path: Path) -> None:
    """Qwen2-VL-7B-Instruct on MMMU, head (0, 23): the paper's figure to 1e-6, and the true KL.

    Option logits and the figure −0.263923 are those that the authors of arXiv 2506.01872 released.
    """
    done = run("analyze", "heads", "--logits", DATA / "head-salience", "--json")
    assert done.code == 0, done.err
    shown = json.loads(done.out)
    (one,) = shown["heads"]
    assert (one["layer"], one["head"], shown["n"]) == (0, 23, 900)
    assert one["kl_lm_extend"] == pytest.approx(-0.26392345861842237, abs=1e-6)
    assert one["kl_true"] == pytest.approx(0.812943, abs=1e-6)
    assert one["accuracy"] is one["prob_accuracy"] is shown["accuracy"] is None
    plot = tmp_path / "h.png"
    assert run("analyze", "heads", "--logits", DATA / "head-salience", "--plot", plot).code == 0
    assert plot.stat().st_size > 1000


def test_accuracies_need_answers(run: Run, tmp_path: Path) -> None:
    """A letter for every question; anything else is said."""
    write_run(tmp_path / "original.jsonl.gz", run_of(x=[1.0, 0.0], y=[0.0, 1.0]))
    write_run(tmp_path / "layer01-head03.jsonl.gz", run_of(x=[0.0, 1.0], y=[0.0, 1.0]))
    answers = tmp_path / "answers.json"
    answers.write_text('{"x": "A", "y": "B"}')
    shown = json.loads(
        run("analyze", "heads", "--logits", tmp_path, "--answers", answers, "--json").out
    )
    assert (shown["accuracy"], shown["prob_accuracy"]) == (0.5, 1.0)
    assert (shown["heads"][0]["accuracy"], shown["heads"][0]["prob_accuracy"]) == (0.5, 0.5)
    for text, said in (('{"x": "A"}', "question y"), ('{"x": "A", "y": "C"}', "one of A, B"),
                       ("[1]", "id → letter"), ("{", "is damaged")):  # fmt: skip
        answers.write_text(text)
        done = run("analyze", "heads", "--logits", tmp_path, "--answers", answers)
        assert done.code == 1
        assert said in done.err


def test_damaged_logits_are_named(run: Run, tmp_path: Path) -> None:
    """Truncated archives, other questions, other options, nothing at all."""
    good = run_of(x=[1.0, 0.0])
    common = ("analyze", "heads", "--logits", tmp_path)
    assert "no original.jsonl" in run(*common).err
    write_run(tmp_path / "original.jsonl.gz", good)
    assert "no head was masked" in run(*common).err
    file = tmp_path / "layer00-head00.jsonl.gz"
    for run_, said in ((run_of(y=[1.0, 0.0]), "other questions"),
                       (run_of(x=[1.0, 0.0, 2.0]), "other options")):  # fmt: skip
        write_run(file, run_)
        assert said in run(*common).err
    file.write_bytes(gzip.compress(b'{"x": ["A", [1, 0]]}\n')[:-6])
    assert "cannot read" in run(*common).err
    for line in ('{"x": ["A", [1]]}', '{"x": ["A", [1, NaN]]}', "[1]", '{"x": 3}', '{"x"'):
        file.write_bytes(gzip.compress(line.encode() + b"\n"))
        done = run(*common)
        assert done.code == 1
        assert re.search(":1(: no | is damaged )", done.err), line
    assert "there is no folder" in run("analyze", "heads", "--logits", tmp_path / "none").err
    for arguments in ((), ("m",), ("m", "--probe", "p.jsonl", "--answers", "a"),
                      ("m", "--logits", tmp_path)):  # fmt: skip
        assert run("analyze", "heads", *arguments).code == 1


# Heads: masking


@pytest.fixture(scope="module")
def image() -> Subject:
    """The image host in float32."""
    return open_subject(story.FAMILY / "image", dtype="float32")


@pytest.fixture(scope="module")
def probe() -> Probe:
    """Questions about one digit and about two, so of two lengths."""
    chosen = [i for i in items("image", "test") if i.skill in ("digit", "larger")]
    return Probe.of(Items(questions.questions(chosen[::40]), "some"))


def reference(subject: Subject, probe: Probe, layer: int, number: int, way: Mask) -> list[Tensor]:
    """Return first-token logits with one head masked inside the attention itself.

    An independent way: softmax over logits that are set to 0 after the causal mask, or the head's
    weights set to 0, in an attention function of our own.
    """

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **how: Any
    ) -> tuple[Tensor, None]:
        groups = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(groups, 1) for t in (key, value))
        scores = query @ key.transpose(2, 3) * how["scaling"]
        length = key.shape[2]
        causal = torch.ones(query.shape[2], length).tril(length - query.shape[2]).bool()
        scores = scores.masked_fill(~causal, -torch.inf)
        if module.layer_idx == layer and way is Mask.UNIFORM:
            scores[:, number] = 0
        weights = scores.softmax(-1)
        if module.layer_idx == layer and way is Mask.ZERO:
            weights[:, number] = 0
        return (weights @ value).transpose(1, 2).contiguous(), None

    AttentionInterface.register("by_hand", attend)
    config = subject.model.model.language_model.config
    before, config._attn_implementation = config._attn_implementation, "by_hand"
    try:
        return [generated(subject, item) for item in probe.items]
    finally:
        config._attn_implementation = before


def generated(subject: Subject, item: Item) -> Tensor:
    """Return the logits of the first two tokens of an answer; the second uses the cache."""
    with torch.inference_mode():
        made = subject.model.generate(
            **subject.inputs([item], chat=False), max_new_tokens=2, min_new_tokens=2,
            do_sample=False, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    return torch.stack(made.logits)[:, 0]


@pytest.mark.parametrize("way", list(Mask))
def test_a_masked_head_is_masked(image: Subject, probe: Probe, way: Mask, tmp_path: Path) -> None:
    """Every head of two layers gives the logits of an attention that masks it by itself."""
    found = salience(image, probe, mask=way, layers=[0, 3], chat=False, folder=tmp_path / "k")
    assert [(h.layer, h.head) for h in found.heads] == [(i, j) for i in (0, 3) for j in range(6)]
    whole = read_run(tmp_path / "k" / "original.jsonl.gz")
    for one in found.heads[::5]:
        wanted = reference(image, probe, one.layer, one.head, way)
        stored = read_run(tmp_path / "k" / f"layer{one.layer:02d}-head{one.head:02d}.jsonl.gz")
        moved = 0.0
        for item, options, (logits, _) in zip(probe.items, probe.options, wanted, strict=True):
            tokens = [image.tokenizer(o)["input_ids"][0] for o in options]
            assert stored[item.id].logits == pytest.approx(logits[tokens].tolist(), abs=2e-4)
            moved = max(
                moved, np.abs(np.subtract(stored[item.id].logits, whole[item.id].logits)).max()
            )
        assert moved > 1e-3
    assert found.accuracy is not None
    assert found.accuracy > 0.8


@pytest.mark.parametrize("way", list(Mask))
def test_masks_hold_while_an_answer_is_generated(image: Subject, probe: Probe, way: Mask) -> None:
    """The second token, for which the first ones come from the cache, is masked as well."""
    for layer, number in ((0, 4), (1, 1)):
        wanted = reference(image, probe, layer, number, way)
        with attentions_of(image)[layer].masked(number, way) as begin:
            for item, logits in zip(probe.items, wanted, strict=True):
                begin()
                torch.testing.assert_close(generated(image, item), logits, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(generated(image, probe.items[0]), wanted[0], atol=1e-2)


def test_a_stopped_analysis_goes_on(
    image: Subject, probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads that were asked are not asked again; a damaged file is asked for again."""
    asked: list[int] = []
    answer = Subject.answer

    def counted(self: Subject, *arguments: Any) -> Any:
        asked.append(1)
        if len(asked) == stop:
            raise KeyboardInterrupt
        return answer(self, *arguments)

    monkeypatch.setattr(Subject, "answer", counted)
    how: dict[str, Any] = {"layers": [1], "chat": False, "folder": tmp_path / "k"}
    stop = 7
    with pytest.raises(KeyboardInterrupt):
        salience(image, probe, **how)
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "k").glob("*.gz")}
    assert len(kept) == 3  # two batches each
    stop, asked[:] = 0, []
    whole = salience(image, probe, **how)
    assert len(asked) == 2 * 7 - 6
    assert all((tmp_path / "k" / n).stat().st_mtime_ns == t for n, t in kept.items())
    asked.clear()
    assert salience(image, probe, **how) == whole
    assert not asked
    (tmp_path / "k" / "layer01-head02.jsonl.gz").write_bytes(b"damaged")
    assert salience(image, probe, **how) == whole
    assert len(asked) == 2
    with pytest.raises(EvaluationError, match="another model, mask or file"):
        salience(image, probe, mask="uniform", **how)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(EvaluationError, match="something else"):
        salience(image, probe, chat=False, folder=tmp_path / "mine")


def test_heads_from_the_command_line(run: Run, tmp_path: Path) -> None:
    """A probe of the family's own questions; recorded, drawn, and read again from its logits."""
    file = digit_probe(tmp_path)
    assert run("add", story.FAMILY / "image").code == 0
    done = run(
        "analyze", "heads", "image", "--probe", file, "--no-chat-template", "--layer", "0",
        "--dtype", "float32", "--keep", tmp_path / "kept", "--plot", tmp_path / "h.png", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    shown = json.loads(done.out)
    assert [h["head"] for h in shown["heads"]] == list(range(6))
    assert shown["accuracy"] > 0.8
    with Registry() as book:
        (analysis,) = book.analyses("image", "heads")
    assert analysis.result["heads"] == shown["heads"]
    assert (analysis.setup["mask"], analysis.setup["n"]) == (
        "zero",
        len(file.read_text().splitlines()),
    )
    again = json.loads(run("analyze", "heads", "--logits", tmp_path / "kept", "--json").out)
    assert [h["kl_true"] for h in again["heads"]] == [h["kl_true"] for h in shown["heads"]]
    costly = min(shown["heads"], key=lambda h: h["accuracy"])
    told = run("report", "image").out
    assert f"head {costly['head']} of layer 0 costs most accuracy" in told
    common = ("analyze", "heads", "image", "--probe", file, "--no-chat-template")
    assert "no layer 9" in run(*common, "--layer", 9).err
    assert "no mask 'half'" in run(*common, "--mask", "half").err
    assert "10 heads of 24" in run(*common, "--limit", 2, "--kl", "lm-extend").out


def test_probes_need_options_that_differ(image: Subject) -> None:
    """Two or more, the answer among them, and first tokens that tell them apart."""
    for item, said in (
        (Item("1", "q", ("a",)), "two or more"),
        (Item("1", "q", (), options=("a", "b")), "an `answer` among them"),
        (Item("1", "q", ("c",), options=("a", "b")), "an `answer` among them"),
    ):
        with pytest.raises(EvaluationError, match=said):
            Probe.of(Items((item,), ""))
    twice = Item("1", "q", ("a",), options=("a", "b"))
    with pytest.raises(EvaluationError, match="the id 1"):
        Probe.of(Items((twice, twice), ""))
    same = Probe.of(Items((Item("1", "q", ("7",), options=("7", "77")),), ""))
    with pytest.raises(EvaluationError, match="begin with the same token"):
        salience(image, same, chat=False)


# Places


def test_places_by_principal_components() -> None:
    """The distances of every tensor, as scikit-learn's PCA places them, up to signs."""
    models = [str(host) for host in HOSTS]
    found = place(models, str(BASE), method="pca")
    base = words(BASE)
    for folder in HOSTS:
        for name, tensor in base.items():
            norm = float((words(folder)[name] - tensor).norm())
            row = found.features[str(folder)]
            assert row[found.tensors.index(name)] == pytest.approx(norm, rel=1e-5)
    features = np.array(list(found.features.values()))
    wanted = PCA(2).fit(features)
    coordinates = np.array(list(found.places.values()))
    np.testing.assert_allclose(np.abs(coordinates), np.abs(wanted.transform(features)), atol=1e-9)
    assert found.explained == pytest.approx(wanted.explained_variance_ratio_)


def test_t_sne_is_fixed_by_its_seed(run: Run, tmp_path: Path) -> None:
    """Perplexity n − 1 for few models; the same seed gives the same map."""
    assert run("add", BASE).code == 0
    for host in HOSTS:
        assert run("add", host).code == 0
    common = ("analyze", "tsne", "image", "audio", "video", "--reference", "base", "--json")
    one, two = run(*common, "--plot", tmp_path / "t.png"), run(*common)
    assert one.code == 0, one.err
    assert one.out == two.out
    shown = json.loads(one.out)
    assert (shown["perplexity"], shown["seed"]) == (2.0, 0)
    assert [m["name"] for m in shown["models"]] == ["image", "audio", "video"]
    assert (tmp_path / "t.png").exists()
    with Registry() as book:
        (analysis,) = book.analyses("video", "tsne")
    assert analysis.result["x"] == shown["models"][2]["x"]
    few = run("analyze", "tsne", "image", "audio", "--reference", "base")
    assert few.code == 1
    assert "needs 3 models" in few.err
    assert "of the variance" in run(*common[:-1], "--method", "pca").out
    assert "no method 'umap'" in run(*common, "--method", "umap").err
