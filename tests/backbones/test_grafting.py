"""Taking the language model out of every class in every on-disk form, and putting one back."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from omnireg.backbones.alignment import EMBEDDING, HEAD, LanguageModel, align, find_language_model
from omnireg.backbones.grafting import Report, extract, graft
from omnireg.backbones.layouts import HOSTS, TEXT
from omnireg.checkpoints.checkpoint import Checkpoint, open_checkpoint
from omnireg.checkpoints.loading import check_complete
from omnireg.errors import PlanError
from omnireg.hookspecs import HostLayout
from zoo import (
    HOST_HOUSES,
    HOUSES,
    SPECIES,
    WIDTH,
    Zoo,
    in_llava_code,
    load,
    perturbed,
    put_text,
    read_weights,
)

LAYOUTS = {name: layout for layout in (TEXT, *HOSTS) for name in layout.architectures}
SHARED = 265  # ids below it are the base's tokens; hosts put five placeholders after them
PLACEHOLDERS = range(265, 270)
SPEECH = {"input_ids": torch.arange(70, 92)[None]}

LLAVA, QWEN2_VL = "LlavaForConditionalGeneration", "Qwen2VLForConditionalGeneration"
QWEN2_AUDIO, QWEN2 = "Qwen2AudioForConditionalGeneration", "Qwen2ForCausalLM"
every_house = pytest.mark.parametrize(("architecture", "form"), HOUSES)
every_class = pytest.mark.parametrize("architecture", [n for n, s in SPECIES.items() if s.is_host])
every_host = pytest.mark.parametrize(("architecture", "form"), HOST_HOUSES)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Share the built folders among all modules of one session."""
    return Zoo(tmp_path_factory.getbasetemp() / "zoo")


def found(folder: Path) -> LanguageModel:
    """Find the language model of a folder."""
    return find_language_model(open_checkpoint(str(folder)), LAYOUTS)


def text_model(folder: Path) -> Any:
    """Load a text checkpoint, complete and with nothing left over."""
    return load(getattr(transformers, open_checkpoint(str(folder)).architecture), folder)


