"""The decoupled package: what is stored is what a merge would give, in as few bytes as can be."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import omnireg
from omnireg.demo import story
from omnireg.demo.questions import score
from omnireg.demo.tasks import items
from omnireg.errors import CheckpointError, ConfigError
from omnireg.evaluation.opening import open_subject
from omnireg.package import Package, is_package
from omnireg.package.adding import add
from omnireg.package.extracting import extract
from omnireg.package.inspecting import inspect
from omnireg.registry import Kind, Registry, Role
from omnireg.strategies.kernels import coding
from omnireg.strategies.thresholds import Kind as Number
from tests_support import Run, reseal

SENSES = ("image", "audio", "video")
STORAGE = {Number.BF16: np.uint16, Number.F16: np.uint16, Number.F32: np.uint32}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The tiny family, by name, in the working folder."""
    for name in ("base", *SENSES):
        (tmp_path / name).symlink_to(story.FAMILY / name)
    return tmp_path


def recipe(parameters: str = "density: 0.4", block: str = "output: package", *more: str) -> str:
    """Return the text of a recipe of the three hosts."""
    models = "".join(f"  - model: {sense}\n" for sense in SENSES)
    return "\n".join(
        [
            "merge_method: mmer", "base_model: base", f"models:\n{models}",
            f"parameters: {{{parameters}}}", f"omnireg: {{{block}}}", *more,
        ]
    )  # fmt: skip


# coding


def _at(array: Any) -> int:
    return int(array.ctypes.data)


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(Number),
    numbers=st.lists(st.tuples(st.integers(0, 5), *[st.booleans()] * 3), min_size=1, max_size=200),
    cut=st.integers(0, 24).map(lambda n: 8 * n),
)
def test_coding_is_exact(
    kind: Number, numbers: list[tuple[int, bool, bool, bool]], cut: int
) -> None:
    """Any vector and masks come back, coded in two chunks and read in any part."""
    dense = np.array([n[0] for n in numbers], STORAGE[kind]) * np.array(16001, STORAGE[kind])
    masks = [np.array([n[1 + j] for n in numbers]) & (dense != 0) for j in range(3)]
    size = len(dense)
    support, values = np.zeros(64, np.uint8), np.zeros(size, STORAGE[kind])
    packed = [np.zeros(64, np.uint8) for _ in masks]
    rank = 0
    for start, stop in ((0, min(cut, size)), (min(cut, size), size)):
        chunk = np.ascontiguousarray(dense[start:stop])
        bits = [np.packbits(mask[start:stop], bitorder="little") for mask in masks]
        rank = coding.compact(
            kind, _at(chunk), np.array([_at(b) for b in bits]), stop - start,
            _at(support) + start // 8, _at(values), np.array([_at(p) for p in packed]), rank,
        )  # fmt: skip
    assert rank == np.count_nonzero(dense)
    assert coding.count_set(_at(support), size) == rank
    for mask, bits_ in zip(masks, packed, strict=True):
        found = np.unpackbits(bits_, count=rank, bitorder="little").astype(bool)
        assert np.array_equal(found, mask[dense != 0])
    first = size // 3
    out = np.empty(size - first, STORAGE[kind])
    before = coding.count_set(_at(support), first)
    after = coding.expand(kind, _at(support), _at(values), first, size - first, _at(out), before)
    assert after == rank
    assert np.array_equal(out, dense[first:])


# writing and taking out


@pytest.mark.parametrize(
    "parameters",
    [
        "density: 0.4",
        "density: 0.3, scale: 1.5, mask_rule: distance, directional: false",
        "density: 0.5, trim_scope: model",
        "density: 0.4, rescale: l1",
        "density: 0.4, rescale: l2, rescale_scope: model",
    ],
)
def test_an_extraction_is_the_merge_with_its_mask(here: Path, parameters: str) -> None:
    """File by file, byte for byte, whatever the parameters, side files included."""
    omnireg.merge(recipe(parameters), here / "pkg")
    package = Package(here / "pkg")
    assert list(package.modalities) == list(SENSES)
    for sense in SENSES:
        block = f"output: host, host: {sense}"
        direct = omnireg.merge(
            recipe(f"{parameters}, mask_of: {sense}", block), here / f"direct-{sense}"
        )
        assert extract(package, sense, here / f"out-{sense}") == direct.fingerprint
        made = {p.name: p.read_bytes() for p in (here / f"out-{sense}").iterdir()}
        wanted = {p.name: p.read_bytes() for p in direct.out.iterdir()}
        told = json.loads(made.pop("omnireg.json"))
        assert told["parents"][0]["fingerprint"] == package.fingerprint
        wanted.pop("omnireg.json")
        assert made == wanted


