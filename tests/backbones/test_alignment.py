"""How language models line up with a base, and what is refused, by name."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omnireg.backbones.alignment import HEAD, LanguageModel, align, find_language_model
from omnireg.backbones.grafting import extract, graft
from omnireg.backbones.layouts import HOSTS, TEXT
from omnireg.checkpoints.checkpoint import open_checkpoint
from omnireg.errors import PlanError
from zoo import HOST_HOUSES, SPECIES, Tensors, Zoo, read_weights, rewrite

LAYOUTS = {name: layout for layout in (TEXT, *HOSTS) for name in layout.architectures}
LLAVA, QWEN2_VL = "LlavaForConditionalGeneration", "Qwen2VLForConditionalGeneration"
QWEN2_AUDIO, QWEN2 = "Qwen2AudioForConditionalGeneration", "Qwen2ForCausalLM"


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Share the built folders among all modules of one session."""
    return Zoo(tmp_path_factory.getbasetemp() / "zoo")


def found(folder: Path) -> LanguageModel:
    """Find the language model of a folder."""
    return find_language_model(open_checkpoint(str(folder)), LAYOUTS)


def changed(zoo: Zoo, folder: Path, to: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """Copy a folder with other weights."""
    copy = zoo.copy(folder, to)
    rewrite(copy, change)
    return copy


def without(*names: str) -> Callable[[Tensors], Tensors]:
    """Leave tensors out."""
    return lambda tensors: {n: t for n, t in tensors.items() if n not in names}


def retokenized(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a folder's tokenizer in place."""
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    change(tokenizer)
    file.write_text(json.dumps(tokenizer))


# Names and shapes


@pytest.mark.parametrize(("architecture", "form"), HOST_HOUSES)
def test_missing_tensors_are_named_as_the_host_writes_them(
    zoo: Zoo, tmp_path: Path, architecture: str, form: str
) -> None:
    """Each tensor of the language model that a host lacks is named in its own on-disk form."""
    host = found(zoo(architecture, form))
    base = found(zoo(SPECIES[architecture].base))
    for name in ("model.norm.weight", "model.layers.1.mlp.up_proj.weight"):
        lame = LanguageModel(
            host.checkpoint,
            host.layout,
            host.prefix,
            {n: t for n, t in host.tensors.items() if n != name},
            host.carried,
        )
        written = host.tensors[name].name
        with pytest.raises(PlanError, match=rf"does not extend .*: missing {written}$"):
            align(lame, base)


@pytest.mark.parametrize("form", ["legacy", "memory"])
def test_every_head_that_is_missing_is_named(zoo: Zoo, tmp_path: Path, form: str) -> None:
    """A missing head is named where this on-disk form has it, also beside a tied base."""
    for architecture in ("Qwen2_5OmniForConditionalGeneration", QWEN2_AUDIO, LLAVA):
        species = SPECIES[architecture]
        head = found(zoo(architecture, form)).tensors[HEAD].name
        folder = changed(zoo, zoo(architecture, form), tmp_path / architecture, without(head))
        for base in (zoo(species.base), zoo(species.base, "tied")):
            with pytest.raises(PlanError, match=rf": missing {head}$"):
                align(found(folder), found(base))


def test_config_that_ties_cannot_tie_qwen2_audio(zoo: Zoo, tmp_path: Path) -> None:
    """Qwen2-Audio's class never ties, so its missing head is an error whatever its config says."""
    name = "language_model.lm_head.weight"
    folder = changed(zoo, zoo(QWEN2_AUDIO, "tied"), tmp_path / "lame", without(name))
    assert found(folder).checkpoint.config["text_config"]["tie_word_embeddings"] is True
    with pytest.raises(PlanError, match=f"missing {name}"):
        align(found(folder), found(zoo(QWEN2, "tied")))


def test_renamed_tensor_is_missing_and_unexpected(zoo: Zoo, tmp_path: Path) -> None:
    """Both names of a renamed tensor are in the error."""
    name, other = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.rise_proj.weight"
    folder = changed(
        zoo,
        zoo(QWEN2_VL),
        tmp_path / "odd",
        lambda t: {other if n == name else n: v for n, v in t.items()},
    )
    with pytest.raises(PlanError, match=rf"missing {name}; unexpected {other}$"):
        align(found(folder), found(zoo(QWEN2)))


def test_one_missing_bias_is_an_error(zoo: Zoo, tmp_path: Path) -> None:
    """Biases may be absent as a kind; one that other layers have is missing."""
    name = "language_model.model.layers.1.self_attn.q_proj.bias"
    folder = changed(zoo, zoo(QWEN2_AUDIO), tmp_path / "lame", without(name))
    with pytest.raises(PlanError, match=f"missing {name}$"):
        align(found(folder), found(zoo(QWEN2)))


def test_biases_that_only_the_host_has_are_unexpected(zoo: Zoo) -> None:
    """A host over another family than the base is refused, its odd tensors named."""
    with pytest.raises(PlanError, match=r"unexpected model\.layers\.0\.self_attn\.k_proj\.bias"):
        align(found(zoo(QWEN2_VL)), found(zoo("LlamaForCausalLM")))


def test_tensor_of_another_shape_is_named_with_both_shapes(zoo: Zoo) -> None:
    """Shapes inside equal names decide."""
    other = zoo(QWEN2, intermediate_size=40)
    with pytest.raises(
        PlanError, match=r"of another shape .*gate_proj\.weight \[40, 32\] for \[48, 32\]"
    ):
        align(found(other), found(zoo(QWEN2)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": 64}, "64 wide and 2 layers deep, the base 32 and 2"),
        ({"num_hidden_layers": 3}, "32 wide and 3 layers deep, the base 32 and 2"),
    ],
)
def test_another_size_is_refused_before_any_list(
    zoo: Zoo, change: dict[str, Any], said: str
) -> None:
    """Width and depth are compared first: the wrong base is one sentence, not hundreds of names."""
    with pytest.raises(PlanError, match=f"{said}; name the base it was fine-tuned from"):
        align(found(zoo(QWEN2, **change)), found(zoo(QWEN2)))


def test_long_lists_are_cut(zoo: Zoo, tmp_path: Path) -> None:
    """Eight offenders are named and the others counted."""
    folder = changed(
        zoo, zoo(QWEN2), tmp_path / "lame", lambda t: {n: v for n, v in t.items() if "mlp" not in n}
    )
    layers = changed(
        zoo,
        zoo(QWEN2),
        tmp_path / "bare",
        lambda t: (
            {n: v for n, v in t.items() if "bias" in n or "1.input" in n or "embed" in n}
            | {HEAD: t[HEAD]}
        ),
    )
    with pytest.raises(PlanError, match=r"missing model\.layers\.0\.mlp\.down_proj\.weight, "):
        align(found(folder), found(zoo(QWEN2)))
    with pytest.raises(PlanError, match=r"( model\S+){8} and 10 more$"):
        align(found(layers), found(zoo(QWEN2)))


def test_unexplained_tensor_is_named(zoo: Zoo, tmp_path: Path) -> None:
    """What is neither language model nor a part the class is known to carry stops everything."""
    folder = changed(
        zoo, zoo(LLAVA), tmp_path / "odd", lambda t: {**t, "depth_tower.w": torch.ones(1)}
    )
    with pytest.raises(PlanError, match=r"nothing this class is known to carry: depth_tower\.w$"):
        found(folder)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("other.embed_tokens.weight", "found model.embed_tokens.weight, other.embed_tokens.weight"),
        ("other.lm_head.weight", "several heads: lm_head.weight, other.lm_head.weight"),
    ],
)
def test_two_language_models_are_refused(zoo: Zoo, tmp_path: Path, extra: str, said: str) -> None:
    """A checkpoint with two embeddings or two heads is refused with their names."""
    folder = changed(zoo, zoo(QWEN2), tmp_path / "two", lambda t: {**t, extra: torch.ones(2, 2)})
    with pytest.raises(PlanError, match=said):
        found(folder)


