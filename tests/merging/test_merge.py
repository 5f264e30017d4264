"""A merge from recipe to record: what is written, what is recorded, what is left after a crash."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import omnireg
import zoo
from omnireg.checkpoints.checkpoint import Checkpoint
from omnireg.errors import ConfigError, PlanError
from omnireg.recipe import parse_recipe
from omnireg.registry import Registry
from plain import plain_mmer
from tests_support import Run


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text base and three hosts of different classes, in different on-disk layouts."""
    folder = tmp_path_factory.mktemp("family")
    for name, architecture, form in (
        ("base", "Qwen2ForCausalLM", "legacy"),
        ("image", "InternVLForConditionalGeneration", "legacy"),
        ("image2", "InternVLForConditionalGeneration", "legacy"),
        ("unbiased", "LlavaForConditionalGeneration", "legacy"),
        ("audio", "Qwen2AudioForConditionalGeneration", "legacy"),
        ("video", "LlavaOnevisionForConditionalGeneration", "memory"),
    ):
        zoo.house(zoo.SPECIES[architecture], form, folder / name)
    changed = load_file(folder / "image2" / "model.safetensors")
    for number, tensor in enumerate(changed.values()):
        tensor += 0.01 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number))
    save_file(changed, folder / "image2" / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def here(family: Path, tmp_path: Path) -> Path:
    """A working folder in which the family is called ``family``."""
    (tmp_path / "family").symlink_to(family)
    return tmp_path


def recipe(method: str, *models: str, extra: str = "", base: str | None = "base") -> str:
    """Return YAML for a merge of family members."""
    listed = "".join(f"  - model: family/{model}\n" for model in models)
    head = f"base_model: family/{base}\n" if base else ""
    return f"merge_method: {method}\n{head}models:\n{listed}{extra}"


def write(folder: Path, text: str) -> Path:
    """Write a recipe file."""
    path = folder / "recipe.yml"
    path.write_text(text)
    return path


def language_model(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Return a checkpoint's language model under canonical names."""
    tensors = zoo.read_weights(folder)
    found = {
        "model." + n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)
    }
    head = next(n for n in tensors if n.endswith("lm_head.weight"))
    return {**found, "lm_head.weight": tensors[head]}


PREFIX = {
    "base": "model.",
    "image": "language_model.model.",
    "audio": "language_model.model.",
    "video": "model.language_model.",
}
#: base tokens, and the rows that are padding in base and hosts alike
SHARED = [
    *range(zoo.IMAGE),
    *range(zoo.IMAGE + len(zoo.PLACEHOLDERS), zoo.ROWS),
]
OWN = list(range(zoo.IMAGE, zoo.IMAGE + len(zoo.PLACEHOLDERS)))
VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")


def aligned(family: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Return every language model in the base's layout, written here from scratch."""
    models = {name: language_model(family / name, PREFIX[name]) for name in PREFIX}
    for name in VOCABULARY:
        for host in ("image", "audio", "video"):
            rows = models["base"][name].clone()
            rows[SHARED] = models[host][name][SHARED]
            models[host][name] = rows
    return models


def test_hosts_of_three_classes_merge_into_a_backbone(here: Path) -> None:
    """Every tensor is the mean of the three hosts', token rows matched, the rest the base's."""
    text = recipe("average", "image", "audio", "video")
    receipt = omnireg.merge(text, here / "out")
    models = aligned(here / "family")
    merged = zoo.read_weights(here / "out")
    assert set(merged) == set(models["base"])
    for name, tensor in merged.items():
        mean = sum(models[h][name] for h in ("image", "audio", "video")) / 3
        torch.testing.assert_close(tensor, mean)
    zoo.load(zoo.SPECIES["Qwen2ForCausalLM"].cls, here / "out")
    assert receipt.fingerprint == Checkpoint("out", here / "out").fingerprint


def test_the_chosen_host_carries_its_encoders_and_placeholder_rows(here: Path) -> None:
    """Only the language model changes; side files travel; shard headers stay verbatim."""
    extra = "omnireg:\n  host: family/video\n"
    omnireg.merge(recipe("average", "image", "audio", "video", extra=extra), here / "out")
    before, after = zoo.read_weights(here / "family/video"), zoo.read_weights(here / "out")
    assert list(before) == list(after)
    for name, tensor in after.items():
        if not name.startswith("model.language_model.") and name != "lm_head.weight":
            assert torch.equal(tensor, before[name])
    rows = "model.language_model.embed_tokens.weight"
    assert torch.equal(after[rows][OWN], before[rows][OWN])
    assert not torch.equal(after[rows][SHARED], before[rows][SHARED])
    for file in ("tokenizer.json", "chat_template.jinja", "processor_config.json"):
        assert (here / "out" / file).read_bytes() == (here / "family/video" / file).read_bytes()
    zoo.load(zoo.SPECIES["LlavaOnevisionForConditionalGeneration"].cls, here / "out")


def test_mmer_decouples_the_model_it_is_asked_for(here: Path) -> None:
    """Three hosts, one mask: the same bits as the plain tensors merged by hand."""
    extra = (
        "parameters:\n  density: 0.4\n  mask_of: ./family/audio\nomnireg:\n  host: family/audio\n"
    )
    omnireg.merge(recipe("mmer", "image", "audio", "video", extra=extra), here / "out")
    models, written = aligned(here / "family"), language_model(here / "out", PREFIX["audio"])
    for name, tensor in written.items():
        hosts = [models[h][name] for h in ("image", "audio", "video")]
        expected = plain_mmer(models["base"][name], hosts, 1, 0.4, 1.0)
        rows = SHARED if name in ("model.embed_tokens.weight", "lm_head.weight") else ...
        assert torch.equal(tensor[rows], expected[rows]), name


def test_models_of_one_host_class_merge_whole(here: Path) -> None:
    """Two InternVLs: language model, encoder and projector, in the layout the inputs had."""
    receipt = omnireg.merge(recipe("linear", "image", "image2", base=None, extra=(
        "parameters:\n  weight: 0.5\n"
    )), here / "out")  # fmt: skip
    one, two = (zoo.read_weights(here / "family" / name) for name in ("image", "image2"))
    merged = zoo.read_weights(here / "out")
    assert set(merged) == set(one)
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, (one[name] + two[name]) / 2)
    assert receipt.engine == "stream"


def test_parameters_follow_mergekits_scoping(here: Path) -> None:
    """Per model, per filter and as a gradient over the layers."""
    text = (
        "merge_method: average\nbase_model: family/base\nmodels:\n"
        "  - model: family/image\n    parameters:\n      weight:\n"
        "        - filter: mlp\n          value: 3\n        - value: 1\n"
        "  - model: family/audio\n    parameters:\n      weight: [1, 0]\n"
    )
    omnireg.merge(text, here / "out")
    models, merged = aligned(here / "family"), zoo.read_weights(here / "out")
    for name, (image, audio) in {
        "model.layers.0.mlp.up_proj.weight": (3, 1),
        "model.layers.1.mlp.up_proj.weight": (3, 0),
        "model.layers.1.self_attn.q_proj.weight": (1, 0),
    }.items():
        expected = (image * models["image"][name] + audio * models["audio"][name]) / (image + audio)
        torch.testing.assert_close(merged[name], expected)


def test_biases_that_one_host_lacks_are_merged_from_the_rest(here: Path) -> None:
    """The weights are renormalised over the models that have the tensor; a mask is empty there."""
    text = recipe("average", "unbiased", "audio", "video")
    omnireg.merge(text, here / "out")
    models, merged = aligned(here / "family"), zoo.read_weights(here / "out")
    bias = "model.layers.1.self_attn.k_proj.bias"
    mean = (models["audio"][bias] + models["video"][bias]) / 2
    torch.testing.assert_close(merged[bias], mean)
    extra = "parameters:\n  mask_of: family/unbiased\n"
    omnireg.merge(recipe("mmer", "unbiased", "audio", extra=extra), here / "out2")
    assert torch.equal(zoo.read_weights(here / "out2")[bias], models["base"][bias])


def test_a_path_may_be_a_string(here: Path) -> None:
    """Of the recipe as of the folder; a file that is not there is told as one."""
    text = recipe("average", "audio", "video")
    (here / "r.yml").write_text(text)
    found = omnireg.merge("r.yml", "out", record=False)
    assert found.fingerprint == omnireg.merge(text, "again", record=False).fingerprint
    with pytest.raises(ConfigError, match=r"rr\.yml: No such file"):
        omnireg.merge("rr.yml", "more", record=False)


def test_the_same_recipe_writes_the_same_bytes(here: Path) -> None:
    """Two runs, one fingerprint; the recipe's digest ignores name and notes."""
    text = recipe("omni_ties", "image", "audio")
    first = omnireg.merge(text, here / "one", record=False)
    second = omnireg.merge(text + "omnireg: {name: other, notes: x}\n", here / "two", record=False)
    assert first.fingerprint == second.fingerprint
    named = parse_recipe(text + "omnireg: {name: other, notes: x}\n")
    assert parse_recipe(text).digest == named.digest
    assert parse_recipe(text).digest != parse_recipe(text + "dtype: float32\n").digest


def test_a_random_method_depends_on_the_seed_alone(here: Path) -> None:
    """``dare_ties`` twice is the same bytes, in another order too; another seed is others."""
    extra = "parameters: {weight: 1, density: 0.5}\n"
    text = recipe("dare_ties", "image", "audio", extra=extra)
    torch.manual_seed(5)
    one = omnireg.merge(text, here / "one", record=False)
    torch.manual_seed(6)
    two = omnireg.merge(text, here / "two", record=False)
    three = omnireg.merge(text, here / "three", seed=1, record=False)
    assert one.fingerprint == two.fingerprint
    assert one.fingerprint != three.fingerprint


def test_a_dtype_of_its_own_is_written_and_declared(here: Path) -> None:
    """``out_dtype`` of a backbone: every tensor and the config say bfloat16."""
    omnireg.merge(recipe("average", "image", "audio", extra="out_dtype: bfloat16\n"), here / "out")
    assert {t.dtype for t in zoo.read_weights(here / "out").values()} == {torch.bfloat16}
    assert "bfloat16" in (here / "out" / "config.json").read_text()
    with pytest.raises(ConfigError, match="is float32 and carries the result; drop out_dtype"):
        omnireg.merge(
            recipe(
                "average", "image", extra="out_dtype: bfloat16\nomnireg: {host: family/image}\n"
            ),
            here / "no",
        )


def test_a_host_that_has_no_place_for_the_result_is_refused_before_the_work(here: Path) -> None:
    """A host without biases, and one that ties its head, beside a base that has both."""
    extra = "omnireg: {host: family/unbiased}\n"
    stages: list[str] = []

    def seen(stage: str, done: int, total: int, detail: str) -> None:
        stages.append(stage)

    with pytest.raises(PlanError, match="has no biases"):
        omnireg.merge(
            recipe("average", "unbiased", "audio", extra=extra), here / "out", progress=seen
        )
    zoo.house(zoo.SPECIES["InternVLForConditionalGeneration"], "tied", here / "tied")
    extra = "omnireg: {host: tied}\n"
    with pytest.raises(PlanError, match=r"tied ties its head to its embedding, but family/base"):
        omnireg.merge(recipe("average", "audio", "video", extra=extra), here / "out", progress=seen)
    assert stages == []


def test_small_shards_get_an_index_that_loads(here: Path) -> None:
    """Mergekit's option ``--out-shard-size`` keeps its name; it counts bytes."""
    omnireg.merge(
        recipe("average", "image", "audio"),
        here / "out",
        options={"out_shard_size": 20_000},
    )
    assert len(list((here / "out").glob("model-*.safetensors"))) > 1
    zoo.load(zoo.SPECIES["Qwen2ForCausalLM"].cls, here / "out")


def test_everything_about_a_merge_is_recorded(here: Path, run: Run) -> None:
    """Parents with roles and weights, fingerprints, recipe text and digest, versions, times."""
    path = write(
        here, recipe("average", "image", "audio", extra="omnireg:\n  host: family/image\n")
    )
    receipt = json.loads(run("merge", path, "out", "--name", "acme/omni", "--json").out)
    assert set(receipt) == {
        "name", "fingerprint", "out", "engine", "run_id", "seconds", "resumed_shards",
    }  # fmt: skip
    with Registry() as book:
        record, made = book.find("acme/omni"), book.run_of("acme/omni")
        inputs = {c.name: c for c in book.checkpoints()}
    assert made is not None
    assert record.fingerprint == receipt["fingerprint"]
    assert {(p.name, str(p.role), p.weight) for p in record.parents} == {
        ("image", "model", 1.0),
        ("audio", "model", 1.0),
        ("base", "base", None),
        ("image", "host", None),
    }  # fmt: skip
    assert record.modalities == ("image",)
    assert inputs["image"].fingerprint == Checkpoint("i", here / "family/image").fingerprint
    assert [(p.name, str(p.role)) for p in inputs["audio"].parents] == [("base", "finetuned_from")]
    assert made.recipe_text == path.read_text()
    assert made.recipe_digest == parse_recipe(path.read_text()).digest
    assert (str(made.status), made.strategy, made.strategy_distribution) == (
        "done", "average", "omnireg",
    )  # fmt: skip
    assert {"mergekit", "torch", "transformers", "omnireg", "python"} <= set(made.versions)
    kept = json.loads((here / "out" / "omnireg.json").read_text())
    assert kept["recipe_digest"] == made.recipe_digest


def test_lineage_and_lists_answer_from_the_command_line(here: Path, run: Run) -> None:
    """Tree, mermaid, dot and json of the family; show by name, folder and fingerprint."""
    path = write(here, recipe("mmer", "image", "audio"))
    receipt = json.loads(run("merge", path, "out", "--json").out)
    tree = run("lineage", "out").out
    assert "image" in tree
    assert "finetuned_from: base" in tree
    assert run("lineage", "out", "--format", "mermaid").out.startswith("flowchart")
    assert "digraph" in run("lineage", "out", "--format", "dot").out
    family = json.loads(run("lineage", "out", "--json").out)
    assert set(family) == {"nodes", "edges", "truncated"}
    assert set(family["edges"][0]) == {"child", "parent", "role", "weight"}
    up = json.loads(run("lineage", "out", "--direction", "down", "--json").out)
    assert [node["name"] for node in up["nodes"]] == ["out"]
    for name in ("out", "./out", receipt["fingerprint"][:10]):
        assert json.loads(run("show", name, "--json").out)["fingerprint"] == receipt["fingerprint"]
    assert [r["name"] for r in json.loads(run("list", "--kind", "merged", "--json").out)] == ["out"]
    children = json.loads(run("list", "--parent", "image", "--json").out)
    assert [r["name"] for r in children] == ["out"]


def test_common_options_stand_anywhere(here: Path, run: Run) -> None:
    """Before the command, after a group, after a subcommand."""
    run("add", here / "family/base")
    for words in (
        ("--json", "db", "check"), ("db", "--json", "check"), ("db", "check", "--json"),
        ("--registry", here / "registry.db", "--json", "db", "check"),
        ("db", "check", "--json", "--registry", here / "registry.db"),
    ):  # fmt: skip
        assert json.loads(run(*words).out)["ok"] is True


def test_scores_are_added_and_shown(here: Path, run: Run) -> None:
    """An unknown benchmark is created with its direction; the value comes back exactly."""
    run("add", here / "family" / "image")
    assert run("scores", "add", "image", "MMLU", "55.25", "--n", "100", "--stderr", "0.5").code == 0
    assert run("scores", "add", "image", "ASR", "-3", "--lower-is-better").code == 0
    rows = {r["benchmark"]: r for r in json.loads(run("scores", "image", "--json").out)}
    assert (rows["MMLU"]["value"], rows["MMLU"]["n"], rows["MMLU"]["stderr"]) == (55.25, 100, 0.5)
    assert (rows["ASR"]["value"], rows["ASR"]["higher_is_better"]) == (-3.0, False)
    assert "MMLU" in run("scores", "image").out
    again = run("scores", "add", "image", "MMLU", "60")
    assert again.code == 1
    assert run("scores", "add", "nobody", "MMLU", "60").code == 1


def test_add_tells_kind_and_modalities_from_the_checkpoint(here: Path, run: Run) -> None:
    """A text model is a base, a host is fine-tuned and senses what its class does."""
    base = json.loads(run("add", here / "family/base", "--json").out)
    host = json.loads(
        run("add", here / "family/video", "--parent", "base", "--name", "v", "--json").out
    )
    assert base["kind"] == "base"
    assert (host["kind"], host["modalities"]) == ("finetuned", ["image", "video"])
    assert host["parents"][0]["role"] == "finetuned_from"
    merged = run(
        "add", here / "family/image", "--kind", "merged", "--parent", "base=base", "--json"
    )
    assert json.loads(merged.out)["parents"] == [{"name": "base", "role": "base", "weight": None}]


def test_extract_and_graft_are_inverse_from_the_command_line(here: Path, run: Run) -> None:
    """The host comes back byte for byte, and the report accounts for its tensors."""
    report = json.loads(run("backbone", "extract", "family/audio", "lm", "--json").out)["tensors"]
    assert report["mapped"] + report["carried"] == len(zoo.read_weights(here / "family/audio"))
    assert run("backbone", "graft", "./lm", "family/audio", "back", "--json").code == 0
    for file in (here / "family/audio").iterdir():
        assert (here / "back" / file.name).read_bytes() == file.read_bytes()
    aligned_report = run("backbone", "extract", "family/audio", "lm2", "--base", "family/base")
    assert aligned_report.code == 0
    assert (here / "lm2/config.json").read_bytes() == (
        here / "family/base/config.json"
    ).read_bytes()


def test_slices_are_left_to_mergekits_own_planner(here: Path) -> None:
    """A frankenmerge of a text model runs through mergekit and is recorded like any other."""
    text = (
        "merge_method: passthrough\nslices:\n"
        "  - sources: [{model: llama, layer_range: [0, 2]}]\n"
        "  - sources: [{model: llama, layer_range: [1, 2]}]\n"
    )
    zoo.house(zoo.SPECIES["LlamaForCausalLM"], "legacy", here / "llama")
    omnireg.merge(text, here / "out", name="deep")
    model = zoo.load(zoo.SPECIES["LlamaForCausalLM"].cls, here / "out")
    assert model.config.num_hidden_layers == 3
    with Registry() as book:
        assert [p.name for p in book.find("deep").parents] == ["llama"]


def test_mergekit_commands_run_with_plugins_registered(here: Path, run: Run) -> None:
    """``omnireg mergekit yaml`` knows our methods, warns about hosts, and records nothing."""
    path = write(here, recipe("omni_ties", "base2", extra="parameters:\n  density: 0.3\n"))
    zoo.house(zoo.SPECIES["Qwen2ForCausalLM"], "legacy", here / "base2")
    path.write_text(path.read_text().replace("family/base2", "base2"))
    done = run("mergekit", "yaml", path, "out", "--no-write-model-card", "--quiet")
    assert done.code == 0, done.err
    assert (here / "out" / "config.json").exists()
    assert "omnireg add out --kind merged --parent family/base=base --parent base2" in done.err
    assert not (here / "registry.db").exists()
    unknown = run("mergekit", "yamll", path, "out2")
    assert unknown.code == 1
    assert "did you mean 'yaml'?" in unknown.err
    path.write_text(recipe("average", "image", base=None))
    assert "family/image is a multimodal host" in run("mergekit", "yaml", path, "out3").err
    path.write_text(recipe("omni_ties", "base2", extra="parameters:\n  densty: 0.3\n"))
    said = run("mergekit", "yaml", path, "out4").err
    assert "no parameter 'densty' (did you mean 'density'?); mergekit may pass over that" in said
    path.write_text("merge_method: linear\nmodels: [{model: bsae, parameters: {weight: 1}}]\n")
    assert (
        "there is no folder bsae: mergekit looks for it on"
        in run("mergekit", "yaml", path, "o").err
    )


def test_mergekits_raw_and_multi_commands_know_our_methods(here: Path, run: Run) -> None:
    """``pytorch`` merges plain tensor files, ``multi`` several documents, with our strategies."""
    for name, value in (("one", 1.0), ("two", 3.0)):
        save_file({"w": torch.full((4,), value)}, here / f"{name}.safetensors")
    raw = "merge_method: average\nmodels:\n  - model: one.safetensors\n  - model: two.safetensors\n"
    done = run("mergekit", "pytorch", write(here, raw), "raw", "--safe-serialization")
    assert done.code == 0, done.err
    (merged,) = [load_file(file) for file in (here / "raw").glob("*.safetensors")]
    assert merged["w"].tolist() == [2.0] * 4
    for name in ("t1", "t2"):
        zoo.house(zoo.SPECIES["Qwen2ForCausalLM"], "legacy", here / name)
    multi = "name: first\nmerge_method: average\nmodels:\n  - model: t1\n  - model: t2\n---\n" + (
        "merge_method: omni_ties\nbase_model: t1\nmodels:\n  - model: first\n"
    )
    done = run(
        "mergekit",
        "multi",
        write(here, multi),
        "--intermediate-dir",
        "mid",
        "--out-path",
        "many",
        "--no-write-model-card",
    )
    assert done.code == 0, done.err
    assert (here / "many" / "config.json").exists()


def test_a_failed_merge_leaves_a_failed_run_and_no_checkpoint(here: Path, run: Run) -> None:
    """The run says why; nothing stands at OUT; nothing else is recorded."""
    path = write(here, recipe("average", "image", "audio", extra="parameters:\n  weight: 0\n"))
    failed = run("merge", path, "out")
    assert failed.code == 1
    assert "sum to zero" in failed.err
    assert not (here / "out").exists()
    assert not list(here.glob(".out*"))
    assert not (here / "out.partial").exists()
    with Registry() as book:
        (made,) = book.runs()
        assert str(made.status) == "failed"
        assert "sum to zero" in str(made.error)
        assert book.checkpoints() == []


def test_a_killed_merge_leaves_a_running_run_and_no_checkpoint(here: Path) -> None:
    """SIGKILL while merging: the trace is there, the folder and the checkpoint are not."""
    program = (
        "import os, signal, omnireg, sys\n"
        "def stop(stage, done, total, detail):\n"
        "    if stage == 'merging': os.kill(os.getpid(), signal.SIGKILL)\n"
        "omnireg.merge(sys.argv[1], 'out', engine='mergekit', progress=stop)\n"
    )
    text = recipe("average", "image", "audio")
    done = subprocess.run(
        [sys.executable, "-c", program, text], cwd=here, env={**os.environ}, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert not (here / "out").exists()
    with Registry() as book:
        (made,) = book.runs()
        assert str(made.status) == "running"
        assert book.checkpoints() == []
    assert list(here.glob(".out.*"))
    omnireg.merge(text, here / "out", engine="mergekit")
    assert not list(here.glob(".out.*"))
    with Registry() as book:
        later, killed = book.runs()
        assert (str(later.status), str(killed.status)) == ("done", "failed")
        assert killed.error == f"interrupted; run {later.id} finished its work"


def test_python_api_is_lazy_and_complete() -> None:
    """Importing the package imports neither torch nor mergekit; every public name resolves."""
    program = (
        "import sys, omnireg\n"
        "assert not {'torch', 'mergekit', 'sqlalchemy'} & set(sys.modules)\n"
        "assert all(getattr(omnireg, name) for name in omnireg.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert callable(omnireg.plan)
    assert omnireg.plan is omnireg.plan
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = omnireg.nothing
