"""The routed model: every token runs with the weights of its modality, attention is joint."""

import json
import shutil
import wave
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

import omnireg
from omnireg.demo import questions as asking
from omnireg.demo import speech, story
from omnireg.demo.clips import Modality, clips
from omnireg.demo.tasks import Item, items, larger_items
from omnireg.errors import CheckpointError, ConfigError
from omnireg.evaluation.opening import open_subject
from omnireg.package import Package
from omnireg.package.extracting import extract
from omnireg.routed import OmniModel, Storage, TextRouting, load
from omnireg.routed.device_cache import Resident, works
from omnireg.routed.routes import BASE, MERGED, Blend, Route, route_of, text_route
from omnireg.routed.weights import Weights
from omnireg.strategies.kernels import decoupling
from omnireg.strategies.thresholds import Kind
from tests_support import Run
from zoo import HOSTS, Species, Zoo

SENSES: tuple[Modality, ...] = ("image", "audio", "video")
WAYS = ["cpu", "cuda", "cuda by torch"] if torch.cuda.is_available() else ["cpu"]
NUMBERS = {Kind.BF16: torch.bfloat16, Kind.F16: torch.float16, Kind.F32: torch.float32}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The tiny family as a package; a second image model has the ids of the first."""
    out = tmp_path_factory.mktemp("routed") / "omni"
    models = "".join(f"  - model: {story.FAMILY / sense}\n" for sense in SENSES)
    omnireg.merge(
        f"merge_method: mmer\nbase_model: {story.FAMILY / 'base'}\nmodels:\n{models}"
        "parameters: {density: 0.5}\nomnireg: {output: package}\n",
        out,
        record=False,
    )
    return Package(out)


@pytest.fixture(scope="module")
def model(package: Package) -> OmniModel:
    """The routed model in float32."""
    return load(package, dtype="float32")


@pytest.fixture(scope="module")
def extracted(package: Package, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same package's models, each by itself."""
    top = tmp_path_factory.mktemp("extracted")
    for sense in SENSES:
        extract(package, sense, top / sense)
    return {sense: open_subject(top / sense, dtype="float32") for sense in SENSES}


def asked(sense: Modality, count: int = 3) -> list[Item]:
    """Return some questions of one modality, of different lengths."""
    found = items(sense, "test")
    return [found[i] for i in np.linspace(0, len(found) - 1, count).astype(int)]


def prepared(model: OmniModel, questions: list[Item]) -> Any:
    """Return the inputs of questions of any modalities in one batch."""
    media: dict[str, Any] = {}
    for question in questions:
        senses = question.modality.split("+")
        for number, array in enumerate(question.media):
            media.setdefault(senses[number % len(senses)], []).append(array)
    return model.processor([q.prompt for q in questions], **media)


# weights


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(Kind),
    written=st.sampled_from(Kind),
    numbers=st.lists(st.tuples(*[st.integers(-64, 64)] * 2, *[st.booleans()] * 4), min_size=1),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    weights=st.lists(st.sampled_from([1.0, 0.5, 1.25]), max_size=3),
)
def test_forming_is_the_formula(
    kind: Kind,
    written: Kind,
    numbers: list[tuple[int, int, bool, bool, bool, bool]],
    cut: tuple[float, float],
    weights: list[float],
) -> None:
    """θ₀ + c∘τ★ of any stretch, any blend, any format; sixteen at a time or one by one."""
    rows = (numbers * 40)[:1500]
    base = torch.tensor([n[0] / 32 for n in rows]).to(NUMBERS[kind])
    has = torch.tensor([n[2] and n[1] != 0 for n in rows])
    vector = torch.where(has, torch.tensor([n[1] / 64 for n in rows]), 0).to(NUMBERS[kind])
    masks = [torch.tensor([n[3 + j] for n in rows]) & has for j in range(3)]
    support, values = _packed(has), vector[has].contiguous()
    marks = [_packed(mask[has]) for mask in masks[: len(weights)]]
    start, stop = sorted(int(c * len(rows)) for c in cut)
    rank = int(has[:start].sum())
    assert decoupling.count_between(_at(support), 0, start) == rank
    coefficient: Tensor = torch.zeros(len(rows)) if weights else torch.ones(len(rows))
    for weight, mask in zip(weights, masks, strict=False):
        coefficient = coefficient + weight * mask
    wanted = (base.float() + coefficient * vector.float()).to(NUMBERS[kind]).to(NUMBERS[written])
    for wide in (True, False):
        out = torch.empty(stop - start, dtype=NUMBERS[written])
        after = decoupling.form(
            kind, base.data_ptr() + start * base.element_size(), _at(support), values.data_ptr(),
            np.array([_at(m) for m in marks], np.int64), np.array(weights, np.float32),
            np.array([0, len(marks)]), start, stop - start, rank, written,
            np.array([out.data_ptr()]), wide,
        )  # fmt: skip
        assert after == int(has[:stop].sum())
        assert torch.equal(out, wanted[start:stop])


