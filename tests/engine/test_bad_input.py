"""Every mistake a user can make: exit 1, one clear line, no traceback, nothing left behind."""

import json
import os
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from tests_support import Outcome, Run

GOOD = """
merge_method: average
base_model: base
models:
  - model: image
  - model: audio
"""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text base, two hosts, and a wider and a deeper model."""
    folder = tmp_path_factory.mktemp("models")
    build = {
        "base": ("Qwen2ForCausalLM", {}),
        "image": ("InternVLForConditionalGeneration", {}),
        "audio": ("Qwen2AudioForConditionalGeneration", {}),
        "wide": ("Qwen2ForCausalLM", {"hidden_size": 64}),
        "deep": ("Qwen2ForCausalLM", {"num_hidden_layers": 3}),
    }
    for name, (architecture, text) in build.items():
        zoo.house(zoo.SPECIES[architecture], "legacy", folder / name, **text)
    return folder


@pytest.fixture
def here(models: Path, tmp_path: Path) -> Path:
    """A working folder with a private copy of the models."""
    for model in models.iterdir():
        shutil.copytree(model, tmp_path / model.name)
    return tmp_path


@pytest.fixture
def refuse(here: Path, run: Run) -> Iterator[Callable[..., Outcome]]:
    """Return a function that expects a merge to be refused and nothing to be left of it."""

    def call(text: str, *options: str, out: str = "out") -> Outcome:
        (here / "recipe.yml").write_text(text)
        before = {p.name for p in here.iterdir()} | {"registry.db", "cache"}
        done = run("merge", "recipe.yml", out, *options)
        assert done.code == 1, done
        assert done.err.count("\n") == 1, done.err
        assert done.err.startswith("error: ")
        assert done.out == ""
        left = {p.name for p in here.iterdir()} - before
        assert not {name for name in left if not name.startswith("registry.db")}, left
        return done

    yield call
    database = here / "registry.db"
    if database.exists():
        with sqlite3.connect(database) as connection:
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
            if "checkpoints" in tables:
                assert connection.execute("SELECT count(*) FROM checkpoints").fetchone() == (0,)
        connection.close()


def void(_: object) -> None:
    """Turn an expression into a statement."""


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of a checkpoint of one file."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("merge_method: [", "no valid YAML"),
        ("just words", "is not a recipe"),
        ("", "is not a recipe"),
        (GOOD.replace("merge_method", "merge_metod"), "did you mean 'merge_method'?"),
        (GOOD.replace("average", "avrage"), "did you mean 'average'?"),
        (GOOD + "parameters: {wieght: 1}", "no parameter 'wieght' (did you mean 'weight'?)"),
        (GOOD + "parameters: {weight: heavy}", "'heavy': Input should be a valid number"),
        (GOOD + "parameters: {weight: [1, heavy]}", "'heavy'"),
        (GOOD + "parameters: {weight: [{filtre: mlp, value: 1}]}", "value and (optional) filter"),
        (GOOD + "parameters: {weight: [{filter: 3, value: 1}]}", "3 is no part of a tensor's name"),
        (GOOD + "parameters: {weight: []}", "[]: give one value, a list of values for a gradient"),
        (GOOD + "parameters: {weight: [[0.5]]}", "[[0.5]]: give one value"),
        (GOOD + "parameters: {weight: [{value: [[1]]}]}", "[[1]]: give one value"),
        (
            GOOD + "parameters: {weight: [{filter: q, value: 1}, 0.3]}",
            "value and (optional) filter",
        ),
        (GOOD + "parameters: {weight: true}", "true: Input should be a number"),
        (GOOD + "omnireg: {hots: image}", "did you mean 'host'?"),
        (GOOD + "omnireg: {output: hsot}", "'backbone', 'host' or 'package'"),
        (GOOD + "omnireg: {output: host}", "choose a host: image, audio"),
        (GOOD + "omnireg: {host: base}", "is a text model"),
        (GOOD + "omnireg: {host: image, output: backbone}", "drop one of them"),
        (GOOD + "omnireg: {output: package}", "has no masks"),
        (GOOD + "omnireg: {modalities: {image: image}}", "are for output: package"),
        (GOOD + "dtype: bf16", "unknown dtype 'bf16' (did you mean 'bfloat16'?)"),
        (GOOD + "  - model: image", "'image' is listed twice"),
        (GOOD + "  - model: ./image", "in the recipe under two names"),
        (GOOD + "base_model: base", "the key 'base_model' stands here twice"),
        (GOOD + "  - model: ./base", "under two names"),
        (GOOD.replace("average", "mmer").replace("base_model: base\n", ""), "needs base_model"),
        (GOOD.replace("base_model: base", "base_model: nowhere"), "there is no folder nowhere"),
        (GOOD.replace("base_model: base", "base_model: ./nowhere"), "there is no folder ./nowhere"),
        (GOOD.replace("average", "slerp"), "requires exactly 2 inputs"),
        ("merge_method: average\nmodels: [{model: image}]", "at least 2 inputs"),
        ("merge_method: mmer\nbase_model: base\nmodels: [{model: base}]", "at least 2 inputs"),
        (GOOD.replace("average", "ties"), "needs the parameter 'weight' for image"),
        (
            GOOD.replace("average", "mmer") + "parameters: {mask_of: base}",
            "choose one of: image, audio",
        ),
        (
            GOOD.replace("average", "delta_weighted") + "parameters: {alpha0: 1.5}",
            "less than or equal to 1",
        ),
        (
            GOOD.replace("average", "mmer").replace(
                "- model: image", "- model: image\n    parameters: {scale: 2}"
            ),
            "move it to the top-level parameters",
        ),
        (GOOD + "  - model: wide", "64 wide and 2 layers deep, the base 32 and 2"),
        (GOOD + "  - model: deep", "32 wide and 3 layers deep"),
        (GOOD + "tokenizer_source: base", "extract its backbone first"),
    ],
)
def test_a_wrong_recipe(refuse: Callable[..., Outcome], text: str, said: str) -> None:
    """The line names the mistake and, where there is one, what was probably meant."""
    assert said in refuse(text).err


def test_a_missing_recipe(here: Path, run: Run) -> None:
    """The file's name and the reason."""
    done = run("merge", "none.yml", "out")
    assert (done.code, done.err) == (
        1,
        "error: cannot read none.yml: No such file or directory\n",
    )


