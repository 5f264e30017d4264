"""What transformers says of a checkpoint: complete or not by name, and the text config inside."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from omnireg.backbones.alignment import find_language_model
from omnireg.backbones.grafting import extract
from omnireg.backbones.layouts import HOSTS, TEXT
from omnireg.checkpoints.checkpoint import Checkpoint, open_checkpoint
from omnireg.checkpoints.loading import check_complete, ties_head, write_text_config
from omnireg.errors import CheckpointError, OmniregError, PlanError
from zoo import HOUSES, SPECIES, Zoo, load, read_weights, rewrite

LAYOUTS = {name: layout for layout in (TEXT, *HOSTS) for name in layout.architectures}
LLAVA, QWEN2_VL = "LlavaForConditionalGeneration", "Qwen2VLForConditionalGeneration"
#: these differ from others of their class in names
FORMS = ("legacy", "memory", "hub", "thinker", "talker")
SAMPLED = [(a, f) for a, f in HOUSES if f in FORMS and (a, f) != (LLAVA, "legacy")]


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Share the built folders among all modules of one session."""
    return Zoo(tmp_path_factory.getbasetemp() / "zoo")


def complaint(folder: Path) -> str:
    """Return everything that is said against a checkpoint."""
    said = ""
    checkpoint = open_checkpoint(str(folder))
    for check in (check_complete, lambda c: find_language_model(c, LAYOUTS)):
        try:
            check(checkpoint)
        except OmniregError as exc:
            said += f"{exc}\n"
    return said


def assert_named(said: str, *names: str) -> None:
    """Make sure that whole names stand in a message."""
    for name in names:
        assert re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", said), (name, said)


def rename(name: str) -> str:
    """Return a name that no class expects."""
    module, dot, leaf = name.rpartition(".")
    return f"{module}_odd{dot}{leaf}"


def sample(names: Iterable[str]) -> list[str]:
    """Choose the tensors most worth losing: head, embedding, norm, layers, encoder, projector."""
    kinds = (
        r"lm_head\.weight$", r"(?<!talker\.model\.)embed_tokens\.weight$",
        r"(language_|text_)?model\.norm\.weight$", r"layers\.1\.mlp\.down_proj\.weight$",
        r"(vis\w*|audio_tower)\..*\.[01]\..*weight$",
        r"(projector|merger|connector|proj)\b.*(weight)$|newline",
    )  # fmt: skip
    names = sorted(n for n in names if not n.startswith(("talker", "token2wav")))
    found = [next((n for n in names if re.search(kind, n)), None) for kind in kinds]
    return sorted({name for name in found if name})


@pytest.mark.parametrize(("architecture", "form"), HOUSES)
def test_healthy_checkpoint_passes(zoo: Zoo, architecture: str, form: str) -> None:
    """No class in any on-disk form is accused of anything."""
    assert complaint(zoo(architecture, form)) == ""


@pytest.mark.parametrize("architecture", [LLAVA, QWEN2_VL])
def test_every_renamed_tensor_is_reported_under_both_names(
    zoo: Zoo, tmp_path: Path, architecture: str
) -> None:
    """Whichever tensor of a host is renamed, the missing and the unexpected name are said."""
    folder = zoo.copy(zoo(architecture), tmp_path / "odd")
    whole = read_weights(folder)
    for name in whole:
        others = {n: t for n, t in whole.items() if n != name}
        save_file({**others, rename(name): whole[name]}, folder / "model.safetensors")
        assert_named(complaint(folder), name, rename(name))


@pytest.mark.parametrize(("architecture", "form"), SAMPLED)
def test_removed_tensor_is_reported_as_it_was_written(
    zoo: Zoo, tmp_path: Path, architecture: str, form: str
) -> None:
    """Whichever part loses a tensor, the error names it as this on-disk form writes it."""
    folder = zoo.copy(zoo(architecture, form), tmp_path / "lame")
    whole = read_weights(folder)
    chosen = sample(whole)
    assert len(chosen) >= (5 if SPECIES[architecture].is_host else 4)
    for name in chosen:
        save_file({n: t for n, t in whole.items() if n != name}, folder / "model.safetensors")
        assert_named(complaint(folder), name)


@pytest.mark.parametrize(("architecture", "form"), [h for h in HOUSES if h[1] == "shards"])
def test_removed_tensor_of_a_shard_is_reported(
    zoo: Zoo, tmp_path: Path, architecture: str, form: str
) -> None:
    """A tensor that index and shards both lack is named; one the index still promises, too."""
    folder = zoo.copy(zoo(architecture, form), tmp_path / "lame")
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    name = next(n for n in data["weight_map"] if n.endswith("layers.0.mlp.up_proj.weight"))
    file = folder / data["weight_map"].pop(name)
    rewrite_one = {n: t for n, t in _weights_of(file).items() if n != name}
    save_file(rewrite_one, file)
    with pytest.raises(CheckpointError, match=f"promises tensor {name} in {file.name}"):
        check_complete(open_checkpoint(str(folder)))
    index.write_text(json.dumps(data))
    assert_named(complaint(folder), name)


