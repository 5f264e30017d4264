"""A digest of every file: written, sealed, compared, recorded, and made anew on purpose."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import omnireg
from omnireg.checkpoints import contents
from omnireg.errors import CheckpointError
from omnireg.registry import Registry
from omnireg.testing.family import Family, make_family
from tests_support import Run, reseal


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """The conformance family."""
    return make_family(tmp_path_factory.mktemp("family"))


@pytest.fixture
def out(originals: Family) -> Path:
    """A merge that is recorded."""
    models = "".join(f"  - model: {model}\n" for model in originals.models[:2])
    omnireg.merge(f"merge_method: average\nmodels:\n{models}", Path("out"))
    return Path("out")


def edit(file: Path, **changes: object) -> None:
    """Change keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "config.json was changed": lambda out: edit(out / "config.json", rms_norm_eps=10.0),
    "evil.py was added": lambda out: (out / "evil.py").write_text("1"),
    "adapter_model.safetensors was added": lambda out: (
        out / "adapter_model.safetensors"
    ).write_bytes(b"x"),
    "tokenizer.json is missing": lambda out: (out / "tokenizer.json").unlink(),
    "omnireg.json was changed": lambda out: edit(out / contents.NAME, strategy="never"),
    "chat_template.jinja was added": lambda out: (out / "chat_template.jinja").write_text("x"),
}


@pytest.mark.parametrize("said", DAMAGE)
def test_every_file_is_compared(said: str, out: Path, run: Run) -> None:
    """Whatever decides what a model says: verify and db check name it, and fail."""
    assert run("verify", "out").code == run("db", "check").code == 0
    DAMAGE[said](out)
    verified = run("verify", "out")
    assert (verified.code, said in verified.out) == (1, True)
    assert "if the other changes are yours" in verified.err
    told = json.loads(run("--json", "verify", "out").out)
    assert (told["ok"], told["expected"] == told["found"]) == (False, True)
    assert said in " ".join(told["files"])
    checked = run("db", "check")
    assert (checked.code, said in checked.err) == (1, True)


def test_files_that_decide_nothing_are_not_compared(out: Path, run: Run) -> None:
    """A card, a picture, hidden files."""
    for name in ("README.md", "chart.png", ".gitattributes", "notes.yml"):
        (out / name).write_text("x")
    assert run("verify", "out").code == 0


def test_a_change_on_purpose_is_recorded(out: Path, run: Run) -> None:
    """Adding the folder again keeps kind and parents, and has the files as they are now."""
    before = Registry().find("out")
    edit(out / "config.json", rms_norm_eps=1e-3)
    assert run("verify", "out").code == 1
    assert run("add", out, "--name", "out").code == 0
    assert run("verify", "out").code == 0
    after = Registry().find("out")
    assert (after.kind, after.parents) == (before.kind, before.parents)
    assert after.fingerprint == before.fingerprint
    assert after.contents != before.contents
    events = Registry().events("out")
    [event] = [e for e in events if "files" in (e.details or {}).get("changes", {})]
    assert event.details is not None
    assert event.details["changes"]["files"] == [before.contents, after.contents]


def test_digests_travel_with_a_manifest(out: Path) -> None:
    """What is exported and applied knows the same files."""
    Registry().export("all.yaml")
    other = Registry("other.db")
    other.apply("all.yaml")
    assert other.find("out").files == Registry().find("out").files
    assert other.apply("all.yaml").total == 0


def test_a_foreign_checkpoint_has_digests_too(originals: Family, run: Run) -> None:
    """A folder that nobody sealed is compared with what was there when it was recorded."""
    shutil.copytree(originals.base, "mine")
    assert run("add", "./mine").code == 0
    known = set(Registry().find("mine").files or {})
    assert known >= {"config.json", "model.safetensors", "tokenizer.json"}
    edit(Path("mine/config.json"), rms_norm_eps=1e-3)
    assert "config.json was changed" in run("verify", "mine").out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 5}, "was edited"),
        ({"seal": "0" * 64}, "was edited"),
        ({"seal": None}, "sealed in format 2"),
        ({"format": 1}, "cannot be in format 1"),
        ({"format": 3}, "upgrade omnireg"),
        ({"format": "x"}, "format"),
        ({"files": {"../x": "0" * 64}}, "would leave the folder"),
        ({"files": {"x": "1"}}, "pattern"),
        ({"parents": {}}, "parents"),
        ({"seed": 1.5}, "seed"),
        ({"filez": {}}, "unknown key (did you mean 'files'?)"),
    ],
)
def test_an_edited_document_is_refused(change: dict[str, object], said: str, out: Path) -> None:
    """Wrong types, unknown keys, another seal; each is named."""
    edit(out / contents.NAME, **change)
    with pytest.raises(CheckpointError) as refused:
        contents.read(out)
    assert said in str(refused.value)


def test_an_older_document_is_read(out: Path, run: Run) -> None:
    """Format 1 has no digests, and nothing to compare."""
    said = json.loads((out / contents.NAME).read_text())
    said = {k: v for k, v in said.items() if k not in ("files", "seal")} | {"format": 1}
    (out / contents.NAME).write_text(json.dumps(said))
    told = contents.read(out)
    assert told is not None
    assert not told.is_sealed
    assert run("add", out, "--name", "out").code == run("verify", "out", "--rerun").code == 0


def test_a_document_can_be_sealed_anew(out: Path) -> None:
    """Published, a document holds true of what is published with it."""
    assert contents.resealed(out) == (out / contents.NAME).read_bytes()
    edit(out / "config.json", rms_norm_eps=1e-3)
    anew = contents.resealed(out)
    assert anew is not None
    (out / contents.NAME).write_bytes(anew)
    told = contents.read(out)
    assert told is not None
    contents.check(out, told)
    reseal(out)
    assert (out / contents.NAME).read_bytes() == anew
