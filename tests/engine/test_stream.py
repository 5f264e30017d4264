"""The streaming engine: mergekit's bits, any thread count, and nothing lost when it is killed."""

import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlavaForConditionalGeneration

import omnireg
from omnireg.demo import story
from omnireg.engine.journal import partial_folder
from omnireg.engine.outlook import outlook
from omnireg.errors import CheckpointError, ConfigError, MergeError
from omnireg.planning import plan
from omnireg.plugins.host import PluginHost
from omnireg.registry import Registry
from tests_support import Run, recipe
from zoo import read_weights

WEIGHTED = "  - {model: words/image, parameters: {weight: 0.6}}\n"
WEIGHTED += "  - {model: words/audio, parameters: {weight: 0.5}}\n"
THREE = WEIGHTED + "  - {model: words/video, parameters: {weight: 0.7}}\n"
#: every method registered in mergekit: what its recipe has beside base and models
MERGEKITS = {
    "linear": (THREE, None, ""),
    "task_arithmetic": (THREE, "base", "parameters: {lambda: 0.8}\n"),
    "ties": (THREE, "base", "parameters: {density: 1.0}\n"),
    "breadcrumbs": (THREE, "base", "parameters: {density: 0.6, gamma: 0.05}\n"),
    "breadcrumbs_ties": (THREE, "base", "parameters: {density: 0.6, gamma: 0.05}\n"),
    "slerp": (
        "  - {model: words/image}\n  - {model: words/audio}\n", "words/image",
        "parameters: {t: [0.2, 0.8]}\n",
    ),
    "nuslerp": (WEIGHTED, None, ""),
    "multislerp": (THREE, None, ""),
    "karcher": ("  - {model: words/image}\n  - {model: words/audio}\n", None, ""),
    "model_stock": ("".join(f"  - model: words/{s}\n" for s in story.SENSES), "base", ""),
    "sce": (
        "  - {model: words/image}\n  - {model: words/audio}\n", "base",
        "parameters: {select_topk: 0.5}\n",
    ),
    "arcee_fusion": ("  - {model: words/image}\n", "base", ""),
    "nearswap": ("  - {model: words/image}\n", "base", "parameters: {t: 0.01}\n"),
    "ram": ("  - {model: words/image}\n  - {model: words/audio}\n", "base", ""),
    "ramplus_tl": ("  - {model: words/image}\n  - {model: words/audio}\n", "base", ""),
    "passthrough": ("  - {model: words/image}\n", None, ""),
    "dare_ties": (THREE, "base", "parameters: {density: 0.5}\n"),
    "dare_linear": (THREE, "base", "parameters: {density: 0.5}\n"),
    "della": (THREE, "base", "parameters: {density: 0.5, epsilon: 0.1}\n"),
    "della_linear": (THREE, "base", "parameters: {density: 0.5, epsilon: 0.1}\n"),
}  # fmt: skip
OURS = {
    "average": "",
    "delta_weighted": "",
    "omni_ties": "parameters: {density: 0.3}\n",
    "mmer": "parameters: {density: 0.5, mask_of: words/audio}\n",
}


def hosts(method: str, extra: str = "", carried: str = "image") -> str:
    """Return YAML for a merge of the hosts themselves, into one of them."""
    models = "".join(f"  - model: family/{sense}\n" for sense in story.SENSES)
    block = f"omnireg: {{output: host, host: family/{carried}}}\n"
    return recipe(method, models, "base", extra + block)


def both(text: str) -> tuple[str, str]:
    """Merge with both engines; return the fingerprints."""
    made = [
        omnireg.merge(text, f"out-{engine}", engine=engine, record=False)
        for engine in ("stream", "mergekit")
    ]
    assert [receipt.engine for receipt in made] == ["stream", "mergekit"]
    return made[0].fingerprint, made[1].fingerprint


def test_every_method_of_mergekit_is_compared() -> None:
    """A method that mergekit gains must be added here."""
    plugins = PluginHost()
    known = {name for name, s in plugins.methods().items() if s.origin.distribution == "mergekit"}
    assert known == set(MERGEKITS)