def test_a_recipe_that_is_not_text(here: Path, run: Run) -> None:
    """Binary input is not a recipe."""
    (here / "recipe.yml").write_bytes(b"\xff\xfe\x00")
    assert "recipe.yml is not UTF-8 text" in run("merge", "recipe.yml", "out").err


def test_the_same_id_meaning_two_tokens(here: Path, refuse: Callable[..., Outcome]) -> None:
    """Id, both tokens and the model are named."""
    file = here / "audio" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(tokenizer))
    said = refuse(GOOD).err
    assert "audio: token ids mean other tokens than in base" in said
    assert repr(first) in said


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:5],
        lambda data: b"",
        lambda data: b"garbage" * 1000,
        lambda data: struct.pack("<Q", 1 << 60) + data[8:],
        lambda data: struct.pack("<Q", 2) + b"[]" + data,
        lambda data: data + b"more",
    ],
    ids=["half", "stub", "empty", "garbage", "huge header", "no object", "longer"],
)
def test_a_damaged_weight_file(
    here: Path, refuse: Callable[..., Outcome], damage: Callable[[bytes], bytes]
) -> None:
    """The file is named and called truncated or not safetensors."""
    file = here / "audio" / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    said = refuse(GOOD).err
    assert "audio/model.safetensors is truncated or not a safetensors file" in said


def test_a_shard_missing_from_the_index(here: Path, refuse: Callable[..., Outcome]) -> None:
    """The missing file is named."""
    model = zoo.SPECIES["Qwen2ForCausalLM"].build()
    shutil.rmtree(here / "base")
    zoo.save(model, here / "base", sharded=True)
    zoo.write_tokenizer(here / "base")
    victim = sorted((here / "base").glob("model-*.safetensors"))[1]
    victim.unlink()
    assert f"{victim.name} is named by model.safetensors.index.json" in refuse(GOOD).err