# Vocabulary


def test_one_id_for_two_tokens_is_refused(zoo: Zoo, tmp_path: Path) -> None:
    """An id of the base's that means another token in the host is an error that shows both."""
    folder = zoo.copy(zoo(QWEN2_VL), tmp_path / "odd")
    retokenized(folder, lambda t: t["added_tokens"][0].update(content="<|other|>"))
    with pytest.raises(
        PlanError, match=r"262 is '<\|endoftext\|>' in the base and '<\|other\|>' here"
    ):
        align(found(folder), found(zoo(QWEN2)))


def test_tokens_that_a_host_lacks_stay_with_the_base(zoo: Zoo, tmp_path: Path) -> None:
    """Rows need not be shared in one run, and unshared ones are left to their owners."""
    folder = zoo.copy(zoo(QWEN2_VL), tmp_path / "less")

    def forget(tokenizer: dict[str, Any]) -> None:
        tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["id"] != 263]

    retokenized(folder, forget)
    host, base = found(folder), found(zoo(QWEN2))
    rows = (range(263), range(264, 265), range(270, 272))
    assert align(host, base).rows == rows
    assert not align(host, base).same_rows
    graft(base, host, tmp_path / "host")
    after, old = read_weights(tmp_path / "host"), read_weights(folder)
    new = read_weights(base.checkpoint.folder)
    shared = torch.tensor([i for run in rows for i in run])
    own = torch.tensor([i for i in range(280) if i not in set(shared.tolist())])
    for name in (HEAD, "model.embed_tokens.weight"):
        assert torch.equal(after[name][shared], new[name][shared])
        assert torch.equal(after[name][own], old[name][own])