@pytest.mark.parametrize("method", MERGEKITS)
def test_both_engines_write_the_same_bytes(here: Path, method: str) -> None:
    """Every method of mergekit, random ones too; of ``ties`` what is not left to luck."""
    stream, mergekit = both(recipe(method, *MERGEKITS[method]))
    assert stream == mergekit


@pytest.mark.parametrize("method", OURS)
def test_both_engines_agree_on_our_methods(here: Path, method: str) -> None:
    """The compiled passes against the methods' own code inside mergekit's executor."""
    models = "".join(f"  - model: words/{sense}\n" for sense in story.SENSES)
    stream, mergekit = both(recipe(method, models, "base", OURS[method]))
    assert stream == mergekit


@pytest.mark.parametrize("method", OURS)
def test_hosts_of_three_classes_merge_directly(here: Path, method: str) -> None:
    """A text base, a LLaVA, a Qwen2-Audio and a LLaVA-OneVision, into each of the hosts."""
    for carried in story.SENSES:
        extra = OURS[method].replace("words/audio", f"family/{carried}")
        stream, mergekit = both(hosts(method, extra, carried))
        assert stream == mergekit
        for engine in ("stream", "mergekit"):
            shutil.rmtree(f"out-{engine}")


def test_the_written_host_loads_with_all_that_belongs_to_it(here: Path) -> None:
    """Weights, tokenizer, chat template, processor and generation settings are there."""
    omnireg.merge(hosts("average"), "out", record=False)
    model = LlavaForConditionalGeneration.from_pretrained("out")
    assert model.generation_config.do_sample is False
    assert AutoTokenizer.from_pretrained("out").chat_template
    for name in ("processor_config.json", "preprocessor_config.json", "generation_config.json"):
        assert (here / "out" / name).read_bytes() == (here / "family/image" / name).read_bytes()


def test_parameters_by_filter_and_gradient_are_mergekits(here: Path) -> None:
    """Per model, per filter and as a gradient over the layers: the same bytes."""
    extra = (
        "parameters:\n"
        "  density:\n  - {filter: mlp, value: [0.2, 0.9]}\n  - 0.5\n"
        "  lambda: [0.5, 1.5]\n"
    ).replace("  - 0.5\n", "  - {value: 0.5}\n")
    stream, mergekit = both(recipe("omni_ties", THREE, "base", extra))
    assert stream == mergekit


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_other_dtypes_and_casts(here: Path, dtype: str) -> None:
    """``dtype`` and ``out_dtype`` mean what they mean in mergekit."""
    extra = f"dtype: {dtype}\nout_dtype: float16\nparameters: {{lambda: 0.8}}\n"
    stream, mergekit = both(recipe("task_arithmetic", THREE, "base", extra))
    assert stream == mergekit


def test_threads_and_shards_do_not_change_a_byte(here: Path) -> None:
    """One worker or five, and the same tensors whatever the size of a shard."""
    text = recipe("omni_ties", THREE, "base", OURS["omni_ties"])
    made = {omnireg.merge(text, f"out-{n}", threads=n, record=False).fingerprint for n in (1, 2, 5)}
    assert len(made) == 1
    omnireg.merge(text, "small", record=False, options={"out_shard_size": 200_000})
    assert len(list((here / "small").glob("model-*.safetensors"))) > 3
    small = read_weights(here / "small")
    whole = load_file(here / "out-1" / "model.safetensors")
    assert set(small) == set(whole)
    assert all(torch.equal(small[name], whole[name]) for name in whole)


def test_a_trim_of_the_whole_model_keeps_the_largest_of_all(here: Path) -> None:
    """``trim_scope: model`` against one long vector in plain torch, tensors in name order."""
    models = "  - model: words/image\n  - model: words/audio\n"
    extra = "parameters: {density: 0.3, trim_scope: model}\n"
    omnireg.merge(recipe("omni_ties", models, "base", extra), "out", record=False)
    base = load_file("family/base/model.safetensors")
    names = sorted(base)
    flat = torch.cat([base[n].float().reshape(-1) for n in names])
    vectors = []
    for sense in ("image", "audio"):
        tensors = load_file(f"words/{sense}/model.safetensors")
        vector = torch.cat([tensors[n].float().reshape(-1) for n in names]) - flat
        order = torch.argsort(vector.abs(), descending=True, stable=True)
        keep = torch.zeros_like(vector, dtype=torch.bool)
        keep[order[: int(0.3 * len(vector))]] = True
        vectors.append(torch.where(keep, vector, 0))
    sign = (vectors[0] + vectors[1]).sign()
    agree = [(v.sign() == sign) & (sign != 0) for v in vectors]
    total = torch.stack([torch.where(a, v, 0) for a, v in zip(agree, vectors, strict=True)]).sum(0)
    count = torch.stack(agree).sum(0)
    expected = (flat + torch.where(count > 0, total / count, 0)).to(torch.bfloat16)
    merged = load_file("out/model.safetensors")
    assert torch.equal(torch.cat([merged[n].reshape(-1) for n in names]), expected)