def test_an_index_that_points_outside_the_folder(
    here: Path, refuse: Callable[..., Outcome]
) -> None:
    """A file name with a path in it is refused."""
    index = {"weight_map": {"model.norm.weight": "../image/model.safetensors"}}
    (here / "base" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "which would leave the folder" in refuse(GOOD).err


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.PTH", "weights.ckpt"])
def test_pickled_weights(here: Path, refuse: Callable[..., Outcome], name: str) -> None:
    """Never unpickled; the way out is named."""
    (here / "base" / "model.safetensors").rename(here / "base" / name)
    assert "pickled weights" in refuse(GOOD).err


def test_a_removed_tensor(here: Path, refuse: Callable[..., Outcome]) -> None:
    """The tensor is named, in the encoder as in the language model."""
    edit_weights(here / "image", lambda t: void(t.pop("multi_modal_projector.linear_1.bias")))
    assert "multi_modal_projector.linear_1.bias" in refuse(GOOD).err
    edit_weights(here / "base", lambda t: void(t.pop("model.norm.weight")))
    assert "model.norm.weight" in refuse(GOOD).err


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_or_inf_in_an_input(
    here: Path, refuse: Callable[..., Outcome], run: Run, value: float
) -> None:
    """Model and tensor are named; --allow-nonfinite overrides."""
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    edit_weights(here / "audio", lambda t: void(t[name].view(-1)[3].fill_(value)))
    said = refuse(GOOD).err
    assert "audio: tensor model.layers.1.mlp.up_proj.weight holds NaN or Inf" in said
    assert "--allow-nonfinite" in said
    assert run("merge", "recipe.yml", "out", "--allow-nonfinite", "--no-record").code == 0
    shutil.rmtree(here / "out")


def test_nan_in_the_encoder_that_would_be_carried(
    here: Path, refuse: Callable[..., Outcome]
) -> None:
    """What is carried into the result is looked at too."""
    name = "multi_modal_projector.linear_1.bias"
    edit_weights(here / "image", lambda t: void(t[name].fill_(float("nan"))))
    assert name in refuse(GOOD + "omnireg: {host: image}").err


def test_an_output_that_exists_is_left_alone(here: Path, run: Run) -> None:
    """Not even an empty folder is taken over."""
    (here / "recipe.yml").write_text(GOOD)
    (here / "out").mkdir()
    (here / "out" / "precious").write_text("mine")
    done = run("merge", "recipe.yml", "out")
    assert done.code == 1
    assert "out already exists" in done.err
    assert [p.name for p in (here / "out").iterdir()] == ["precious"]


@pytest.mark.parametrize("out", ["recipe.yml/out", "/proc/out", "/dev/null/out"])
def test_an_output_that_cannot_be_written(refuse: Callable[..., Outcome], out: str) -> None:
    """Known before any work starts."""
    assert "cannot write" in refuse(GOOD, out=out).err


def test_a_config_without_a_class(here: Path, refuse: Callable[..., Outcome]) -> None:
    """A folder without config.json, and one whose config names no class."""
    (here / "audio" / "config.json").write_text("{}")
    assert "names no model class" in refuse(GOOD).err
    (here / "audio" / "config.json").write_text("{")
    assert "is damaged" in refuse(GOOD).err
    (here / "audio" / "config.json").unlink()
    assert "it has no config.json" in refuse(GOOD).err


def test_a_locked_registry(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another writer that never ends: a line that says so, after the waiting time."""
    (here / "recipe.yml").write_text(GOOD)
    from omnireg.errors import RegistryError
    from omnireg.merging import merge
    from omnireg.registry import Registry

    Registry().upgrade()
    connection = sqlite3.connect(here / "registry.db", isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(RegistryError, match="locked by another process"):
            merge(here / "recipe.yml", here / "out", registry=Registry(busy_timeout=0.2))
    finally:
        connection.close()
    assert not (here / "out").exists()


def test_a_registry_of_a_newer_schema(here: Path, refuse: Callable[..., Outcome]) -> None:
    """Politely refused, and left as it is."""
    with sqlite3.connect(here / "registry.db") as connection:
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        connection.execute("INSERT INTO alembic_version VALUES ('9999')")
    connection.close()
    before = (here / "registry.db").read_bytes()
    said = refuse(GOOD).err
    assert "newer" in said
    assert "upgrade omnireg" in said
    assert (here / "registry.db").read_bytes() == before


def test_a_registry_that_is_no_database(here: Path, refuse: Callable[..., Outcome]) -> None:
    """A file of another kind is not overwritten."""
    (here / "registry.db").write_text("these are not the rows you are looking for" * 99)
    assert "not a SQLite database" in refuse(GOOD).err
    (here / "registry.db").unlink()


def test_a_broken_plugin_is_fatal_only_when_the_recipe_needs_it(
    here: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge with a built-in strategy warns; one that names an unknown strategy fails."""
    from tests_support import distribution

    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    distribution(site, "omnireg-torn", "raise RuntimeError('torn')")
    (here / "recipe.yml").write_text(GOOD)
    assert run("merge", "recipe.yml", "out").code == 0
    (here / "recipe.yml").write_text(GOOD.replace("average", "tearing"))
    done = run("merge", "recipe.yml", "out2")
    assert done.code == 1
    assert "omnireg-torn: RuntimeError: torn" in done.err


def test_wrong_usage_exits_with_2(here: Path, run: Run) -> None:
    """Missing arguments, unknown options and commands are usage errors."""
    assert run("merge").code == 2
    assert run("merge", "a", "b", "--no-such-option").code == 2
    unknown = run("mergge")
    assert unknown.code == 2
    assert "did you mean 'merge" in unknown.err


def test_traceback_on_request(here: Path, run: Run) -> None:
    """--traceback raises instead of printing one line."""
    with pytest.raises(Exception, match=r"cannot read none\.yml"):
        run("--traceback", "merge", "none.yml", "out")


class _EmptyHub(BaseHTTPRequestHandler):
    """A Hub that has no repository at all."""

    def do_GET(self) -> None:
        """Answer as the Hub does for a repository that does not exist."""
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("X-Error-Message", "Repository not found")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@pytest.fixture
def empty_hub() -> Iterator[str]:
    """The address of a loopback Hub without repositories."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _EmptyHub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def merge_elsewhere(
    here: Path, text: str, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run a merge in a process of its own; the Hub client reads its settings when imported."""
    (here / "recipe.yml").write_text(text)
    surroundings = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    return subprocess.run(
        [sys.executable, "-m", "omnireg", "merge", "recipe.yml", "out"],
        cwd=here,
        env={**surroundings, "HF_HOME": str(here / "hf"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_hub_id_that_does_not_exist(here: Path, empty_hub: str) -> None:
    """The id is named, and so are the two things it could have been."""
    text = GOOD.replace("model: audio", "model: nobody/nothing@v1")
    done = merge_elsewhere(here, text, HF_ENDPOINT=empty_hub)
    assert done.returncode == 1
    assert "no folder nobody/nothing@v1 here and no such model on the Hub" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (here / "out").exists()


def test_no_network(here: Path) -> None:
    """A Hub nobody answers for: spelling, network and a local folder are suggested."""
    text = GOOD.replace("model: audio", "model: nobody/nothing")
    done = merge_elsewhere(here, text, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1
    assert "could not be fetched from the Hub" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("size", ["banana", "-5", "0", "M"])
def test_a_shard_size_that_is_none_is_wrong_usage(here: Path, run: Run, size: str) -> None:
    """Exit 2 with an example, before anything is read."""
    (here / "recipe.yml").write_text(GOOD)
    done = run("merge", "recipe.yml", "out", f"--out-shard-size={size}")
    assert done.code == 2
    assert "such as 60M" in done.err


def test_a_name_too_long_for_a_folder_is_refused(refuse: Callable[..., Outcome]) -> None:
    """One line instead of the file system's own error, whatever the length."""
    assert "too long" in refuse(GOOD, out="x" * 220).err.lower()
    assert "too long" in refuse(GOOD, out="x" * 300).err.lower()


def test_the_demo_says_where_it_cannot_be(here: Path, run: Run) -> None:
    """A file in the way is no traceback."""
    (here / "file").write_text("mine")
    done = run("demo", "file")
    assert done.code == 1
    assert done.err.startswith("error: cannot use file")


def test_a_truncated_checkpoint_is_not_recorded(here: Path, run: Run) -> None:
    """``add`` reads the headers, so that a damaged file is never given a fingerprint."""
    with (here / "image" / "model.safetensors").open("r+b") as stream:
        stream.truncate(5000)
    done = run("add", "./image")
    assert done.code == 1
    assert "truncated" in done.err


def test_a_host_without_a_tokenizer_is_not_guessed_at(
    refuse: Callable[..., Outcome], here: Path
) -> None:
    """Row numbers alone do not tell which rows are placeholders."""
    (here / "image" / "tokenizer.json").unlink()
    assert "has no tokenizer" in refuse(GOOD).err


def test_small_slips_are_told(here: Path, run: Run) -> None:
    """An empty reference, a role that is none, a subcommand's name that is nearly one."""
    assert "no checkpoint is named" in run("add", "").err
    slip = run("add", here / "base", "--parent", "base=modle")
    assert slip.code == 1
    assert "'modle' is no role (did you mean 'model'?)" in slip.err
    assert "no command 'ad' (did you mean 'add'?)" in run("scores", "ad", "base", "B", 1).err
    named = run("add", here / "base", "--name", "it's a base")
    assert """omnireg lineage 'it'"'"'s a base'""" in named.err


def test_the_check_finds_weights_that_changed(here: Path, run: Run) -> None:
    """A recorded folder that holds other bytes is named, whole or not; one that is gone is not."""
    for name in ("base", "image", "audio"):
        assert run("add", here / name).code == 0
    assert run("db", "check").code == 0
    shutil.rmtree(here / "audio")
    assert run("db", "check").code == 0
    weights = here / "base" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (here / "image" / "model.safetensors").write_bytes(b"")
    found = run("db", "check")
    assert found.code == 1
    assert "base is recorded as" in found.out
    assert "image" in found.out
    assert "audio" not in found.out
    assert ", and 1 more\n" in found.err
    assert json.loads(run("db", "check", "--no-files", "--json").out)["ok"]


def test_a_device_that_is_not_here(refuse: Callable[..., Outcome]) -> None:
    """Said in one line, with what works."""
    assert "try cpu" in refuse(GOOD, "--device", "cuda:77").err
    for device in ("mps", "nonsense"):
        told = refuse(GOOD, "--device", device).err
        assert "try cpu" in told
        assert len(told) < 250


def test_a_class_nobody_declared_is_not_recorded_by_guess(here: Path, run: Run) -> None:
    """Recording it takes words; a text model of an unknown class is recorded as a base."""
    for model in ("image", "base"):
        config = json.loads((here / model / "config.json").read_text())
        config["architectures"] = ["StrangeForCausalLM"]
        (here / model / "config.json").write_text(json.dumps(config))
    refused = run("add", "image")
    assert refused.code == 1
    assert "StrangeForCausalLM" in refused.err
    assert "--kind and --modality" in refused.err
    assert run("add", "image", "--kind", "finetuned", "--modality", "image").code == 0
    assert run("add", "base").code == 0


NAN = """
import torch
from mergekit.merge_methods import BasePolicy, InputContract, TensorGroup, merge_method
from omnireg import hookimpl

@merge_method(
    name="nothing", pretty_name="Nothing",
    contract=InputContract(base=BasePolicy.REQUIRED, min_inputs=2, min_non_base=1),
)
def nothing(group: TensorGroup) -> torch.Tensor:
    return group.base.tensor * float("nan")

@hookimpl
def omnireg_register_strategies(register):
    register(nothing)
"""


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("quantised", [("image",), ("base", "image", "audio")])
def test_quantised_weights_are_named(
    here: Path, refuse: Callable[..., Outcome], kind: torch.dtype, quantised: tuple[str, ...]
) -> None:
    """In one model, or in all of them."""

    def quantise(tensors: dict[str, torch.Tensor]) -> None:
        name = next(n for n in tensors if n.endswith("layers.0.mlp.down_proj.weight"))
        tensors[name] = tensors[name].to(kind)

    for model in quantised:
        edit_weights(here / model, quantise)
    said = refuse(GOOD).err
    assert "image: model.layers.0.mlp.down_proj.weight is " in said
    assert "save it in bfloat16 first" in said


@pytest.mark.parametrize("said", ['{"quant_method": "gptq", "bits": 4}', '"x"'])
def test_a_config_that_says_quantised(
    here: Path, refuse: Callable[..., Outcome], said: str
) -> None:
    """Before transformers asks for the library that would read it."""
    config = json.loads((here / "image" / "config.json").read_text())
    config["quantization_config"] = json.loads(said)
    (here / "image" / "config.json").write_text(json.dumps(config))
    told = refuse(GOOD).err
    assert "image is quantised" in told
    assert "save it in bfloat16 first" in told


def test_a_filter_that_does_nothing_is_told(
    here: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """The merge is made as mergekit makes it, which passes over the filter."""
    text = GOOD + "parameters: {weight: [{filter: FILTER, value: 2}, {value: 1}]}"
    for word in ("mlp", "mpl"):
        assert not caplog.records
        (here / "r.yml").write_text(text.replace("FILTER", word))
        assert run("merge", "r.yml", word).code == 0
    assert "parameters.weight: no tensor has 'mpl' in its name" in caplog.text
    assert "did you mean 'mlp'?" in caplog.text


def test_a_method_that_makes_nan_is_found_out(here: Path, refuse: Callable[..., Outcome]) -> None:
    """The inputs were good: it is the method's doing."""
    (here / "nothing.py").write_text(NAN)
    said = refuse(GOOD.replace("average", "nothing"), "--plugin", "nothing.py").err
    assert "nothing makes NaN or Inf of finite inputs, in tensor" in said


def test_names_that_are_empty(refuse: Callable[..., Outcome]) -> None:
    """Of the folder, and in the registry."""
    assert "has no name; name a new one" in refuse(GOOD, out="").err
    assert "name" in refuse(GOOD, "--name", "").err


def test_entries_that_are_no_mappings(refuse: Callable[..., Outcome]) -> None:
    """The commonest slips of YAML, in words of YAML."""
    assert "write - model: image" in refuse(GOOD.replace("- model: image", "- image")).err
    assert "'mmer' is no mapping" in refuse(GOOD + "omnireg: mmer\n").err


def test_an_interrupt_waits_for_an_import() -> None:
    """It is raised when the block is done, and not swallowed by what the block does."""
    from omnireg.cli.endings import interrupted_after

    done = []

    def work() -> None:
        with interrupted_after():
            try:
                os.kill(os.getpid(), signal.SIGINT)
                done.append(1)
            except KeyboardInterrupt:
                done.append(2)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [1]


def test_an_export_that_cannot_be_written(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the unfinished file cannot be looked for."""
    assert run("add", "base").code == 0
    unlink, opened = Path.unlink, Path.open

    def refusing(call: Any) -> Any:
        def refuse(self: Path, *arguments: Any, **named: Any) -> Any:
            if self.suffix == ".partial":
                raise OSError(30, "Read-only file system")
            return call(self, *arguments, **named)

        return refuse

    monkeypatch.setattr(Path, "unlink", refusing(unlink))
    monkeypatch.setattr(Path, "open", refusing(opened))
    done = run("export", "--out", "e.yml")
    assert done.code == 1
    assert "cannot write e.yml: Read-only file system" in done.err


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("average", "weight: 1.0e+308"),
        ("omni_ties", "weight: 1.0e+39"),
        ("mmer", "scale: 1.0e+300"),
        ("linear", "weight: 1.0e+39, normalize: false"),
    ],
)
def test_a_result_that_is_not_finite(here: Path, run: Run, method: str, parameters: str) -> None:
    """Finite inputs, and parameters that are too much for the dtype."""
    base = "" if method in ("average", "linear") else "base_model: base\n"
    (here / "r.yml").write_text(
        f"merge_method: {method}\n{base}models: [{{model: image}}, {{model: audio}}]\n"
        f"parameters: {{{parameters}}}\n"
    )
    done = run("merge", "r.yml", "out")
    assert done.code == 1
    assert "makes NaN or Inf of finite inputs" in done.err
    assert "RuntimeWarning" not in done.err
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("add", "{}"),
        ("mmer", "inspect", "{}"),
        ("mmer", "extract", "{}", "y", "--modality", "a"),
        ("mmer", "generate", "{}", "--prompt", "a"),
        ("backbone", "extract", "{}", "y"),
        ("--registry", "{}", "list"),
    ],
)
def test_a_name_that_is_too_long(run: Run, command: tuple[str, ...]) -> None:
    """One line, wherever it is given."""
    done = run(*(word.format("x" * 300) for word in command))
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert len(done.err) < 600


def test_layers_that_are_not_there(here: Path, run: Run) -> None:
    """A range of layers is compared with the model before any work."""
    (here / "r.yml").write_text(
        "merge_method: passthrough\n"
        "slices: [{sources: [{model: base, layer_range: [0, 99999999999999]}]}]\n"
    )
    done = run("merge", "r.yml", "out")
    assert done.code == 1
    assert "layers; give a range within [0, " in done.err