def test_stored_tensors_are_those_of_the_formulas(here: Path) -> None:
    """τ★ is θ̂ − θ₀ of the unmasked merge wherever that is exact, and masks lie within it."""
    omnireg.merge(recipe(), here / "pkg")
    omnireg.merge(recipe(block="output: backbone"), here / "plain")
    package = Package(here / "pkg")
    plain = load_file(here / "plain" / "model.safetensors")
    for name, coded in package.vector.items():
        whole = torch.from_numpy(package.decoupled(name, None).view(np.int16)).view(torch.bfloat16)
        assert torch.equal(whole.reshape(coded.shape), plain[name]), name
        support = package.task_vector(name).view(np.uint16) != 0
        for model in package.models.values():
            assert not (package.mask(name, model) & ~support).any()


def test_the_same_recipe_gives_the_same_package(here: Path) -> None:
    """Any number of threads; a file at a time or all in one."""
    first = omnireg.merge(recipe(), here / "one", threads=1)
    second = omnireg.merge(recipe(), here / "two", threads=3)
    assert first.fingerprint == second.fingerprint == Package(here / "one").fingerprint
    small = omnireg.merge(recipe(), here / "small", options={"out_shard_size": 200_000})
    assert len(Package(here / "small").vector_files) > 3
    assert small.fingerprint != first.fingerprint
    assert extract(Package(here / "small"), "audio", here / "a") == extract(
        Package(here / "one"), "audio", here / "b"
    )


def test_a_package_weighs_what_it_must(here: Path) -> None:
    """Within 1.03 of values, support and masks, the file's header apart, which here is large."""
    omnireg.merge(recipe("density: 0.2"), here / "pkg")
    package = Package(here / "pkg")
    found = inspect(package)
    arrays = sum(
        t.values.nbytes + t.support.nbytes + sum(m.nbytes for m in t.masks.values())
        for t in package.vector.values()
    )
    assert arrays <= 1.03 * found.bound
    dense = [package.task_vector(n).view(np.uint16) for n in package.vector]
    kept, size = sum(np.count_nonzero(d) for d in dense), sum(d.size for d in dense)
    assert found.vector_density == kept / size
    assert found.bound == 2 * kept + size / 8 + 3 * kept / 8
    for sense, model, density in found.modalities:
        marks = sum(int(package.mask(n, model).sum()) for n in package.vector)
        assert density == marks / size
        assert 0 < package.modalities[sense].l1_recovered < 1
    assert found.total == sum(found.to_json()["bytes"][k] for k in ("base", "task_vector", "masks"))


def test_what_is_recovered_is_measured(here: Path) -> None:
    """1 − ‖τᵢ − mᵢ∘τ★‖₁ / ‖τᵢ‖₁, from the tensors themselves."""
    omnireg.merge(recipe(), here / "pkg")
    package = Package(here / "pkg")
    from omnireg.backbones.alignment import align
    from omnireg.backbones.grafting import BackboneReader
    from omnireg.planning import open_model
    from omnireg.plugins.host import PluginHost

    plugins = PluginHost()
    base = open_model("base", plugins)
    reader = BackboneReader(align(open_model("audio", plugins), base))
    whole = left = 0.0
    model = package.model_of("audio")
    for name in package.vector:
        own = torch.frombuffer(bytearray(reader(name)), dtype=torch.bfloat16).double()
        zero = torch.frombuffer(bytearray(package.read(base.header(name))), dtype=torch.bfloat16)
        vector = own - zero.double()
        star = torch.from_numpy(package.task_vector(name).view(np.int16)).view(torch.bfloat16)
        kept = torch.where(torch.from_numpy(package.mask(name, model)), star.double(), 0)
        whole += float(vector.abs().sum())
        left += float((vector - kept).abs().sum())
    assert model.l1_recovered == pytest.approx(1 - left / whole, rel=1e-5)