def retrained(folder: Path, out: Path) -> Path:
    """Save a text checkpoint again, with noise on every parameter."""
    torch.manual_seed(1)
    perturbed(text_model(folder), lambda name: True).save_pretrained(out)
    (out / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    return out


# Finding it


@every_class
def test_answers_depend_on_every_medium(zoo: Zoo, architecture: str) -> None:
    """The zoo's inputs really reach the encoders: other media, other logits."""
    species = SPECIES[architecture]
    model, inputs = species.load(zoo(architecture)), species.inputs()
    answer = species.logits(model)
    for name in species.media:
        assert not torch.equal(species.logits(model, {**inputs, name: inputs[name] + 1}), answer)


@every_house
def test_every_tensor_is_mapped_or_carried(zoo: Zoo, architecture: str, form: str) -> None:
    """Each tensor on disk is either one of the language model or carried, never both."""
    model = found(zoo(architecture, form))
    mapped = {header.name for header in model.tensors.values()}
    assert mapped.isdisjoint(model.carried)
    assert mapped | set(model.carried) == set(model.checkpoint.tensors)
    assert model.tied == (form == "tied" and architecture != QWEN2_AUDIO)
    assert (model.depth, model.header(HEAD).shape[-1]) == (2, WIDTH)
    assert model.is_host == SPECIES[architecture].is_host


@every_house
def test_extracted_text_model_answers_like_the_host(
    zoo: Zoo, tmp_path: Path, architecture: str, form: str
) -> None:
    """The extracted text checkpoint is complete; on text its logits are the host's, bit for bit."""
    species, folder = SPECIES[architecture], zoo(architecture, form)
    report = extract(found(folder), tmp_path / "text")
    taken = open_checkpoint(str(tmp_path / "text"))
    assert taken.architecture == species.base
    assert report.mapped == len(taken.tensors)
    assert report.absent == ()
    check_complete(taken)
    answer = species.logits(text_model(taken.folder), SPEECH)
    assert torch.equal(answer, species.logits(species.load(folder), SPEECH))


@every_host
def test_graft_round_trip_is_byte_for_byte(
    zoo: Zoo, tmp_path: Path, architecture: str, form: str
) -> None:
    """Putting the extracted backbone back gives the host's own files."""
    folder = zoo(architecture, form)
    extract(found(folder), tmp_path / "text")
    report = graft(found(tmp_path / "text"), found(folder), tmp_path / "host")
    # the speakers of a whole Qwen2.5-Omni are a pickle beside the weights
    before = {f.name: f.read_bytes() for f in folder.iterdir() if f.name != "spk_dict.pt"}
    after = {f.name: f.read_bytes() for f in (tmp_path / "host").iterdir()}
    after.pop("spk_dict.pt", None)
    assert before == after
    assert {"tokenizer.json", "chat_template.jinja", "preprocessor_config.json"} <= set(after)
    assert report.mapped + report.carried == len(open_checkpoint(str(folder)).tensors)


@every_host
def test_host_with_another_backbone_answers_as_if_trained_in_place(
    zoo: Zoo, tmp_path: Path, architecture: str, form: str
) -> None:
    """A host reloaded after a graft gives the logits of the host changed in memory, bit for bit."""
    species, folder = SPECIES[architecture], zoo(architecture, form)
    extract(found(folder), tmp_path / "text")
    backbone = retrained(tmp_path / "text", tmp_path / "trained")
    # a head beside a tied embedding is read as a head of its own once the two differ
    untied = {"tie_word_embeddings": False} if form == "both" else {}
    expected = load(species.cls, folder, **untied)
    before = species.logits(expected)
    put_text(expected, read_weights(backbone))
    graft(found(backbone), found(folder), tmp_path / "host")
    answer = species.logits(species.load(tmp_path / "host"))
    assert torch.equal(answer, species.logits(expected))
    assert not torch.equal(answer, before)


# Beside a base


@every_class
def test_extract_into_a_base_takes_the_rows_that_mean_the_same(
    zoo: Zoo, tmp_path: Path, architecture: str
) -> None:
    """With a base, placeholder rows are the base's, and all other rows the host's."""
    folder, base = zoo(architecture), zoo(SPECIES[architecture].base)
    host, reference = found(folder), found(base)
    assert align(host, reference).rows == (range(SHARED), range(270, 272))
    extract(host, tmp_path / "text", base=reference)
    taken, old, own = (read_weights(f) for f in (tmp_path / "text", base, folder))
    for name in (EMBEDDING, HEAD):
        rows, of_host = taken[name], own[host.tensors[name].name]
        assert rows.shape == old[name].shape
        assert torch.equal(rows[:SHARED], of_host[:SHARED])
        assert torch.equal(rows[PLACEHOLDERS], old[name][PLACEHOLDERS])
        assert torch.equal(rows[270:], of_host[270:272])
    for file in ("config.json", "tokenizer.json"):
        assert (tmp_path / "text" / file).read_bytes() == (base / file).read_bytes()
    check_complete(open_checkpoint(str(tmp_path / "text")))


@pytest.mark.parametrize("architecture", [LLAVA, QWEN2_VL, QWEN2_AUDIO])
def test_graft_leaves_the_placeholder_rows_to_the_host(
    zoo: Zoo, tmp_path: Path, architecture: str
) -> None:
    """A backbone in the base's layout replaces the rows it shares; the host keeps the others."""
    folder, base = zoo(architecture), zoo(SPECIES[architecture].base)
    host = found(folder)
    graft(found(base), host, tmp_path / "host")
    after, old, new = (read_weights(f) for f in (tmp_path / "host", folder, base))
    for name in (EMBEDDING, HEAD):
        written = host.tensors[name].name
        assert torch.equal(after[written][:SHARED], new[name][:SHARED])
        assert torch.equal(after[written][PLACEHOLDERS], old[written][PLACEHOLDERS])
        assert torch.equal(after[written][272:], old[written][272:])
    inner = [n for n in host.tensors if n not in (EMBEDDING, HEAD)]
    assert all(torch.equal(after[host.tensors[n].name], new[n]) for n in inner)
    assert all(torch.equal(after[n], old[n]) for n in host.carried)


def test_hosts_of_one_tokenizer_share_every_row(zoo: Zoo) -> None:
    """Between two hosts of one tokenizer placeholders mean the same, and padding rows too."""
    assert align(found(zoo(LLAVA)), found(zoo(LLAVA, "memory"))).same_rows


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_graft_casts_to_the_dtype_of_the_host(zoo: Zoo, tmp_path: Path, dtype: str) -> None:
    """A float32 backbone is rounded to the host's dtype as torch rounds, extra rows untouched."""
    precision = getattr(torch, dtype)
    folder, backbone = tmp_path / "low", zoo("LlamaForCausalLM")
    SPECIES[LLAVA].load(zoo(LLAVA)).to(precision).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((zoo(LLAVA) / "tokenizer.json").read_bytes())
    host = found(folder)
    graft(found(backbone), host, tmp_path / "host")
    after, old, new = (read_weights(f) for f in (tmp_path / "host", folder, backbone))
    for name, tensor in new.items():
        written = after[host.tensors[name].name]
        rows = slice(0, SHARED) if name in (EMBEDDING, HEAD) else slice(None)
        assert torch.equal(written[rows], tensor.to(precision)[rows])
    assert all(torch.equal(after[n], old[n]) for n in host.carried)
    assert all(tensor.dtype == precision for tensor in after.values())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_extracting_into_a_base_of_another_dtype_loses_nothing(
    zoo: Zoo, tmp_path: Path, dtype: str
) -> None:
    """Rows of two dtypes meet in float32; every other tensor keeps the host's dtype."""
    SPECIES[LLAVA].load(zoo(LLAVA)).to(getattr(torch, dtype)).save_pretrained(tmp_path / "low")
    (tmp_path / "low" / "tokenizer.json").write_bytes((zoo(LLAVA) / "tokenizer.json").read_bytes())
    host, base = found(tmp_path / "low"), found(zoo("LlamaForCausalLM"))
    extract(host, tmp_path / "text", base=base)
    taken, own = read_weights(tmp_path / "text"), read_weights(tmp_path / "low")
    old = read_weights(base.checkpoint.folder)
    for name, tensor in taken.items():
        source = own[host.tensors[name].name]
        if name in (EMBEDDING, HEAD):
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor[:SHARED], source[:SHARED].float())
            assert torch.equal(tensor[PLACEHOLDERS], old[name][PLACEHOLDERS])
        else:
            assert torch.equal(tensor, source)
            assert tensor.dtype == source.dtype