def test_placeholders_of_two_hosts_may_clash(zoo: Zoo, tmp_path: Path) -> None:
    """A host's placeholders are its own: with a host for a base, only learned tokens must agree."""
    folder = zoo.copy(zoo(QWEN2_VL), tmp_path / "odd")
    retokenized(folder, lambda t: t["added_tokens"][3].update(content="<depth>"))
    alignment = align(found(folder), found(zoo(QWEN2_VL)))
    assert alignment.rows == (range(265), range(266, 280))


def test_rows_without_tokenizers_match_only_in_equal_numbers(zoo: Zoo, tmp_path: Path) -> None:
    """Equal rows of two models that both lack one are one vocabulary; hosts' are never guessed."""
    folder = zoo.copy(zoo(QWEN2_VL), tmp_path / "mute")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(PlanError, match=r"mute has no tokenizer, so its 280 .* with 272; add its"):
        align(found(folder), found(zoo(QWEN2)))
    with pytest.raises(PlanError, match=r"mute has no tokenizer, so its 280 .* with 280; add its"):
        align(found(folder), found(zoo(QWEN2_VL)))
    mute = zoo.copy(folder, tmp_path / "mute as well")
    assert align(found(folder), found(mute)).same_rows
    plain = zoo.copy(zoo(QWEN2), tmp_path / "plain")
    (plain / "tokenizer.json").unlink()
    with pytest.raises(PlanError, match=r"plain has no tokenizer, so its 272 .* with 280"):
        align(found(zoo(QWEN2_VL)), found(plain))
    assert align(found(plain), found(zoo(QWEN2))).same_rows


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(kept=st.sets(st.integers(262, 269)), own=st.sets(st.integers(262, 271)))
def test_rows_are_shared_exactly_where_both_mean_the_same(
    zoo: Zoo, tmp_path: Path, kept: set[int], own: set[int]
) -> None:
    """Whatever tokens two models have, the shared rows are those that mean the same in both."""
    folders = {}
    for name, ids in (("kept", kept), ("own", own)):
        folder = tmp_path / name
        if not folder.exists():
            zoo.copy(zoo(QWEN2), folder)
        added = [{"id": i, "content": f"<{i}>"} for i in sorted(ids)]
        retokenized(folder, lambda t, added=added: t.update(added_tokens=added))  # type: ignore[misc]
        folders[name] = found(folder)
    rows = align(folders["kept"], folders["own"]).rows
    ids_shared = [i for run in rows for i in run]
    assert ids_shared == sorted(set(range(272)) - (kept ^ own))
    assert all(a.stop < b.start for a, b in pairwise(rows))


# Accounting


@pytest.mark.parametrize("base_form", ["legacy", "tied"])
@pytest.mark.parametrize(("architecture", "form"), HOST_HOUSES)
def test_every_tensor_is_merged_carried_or_absent(
    zoo: Zoo, tmp_path: Path, architecture: str, form: str, base_form: str
) -> None:
    """Merged, carried and absent cover every tensor of host and base, each exactly once."""
    host, base = found(zoo(architecture, form)), found(zoo(SPECIES[architecture].base, base_form))
    alignment = align(host, base)
    names = [*alignment.merged, *alignment.absent]
    assert sorted(names) == sorted({*base.tensors, *host.tensors})
    on_disk = [host.tensors[name].name for name in alignment.merged]
    assert sorted([*on_disk, *host.carried]) == sorted(host.checkpoint.tensors)
    report = extract(host, tmp_path / "text", base=base)
    assert report.to_json() == {
        "tensors": {
            "mapped": len(read_weights(tmp_path / "text")),
            "carried": len(host.carried),
            "absent": list(alignment.absent),
        }
    }