def test_a_base_can_be_referred_to(here: Path) -> None:
    """It is not in the folder then, and another one is refused."""
    omnireg.merge(recipe(block="output: package, base: reference"), here / "pkg")
    assert not (here / "pkg" / "base").exists()
    omnireg.merge(recipe(), here / "whole")
    package = Package(here / "pkg")
    assert inspect(package).bytes["base"] == 0
    assert extract(package, "image", here / "a") == extract(
        Package(here / "whole"), "image", here / "b"
    )
    (here / "base").unlink()
    (here / "base").symlink_to(here / "whole" / "hosts" / "image")
    with pytest.raises(CheckpointError):
        extract(Package(here / "pkg"), "image", here / "c")
    assert not (here / "c").exists()


def test_a_killed_package_goes_on(here: Path) -> None:
    """SIGKILL between files: what is finished is kept, and the bytes are the same."""
    program = (
        "import os, signal, sys, omnireg\n"
        "from omnireg.engine.journal import Journal\n"
        "real, count = Journal.enter, []\n"
        "def enter(self, name, digest):\n"
        "    real(self, name, digest)\n"
        "    count.append(name)\n"
        "    if len(count) == 6: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Journal.enter = enter\n"
        "omnireg.merge(sys.argv[1], 'pkg', options={'out_shard_size': 200_000})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, recipe("density: 0.4, rescale: l1")],
        cwd=here, env={**os.environ}, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert not (here / "pkg").exists()
    options = {"out_shard_size": 200_000}
    again = omnireg.merge(recipe("density: 0.4, rescale: l1"), here / "pkg", options=options)
    whole = omnireg.merge(
        recipe("density: 0.4, rescale: l1"), here / "other", options=options, record=False
    )
    assert again.resumed_shards == 6
    assert again.fingerprint == whole.fingerprint
    assert (here / "pkg" / "omnireg.json").read_text() == (
        here / "other" / "omnireg.json"
    ).read_text()


# what is asked of a recipe


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (("merge_method: mmer", "merge_method: omni_ties"), "omni_ties has no masks"),
        (("density: 0.4", "density: 0.4, mask_of: image"), "a package keeps all of them"),
        (("output: package", "output: package, host: image"), "drop omnireg.host"),
        (("output: package", "output: package, modalities: {smell: imag}"), "did you mean 'image'"),
        (("base_model: base\n", "base_model: image\n"), "a package needs base_model"),
        (("parameters:", "dtype: float32\nparameters:"), "keeps the base's dtype"),
    ],
)
def test_a_recipe_that_makes_no_package_is_told(
    here: Path, edit: tuple[str, str], said: str
) -> None:
    """Before anything is written."""
    text = recipe()
    assert edit[0] in text
    with pytest.raises(omnireg.errors.OmniregError, match=said):
        omnireg.merge(text.replace(*edit), here / "pkg", record=False)
    assert not list(here.glob("pkg*"))


def test_every_model_stands_for_something(here: Path) -> None:
    """The recipe names what the classes do not say; a model that is left over is refused."""
    swapped = "output: package, modalities: {image: video, video: video, stills: image}"
    omnireg.merge(recipe(block=swapped), here / "pkg", record=False)
    package = Package(here / "pkg")
    assert package.model_of("stills").ref == "image"
    assert package.model_of("image").ref == package.model_of("video").ref == "video"
    with pytest.raises(ConfigError, match="no modality is left for image"):
        omnireg.merge(recipe(block=swapped.replace(", stills: image", "")), here / "x")


# commands, lineage, damage


