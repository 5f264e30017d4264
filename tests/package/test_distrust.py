"""Packages whose authors want to be believed: digests made anew over names and sizes that lie."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import omnireg
from omnireg.errors import CheckpointError, ConfigError, OmniregError
from omnireg.package import Package
from omnireg.package.adding import add
from omnireg.package.extracting import extract
from omnireg.package.inspecting import inspect
from omnireg.strategies.kernels import views
from omnireg.strategies.kernels.fused import Chunk
from omnireg.strategies.thresholds import Kind
from omnireg.testing.family import Family, make_family
from tests_support import Run, reseal

NAME = "model.layers.0.mlp.up_proj.weight"
VALUES = NAME + ".values"
VECTOR = "vector-00001-of-00001.safetensors"


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """The conformance family."""
    return make_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="session")
def whole(originals: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of two models."""
    one, two, _ = originals.models
    out = tmp_path_factory.mktemp("package") / "whole"
    text = (
        f"merge_method: mmer\nbase_model: {originals.base}\nmodels:\n  - model: {one}\n"
        f"  - model: {two}\nparameters: {{density: 0.4}}\n"
        f"omnireg: {{output: package, modalities: {{image: {one}, audio: {two}}}}}\n"
    )
    omnireg.merge(text, out, record=False)
    return out


@pytest.fixture
def package(whole: Path) -> Path:
    """A copy of it to lie in."""
    shutil.copytree(whole, "package")
    return Path("package")


def edit(file: Path, change: Callable[[Any], object]) -> None:
    """Change what a JSON file holds."""
    said = json.loads(file.read_text())
    change(said)
    file.write_text(json.dumps(said))


def hosts_file(name: str, **more: Any) -> Callable[[Path], None]:
    """Return what adds a file of a name to a host's files."""
    entry = {"name": name, "header": "{}", "pieces": [], **more}

    def change(package: Path) -> None:
        edit(package / "hosts/image/files.json", lambda files: files.append(entry))

    return change


def manifest(change: Callable[[Any], object]) -> Callable[[Path], None]:
    """Return what changes the package's own part of the manifest."""
    return lambda package: edit(package / "omnireg.json", lambda said: change(said["package"]))