def test_the_shift_of_a_whole_model_weighs_it(here: Path) -> None:
    """``scope: model``: one Δ per model, over all its parameters."""
    models = "  - model: words/image\n  - model: words/audio\n"
    extra = "parameters: {scope: model, alpha0: 0.25}\n"
    omnireg.merge(recipe("delta_weighted", models, "base", extra), "out", record=False)
    base = {n: t.double() for n, t in load_file("family/base/model.safetensors").items()}
    shifts, tensors = [], []
    for sense in ("image", "audio"):
        found = {n: t.double() for n, t in load_file(f"words/{sense}/model.safetensors").items()}
        total = sum(float((found[n] - base[n]).abs().sum()) for n in base)
        shifts.append(total / sum(t.numel() for t in base.values()))
        tensors.append(found)
    alpha = torch.softmax(torch.tensor(shifts, dtype=torch.float64) / 1e-3, dim=0)
    merged = load_file("out/model.safetensors")
    for name, zero in base.items():
        mean = sum(a * t[name] for a, t in zip(alpha, tensors, strict=True))
        expected = 0.25 * zero + 0.75 * mean
        torch.testing.assert_close(merged[name].double(), expected, rtol=4e-3, atol=1e-6)


def test_a_scale_for_the_whole_model(here: Path) -> None:
    """``rescale_scope: model`` gives the masked vector the norm of the model's own."""
    extra = "parameters: {density: 0.2, mask_of: words/audio, rescale: l1, rescale_scope: %s}\n"
    models = "".join(f"  - model: words/{sense}\n" for sense in story.SENSES)
    base = load_file("family/base/model.safetensors")
    own = load_file("words/audio/model.safetensors")

    def norm(tensors: dict[str, torch.Tensor]) -> float:
        return sum(float((t.double() - base[n].double()).abs().sum()) for n, t in tensors.items())

    omnireg.merge(recipe("mmer", models, "base", extra % "model"), "out", record=False)
    assert norm(load_file("out/model.safetensors")) == pytest.approx(norm(own), rel=0.01)


@pytest.mark.parametrize("engine", ["mergekit", "stream"])
def test_a_whole_model_scope_where_it_cannot_be(here: Path, engine: str) -> None:
    """Mergekit's engine has no first pass, and a survey has no use for per-tensor densities."""
    density = "0.3" if engine == "mergekit" else "[0.2, 0.4]"
    extra = f"parameters: {{density: {density}, trim_scope: model}}\n"
    said = "streaming engine" if engine == "mergekit" else "one value for all tensors"
    with pytest.raises(ConfigError, match=said):
        omnireg.merge(recipe("omni_ties", THREE, "base", extra), "out", engine=engine, record=False)
    assert not (here / "out.partial").exists()


def test_a_whole_model_scope_for_some_tensors_is_no_per_tensor_run(here: Path) -> None:
    """Asked for by a filter that the first tensor does not match: an error, never silence."""
    extra = (
        "parameters:\n  density: 0.3\n  trim_scope:\n"
        "  - {filter: mlp, value: model}\n  - {value: tensor}\n"
    )
    with pytest.raises(ConfigError, match="trim_scope: a whole-model scope needs one value"):
        omnireg.merge(recipe("omni_ties", THREE, "base", extra), "out", record=False)


# Unfinished merges

KILLER = """
import os, signal, sys, omnireg
seen = []
def watch(stage, done, total, detail):
    seen.append(detail)
    if stage == "writing" and detail.startswith("file " + sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
omnireg.merge(sys.argv[1], "out", progress=watch, options={"out_shard_size": 200_000})
"""
SHARDS = {"out_shard_size": 200_000}