def test_the_command_line_and_the_lineage(here: Path, run: Run) -> None:
    """A package and what is taken out of it are recorded with their parents."""
    (here / "p.yml").write_text(recipe())
    assert run("merge", "p.yml", "pkg").code == 0
    shown = run("mmer", "inspect", "pkg")
    assert "task vector" in shown.out
    told = json.loads(run("mmer", "inspect", "pkg", "--json").out)
    assert {"modalities", "task_vector_density", "bytes", "ratio_to_one_model"} <= set(told)
    assert set(told["modalities"][0]) == {"name", "model", "mask_density", "l1_recovered"}
    assert set(told["bytes"]) == {"base", "task_vector", "masks", "total"}
    assert run("mmer", "extract", "pkg", "--modality", "audio", "ears").code == 0
    with Registry() as book:
        package, ears = book.find("pkg"), book.find("ears")
        assert package.kind is Kind.PACKAGE
        assert package.modalities == ("audio", "image", "video")
        assert package.fingerprint == Package(here / "pkg").fingerprint
        assert [(p.name, p.role) for p in ears.parents] == [("pkg", Role.PACKAGE)]
        assert ears.modalities == ("audio",)
    slip = run("mmer", "extract", "pkg", "--modality", "adio", "x")
    assert slip.code == 1
    assert "did you mean 'audio'?" in slip.err
    assert run("mmer", "extract", "pkg", "--modality", "audio", "ears").code == 1
    assert run("mmer", "inspect", "base").code == 1
    assert "Traceback" not in slip.err
    assert is_package(here / "pkg")
    assert not is_package(here / "base")


def test_a_package_is_planned_verified_and_recorded(here: Path, run: Run) -> None:
    """By the commands that take checkpoints."""
    (here / "p.yml").write_text(recipe())
    planned = run("plan", "p.yml")
    assert "a package of at most" in planned.out
    most = json.loads(run("plan", "p.yml", "--json").out)["output"]["bytes"]
    assert run("merge", "p.yml", "pkg").code == 0
    assert inspect(Package(here / "pkg")).total <= most + 100_000
    for command in (("verify", "pkg"), ("verify", "pkg", "--rerun"), ("db", "check")):
        assert run(*command).code == 0, command
    assert run("show", "./pkg").code == 0
    assert "mmer extract" in run("backbone", "extract", "pkg", "x").err
    other = here / "elsewhere.db"
    assert run("--registry", other, "add", "image").code == 0
    assert run("--registry", other, "add", "pkg", "--name", "mine").code == 0
    told = run("--registry", other, "add", "pkg", "--name", "m2", "--parent", "image")
    assert "leave --parent" in told.err
    told = json.loads(run("--registry", other, "show", "mine", "--json").out)
    assert (told["kind"], told["modalities"]) == ("package", ["audio", "image", "video"])
    assert [parent["name"] for parent in told["parents"]] == ["image"]
    (here / "pkg" / Package(here / "pkg").vector_files[0]).write_bytes(b"")
    assert run("verify", "pkg").code == 1
    assert run("db", "check").code == 1


def test_a_damaged_package_is_told(here: Path) -> None:
    """Truncated, from the future, without its manifest, naming files elsewhere."""
    omnireg.merge(recipe(), here / "pkg", record=False)
    folder = here / "pkg"
    vector = folder / Package(folder).vector_files[0]
    whole, manifest = vector.read_bytes(), (folder / "omnireg.json").read_text()
    vector.write_bytes(whole[:-8])
    with pytest.raises(CheckpointError, match="truncated"):
        extract(Package(folder), "image", here / "x")
    vector.write_bytes(whole)
    newer = (('"version": 1', '"version": 2'), ('"format": 2', '"format": 3'))
    for old, new in newer:
        (folder / "omnireg.json").write_text(manifest.replace(old, new))
        with pytest.raises(CheckpointError, match="upgrade omnireg"):
            Package(folder, trust=True)
    (folder / "omnireg.json").write_text(manifest)
    index = folder / "vector.safetensors.index.json"
    index.write_text(index.read_text().replace(vector.name, "../../secret.safetensors"))
    with pytest.raises(CheckpointError, match=r"index\.json was changed"):
        Package(folder)
    reseal(folder)
    with pytest.raises(CheckpointError, match="which would leave the folder"):
        extract(Package(folder), "image", here / "x")
    assert not (here / "x").exists()
    with pytest.raises(CheckpointError, match="is not a package"):
        Package(here / "base")