def arrays(file: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Return what changes tensors of a file."""

    def act(package: Path) -> None:
        found = load_file(package / file)
        change(found)
        save_file(found, package / file, {"format": "pt"})

    return act


def renamed(said: Any) -> None:
    """Call a model by a name that leads outside."""
    said["models"]["../../x"] = said["models"].pop("image")
    said["modalities"]["image"] = "../../x"


def pieces(change: Callable[[list[Any]], object]) -> Callable[[Path], None]:
    """Return what changes the first piece of a host's first file."""
    return lambda package: edit(
        package / "hosts/image/files.json", lambda files: change(files[0]["pieces"][0])
    )


LIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "file outside": (hosts_file("../evil.safetensors"), "would leave the folder"),
    "absolute file": (hosts_file("/tmp/omnireg-evil.safetensors"), "is not relative"),
    "no weights": (hosts_file("config.json"), "is no safetensors file"),
    "device": (hosts_file("CON.safetensors"), "reserved"),
    "twice": (hosts_file("model.safetensors"), "stands there twice"),
    "header": (hosts_file("a.safetensors", header='{"x": 1}'), "lacks x"),
    "no header": (hosts_file("a.safetensors", header="\ntouch /tmp/x\n"), "header of a."),
    "model name": (manifest(renamed), "would leave the folder"),
    "modality": (manifest(lambda said: said["modalities"].update({"a/b": "image"})), "is a path"),
    "lost model": (manifest(lambda said: said["modalities"].update(video="none")), "not there"),
    "scale": (manifest(lambda said: said["models"]["image"].update(scale="big")), "scale"),
    "infinite": (manifest(lambda said: said["models"]["image"].update(l1_recovered=None)), "l1"),
    "types": (manifest(lambda said: said.update(models=[])), "models"),
    "unknown": (manifest(lambda said: said.update(extra=1)), "unknown key"),
    "vector outside": (
        lambda p: edit(p / "vector.safetensors.index.json", lambda i: i.update(files=["../v"])),
        "would leave the folder",
    ),
    "dtype": (
        lambda p: edit(
            p / "vector.safetensors.index.json", lambda i: i["tensors"].update({NAME: ["I8", [2]]})
        ),
        "tensors",
    ),
    "shape": (
        lambda p: edit(
            p / "vector.safetensors.index.json",
            lambda i: i["tensors"][NAME].__setitem__(1, [24, 160]),
        ),
        "do not fit together",
    ),
    "support": (arrays(VECTOR, lambda x: x[NAME + ".support"].fill(255)), "another number"),
    "no support": (arrays(VECTOR, lambda x: x[NAME + ".support"].fill(0)), "another number"),
    "mask": (
        arrays(VECTOR, lambda x: x.update({NAME + ".mask.image": np.zeros(1, np.uint8)})),
        "do not fit together",
    ),
    "values": (
        arrays(VECTOR, lambda x: x.update({NAME + ".values": np.zeros(3, np.float32)})),
        "do not fit together",
    ),
    "values of halves": (
        arrays(VECTOR, lambda x: x.update({VALUES: x[VALUES].view(np.float16)})),
        "do not fit together",
    ),
    "base of 2 rows": (
        arrays("base/model.safetensors", lambda x: x.update({NAME: x[NAME][:2].copy()})),
        "another tensor in the base",
    ),
    "base of halves": (
        arrays("base/model.safetensors", lambda x: x.update({NAME: x[NAME].astype(np.float16)})),
        "another tensor in the base",
    ),
    "no base": (
        arrays("base/model.safetensors", lambda x: x.update({NAME: np.zeros((0, 16), np.float32)})),
        "another tensor in the base",
    ),
    "lost array": (arrays(VECTOR, lambda x: x.pop(NAME + ".mask.image")), "in none of its files"),
    "part beyond": (pieces(lambda piece: piece[3][0].__setitem__(3, 10**9)), "where nothing lies"),
    "part before": (pieces(lambda piece: piece[3][0].__setitem__(2, -8)), "greater than or equal"),
    "part of nothing": (pieces(lambda piece: piece[3][0].__setitem__(1, "x")), "nothing lies"),
    "parts lost": (pieces(lambda piece: piece[3].clear()), "do not fit together"),
    "link": (lambda p: linked(p / "hosts/image/config.json"), "is a link"),
    "layers": (
        lambda p: edit(p / "base/config.json", lambda c: c.update(num_hidden_layers=10**9)),
        "no model has so many",
    ),
}  # fmt: skip


def linked(file: Path) -> None:
    """Put a link to a secret in the place of a file."""
    Path("secret").write_text("{}")
    file.unlink()
    file.symlink_to(Path("secret").resolve())


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("trust", [False, True])
def test_a_lie_is_refused(lie: str, trust: bool, package: Path) -> None:
    """In one line, whether digests are compared or not; nothing is written anywhere."""
    act, said = LIES[lie]
    act(package)
    reseal(package)
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    with pytest.raises(OmniregError) as refused:
        extract(Package(package, trust=trust), "image", Path("out"))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    after = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    after = {path: at for path, at in after.items() if path.parts[0] != "cache"}
    assert {path: at for path, at in before.items() if path.parts[0] != "cache"} == after
    assert not Path("/tmp/omnireg-evil.safetensors").exists()


@pytest.mark.parametrize("lie", ["file outside", "model name", "support", "base of 2 rows"])
def test_an_addition_refuses_it_too(lie: str, package: Path, originals: Family) -> None:
    """One more model is only put into a package that holds together."""
    act, said = LIES[lie]
    act(package)
    reseal(package)
    with pytest.raises(OmniregError, match=said):
        add(Package(package), str(originals.models[2]), "video", Path("out"))
    assert not Path("out").exists()
    assert not list(Path().glob(".out*"))