def kill_at(text: str, file: int) -> None:
    """Start a merge in another process and kill it while it writes a file."""
    done = subprocess.run(
        [sys.executable, "-c", KILLER, text, str(file)], env={**os.environ}, check=False
    )
    assert done.returncode == -signal.SIGKILL


def test_a_killed_merge_goes_on_where_it_was(here: Path) -> None:
    """Finished files are kept, the one in flight is redone, and the bytes are the same."""
    text = recipe("omni_ties", THREE, "base", OURS["omni_ties"])
    kill_at(text, 3)
    assert not (here / "out").exists()
    assert partial_folder(here / "out").is_dir()
    kept = {p.name: p.stat().st_mtime_ns for p in (here / "out.partial").glob("model-0000[12]*")}
    resumed = omnireg.merge(text, "out", options=SHARDS)
    whole = omnireg.merge(text, "other", options=SHARDS, record=False)
    assert resumed.resumed_shards == 2
    assert resumed.fingerprint == whole.fingerprint
    assert {name: (here / "out" / name).stat().st_mtime_ns for name in kept} == kept
    assert not (here / "out.partial").exists()
    with Registry() as book:
        assert sorted(str(run.status) for run in book.runs()) == ["done", "failed"]
        assert book.find("out").fingerprint == whole.fingerprint


def test_another_merge_is_not_mixed_into_an_unfinished_one(here: Path, run: Run) -> None:
    """A changed recipe is refused with what differs; ``--no-resume`` starts over."""
    kill_at(recipe("omni_ties", THREE, "base", OURS["omni_ties"]), 2)
    text = recipe("omni_ties", THREE, "base", "parameters: {density: 0.4}\n")
    (here / "recipe.yml").write_text(text)
    refused = run("merge", "recipe.yml", "out", "--out-shard-size", "200000")
    assert refused.code == 1
    assert "recipe was" in refused.err
    assert "--no-resume" in refused.err
    assert (here / "out.partial").is_dir()
    done = run("--json", "merge", "recipe.yml", "out", "--out-shard-size", "200000", "--no-resume")
    assert done.code == 0, done.err
    assert json.loads(done.out)["resumed_shards"] == 0


def test_a_changed_input_is_noticed(here: Path) -> None:
    """The file that changed since is named; one that was only touched is the same."""
    (here / "words").unlink()
    shutil.copytree(Path(story.FAMILY) / "base", here / "words" / "image")
    text = recipe("average", "  - model: words/image\n", None, "").replace(
        "models:\n", "models:\n  - model: family/base\n"
    )
    kill_at(text, 2)
    weights = here / "words" / "image" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(MergeError, match=r"inputs changed .*words/image/model\.safetensors"):
        omnireg.merge(text, "out", options=SHARDS)
    data[-1] ^= 1
    weights.write_bytes(data)
    assert omnireg.merge(text, "out", options=SHARDS).resumed_shards > 0


def test_a_torn_file_is_done_again(here: Path) -> None:
    """A finished file that was damaged since is not trusted."""
    text = recipe("average", THREE, "base")
    kill_at(text, 3)
    (file,) = (here / "out.partial").glob("model-00001*")
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\xff")
    resumed = omnireg.merge(text, "out", options=SHARDS)
    assert resumed.resumed_shards == 1
    assert resumed.fingerprint == omnireg.merge(text, "o", options=SHARDS, record=False).fingerprint