def _weights_of(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(file)


def test_tensor_of_another_shape_is_named_with_both_shapes(zoo: Zoo, tmp_path: Path) -> None:
    """A tensor that does not fit config.json is named as written, with what was expected."""
    folder = zoo.copy(zoo(LLAVA), tmp_path / "odd")
    name = "multi_modal_projector.linear_1.bias"
    rewrite(folder, lambda t: {**t, name: torch.ones(3)})
    with pytest.raises(CheckpointError, match=rf"of another shape {name} \[3\] for \[32\]; downl"):
        check_complete(open_checkpoint(str(folder)))


def test_config_of_another_size_is_an_error(zoo: Zoo, tmp_path: Path) -> None:
    """A config that promises another depth is contradicted by the tensors, by name."""
    folder = zoo.copy(zoo("Qwen2ForCausalLM"), tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
    (folder / "config.json").write_text(json.dumps(config))
    assert_named(complaint(folder), "model.layers.2.mlp.up_proj.weight")


def test_config_that_transformers_refuses_is_an_error(zoo: Zoo, tmp_path: Path) -> None:
    """A config no class accepts is a CheckpointError with transformers' reason."""
    folder = zoo.copy(zoo("Qwen2ForCausalLM"), tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}))
    with pytest.raises(CheckpointError, match=r"odd does not fit its config\.json: .*hidden_size"):
        check_complete(open_checkpoint(str(folder)))


def test_config_that_cannot_be_tied_is_an_error(zoo: Zoo, tmp_path: Path) -> None:
    """Asking a refused config whether it ties the head is the same CheckpointError."""
    folder = zoo.copy(zoo("Qwen2ForCausalLM", "tied"), tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "none such"}))
    with pytest.raises(CheckpointError, match=r"odd does not fit its config\.json: .*none such"):
        ties_head(open_checkpoint(str(folder)))