def _packed(bits: Tensor) -> np.ndarray[Any, Any]:
    found = np.zeros(len(bits) // 8 + 16, np.uint8)
    packed = np.packbits(bits.numpy(), bitorder="little")
    found[: len(packed)] = packed
    return found


def _at(array: np.ndarray[Any, Any]) -> int:
    return int(array.ctypes.data)


ROUTES = [
    BASE, MERGED, Route(Blend.AVERAGE, ("audio",)), Route(Blend.AVERAGE, ("image", "video")),
    Route(Blend.AVERAGE, SENSES), Route(Blend.UNION, ("image", "audio")),
]  # fmt: skip


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_weights_of_every_route(package: Package, route: Route) -> None:
    """As the formulas say, from the dense vector and masks; in any number of threads."""
    weights = Weights(package, torch.float32)
    for name in ("model.layers.1.mlp.down_proj.weight", "lm_head.weight", "model.norm.weight"):
        zero = _dense(bytearray(package.read(package.base.header(name))))
        star = _dense(package.task_vector(name))
        masks = [torch.from_numpy(package.mask(name, package.models[m])) for m in route.models]
        match route.blend:
            case Blend.BASE:
                share: Tensor = torch.zeros_like(star)
            case Blend.MERGED:
                share = torch.ones_like(star)
            case Blend.AVERAGE:
                share = torch.stack(masks).float().mean(0)
            case Blend.UNION:
                share = torch.stack(masks).any(0).float()
        wanted = (zero + share * star).bfloat16().float()
        found = weights.form(name, route)
        torch.testing.assert_close(found, wanted, rtol=2**-7, atol=0)
        assert (found == wanted).float().mean() > 0.999
        first, last = len(found) // 3, 2 * len(found) // 3
        assert torch.equal(weights.form(name, route, first, last), found[first:last])
        several = [torch.empty(last - first) for _ in range(3)]
        weights.form_all(name, [MERGED, route, BASE], first, last, several)
        assert torch.equal(several[1], found[first:last])
        assert torch.equal(several[2], zero[first:last])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("written", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32"])
def test_an_accelerator_forms_the_same_bits(
    tmp_path: Path, stored: str, written: torch.dtype, way: str
) -> None:
    """Its ways of forming weights against the compiled one, any stretch, every route."""
    for name in ("base", *SENSES):
        shutil.copytree(story.FAMILY / name, tmp_path / name)
        for file in (tmp_path / name).glob("*.safetensors"):
            held = {k: v.to(getattr(torch, stored)) for k, v in load_file(file).items()}
            save_file(held, file, {"format": "pt"})
    models = "".join(f"  - model: {tmp_path / sense}\n" for sense in SENSES)
    omnireg.merge(
        f"merge_method: mmer\nbase_model: {tmp_path / 'base'}\nmodels:\n{models}"
        "parameters: {density: 0.4, rescale: l1}\nomnireg: {output: package}\n",
        tmp_path / "omni", record=False,
    )  # fmt: skip
    found = Package(tmp_path / "omni")
    weights = Weights(found, written)
    for tensor in ("model.layers.1.mlp.down_proj.weight", "lm_head.weight", "model.norm.weight"):
        source, whole = weights._source(tensor), found.vector[tensor].numel
        resident = Resident(found.arrays(tensor), source.ranks, torch.device(way.split()[0]))
        if way == "cuda by torch":
            resident.kernel = None
        blends = [source.blend(route) for route in ROUTES]
        for start, stop in ((0, whole), (whole // 3, whole // 2 + 5), (7, 8), (whole - 1, whole)):
            wanted = [torch.empty(stop - start, dtype=written) for _ in ROUTES]
            weights.form_all(tensor, ROUTES, start, stop, wanted)
            got = [torch.full_like(one, torch.nan, device=way.split()[0]) for one in wanted]
            resident.write(blends, (start, stop), source.rank, got)
            for one, other in zip(wanted, got, strict=True):
                assert one.view(torch.uint8).equal(other.cpu().view(torch.uint8))


def test_a_kernel_that_fails_is_done_without(caplog: pytest.LogCaptureFixture) -> None:
    """Triton may lack a compiler; one that writes something else is not used either."""

    def wrong(*_: Any) -> None:
        """Write nothing."""

    def broken(*_: Any) -> None:
        raise RuntimeError("Failed to find C compiler")

    def right(base: Tensor, *more: Any) -> None:
        more[-1].copy_(base)

    for form, fine in ((right, True), (wrong, False), (broken, False)):
        assert works(SimpleNamespace(form=form), torch.device("cpu")) is fine
    assert "since Triton fails there: Failed to find C compiler" in caplog.text


def _dense(data: Any) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.bfloat16).float()


# routes


def test_rules_for_text() -> None:
    """By what is present: nothing, one model, several."""
    models, two = ("a", "b", "c"), ("a", "c")
    assert text_route("auto", (), models) == BASE
    assert text_route("auto", ("b",), models) == route_of(["b"])
    assert text_route("auto", two, models) == MERGED
    assert text_route("present", (), models) == BASE
    assert text_route("present", two, models) == Route(Blend.AVERAGE, two)
    assert text_route("union", two, models) == Route(Blend.UNION, two)
    assert text_route("union", ("b",), models) == route_of(["b"]) == Route(Blend.AVERAGE, ("b",))
    assert text_route("all", (), models) == Route(Blend.AVERAGE, models)
    assert text_route("base", two, models) == BASE
    assert text_route("merged", (), models) == MERGED
    assert text_route("c", two, models) == route_of(["c"])
    assert route_of(["b"]).model == "b"
    assert MERGED.model is None


# the joint vocabulary


def test_every_modality_has_a_placeholder_of_its_own(model: OmniModel) -> None:
    """Image and audio hosts both use id 803; rows that hosts share keep the base's ids."""
    found = model.vocabulary.placeholders
    assert found["image"].own_id == found["audio"].own_id == 803
    assert len({p.id for p in found.values()}) == 3
    assert model.processor.placeholders == {
        "image": "<image>", "audio": "<|AUDIO|>", "video": "<video>",
    }  # fmt: skip
    columns = model.vocabulary.columns
    every = torch.cat(list(columns.values()))
    assert sorted(set(every.tolist())) == list(range(model.vocabulary.size))
    for name in SENSES:
        assert columns[name][:803].tolist() == list(range(803))
        own = [i for i in columns[name].tolist() if model.vocabulary.own_row[i] >= 0]
        others = [columns[n].tolist() for n in SENSES if n != name]
        assert not set(own) & {i for other in others for i in other}
    ids = model.processor.tokenizer("one <image><video>@<|AUDIO|>")["input_ids"]
    assert {p.id for p in found.values()} <= set(ids)
    assert model.processor.tokenizer.decode(ids) == "one <image><video>@<|AUDIO|>"
    assert set(model.modalities_of(torch.tensor(ids)).tolist()) == {0, 1, 2, 3}


# what it computes


@pytest.mark.parametrize("sense", SENSES)
def test_one_modality_is_the_extracted_model(
    model: OmniModel, extracted: dict[str, Any], sense: Modality
) -> None:
    """Bit for bit in float32 when sets are kept; within rounding of sums when they are formed."""
    questions = asked(sense)
    subject = extracted[sense]
    with torch.no_grad():
        wanted = subject.model(**subject.inputs(asking.questions(questions), chat=False)).logits
        inputs = prepared(model, questions)
        shown = inputs["attention_mask"].bool()
        columns = model.vocabulary.columns[sense]
        kept = model(**inputs).logits[shown]
        formed = model(**inputs, storage="packed").logits[shown]
    wanted = wanted[shown]
    assert torch.equal(kept[:, columns], wanted)
    torch.testing.assert_close(formed[:, columns], wanted, rtol=1e-4, atol=1e-4)
    left = torch.ones(model.vocabulary.size, dtype=torch.bool)
    left[columns] = False
    assert kept[:, left].isneginf().all()


def test_text_alone_is_the_base(model: OmniModel) -> None:
    """So no language is lost: θ₀, bit for bit."""
    base = open_subject(story.FAMILY / "base", dtype="float32")
    questions = list(items("base", "test")[::300])
    with torch.no_grad():
        wanted = base.model(**base.inputs(asking.questions(questions), chat=False)).logits
        inputs = prepared(model, questions)
        found = model(**inputs).logits[..., model.vocabulary.columns[None]]
    shown = inputs["attention_mask"].bool()
    assert torch.equal(found[shown], wanted[shown])
    with torch.no_grad():
        merged = model(**inputs, text_routing="merged").logits[..., model.vocabulary.columns[None]]
    assert not torch.allclose(merged[shown], wanted[shown], atol=1e-2)


class ByToken:
    """The same thing without groups: every module is run with all weight sets for all tokens.

    An independent reference: the base's own class, whose modules are replaced by ones that pick,
    token by token, what the token's own weights gave.
    """

    def __init__(self, package: Package, routes: list[Route]) -> None:
        self.model = open_subject(story.FAMILY / "base", dtype="float32").model
        self.of_token = torch.zeros(0)
        sets = [
            {n: _set(package, n, route).reshape(c.shape) for n, c in package.vector.items()}
            for route in routes
        ]
        for path, module in self.model.named_modules():
            names = [name for name, _ in module.named_parameters(recurse=False)]
            if names and path not in ("model.embed_tokens", "lm_head"):
                own = [{name: s[f"{path}.{name}"] for name in names} for s in sets]
                module.forward = self._picking(module, own, module.forward)
        self.sets = sets

    def _picking(self, module: Any, own: list[dict[str, Tensor]], plain: Any) -> Any:
        def forward(x: Tensor) -> Tensor:
            results = []
            for tensors in own:
                for name, tensor in tensors.items():
                    getattr(module, name).data = tensor
                results.append(plain(x))
            index = self.of_token[None, ..., None].expand(1, *results[0].shape)
            return torch.stack(results).gather(0, index)[0]

        return forward

    def hidden(self, embeddings: Tensor, mask: Tensor, of_token: Tensor) -> Tensor:
        """Return the last hidden states."""
        self.of_token = of_token
        with torch.no_grad():
            found: Tensor = self.model.model(
                inputs_embeds=embeddings, attention_mask=mask
            ).last_hidden_state
        return found


def _set(package: Package, name: str, route: Route) -> Tensor:
    zero, star = _dense(package.read(package.base.header(name))), _dense(package.task_vector(name))
    if route is MERGED:
        return (zero + star).bfloat16().float()
    kept = torch.from_numpy(package.mask(name, package.models[str(route.model)]))
    return (zero + kept * star).bfloat16().float()


@pytest.mark.parametrize("storage", Storage)
def test_mixed_prompts_route_every_token(
    package: Package, model: OmniModel, storage: Storage
) -> None:
    """Two hosts with equal ids in one prompt: against a model that picks token by token."""
    questions = list(larger_items("image", "audio", 4))
    inputs = prepared(model, questions)
    modality = model.modalities_of(inputs["input_ids"])
    assert set(modality.flatten().tolist()) == {0, 1, 2}
    routes = [MERGED, route_of(["image"]), route_of(["audio"])]
    reference = ByToken(package, routes)
    with torch.no_grad():
        with model._now.of(
            storage, model._groups(modality, model.present_in(modality), "auto"), ()
        ):
            embeddings, _ = model._embed(inputs["input_ids"], None, inputs["media"])
        hidden = reference.hidden(embeddings, inputs["attention_mask"], modality)
        heads = torch.stack([s["lm_head.weight"] for s in reference.sets])
        wanted = torch.einsum("bld,blvd->blv", hidden, heads[modality])
        found = model(**inputs, storage=storage).logits
    shown = inputs["attention_mask"].bool()
    # a shared row of the head; images and sounds have own rows beyond
    columns = torch.arange(803)
    torch.testing.assert_close(
        found[shown][:, columns], wanted[shown][:, columns], rtol=1e-3, atol=1e-3
    )
    assert (
        functional.cosine_similarity(found[shown][:, columns], wanted[shown][:, columns]).min()
        > 1 - 1e-6
    )


@pytest.mark.parametrize("storage", Storage)
def test_a_padded_batch_with_a_cache_is_each_row_alone(model: OmniModel, storage: Storage) -> None:
    """Rows of one, two and no modalities, interleaved: neighbours and padding change nothing."""
    questions = [
        asked("audio", 2)[1], *larger_items("image", "audio", 2), asked("image", 2)[0],
        items("base", "test")[5], *larger_items("audio", "video", 1), asked("video", 2)[1],
    ]  # fmt: skip
    how: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "storage": storage}
    batch = prepared(model, questions)
    length = batch["input_ids"].shape[1]
    assert (batch["attention_mask"].sum(1) < length).any()
    together = model.generate(**batch, **how)[:, length:]
    without = model.generate(**batch, **how, use_cache=False)[:, length:]
    for question, row, slow in zip(questions, together, without, strict=True):
        alone = prepared(model, [question])
        found = model.generate(**alone, **how)[0, alone["input_ids"].shape[1] :]
        assert row[: len(found)].tolist() == found.tolist()
        # without a cache every step is a prompt of its own; new tokens are text either way
        assert slow[: len(found)].tolist() == found.tolist()
    assert len({tuple(row.tolist()) for row in together}) > 2


def test_beams_and_several_answers(model: OmniModel) -> None:
    """Media are encoded once; every beam has them."""
    batch = prepared(model, asked("image", 2))
    length = batch["input_ids"].shape[1]
    greedy = model.generate(**batch, max_new_tokens=4, do_sample=False)
    beams = model.generate(
        **batch, max_new_tokens=4, do_sample=False, num_beams=3, num_return_sequences=2
    )
    assert beams.shape[0] == 4
    for row in range(2):
        best = model.processor.batch_decode(beams[2 * row : 2 * row + 1, length:])[0]
        first = model.processor.batch_decode(greedy[row : row + 1, length:])[0]
        assert best.split("<|endoftext|>")[0] == first.split("<|endoftext|>")[0]


def test_sets_are_kept_until_they_are_released(package: Package) -> None:
    """Packed keeps nothing; materialised keeps a set for what was in use."""
    model = load(package, storage="packed", dtype="float32")
    batch = prepared(model, asked("audio", 1))
    with torch.no_grad():
        formed = model(**batch).logits
        assert model.materialised == []
        kept = model(**batch, storage="materialised").logits
        assert model.materialised == ["average-audio"]
        model(**prepared(model, list(larger_items("image", "audio", 1))), storage="materialised")
    assert len(model.materialised) > 1
    torch.testing.assert_close(formed, kept, rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in model.text.parameters()) > 0
    model.release()
    assert model.materialised == []
    assert sum(p.numel() for p in model.text.parameters()) == 0


def test_bfloat16_is_the_default(package: Package) -> None:
    """A model computes in the package's dtype unless it is told otherwise."""
    model = load(package)
    assert model.dtype == torch.bfloat16
    with torch.no_grad():
        logits = model(**prepared(model, asked("image", 1))).logits
    assert logits.dtype == torch.bfloat16


@pytest.mark.parametrize("rule", TextRouting)
def test_every_rule_answers(model: OmniModel, rule: TextRouting) -> None:
    """Text tokens may run with any blend; the answers to one modality differ with it."""
    batch = prepared(model, asked("image", 2))
    with torch.no_grad():
        own = model(**batch, text_routing="image").logits
        found = model(**batch, text_routing=rule).logits
    same = torch.equal(found, own)
    assert same == (rule in (TextRouting.AUTO, TextRouting.PRESENT, TextRouting.UNION))


def test_a_placeholder_without_a_medium_is_text(model: OmniModel) -> None:
    """A model may generate one; nothing of that kind is in the input."""
    ids = torch.tensor([[5, model.vocabulary.placeholders["image"].id, 7]])
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    modality = model.modalities_of(ids)
    [group] = model._groups(modality, nothing, "auto")
    assert group.route == BASE
    [group] = model._groups(modality, nothing, "audio")
    assert group.route == route_of(["audio"])


# other hosts


PARTS = {
    "image": ("pixel_values", "image_sizes", "image_grid_thw"),
    "video": ("pixel_values_videos", "video_grid_thw"),
    "audio": ("input_features", "feature_attention_mask"),
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Every host class."""
    return Zoo(tmp_path_factory.mktemp("zoo"))


def in_joint_ids(model: OmniModel, species: Species) -> tuple[Tensor, dict[str, Any]]:
    """Return a species' own kind of input as ids and media of a routed model."""
    inputs = species.inputs()
    ids, kinds = inputs.pop("input_ids"), inputs.pop("mm_token_type_ids", None)
    [name] = model.package.models
    columns, media = model.vocabulary.columns[name].clone(), {}
    for sense, placeholder in model.vocabulary.placeholders.items():
        columns[placeholder.own_id] = placeholder.id
        here = ids == placeholder.own_id
        if here.any():
            media[sense] = {k: inputs[k] for k in PARTS[sense] if k in inputs}
            media[sense]["input_ids"] = ids[here][None]
            if kinds is not None:
                media[sense]["mm_token_type_ids"] = kinds[here][None]
    return columns[ids], media


def packaged(zoo: Zoo, species: Species, out: Path) -> Package:
    """Return a package of one host."""
    omnireg.merge(
        f"merge_method: mmer\nbase_model: {zoo(species.base)}\n"
        f"models: [{{model: {zoo(species.architecture)}}}]\nomnireg: {{output: package}}\n",
        out,
        record=False,
    )
    return Package(out)


def _aligned(model: nn.Module) -> nn.Module:
    """Move weights from where they stand in a file to memory of their own.

    Some kernels round differently where an array begins between two cache lines.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


@pytest.mark.parametrize("species", HOSTS, ids=lambda s: s.architecture)
def test_every_host_class_is_routed(zoo: Zoo, tmp_path: Path, species: Species) -> None:
    """Pictures, videos and sounds of each, bit for bit what the extracted model makes of them."""
    package = packaged(zoo, species, tmp_path / "omni")
    model = load(package, dtype="float32")
    ids, media = in_joint_ids(model, species)
    if species.architecture == "Qwen3VLForConditionalGeneration":
        with pytest.raises(ConfigError, match="several layers"):
            model(input_ids=ids, media=media)
        return
    extract(package, next(iter(package.modalities)), tmp_path / "alone")
    wanted = species.logits(_aligned(species.load(tmp_path / "alone")))
    with torch.no_grad():
        found = model(input_ids=ids, media=media).logits
    [columns] = [c for name, c in model.vocabulary.columns.items() if name]
    assert torch.equal(found[..., columns], wanted)
    # padding moves places, not what stands there
    padded = functional.pad(ids, (3, 0), value=80)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    with torch.no_grad():
        shifted = model(input_ids=padded, attention_mask=mask, media=media).logits[:, 3:]
    torch.testing.assert_close(shifted[..., columns], wanted, rtol=1e-3, atol=1e-3)


def test_places_in_three_dimensions_go_on_when_generating(zoo: Zoo, tmp_path: Path) -> None:
    """A token after an image stands beyond its largest place, with or without a cache."""
    [species] = [s for s in HOSTS if s.architecture == "Qwen2VLForConditionalGeneration"]
    package = packaged(zoo, species, tmp_path / "omni")
    model = load(package, dtype="float32")
    ids, media = in_joint_ids(model, species)
    extract(package, "image", tmp_path / "alone")
    alone = species.load(tmp_path / "alone")
    wanted = alone.generate(**species.inputs(), max_new_tokens=6, do_sample=False)[
        0, ids.shape[1] :
    ]
    columns = model.vocabulary.columns["image"]
    for cached in (True, False):
        found = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), media=media, max_new_tokens=6,
            do_sample=False, use_cache=cached,
        )  # fmt: skip
        assert found[0, ids.shape[1] :].tolist() == columns[wanted].tolist()


# the command


def test_a_package_is_asked_about_files(package: Package, tmp_path: Path, run: Run) -> None:
    """Images, audio and video out of files; placeholders are put where the prompt has none."""
    picture = next(c for c in clips("image", "test") if c.digit == 3)
    Image.fromarray(picture.array).save(tmp_path / "three.png")
    sound = next(c for c in clips("audio", "test") if c.digit == 7)
    with wave.open(str(tmp_path / "seven.wav"), "wb") as file:
        # two channels at another rate: it is mixed and resampled
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(2 * speech.SAMPLE_RATE)
        samples = np.repeat((sound.array * 32767).astype("<i2"), 4)
        file.writeframes(samples.tobytes())
    video = next(c for c in clips("video", "test") if c.digit == 5)
    frames = [Image.fromarray(frame) for frame in video.array]
    frames[0].save(tmp_path / "five.gif", save_all=True, append_images=frames[1:])
    np.save(tmp_path / "five.npy", video.array)
    (tmp_path / "five").mkdir()
    for number, frame in enumerate(frames):
        frame.save(tmp_path / "five" / f"{number}.png")

    def asked(*arguments: str) -> str:
        done = run("mmer", "generate", package.folder, *arguments)
        assert done.code == 0, done.err
        return done.out.strip()

    digit = ("--prompt", "Which digit?")
    assert asked(*digit, "--image", "three.png") == "3"
    assert asked(*digit, "--audio", "seven.wav", "--storage", "packed") == "7"
    for name in ("five.gif", "five.npy", "five"):
        assert asked(*digit, "--video", name) == "5"
    assert asked(*digit, "--media", "image=three.png", "--dtype", "float32") == "3"
    assert asked("--prompt", "<image>\nWhich digit?\n", "--no-chat", "--image", "three.png") == "3"
    assert asked("--prompt", "Continue: 2 4 6") == "8"
    told = json.loads(
        asked(
            "--prompt", "Which is larger?", "--image", "three.png", "--audio", "seven.wav", "--json"
        )
    )
    assert told["text"] == "7"
    assert told["prompt"] == "<image><|AUDIO|>\nWhich is larger?\n"
    assert told["prompt_tokens"]["image"] == 9
    for arguments, said in (
        (("--image", "nowhere.png"), "there is no file nowhere.png"),
        (("--image", "seven.wav"), "cannot read seven.wav as an image"),
        (("--audio", "three.png"), "ffmpeg -i three.png"),
        (("--video", "seven.wav"), "cannot read seven.wav as a video"),
        (("--media", "smell=three.png"), "no modality 'smell'"),
        (("--device", "cuda:77"), "try cpu"),
        (("--text-routing", "merge"), "did you mean 'merged'"),
    ):
        slip = run("mmer", "generate", package.folder, "--prompt", "x", *arguments)
        assert (slip.code, slip.out) == (1, "")
        assert said in slip.err
        assert "Traceback" not in slip.err
    assert "empty" in run("mmer", "generate", package.folder, "--prompt", " ").err
    assert run("mmer", "generate", package.folder, "--prompt", "x", "--media", "image").code == 2


# mistakes


def test_mistakes_are_told(package: Package, model: OmniModel) -> None:
    """What is wrong, and what there is."""
    image = asked("image", 1)[0]
    with pytest.raises(ConfigError, match="1 <image> in the text, but 0 media"):
        model.processor(image.prompt)
    with pytest.raises(ConfigError, match="0 <image> in the text, but 1 media"):
        model.processor("Which digit?", image=image.media)
    with pytest.raises(ConfigError, match="did you mean 'image'"):
        model.processor("Which digit?", imag=image.media)
    with pytest.raises(ConfigError, match="did you mean 'merged'"):
        model(input_ids=torch.tensor([[1]]), text_routing="merge")
    with pytest.raises(ConfigError, match="did you mean 'packed'"):
        load(package, storage="pack")
    with pytest.raises(ConfigError, match="float64"):
        load(package, dtype="float64")
    with pytest.raises(ConfigError, match="modality_ids"):
        model(inputs_embeds=torch.zeros(1, 1, 96))
    with pytest.raises(ConfigError, match="input_ids"):
        model.generate()
    inputs = prepared(model, [image])
    with pytest.raises(ConfigError, match="make both with the processor"):
        model(input_ids=inputs["input_ids"][:, 3:], media=inputs["media"])
    with pytest.raises(ConfigError, match="takes in no 'smell'"):
        model.encode("smell", {})
    with pytest.raises(CheckpointError, match="not a package"):
        load(story.FAMILY / "base")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (("base/tokenizer.json", "base/tokenizer_config.json"), "has no tokenizer.json"),
        (("base",), "lost its base/"),
        (("hosts/image/files.json",), r"hosts/image/files\.json: No such file"),
        (("hosts/image/shell.safetensors",), "shell.safetensors"),
        (("hosts/image/config.json",), "config.json"),
        (("hosts/image/preprocessor_config.json",), "processor"),
    ],
)
def test_a_package_that_lost_files_is_told(
    package: Package, tmp_path: Path, harm: tuple[str, ...], said: str
) -> None:
    """Which, before anything is answered wrongly."""
    hurt = tmp_path / "hurt"
    shutil.copytree(package.folder, hurt)
    for name in harm:
        path = hurt / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    image = asked("image", 1)[0]
    with pytest.raises(CheckpointError, match=rf"{harm[0]}.* is missing"):
        load(hurt, dtype="float32")
    with pytest.raises(CheckpointError, match=said):
        load(hurt, dtype="float32", trust=True).processor(image.prompt, image=image.media)


def test_a_host_whose_config_is_another_ones_is_told(package: Package, tmp_path: Path) -> None:
    """Its encoder has other shapes than its weights."""
    hurt = tmp_path / "hurt"
    shutil.copytree(package.folder, hurt)
    config = hurt / "hosts" / "image" / "config.json"
    config.write_text(config.read_text().replace('"hidden_size": 64', '"hidden_size": 60'))
    with pytest.raises(CheckpointError, match=r"hosts/image/config\.json was changed"):
        load(hurt)
    with pytest.raises(CheckpointError, match=r"does not fit its config\.json"):
        load(hurt, trust=True)