@pytest.mark.parametrize(
    "file", [VECTOR, "base/model.safetensors", "hosts/image/shell.safetensors", "omnireg.json",
             "hosts/image/files.json", "hosts/image/config.json", "vector.safetensors.index.json"],
)  # fmt: skip
def test_one_byte_is_noticed(file: str, package: Path, run: Run) -> None:
    """By extract and add, which name the file; with --trust it is the user's own word."""
    raw = bytearray((package / file).read_bytes())
    raw[len(raw) // 2] ^= 1
    (package / file).write_bytes(raw)
    for command in (("extract", package, "--modality", "image"),):
        refused = run("mmer", *command, "out", "--no-record")
        assert (refused.code, Path(file).name in refused.err) == (1, True)
    assert not Path("out").exists()


def test_a_changed_name_in_a_header_is_noticed(package: Path) -> None:
    """The file is named, not only the tensor that is missed."""
    file = package / VECTOR
    raw = file.read_bytes()
    file.write_bytes(raw.replace(b"up_proj.weight.support", b"up_proj.weight.supporu", 1))
    with pytest.raises(CheckpointError, match=f"{VECTOR} was changed"):
        extract(Package(package), "image", Path("out"))


def test_an_added_file_is_noticed(package: Path) -> None:
    """An index that nobody wrote down would lead to other weights than the sealed ones."""
    (package / "base" / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(CheckpointError, match=r"index\.json was added"):
        Package(package)
    (package / "base" / "model.safetensors.index.json").unlink()
    (package / "hosts" / "image" / "modeling_x.py").write_text("pass")
    with pytest.raises(CheckpointError, match=r"modeling_x\.py was added"):
        extract(Package(package), "image", Path("out"))
    assert not Path("out").exists()


def test_a_package_without_digests_is_read(package: Path, tmp_path: Path) -> None:
    """Format 1 had none, so there is nothing to compare with."""
    wanted = extract(Package(package), "image", tmp_path / "sealed")

    def older(said: dict[str, Any]) -> None:
        said["format"] = 1
        del said["files"], said["seal"]

    edit(package / "omnireg.json", older)
    assert extract(Package(package), "image", tmp_path / "unsealed") == wanted


MODALITIES = ("../../x", "/tmp/x", "a/b", "x" * 300, "con", "a\x1bb", "")


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_modality_is_a_name(modality: str, package: Path, originals: Family) -> None:
    """It becomes a folder; nothing is written anywhere."""
    Package(package)
    before = sorted(Path().glob("p*/**/*"))
    text = (
        f"merge_method: mmer\nbase_model: {originals.base}\nmodels:\n"
        f"  - model: {originals.models[0]}\nomnireg:\n  output: package\n"
        f"  modalities: {json.dumps({modality: str(originals.models[0])})}\n"
    )
    with pytest.raises(ConfigError, match="modality"):
        omnireg.merge(text, Path("made"), record=False)
    with pytest.raises(ConfigError, match="modality"):
        add(Package(package), str(originals.models[2]), modality, Path("made"))
    assert sorted(Path().glob("p*/**/*")) == before
    assert {path.name for path in Path().iterdir()} <= {"package", "cache"}


def test_a_model_that_is_not_finite_is_refused(package: Path) -> None:
    """A scale that blows up, though its author sealed it."""
    edit(
        package / "omnireg.json",
        lambda said: said["package"]["models"]["image"].update(scale=1e300),
    )
    reseal(package)
    with pytest.raises(CheckpointError, match="is not finite"):
        extract(Package(package), "image", Path("out"))
    assert not Path("out").exists()


def test_an_edit_is_used_on_request(package: Path, run: Run) -> None:
    """A factor that was changed by hand is refused, and used with --trust."""
    before = extract(Package(package), "image", Path("before"))
    manifest(lambda said: said["models"]["image"].update(scale=10.0))(package)
    refused = run("mmer", "extract", package, "--modality", "image", "out", "--no-record")
    assert (refused.code, "was edited" in refused.err) == (1, True)
    taken = run("mmer", "extract", package, "--modality", "image", "out", "--no-record", "--trust")
    assert taken.code == 0
    assert before[:12] not in taken.out


def test_the_hubs_cache_may_be_links(package: Path) -> None:
    """A snapshot's files are links to blobs beside it, and nowhere else."""
    blobs, snapshot = Path("cache/blobs"), Path("cache/snapshots/abc")
    blobs.mkdir(parents=True)
    for number, file in enumerate(path for path in sorted(package.rglob("*")) if path.is_file()):
        place = snapshot / file.relative_to(package)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blobs / str(number))
        place.symlink_to(os.path.relpath(blobs / str(number), place.parent))
    assert extract(Package(snapshot), "audio", Path("out"))
    assert inspect(Package(snapshot)).total


# memory behind an address


def test_a_kernel_gets_no_address_of_too_little() -> None:
    """A chunk and a stored tensor know how long their arrays have to be."""
    short, long = np.zeros(7, np.uint16), np.zeros(8, np.uint16)
    assert len(Chunk(Kind.BF16, 8, (long, long), 0).inputs) == 2
    for arrays_ in ((long, short), (short, long), (long[::2].repeat(2)[::2], long)):
        with pytest.raises(CheckpointError, match="lie where 16 are needed"):
            Chunk(Kind.BF16, 8, arrays_, 0)
    with pytest.raises(CheckpointError, match="needed"):
        Chunk(Kind.F32, 8, (long, long), 0)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"base": np.zeros(63, np.float32)}, "needed"),
        ({"support": np.zeros(4, np.uint8)}, "needed"),
        ({"support": np.full(8, 255, np.uint8)}, "another number"),
        ({"values": np.zeros(2, np.float32)}, "another number"),
        ({"masks": {"a": np.zeros(4, np.uint8)}}, "needed"),
    ],
)
def test_stored_arrays_have_to_fit(fault: dict[str, Any], said: str) -> None:
    """Base, support, values and masks are as long as each other say."""
    support = np.zeros(8, np.uint8)
    support[0] = 0b111
    parts: dict[str, Any] = {
        "base": np.zeros(64, np.float32), "support": support, "values": np.ones(3, np.float32),
        "masks": {"a": np.full(8, 255, np.uint8)},
    }  # fmt: skip
    stored = views.Stored(2, 64, **parts)
    assert stored.expanded()[:4].tolist() == [0x3F800000] * 3 + [0]
    with pytest.raises(CheckpointError, match=said):
        views.Stored(2, 64, **{**parts, **fault})


def test_spans_and_outputs_are_checked() -> None:
    """No element before the first or after the last, and room for all that is written."""
    support = np.zeros(8, np.uint8)
    stored = views.Stored(2, 64, np.zeros(64, np.float32), support, np.zeros(0, np.float32), {})
    out = np.zeros(64, np.float32)
    stored.form([[]], 0, 64, 0, 2, [out])
    for start, stop in ((-1, 3), (0, 65), (5, 4)):
        with pytest.raises(ValueError, match="elements"):
            stored.form([[]], start, stop, 0, 2, [out])
        with pytest.raises(ValueError, match="elements"):
            stored.plain(start, stop, 2, out)
        with pytest.raises(ValueError, match="elements"):
            stored.expanded(start, stop)
    with pytest.raises(CheckpointError, match="needed"):
        stored.form([[]], 0, 64, 0, 2, [out[:63]])
    with pytest.raises(ValueError, match="rank"):
        stored.form([[]], 0, 64, 9, 2, [out])