@pytest.mark.parametrize("architecture", [LLAVA, QWEN2_VL, QWEN2_AUDIO])
def test_extracted_text_model_loads_in_the_dtype_of_the_host(
    zoo: Zoo, tmp_path: Path, architecture: str
) -> None:
    """A bfloat16 host gives a bfloat16 text model, in the file and once loaded."""
    SPECIES[architecture].load(zoo(architecture)).bfloat16().save_pretrained(tmp_path / "low")
    extract(found(tmp_path / "low"), tmp_path / "text")
    assert {t.dtype for t in read_weights(tmp_path / "text").values()} == {torch.bfloat16}
    assert {p.dtype for p in text_model(tmp_path / "text").parameters()} == {torch.bfloat16}


# Heads


def test_own_head_is_refused_by_a_tied_host(zoo: Zoo, tmp_path: Path) -> None:
    """A head that differs from its embedding cannot be put into a host that has none."""
    with pytest.raises(PlanError, match=r"ties its head .* would be lost"):
        graft(found(zoo(QWEN2)), found(zoo(QWEN2_VL, "tied")), tmp_path / "host")
    assert not (tmp_path / "host").exists()


def test_own_head_equal_to_its_embedding_fits_a_tied_host(zoo: Zoo, tmp_path: Path) -> None:
    """A head on disk that holds the embedding's bytes is tied in effect."""
    backbone, host = found(zoo(QWEN2, "both")), found(zoo(QWEN2_VL, "tied"))
    assert backbone.tied_in_effect
    assert not backbone.tied
    assert not found(zoo(QWEN2)).tied_in_effect
    report = graft(backbone, host, tmp_path / "host")
    assert report.absent == (HEAD,)
    assert HEAD not in read_weights(tmp_path / "host")


def test_tied_backbone_fills_the_head_of_a_host_that_has_one(zoo: Zoo, tmp_path: Path) -> None:
    """Qwen2-Audio never ties its head, so a tied backbone's embedding is written there too."""
    host = found(zoo(QWEN2_AUDIO, "tied"))
    graft(found(zoo(QWEN2, "tied")), host, tmp_path / "host")
    after, backbone = read_weights(tmp_path / "host"), read_weights(zoo(QWEN2, "tied"))
    for name in (EMBEDDING, HEAD):
        assert torch.equal(after[host.tensors[name].name][:SHARED], backbone[EMBEDDING][:SHARED])


def test_untied_host_keeps_its_head_beside_a_tied_base(zoo: Zoo, tmp_path: Path) -> None:
    """Extracting a host with a head of its own into a tied base writes the head and says so."""
    host, base = found(zoo(QWEN2_AUDIO, "tied")), found(zoo(QWEN2, "tied"))
    extract(host, tmp_path / "text", base=base)
    taken = open_checkpoint(str(tmp_path / "text"))
    assert taken.config["tie_word_embeddings"] is False
    check_complete(taken)
    head = read_weights(host.checkpoint.folder)[host.tensors[HEAD].name]
    assert torch.equal(read_weights(taken.folder)[HEAD][:SHARED], head[:SHARED])