def test_only_headers_are_read(zoo: Zoo, tmp_path: Path) -> None:
    """A checkpoint whose data is one hole of 58 GB is checked as fast as a small one."""
    folder = tmp_path / "sparse"
    big = {"hidden_size": 8192, "intermediate_size": 65536, "num_hidden_layers": 8}
    config = transformers.LlamaConfig(
        **SPECIES["LlamaForCausalLM"].text_config(**big), architectures=["LlamaForCausalLM"]
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in model.state_dict().items():
        start, end = end, end + 4 * tensor.numel()
        shape = list(tensor.shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    assert end > 58_000_000_000
    check_complete(open_checkpoint(str(folder)))
    assert (folder / "model.safetensors").stat().st_blocks * 512 < 1_000_000


def test_class_that_transformers_lacks_is_left_alone(zoo: Zoo, tmp_path: Path) -> None:
    """A plugin's class is for the plugin's layout to explain."""
    folder = zoo.copy(zoo(LLAVA), tmp_path / "mine")
    config = (folder / "config.json").read_text().replace(LLAVA, "MyLlava")
    (folder / "config.json").write_text(config)
    check_complete(Checkpoint("mine", folder))


def test_whole_omni_is_checked_under_its_name_on_the_hub(zoo: Zoo, tmp_path: Path) -> None:
    """Hub checkpoints call the class Qwen2_5OmniModel, which transformers no longer has."""
    name = "Qwen2_5OmniForConditionalGeneration"
    folder = zoo.copy(zoo(name, "talker"), tmp_path / "omni")
    config = (folder / "config.json").read_text().replace(f'"{name}"', '"Qwen2_5OmniModel"')
    (folder / "config.json").write_text(config)
    assert complaint(folder) == ""
    whole = read_weights(folder)
    lost = "thinker.visual.merger.ln_q.weight"
    save_file({n: t for n, t in whole.items() if n != lost}, folder / "model.safetensors")
    assert_named(complaint(folder), lost)


@pytest.mark.parametrize(
    ("architecture", "by_text_config", "by_default"),
    [
        ("Qwen2ForCausalLM", False, False),
        ("LlamaForCausalLM", False, False),
        (LLAVA, True, False),
        ("LlavaOnevisionForConditionalGeneration", True, False),
        ("LlavaNextForConditionalGeneration", False, False),
        ("InternVLForConditionalGeneration", True, True),
        (QWEN2_VL, True, False),
        ("Qwen2_5_VLForConditionalGeneration", True, False),
        ("Qwen3VLForConditionalGeneration", False, False),
        ("Qwen2AudioForConditionalGeneration", False, False),
        ("Qwen2_5OmniThinkerForConditionalGeneration", False, False),
        ("Qwen2_5OmniForConditionalGeneration", False, False),
        ("Idefics3ForConditionalGeneration", False, False),
    ],
)
def test_config_key_that_ties_the_head_is_the_class_own(
    zoo: Zoo, tmp_path: Path, architecture: str, by_text_config: bool, by_default: bool
) -> None:
    """Whether the text config's word or the class's default ties the head differs by class."""
    assert ties_head(open_checkpoint(str(zoo(architecture)))) is False
    tied = "Audio" not in architecture
    assert ties_head(open_checkpoint(str(zoo(architecture, "tied")))) is tied
    config = json.loads((zoo(architecture) / "config.json").read_text())
    root = config.get("thinker_config", config)
    root.pop("tie_word_embeddings", None)
    for word, expected in ((True, by_text_config), (None, by_default)):
        if "text_config" in root:
            root["text_config"].pop("tie_word_embeddings", None)
            if word:
                root["text_config"]["tie_word_embeddings"] = word
        folder = tmp_path / str(word)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        assert ties_head(Checkpoint(architecture, folder)) is expected


def test_foreign_class_ties_as_its_config_says(tmp_path: Path) -> None:
    """For a class transformers lacks the top of the config counts, then the text config."""
    texts = {
        '{"architectures": ["Mine"], "tie_word_embeddings": false}': False,
        '{"architectures": ["Mine"], "text_config": {"tie_word_embeddings": false}}': False,
        '{"architectures": ["Mine"], "tie_word_embeddings": true, "text_config": {}}': True,
        '{"architectures": ["Mine"]}': True,
    }
    for text, expected in texts.items():
        (tmp_path / "config.json").write_text(text)
        assert ties_head(Checkpoint("mine", tmp_path)) is expected


# The text config


@pytest.mark.parametrize("architecture", [n for n, s in SPECIES.items() if s.is_host])
def test_text_config_is_the_hosts_as_a_text_model(
    zoo: Zoo, tmp_path: Path, architecture: str
) -> None:
    """Sizes, rope and norms are the host's; multimodal positions become ordinary ones."""
    species, folder = SPECIES[architecture], zoo(architecture)
    extract(find_language_model(open_checkpoint(str(folder)), LAYOUTS), tmp_path / "text")
    config = json.loads((tmp_path / "text" / "config.json").read_text())
    assert config["architectures"] == [species.base]
    assert config["rope_parameters"] == {"rope_theta": 5000.0, "rope_type": "default"}
    for key, value in species.text_config().items():
        if key != "tie_word_embeddings" and value is not None:
            assert config[key] == value, key


@pytest.mark.parametrize(
    ("architecture", "text"),
    [
        ("LlavaNextForConditionalGeneration", {"sliding_window": 4}),
        *(
            (name, {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1})
            for name in (QWEN2_VL, "Qwen2AudioForConditionalGeneration")
        ),
        (LLAVA, {"attention_bias": True, "mlp_bias": True}),
        ("Qwen3VLForConditionalGeneration", {"attention_bias": True}),
    ],
)
def test_windows_and_biases_survive_extraction(
    zoo: Zoo, tmp_path: Path, architecture: str, text: dict[str, Any]
) -> None:
    """Sliding windows and optional biases are kept: on long text the logits stay the host's."""
    species, folder = SPECIES[architecture], zoo(architecture, **text)
    plain = species.load(zoo(architecture))
    extract(find_language_model(open_checkpoint(str(folder)), LAYOUTS), tmp_path / "text")
    words = {"input_ids": torch.arange(70, 100)[None]}
    expected = species.logits(species.load(folder), words)
    text_cls = getattr(transformers, species.base)
    assert torch.equal(species.logits(load(text_cls, tmp_path / "text"), words), expected)
    assert not torch.equal(species.logits(plain, words), expected)


def test_old_multimodal_rope_becomes_an_ordinary_one(zoo: Zoo, tmp_path: Path) -> None:
    """The flat Qwen2-VL config of the Hub, rope_scaling and all, gives a plain text config."""
    checkpoint = open_checkpoint(str(zoo(QWEN2_VL, "flat")))
    assert checkpoint.config["rope_scaling"]["type"] == "mrope"
    write_text_config(
        checkpoint, tmp_path, text_architecture="Qwen2ForCausalLM", vocabulary=280, tied=True
    )
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rope_parameters"]["rope_type"] == "default"
    assert "mrope" not in json.dumps(config)
    assert (config["vocab_size"], config["tie_word_embeddings"]) == (280, True)


def test_text_class_that_nobody_names_is_an_error(zoo: Zoo, tmp_path: Path) -> None:
    """A text model type without a causal class needs a layout that names one."""
    checkpoint = open_checkpoint(str(zoo(QWEN2_VL)))
    with pytest.raises(PlanError, match=r"no text class is known for 'qwen2_vl_text'; a plugin"):
        write_text_config(checkpoint, tmp_path, text_architecture="", vocabulary=280, tied=True)


@pytest.mark.parametrize(
    ("config", "text_architecture", "said"),
    [
        ({"model_type": "nobodys"}, "", r"does not fit its config\.json: .*`nobodys`"),
        ({"model_type": "qwen2"}, "NobodysForCausalLM", "transformers has no NobodysForCausalLM"),
    ],
)
def test_class_that_transformers_cannot_configure_is_an_error(
    tmp_path: Path, config: dict[str, str], text_architecture: str, said: str
) -> None:
    """A config or a text class that transformers lacks is said to be so."""
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Mine"], **config}))
    with pytest.raises((CheckpointError, PlanError), match=said):
        write_text_config(
            Checkpoint("mine", tmp_path),
            tmp_path,
            text_architecture=text_architecture,
            vocabulary=8,
            tied=True,
        )