def test_a_full_disk_keeps_what_is_finished(here: Path) -> None:
    """A clear error; with room again the same command goes on."""
    text = recipe("average", THREE, "base")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
    try:
        with pytest.raises(MergeError, match="run the same command again"):
            omnireg.merge(text, "out", record=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (here / "out").exists()
    assert (here / "out.partial").is_dir()
    omnireg.merge(text, "out", record=False)
    assert not (here / "out.partial").exists()


def test_two_processes_do_not_write_one_folder(here: Path) -> None:
    """The journal is locked while a merge runs."""
    text = recipe("average", THREE, "base")
    kill_at(text, 2)
    with (here / "out.partial" / "journal.jsonl").open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(MergeError, match="another process"):
            omnireg.merge(text, "out", options=SHARDS, record=False)


def test_a_folder_in_the_way_is_left_alone(here: Path) -> None:
    """``OUT.partial`` that is not an unfinished merge is somebody's."""
    (here / "out.partial").mkdir()
    (here / "out.partial" / "thesis.txt").write_text("precious")
    for resume in (True, False):
        with pytest.raises(MergeError, match="in the way"):
            omnireg.merge(recipe("average", THREE, "base"), "out", resume=resume, record=False)
    assert (here / "out.partial" / "thesis.txt").read_text() == "precious"


def test_a_damaged_input_leaves_nothing(here: Path) -> None:
    """NaN deep inside a tensor: named, and no partial folder, since resuming cannot help."""
    (here / "words").unlink()
    for sense in ("image", "audio"):
        shutil.copytree(story.FAMILY / "base", here / "words" / sense)
    tensors = load_file(here / "words/audio/model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][7, 7] = float("nan")
    save_file(tensors, here / "words/audio/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"words/audio.*layers\.1\.mlp\.up_proj.*NaN"):
        omnireg.merge(recipe("average", WEIGHTED, "base"), "out", record=False)
    assert not (here / "out.partial").exists()
    omnireg.merge(recipe("average", WEIGHTED, "base"), "out", record=False, allow_nonfinite=True)


# Plans and verification


def test_a_plan_says_everything_from_headers(here: Path, run: Run) -> None:
    """Engine, inputs, tensors, offsets, files and memory; nothing is read or written."""
    (here / "recipe.yml").write_text(hosts("mmer", "parameters: {mask_of: family/audio}\n"))
    said = json.loads(run("--json", "plan", "recipe.yml").out)
    assert said["engine"] == "stream"
    assert [i["role"] for i in said["inputs"]] == ["model", "model", "model", "base", "host"]
    assert {i["fingerprint"] for i in said["inputs"]} == {None}
    assert said["tensors"]["merged"] == said["tensors"]["fused"] == 51
    (file,) = said["files"]
    host = here / "family/image/model.safetensors"
    assert file["bytes"] == said["output"]["bytes"] == host.stat().st_size
    names = {tensor["name"]: tensor for tensor in file["tensors"]}
    assert set(names) == set(load_file(host))
    merged = names["language_model.model.layers.0.mlp.up_proj.weight"]
    assert merged["inputs"]["family/video"].endswith("layers.0.mlp.up_proj.weight")
    made = json.loads(run("--json", "merge", "recipe.yml", "out").out)
    again = json.loads(run("--json", "plan", "recipe.yml").out)
    assert None not in {i["fingerprint"] for i in again["inputs"]}
    assert made["resumed_shards"] == 0
    shown = run("plan", "recipe.yml", "--tensors")
    assert "family/audio (model, fingerprint" in shown.out
    assert "layers.0.mlp.up_proj.weight BF16 @" in shown.out


def test_a_plan_of_72_billion_parameters_needs_only_headers(tmp_path: Path) -> None:
    """Four sparse checkpoints of Qwen2-72B's shape: 145 GB each on paper, nothing on disk."""
    folders = [sparse_72b(tmp_path / name) for name in ("base", "a", "b", "c")]
    models = "".join(f"  - model: {folder}\n" for folder in folders[1:])
    text = f"merge_method: omni_ties\nbase_model: {folders[0]}\nmodels:\n{models}"
    found = outlook(plan(text))
    data = found.to_json()
    assert data["output"]["bytes"] > 145e9
    assert data["output"]["shards"] > 25
    assert data["tensors"]["fused"] == len(found.plan.merged) == 963
    assert data["peak_memory_bytes"] < 2e9


def sparse_72b(folder: Path) -> Path:
    """Write the headers of a Qwen2-72B, and files of the right size with nothing in them."""
    from omnireg.checkpoints.shards import group_into_shards, lay_out, shard_names, write_index

    width, inner, rows, key_value = 8192, 29_568, 152_064, 1024
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (rows, width),
        "lm_head.weight": (rows, width),
        "model.norm.weight": (width,),
    }
    for layer in range(80):
        at = f"model.layers.{layer}."
        for part, size in (("q", width), ("k", key_value), ("v", key_value)):
            shapes[at + f"self_attn.{part}_proj.weight"] = (size, width)
            shapes[at + f"self_attn.{part}_proj.bias"] = (size,)
        shapes[at + "self_attn.o_proj.weight"] = (width, width)
        shapes[at + "mlp.gate_proj.weight"] = shapes[at + "mlp.up_proj.weight"] = (inner, width)
        shapes[at + "mlp.down_proj.weight"] = (width, inner)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[at + f"{norm}.weight"] = (width,)
    folder.mkdir()
    groups = group_into_shards({n: ("BF16", s) for n, s in shapes.items()}, 5_000_000_000)
    where = {}
    for name, group in zip(shard_names(len(groups)), groups, strict=True):
        layout = lay_out(folder / name, group)
        with (folder / name).open("wb") as stream:
            stream.write(layout.header)
            stream.truncate(layout.size)
        where.update(dict.fromkeys(group, name))
    write_index(folder, where, 0)
    config: dict[str, Any] = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": width,
        "intermediate_size": inner, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": rows, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_what_the_stream_does_not_plan_goes_to_mergekit(here: Path) -> None:
    """``auto`` hands slices over; asked for by name, the stream engine says why it cannot."""
    text = (
        "merge_method: passthrough\nslices:\n"
        "  - sources: [{model: family/base, layer_range: [0, 4]}]\n"
    )
    assert plan(text).engine == "mergekit"
    with pytest.raises(ConfigError, match="does not plan slices; use --engine auto"):
        plan(text, engine="stream")
    with pytest.raises(ConfigError, match="did you mean 'stream'"):
        plan(text, engine="steam")


def test_verify_reads_the_files_anew(here: Path, run: Run) -> None:
    """As recorded; not after a byte changed behind the cache's back; merged again, once more."""
    (here / "recipe.yml").write_text(hosts("mmer", "parameters: {mask_of: family/image}\n"))
    assert run("merge", "recipe.yml", "out").code == 0
    assert json.loads(run("--json", "verify", "out").out)["ok"] is True
    again = run("--json", "verify", "out", "--rerun")
    assert json.loads(again.out)["ok"] is True, again
    file = here / "out" / "model.safetensors"
    before = file.stat()
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        (last,) = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = run("--json", "verify", "out")
    assert changed.code == 1
    said = json.loads(changed.out)
    assert said["ok"] is False
    assert said["found"] != said["expected"]
    assert run("verify", "image").code == 0
    assert "no recipe is recorded" in run("verify", "image", "--rerun").err


def test_verify_needs_the_plugin_that_merged(here: Path, run: Run) -> None:
    """A strategy of a single file: named with ``--plugin``, or said to be missing."""
    (here / "mine.py").write_text(
        "import omnireg\n"
        "from omnireg.strategies.average import Average\n"
        "from dataclasses import replace\n"
        "class Mine(Average):\n"
        "    spec = replace(Average.spec, name='mine')\n"
        "@omnireg.hookimpl\n"
        "def omnireg_register_strategies(register):\n"
        "    register(Mine())\n"
    )
    (here / "recipe.yml").write_text(recipe("mine", WEIGHTED, "base"))
    assert run("merge", "recipe.yml", "out", "--plugin", "mine.py").code == 0

    def again(*options: str) -> subprocess.CompletedProcess[str]:
        """In a process of its own, where nobody has loaded the plugin yet."""
        program = "from omnireg.cli import console; console()"
        command = [sys.executable, "-c", program, "verify", "out", "--rerun", *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    refused = again()
    assert refused.returncode == 1
    assert "install the plugin that it came from" in refused.stderr
    assert again("--plugin", "mine.py").returncode == 0
    shutil.rmtree(here / "out")
    assert "which is gone" in run("verify", "out").err


def test_verify_says_what_it_lacks(here: Path, run: Run) -> None:
    """Unknown names, and inputs that are gone."""
    assert run("verify", "nothing").code == 1
    shutil.copytree(here / "words" / "image", here / "mine")
    text = recipe("average", "  - model: mine\n  - model: words/audio\n", None)
    (here / "recipe.yml").write_text(text)
    assert run("merge", "recipe.yml", "out").code == 0
    shutil.rmtree(here / "mine")
    refused = run("verify", "out", "--rerun")
    assert refused.code == 1
    assert "no folder with the bytes of mine" in refused.err