def test_nan_in_what_a_host_carries_is_refused(here: Path) -> None:
    """An encoder with NaN would poison every extraction."""
    from safetensors.torch import save_file

    tensors = load_file(here / "image" / "model.safetensors")
    name = next(n for n in tensors if "vision" in n)
    tensors[name].view(-1)[0] = float("nan")
    bad = here / "bad"
    bad.mkdir()
    for file in (here / "image").iterdir():
        (bad / file.name).write_bytes(file.read_bytes())
    save_file(tensors, bad / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="holds NaN or Inf"):
        omnireg.merge(recipe().replace("model: image", "model: bad"), here / "pkg", record=False)
    assert not list(here.glob("pkg*"))


# one more model


def _two(here: Path) -> Package:
    """Return a package of the image and the audio host."""
    text = recipe("density: 0.5").replace("  - model: video\n", "")
    omnireg.merge(text, here / "two")
    return Package(here / "two")


def test_one_more_model_costs_the_others_nothing(here: Path, run: Run) -> None:
    """By real generation on the test split: nobody forgets, and the new one is there."""
    two = _two(here)
    assert run("mmer", "add", "two", "video", "--modality", "video", "three").code == 0
    three = Package(here / "three")
    assert list(three.modalities) == ["image", "audio", "video"]
    for sense in SENSES:
        extract(three, sense, here / f"after-{sense}")
        asked = items(cast(Any, sense), "test")[::3]
        after = score(open_subject(here / f"after-{sense}", dtype="float32"), asked).value
        if sense == "video":
            before, least = score(open_subject(here / "video", dtype="float32"), asked).value, 0.97
        else:
            extract(two, sense, here / f"before-{sense}")
            before, least = (
                score(open_subject(here / f"before-{sense}", dtype="float32"), asked).value,
                0.98,
            )
        assert after >= least * before, sense
    said = three.models
    assert said["image"].stands_in == two.fingerprint
    assert said["image"].fingerprint == two.models["image"].fingerprint
    assert said["video"].stands_in is None
    with Registry() as book:
        parents = [(p.name, p.role) for p in book.find("three").parents]
        assert parents == [("two", Role.PACKAGE), ("video", Role.MODEL)]
    assert not list(here.glob(".*three*"))


def test_an_addition_is_a_merge_with_what_is_kept(here: Path) -> None:
    """The task vector and masks of a merge in which extractions stand for the originals."""
    two = _two(here)
    add(two, "video", "video", here / "three", parameters={"density": 0.3})
    for sense in ("image", "audio"):
        extract(two, sense, here / f"kept-{sense}")
    models = "".join(
        f"  - {{model: kept-{sense}, parameters: {{density: 1.0}}}}\n"
        for sense in ("image", "audio")
    )
    text = (
        f"merge_method: mmer\nbase_model: base\nmodels:\n{models}"
        "  - {model: video, parameters: {density: 0.3}}\n"
        "omnireg: {output: package, modalities: {image: kept-image, video: video}}\n"
    )
    omnireg.merge(text, here / "direct", record=False)
    for file in Package(here / "direct").vector_files:
        assert (here / "three" / file).read_bytes() == (here / "direct" / file).read_bytes()


def test_what_cannot_be_added_is_told(here: Path, run: Run) -> None:
    """A modality that is taken, a model of another base, a name that is taken; nothing is left."""
    _two(here)
    for arguments, said in (
        (("video", "--modality", "audio"), "has a modality 'audio' already"),
        (("none", "--modality", "video"), "none"),
        (("video", "--modality", "video", "--density", 3), "density"),
        (("video", "--modality", "video", "--name", "two"), "the name 'two' is taken"),
    ):
        refused = run("mmer", "add", "two", *arguments, "x")
        assert refused.code == 1
        assert said in refused.err
        assert refused.err.count("\n") == 1
    assert not list(here.glob("*x*/")) or not (here / "x").exists()
    assert not list(here.glob(".x*"))