def test_tied_host_beside_an_untied_base_lacks_the_head(zoo: Zoo, tmp_path: Path) -> None:
    """A tied host's head is reported absent, and extracted as its embedding over the base's."""
    host, base = found(zoo(QWEN2_VL, "tied")), found(zoo(QWEN2))
    report = extract(host, tmp_path / "text", base=base)
    assert report.absent == (HEAD,)
    taken, own = read_weights(tmp_path / "text"), read_weights(host.checkpoint.folder)
    assert torch.equal(taken[HEAD][:SHARED], own[host.tensors[EMBEDDING].name][:SHARED])
    old = read_weights(base.checkpoint.folder)
    assert torch.equal(taken[HEAD][PLACEHOLDERS], old[HEAD][PLACEHOLDERS])


# Biases


def test_biases_that_a_host_has_nowhere_are_absent_and_extracted_as_zero(
    zoo: Zoo, tmp_path: Path
) -> None:
    """A Llama host over a Qwen2 base lacks its biases, and without them answers the same."""
    host, base = found(zoo(LLAVA)), found(zoo(QWEN2))
    alignment = align(host, base)
    biases = {n for n in base.tensors if n.endswith(".bias")}
    assert set(alignment.absent) == biases
    assert set(alignment.merged) | biases == set(base.tensors)
    report = extract(host, tmp_path / "text", base=base)
    assert set(report.absent) == biases
    check_complete(open_checkpoint(str(tmp_path / "text")))
    species = SPECIES[LLAVA]
    answer = species.logits(text_model(tmp_path / "text"), SPEECH)
    expected = species.logits(species.load(host.checkpoint.folder), SPEECH)
    # adding a zero bias runs another matrix kernel
    torch.testing.assert_close(answer[..., :SHARED], expected[..., :SHARED], atol=1e-6, rtol=1e-5)


def test_biases_that_a_host_has_no_place_for_are_not_lost_silently(
    zoo: Zoo, tmp_path: Path
) -> None:
    """Zero biases are in the report of the graft; others would be lost, and are refused."""
    host, base = found(zoo(LLAVA)), found(zoo(QWEN2))
    with pytest.raises(PlanError, match=r"has no biases, but .* not zero: model.*\.bias"):
        graft(base, host, tmp_path / "lost")
    assert not (tmp_path / "lost").exists()
    extract(host, tmp_path / "words", base=base)
    report = graft(found(tmp_path / "words"), host, tmp_path / "back")
    assert set(report.absent) == {n for n in base.tensors if n.endswith(".bias")}
    assert read_weights(tmp_path / "back").keys() == read_weights(zoo(LLAVA)).keys()


# A plugin's class


def test_class_declared_by_a_plugin_is_extracted_and_grafted(zoo: Zoo, tmp_path: Path) -> None:
    """A layout is all it takes for a class that transformers does not have."""
    folder = zoo.copy(zoo(LLAVA, "tied"), tmp_path / "mine")
    config = (folder / "config.json").read_text().replace(LLAVA, "MyLlava")
    (folder / "config.json").write_text(config)
    checkpoint = Checkpoint("mine", folder)
    with pytest.raises(PlanError, match=r"mine \(MyLlava\) is a class omnireg does not know; a pl"):
        find_language_model(checkpoint, LAYOUTS)
    layout = HostLayout(("MyLlava",), carried=("vision_tower.*", "multi_modal_projector.*"))
    model = find_language_model(checkpoint, {**LAYOUTS, "MyLlava": layout})
    check_complete(checkpoint)
    extract(model, tmp_path / "text")
    graft(found(tmp_path / "text"), model, tmp_path / "host")
    weights = tmp_path / "host" / "model.safetensors"
    assert weights.read_bytes() == (folder / "model.safetensors").read_bytes()
    assert extract(model, tmp_path / "into", base=found(zoo("LlamaForCausalLM"))).absent == (HEAD,)


def test_checkpoints_of_llavas_own_code_are_hosts(zoo: Zoo, tmp_path: Path) -> None:
    """LLaVA-Video and the first LLaVA-OneVision: transformers has neither class nor config."""
    text = zoo("Qwen2ForCausalLM")
    folder = in_llava_code(zoo.copy(text, tmp_path / "video"))
    host = found(folder)
    assert (host.is_host, sorted(host.layout.senses)) == (True, ["image", "video"])
    assert extract(host, tmp_path / "text") == Report(mapped=27, carried=4, absent=())
    extracted, original = text_model(tmp_path / "text"), text_model(text)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(extracted(ids).logits, original(ids).logits)
    other = retrained(text, tmp_path / "other")
    graft(found(other), host, tmp_path / "host")
    grafted, carried = read_weights(tmp_path / "host"), read_weights(folder)
    for name, tensor in read_weights(other).items():
        assert torch.equal(grafted.pop(name), tensor)
    assert len(grafted) == 4
    assert all(torch.equal(tensor, carried[name]) for name, tensor in grafted.items())
