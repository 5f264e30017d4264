"""Pulling from a loopback Hub: one step, and nothing that a repository says is believed."""

import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

from loopback_hub import Fault, File, Hub, surroundings
from omnireg.boundary.text import is_plain
from omnireg.checkpoints import contents
from omnireg.checkpoints.checkpoint import combine_digests
from omnireg.errors import MergeError, OmniregError, PublishError, RegistryError
from omnireg.hub import Pulled, family, pull
from omnireg.registry import Registry
from tests_support import Run

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CARD, MANIFEST = "README.md", "omnireg.manifest.yaml"
THEIRS = "acme/theirs"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with one checkpoint, in one file."""
    found = Registry(tmp_path_factory.mktemp("small") / "registry.db")
    found.add_checkpoint("mine", kind="base", fingerprint="ab" * 32)
    with sqlite3.connect(found.where) as database:
        database.execute("PRAGMA journal_mode=DELETE")
    return Path(found.where)


@pytest.fixture
def book(small: Path, tmp_path: Path) -> Registry:
    """A registry with one checkpoint."""
    return Registry(shutil.copy(small, tmp_path / "registry.db"))


def fingerprint(**files: bytes) -> str:
    """Return the fingerprint of weights."""
    return combine_digests((f"{n}.safetensors", sha256(d).hexdigest()) for n, d in files.items())


def manifest(*checkpoints: Mapping[str, Any], **sections: Any) -> bytes:
    """Return a manifest of checkpoints, the first one the repository's own."""
    return yaml.safe_dump(
        {"omnireg": 1, "checkpoints": [dict(c) for c in checkpoints], **sections}, sort_keys=False
    ).encode()


def own(**facts: Any) -> dict[str, Any]:
    """Return a manifest's entry for the repository itself."""
    return {"name": "theirs", "kind": "merged", "source": THEIRS, **facts}


def card(**data: Any) -> bytes:
    """Return a card."""
    return b"---\n" + yaml.safe_dump(data).encode() + b"---\ntext\n"


def folders() -> set[str]:
    """Return what is in the working folder, beside what the client of the Hub keeps there."""
    return {path.name for path in Path().iterdir() if path.is_dir()} - {"hf", "xet-cache", "cache"}


def refused(book: Registry, said: str | None, repo: str = THEIRS, **options: Any) -> str:
    """Pull, see that it fails in one printable line and leaves nothing, and return the line."""
    before, there = list(book.items()), folders()
    with pytest.raises(OmniregError, match=said) as caught:
        pull(book, repo, **options)
    assert list(book.items()) == before
    assert folders() == there
    line = str(caught.value)
    assert is_plain(line), line
    return line


# names


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["../out.txt"], "leave the folder"),
        (["a/../../out.txt"], "leave the folder"),
        (["a//b"], "leave the folder"),
        (["./a"], "leave the folder"),
        (["/etc/out"], "not relative"),
        (["a\\b.txt"], "not relative"),
        (["a\nb.txt"], "control"),
        (["\x1b[31mred.txt"], "control"),
        (["gpj\u202e.txt"], "bidirectional"),
        (["nul.txt"], "reserved"),
        (["x.txt:stream"], "reserved"),
        (["dot./a"], "reserved"),
        (["y" * 300], "longer"),
        (["a.json", "A.json"], "one file on some systems"),
        (["Straße.txt", "STRASSE.txt"], "one file on some systems"),
        (["\u00e9.txt", "e\u0301.txt"], "one file on some systems"),
        (["a", "a/b.txt"], "cannot be a folder"),
        (["A", "a/b/c.txt"], "cannot be a folder"),
        ([".git/config"], "git's"),
        (["sub/.GIT/hooks/x"], "git's"),
        ([".g\u200cit/config"], "git's"),
    ],
)
@pytest.mark.parametrize("metadata_only", [True, False])
def test_names_that_do_harm(
    hub: Hub, book: Registry, names: list[str], said: str, metadata_only: bool
) -> None:
    """They are refused before anything is fetched, whatever is asked for."""
    hub.commit(THEIRS, {WEIGHTS: b"w", **dict.fromkeys(names, b"x")})
    refused(book, said, metadata_only=metadata_only)
    assert not hub.asked("resolve")


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"weight_map": {"t": "../../etc/passwd"}}, "leave the folder"),
        ({"weight_map": {"t": "/etc/passwd"}}, "not relative"),
        ({"weight_map": {"t": "a\x1b.safetensors"}}, "control"),
        ({"weight_map": {"t": "sub/a.safetensors"}}, "a path where a plain name is expected"),
        ({"weight_map": {"t": "pytorch_model.bin"}}, "no safetensors file"),
        ({"weight_map": {"t": 1}}, "weight_map.t"),
        ({"weight_map": ["a"]}, "weight_map"),
        ({}, "weight_map: is missing"),
        ([], "is damaged"),
        (b"{", "is damaged"),
        (b"\xff\xfe", "UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"weight_map": {"t": "\\ud800"}}', "no valid text"),
        (b'{"weight_map": NaN}', "NaN"),
    ],
)
@pytest.mark.parametrize("metadata_only", [True, False])
def test_an_index_that_does_harm(
    hub: Hub, book: Registry, index: Any, said: str, metadata_only: bool
) -> None:
    """It is damaged, and the line says whose it is; the connection is not blamed."""
    data = index if isinstance(index, bytes) else json.dumps(index).encode()
    hub.commit(THEIRS, {WEIGHTS: b"w", INDEX: data})
    assert f"{THEIRS}/{INDEX}" in refused(book, said, metadata_only=metadata_only)


# fingerprints


def test_the_hub_knows_what_is_in_lfs(hub: Hub, book: Registry) -> None:
    """Its digests are the fingerprint; a manifest that says another one is refused."""
    hub.commit(THEIRS, {WEIGHTS: b"w", MANIFEST: manifest(own())})
    assert pull(book, THEIRS, metadata_only=True).fingerprint == fingerprint(model=b"w")
    hub.commit(THEIRS, {MANIFEST: manifest(own(fingerprint="0" * 64))})
    refused(book, "the Hub says", metadata_only=True)
    refused(book, "the Hub says")


def test_outside_of_lfs_the_bytes_count(hub: Hub, book: Registry) -> None:
    """Where neither the Hub nor the bytes say a fingerprint, none is recorded; a line says why."""
    claimed = manifest(own(fingerprint="0" * 64))
    hub.commit(THEIRS, {WEIGHTS: b"w", MANIFEST: claimed}, lfs=False)
    found = pull(book, THEIRS, metadata_only=True)
    assert found.fingerprint is None
    assert book.find("theirs").fingerprint is None
    assert "no sha256 of its weights" in found.warnings[-1]
    refused(book, "its files are")
    true = fingerprint(model=b"w")
    hub.commit(THEIRS, {MANIFEST: manifest(own(fingerprint=true))})
    found = pull(book, THEIRS)
    assert found.fingerprint == true
    assert found.warnings == ()
    # what was recorded without the files is now known
    record = book.find("theirs")
    assert (record.fingerprint, record.source) == (true, str(Path("theirs").resolve()))


def test_what_cannot_be_compared_is_not_taken_for_the_same(hub: Hub, book: Registry) -> None:
    """A later commit without digests may hold anything."""
    made = hub.commit(THEIRS, {WEIGHTS: b"w", MANIFEST: manifest(own())}, lfs=False)
    pull(book, THEIRS, to=Path("first"))
    assert pull(book, f"{THEIRS}@{made.oid}", metadata_only=True).recorded == ()
    hub.commit(THEIRS, {WEIGHTS: b"other"}, lfs=False)
    refused(book, "cannot be compared", metadata_only=True)
    refused(book, "into another registry", to=Path("second"))


@pytest.mark.parametrize("lfs", [True, False])
@pytest.mark.parametrize("kept", [{}, {"source": "acme/other"}, {"fingerprint": "ab" * 32}])
def test_a_name_that_is_taken(hub: Hub, book: Registry, kept: dict[str, Any], lfs: bool) -> None:
    """A repository cannot call itself what something else is called here."""
    book.add_checkpoint("yours", kind="base", **kept)
    hub.commit(THEIRS, {WEIGHTS: b"w", MANIFEST: manifest(own(name="yours"))}, lfs=lfs)
    refused(book, "into another registry", metadata_only=True)
    refused(book, "into another registry")
    # if the Hub can tell, it is known before anything is fetched
    if lfs or "fingerprint" not in kept:
        assert not hub.asked(f"resolve.*{WEIGHTS}")


def test_weights_that_are_not_there(hub: Hub, book: Registry) -> None:
    """No fingerprint, and the reason."""
    hub.commit(THEIRS, {"config.json": b"{}", MANIFEST: manifest(own(fingerprint="0" * 64))})
    found = pull(book, THEIRS)
    assert found.fingerprint is None
    assert "no weights in safetensors" in found.warnings[-1]
    index = json.dumps({"weight_map": {"t": "gone.safetensors"}}).encode()
    hub.commit("acme/half", {WEIGHTS: b"w", INDEX: index})
    assert "gone.safetensors, which is not there" in pull(book, "acme/half").warnings[-1]


def test_bytes_that_are_not_what_the_hub_says(hub: Hub, book: Registry) -> None:
    """Weights and small files alike."""
    made = hub.commit(THEIRS, {WEIGHTS: b"weights", "config.json": b"{}"})
    hub.stored[str(made.files[WEIGHTS].sha)] = b"changed"
    refused(book, f"{WEIGHTS} differs")
    hub.commit(THEIRS, {WEIGHTS: b"weights"})

    class Liar(File):
        @property
        def oid(self) -> str:
            return "0" * 40

    made.files["config.json"] = Liar(2, b"{}")
    refused(book, "config.json differs", f"{THEIRS}@{made.oid}")


def test_what_omnireg_wrote_is_what_it_was(hub: Hub, book: Registry) -> None:
    """The digests in a folder's own document are compared; what comes with publishing is not."""
    made = Path("made")
    made.mkdir()
    for name, data in ((WEIGHTS, b"w"), ("config.json", b"{}"), ("x.py", b""), (CARD, b"old")):
        (made / name).write_bytes(data)
    contents.write(made, {"strategy": "s"})
    files = {path.name: path.read_bytes() for path in made.iterdir()}
    hub.commit(THEIRS, {**files, CARD: b"new"})
    pull(book, THEIRS)
    record = book.find(THEIRS)
    assert record.files is not None
    assert record.files["config.json"] == sha256(b"{}").hexdigest()
    hub.commit(THEIRS, {"config.json": b"[]"})
    refused(book, r"omnireg.json says: config.json was changed", to=Path("other"))
    told = json.loads(files["omnireg.json"])
    for odd in ({**told, "strategy": "t"}, {**told, "files": {"../x": "0" * 64}}, [1], None):
        hub.commit(THEIRS, {"config.json": b"{}", "omnireg.json": json.dumps(odd).encode()})
        refused(book, f"{THEIRS}/omnireg.json", to=Path("other"))


# what can run code


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "a/B.PT", "x.pth", "x.ckpt", "x.Pickle", "x.joblib", "x.pkl.gz", "x.h5"],
)
def test_pickles_by_name(hub: Hub, book: Registry, name: str) -> None:
    """They are refused in any case, unless they are allowed or nothing is fetched."""
    hub.commit(THEIRS, {WEIGHTS: b"w", name: b"x"})
    assert name in refused(book, "--allow-pickle")
    assert pull(book, THEIRS, metadata_only=True).name == THEIRS
    assert pull(book, THEIRS, allow_pickle=True).files == 3
    assert Path("theirs", name).read_bytes() == b"x"


@pytest.mark.parametrize("name", ["notes.txt", "data.dat", "config.json", "tokens", "a.npy"])
def test_pickles_by_content(hub: Hub, book: Registry, name: str) -> None:
    """A name that lies is of no use."""
    hub.commit(THEIRS, {WEIGHTS: b"w", name: b"cos\nsystem\n(S'true'\ntR."})
    assert f"{THEIRS}/{name}" in refused(book, "a pickle, which can run code")
    assert pull(book, THEIRS, allow_pickle=True).files == 3


def test_code_is_left_out(hub: Hub, book: Registry, run: Run) -> None:
    """Python code comes only if it is trusted; nothing that comes can be executed."""
    code = {"modeling_x.py": b"1", "sub/Tool.PY": b"2", "lib.so": b"3"}
    others = {"run.sh": b"#!/bin/sh\n", "look.ipynb": b"{}", ".cache/huggingface/x.txt": b"x"}
    files = {WEIGHTS: b"w", "config.json": b'{"auto_map": {"AutoModel": "modeling_x.X"}}'}
    hub.only(THEIRS, files | code | others)
    done = run("pull", THEIRS)
    assert done.code == 0
    assert "modeling_x.py" in done.err
    assert "--trust-remote-code" in done.err
    there = {path for path in Path("theirs").rglob("*") if path.is_file()}
    assert {path.relative_to("theirs").as_posix() for path in there} == {
        WEIGHTS, "config.json", "run.sh", "look.ipynb",
    }  # fmt: skip
    everybody = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH
    assert not [path for path in there if path.stat().st_mode & everybody]
    found = pull(book, THEIRS, to=Path("trusted"), trust_remote_code=True)
    assert (found.left_out, found.files) == ((), 7)
    assert Path("trusted/sub/Tool.PY").read_bytes() == b"2"


# documents


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"---\n{BOMB}---\n".encode(), "far larger than it looks"),
        (b"---\na: " + b"[" * 500 + b"\n---\n", "nested too deeply"),
        (b"---\na: *b\n---\n", "README.md:2: no valid YAML"),
        (b"---\na: &a [*a]\n---\n", "alias"),
        (b"---\na: !!python/object/apply:os.system [x]\n---\n", "no valid YAML"),
        (b'---\na: "\\ud800"\n---\n', "README.md"),
        (b"---\n\xff\n---\n", "UTF-8"),
        (b"---\n" + b"a: b\n" * 200_000 + b"---\n", "longer than"),
        (b"---\nbase_model: {a: b}\n---\n", "base_model is not what it should be"),
        (b"---\nbase_model: [[a]]\n---\n", "base_model is not what it should be"),
        (b"---\nbase_model: a b c\n---\n", "no repository of the Hub"),
        (b"---\nbase_model: /etc/passwd\n---\n", "no repository of the Hub"),
        (b"---\nbase_model_relation: [merge]\n---\n", "base_model_relation is not"),
        (b"---\nmodel-index: [1]\n---\n", "model-index is not"),
        (b"---\nmodel-index: [{results: [{dataset: 1}]}]\n---\n", "model-index is not"),
    ],
)
def test_cards_that_are_not_what_they_should_be(
    hub: Hub, book: Registry, text: bytes, said: str
) -> None:
    """What cannot be used is left out, and one line says whose it is and why."""
    hub.commit(THEIRS, {WEIGHTS: b"w", CARD: text})
    found = pull(book, THEIRS, metadata_only=True)
    [line] = found.warnings
    assert said in line
    assert f"{THEIRS}/{CARD}" in line
    assert is_plain(line)
    assert book.find(THEIRS).parents == ()


def test_numbers_that_are_none(hub: Hub, book: Registry) -> None:
    """Only what is finite counts, of two values the first, and odd names are left out."""
    metrics = [
        {"type": "acc", "value": 0.5}, {"type": "acc", "value": 0.6}, {"type": "b", "value": True},
        {"type": "c", "value": float("nan")}, {"type": "d", "value": 10**400}, {"type": "e"},
        {"type": "f", "value": "1"}, {"type": "x\x07", "value": 1},
    ]  # fmt: skip
    index = [{"results": [{"dataset": {"name": "D"}, "metrics": metrics}, {}]}]
    hub.commit(THEIRS, {WEIGHTS: b"w", CARD: card(**{"model-index": index})})
    found = pull(book, THEIRS, metadata_only=True)
    assert [(s.benchmark, s.metric, s.value) for s in book.scores(THEIRS)] == [("D", "acc", 0.5)]
    assert "1 results with odd names" in found.warnings[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"omnireg: 1\ncheckpoints:\n{BOMB}", "far larger than it looks"),
        ("omnireg: 1\ncheckpoints: " + "[" * 500, "nested too deeply"),
        ("omnireg: 2\n", f"{MANIFEST}:1: format version 2"),
        ("omnireg: 1\ncheckpoint: []\n", f"{MANIFEST}:2: unknown key"),
        ("omnireg: 1\ncheckpoints: {a: b}\n", f"{MANIFEST}:2: checkpoints is a list"),
        ("omnireg: 1\ncheckpoints: [1]\n", f"{MANIFEST}:2"),
        ("[1]\n", MANIFEST),
        ("", MANIFEST),
        ("omnireg: 1\n", "does not name acme/theirs"),
        ('omnireg: 1\ncheckpoints: [{name: "\\ud800", kind: base}]\n', MANIFEST),
        (
            'omnireg: 1\ncheckpoints:\n- {name: "a\\x1bb", kind: base, source: acme/theirs}\n',
            f"{MANIFEST}:3",
        ),
        (
            "omnireg: 1\ncheckpoints:\n- {name: a, kind: base, source: acme/theirs}\n"
            "scores:\n- {checkpoint: a, benchmark: b, value: .nan}\n",
            f"{MANIFEST}:5",
        ),
        (
            "omnireg: 1\ncheckpoints:\n- {name: a, kind: base, source: acme/theirs,"
            " parents: [{name: none}]}\n",
            f"{MANIFEST}:3",
        ),
    ],
)
def test_manifests_that_are_not_what_they_should_be(
    hub: Hub, book: Registry, text: str, said: str
) -> None:
    """They are refused with the line, before anything is fetched."""
    hub.commit(THEIRS, {WEIGHTS: b"w", MANIFEST: text.encode()})
    assert THEIRS in refused(book, said, metadata_only=True)
    assert THEIRS in refused(book, said)
    assert not hub.asked(f"resolve.*{WEIGHTS}")


def test_documents_are_as_long_as_people_write_them(hub: Hub, book: Registry) -> None:
    """The Hub says how long they are, so longer ones are not even asked for."""
    made = hub.commit(THEIRS, {WEIGHTS: b"w", CARD: b"x"})
    made.files[CARD] = File(1 << 30, b"x")
    found = pull(book, THEIRS, metadata_only=True)
    assert "README.md has 1,024 MB, and at most 8 MB are read" in found.warnings[0]
    made.files[MANIFEST] = File(1 << 30, b"x")
    refused(book, f"{MANIFEST} has 1,024 MB", metadata_only=True)
    del made.files[MANIFEST]
    made.files[INDEX] = File(1 << 30, b"x")
    refused(book, f"{INDEX} has 1,024 MB", metadata_only=True)
    assert not hub.asked("resolve")


def test_a_manifest_only_adds(hub: Hub, book: Registry) -> None:
    """Names, paths and scores of ours stay; what makes sense on their machine alone is dropped."""
    book.add_score("mine", "B", 1, metric="score")
    entries = (
        own(aliases=["mine2"], parents=[{"name": "mine"}, {"name": "other"}]),
        {"name": "mine", "kind": "merged", "notes": "taken over", "source": "acme/evil"},
        {"name": "other", "kind": "base", "source": "/etc/passwd", "fingerprint": "cd" * 32},
    )
    runs = [{
        "name": "theirs", "checkpoint": "theirs", "out": "/home/me", "machine": "mine",
        "started_at": "2026-01-01T00:00:00Z", "status": "done", "recipe_text": "x",
        "recipe_digest": "x", "strategy": "s", "engine": "e",
    }]  # fmt: skip
    scores = [
        {"checkpoint": "mine", "benchmark": "B", "value": 99},
        {"checkpoint": "theirs", "benchmark": "B", "value": 2},
    ]
    hub.commit(THEIRS, {WEIGHTS: b"w", MANIFEST: manifest(*entries, runs=runs, scores=scores)})
    found = pull(book, THEIRS, metadata_only=True)
    assert found.recorded == ("other", "theirs")
    assert book.find("mine").notes is None
    assert [score.value for score in book.scores("mine")] == [1]
    assert book.find("theirs").aliases == ()
    # an ancestor's fingerprint is what its publisher says
    assert (book.find("other").source, book.find("other").fingerprint) == (None, "cd" * 32)
    run = book.run_of("theirs")
    assert run is not None
    assert (run.out, run.machine) == (THEIRS, "published")
    # a score of ours is not replaced, by whichever name of its metric
    scores = [{"checkpoint": "theirs", "benchmark": "B", "value": 99}]
    hub.commit(THEIRS, {MANIFEST: manifest(*entries, runs=runs, scores=scores)})
    pull(book, THEIRS, metadata_only=True)
    assert [score.value for score in book.scores("theirs")] == [2]


# families


def test_many_parents_are_cut_with_a_word(hub: Hub, book: Registry) -> None:
    """Each of them is one request."""
    text = card(base_model=[f"acme/p{n}" for n in range(5000)])
    hub.commit(THEIRS, {WEIGHTS: b"w", CARD: text})
    found = pull(book, THEIRS, metadata_only=True)
    assert len(hub.asked("models/acme/p")) == 50
    assert "it names 5000 parents, and the first 50 are taken" in found.warnings[0]
    assert len(found.warnings) == 51


def test_a_family_is_bounded(hub: Hub, book: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, so many are asked, each once, in circles and in lattices."""
    for row in range(12):
        for side in "ab":
            parents = [f"acme/{row + 1}a", f"acme/{row + 1}b", "acme/0a"]
            hub.commit(f"acme/{row}{side}", {CARD: card(base_model=parents)})
    found = pull(book, "acme/0a", metadata_only=True)
    assert len(found.recorded) == 21
    assert len(hub.asked("GET /api/models")) == 21
    lineage = book.lineage("acme/0a", direction="up")
    assert len(lineage.edges) == 2 + 9 * 4
    monkeypatch.setattr(family, "REPOSITORIES", 3)
    found = pull(Registry("other.db"), "acme/0a", metadata_only=True)
    assert len(found.recorded) == 3
    assert sum("more than 3 repositories" in line for line in found.warnings) == 1


def test_parents_that_are_recorded_are_not_asked(hub: Hub, book: Registry) -> None:
    """By whichever of their names."""
    book.add_alias("mine", "acme/base")
    hub.commit(THEIRS, {WEIGHTS: b"w", CARD: card(base_model="acme/base")})
    pull(book, THEIRS, metadata_only=True)
    assert not hub.asked("acme/base")
    assert [parent.name for parent in book.find(THEIRS).parents] == ["mine"]


def test_a_hub_that_is_down_is_no_missing_parent(hub: Hub, book: Registry) -> None:
    """Lineage is not cut short since a server had a bad moment; a parent that is gone is told."""
    hub.commit(THEIRS, {WEIGHTS: b"w", CARD: card(base_model=["acme/gone", "acme/odd"])})
    hub.commit("acme/odd", {"../x": b"x"})
    hub.faults.append(Fault("models/acme/odd", 503, times=100))
    refused(book, "503", metadata_only=True)
    hub.faults.clear()
    found = pull(book, THEIRS, metadata_only=True)
    assert "the parent acme/gone is left out: there is no repository" in found.warnings[0]
    assert "the parent acme/odd is left out: acme/odd names the file" in found.warnings[1]


def test_an_answer_that_is_no_answer(hub: Hub, book: Registry, run: Run) -> None:
    """One line, whatever stands in the place of the Hub."""
    for body in (b"<html>", b"[1]", b"{}", b'{"id": "a/b"}', b"[" * 200_000):
        hub.odd = body
        refused(book, "cannot be understood", metadata_only=True)


# one step


def test_a_folder_that_is_there_is_recorded(hub: Hub, book: Registry, tmp_path: Path) -> None:
    """If it holds what the commit does; else it is refused, and stays."""
    hub.commit(THEIRS, {WEIGHTS: b"w", "sub/config.json": b"{}"})
    pull(book, THEIRS)
    other = Registry(tmp_path / "other.db")
    asked = len(hub.asked(f"GET .*{WEIGHTS}"))
    found = pull(other, THEIRS)
    assert (found.recorded, found.files) == ((THEIRS,), 3)
    assert other.find(THEIRS).source == str(tmp_path / "theirs")
    assert len(hub.asked(f"GET .*{WEIGHTS}")) == asked
    for path, text in (("sub/config.json", "[]"), ("more.txt", ""), (WEIGHTS, "v")):
        file = Path("theirs", path)
        before = file.read_bytes() if file.exists() else None
        file.write_text(text)
        with pytest.raises(MergeError, match="already exists and does not hold") as caught:
            pull(other, THEIRS)
        assert path in str(caught.value)
        file.unlink() if before is None else file.write_bytes(before)
    Path("theirs", WEIGHTS).unlink()
    Path("theirs", WEIGHTS).symlink_to("../registry.db")
    with pytest.raises(MergeError, match="differs"):
        pull(other, THEIRS)


def test_a_commit_that_fails_takes_the_folder_back(hub: Hub, book: Registry) -> None:
    """The folder had appeared, as the last act before it."""
    hub.commit(THEIRS, {WEIGHTS: b"w"})
    with sqlite3.connect("registry.db") as database:
        database.executescript(
            "CREATE TABLE late (id INTEGER REFERENCES checkpoints (id) DEFERRABLE INITIALLY"
            " DEFERRED); CREATE TRIGGER late AFTER INSERT ON publications BEGIN INSERT INTO late"
            " VALUES (-1); END"
        )
    refused(book, "FOREIGN KEY", to=Path("new/folder"))


def test_a_folder_that_cannot_appear_takes_the_rows_back(hub: Hub, book: Registry) -> None:
    """Somebody made one of its name meanwhile; theirs stays."""
    hub.commit(THEIRS, {WEIGHTS: b"w"})
    before = list(book.items())
    hub.faults.append(Fault(f"GET .*{WEIGHTS}", lambda: Path("theirs").mkdir()))
    with pytest.raises(MergeError, match="already exists"):
        pull(book, THEIRS)
    assert list(book.items()) == before
    assert list(Path("theirs").iterdir()) == []


def test_whatever_fails_leaves_nothing(
    hub: Hub, book: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any request, and in a registry that refuses."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    entry = own(parents=[{"name": "older", "role": "model"}])
    files = manifest(entry, {"name": "older", "kind": "base"})
    hub.commit(THEIRS, {WEIGHTS: b"w", "config.json": b"{}", MANIFEST: files})
    for pattern in ("GET /api/models", "tree", MANIFEST, "config.json", WEIGHTS):
        for what in (500, "cut"):
            hub.faults[:] = [Fault(pattern, what, times=1000)]
            refused(book, None, to=Path("deep/er/folder"))
    hub.faults.clear()
    book.add_checkpoint("other", kind="base")
    book.add_alias("other", "older")
    refused(book, "alias of 'other'")
    assert not hub.asked(f"GET .*{WEIGHTS} ")


KILLED = """
import os, signal, sys
from pathlib import Path
from omnireg.cli import main
rename = Path.rename
def die(self, target):
    rename(self, target)
    os.kill(os.getpid(), signal.SIGKILL)
Path.rename = die
sys.exit(main(["pull", "acme/theirs", "--to", "back"]))
"""


def test_a_kill_between_folder_and_rows_is_mended(
    hub: Hub, book: Registry, tmp_path: Path, run: Run
) -> None:
    """The same command records what is there, and fetches nothing again."""
    hub.commit(THEIRS, {WEIGHTS: b"w", MANIFEST: manifest(own())})
    before = list(book.items())
    env = {**os.environ, **surroundings(hub, tmp_path)}
    done = subprocess.run([sys.executable, "-c", KILLED], env=env, check=False)
    assert done.returncode == -signal.SIGKILL
    assert Path("back", WEIGHTS).exists()
    assert list(book.items()) == before
    asked = len(hub.asked(f"GET .*{WEIGHTS}"))
    again = run("pull", THEIRS, "--to", "back")
    assert again.code == 0, again.err
    assert "recorded theirs" in again.out
    assert book.find("theirs").source == str(tmp_path / "back")
    assert len(hub.asked(f"GET .*{WEIGHTS}")) == asked


def test_the_command_says_what_is_left_out(hub: Hub, run: Run) -> None:
    """As JSON and for people; names of a repository cannot move the cursor."""
    hub.commit(THEIRS, {WEIGHTS: b"w", "x.py": b"", CARD: card(base_model="\x1b[2J")}, lfs=False)
    done = run("pull", THEIRS, "--json")
    said = json.loads(done.out)
    assert said["left_out"] == ["x.py"]
    assert len(said["warnings"]) == 2
    assert done.err.count("warning: ") == 2
    assert "\x1b" not in done.out + done.err
    assert "\\x1b[2J" in done.err


def test_a_server_is_a_registry_too(hub: Hub, database: Callable[[str], str]) -> None:
    """A pull is one transaction of it, and one that nobody set up is told before anything comes."""
    hub.commit(THEIRS, {WEIGHTS: b"w", MANIFEST: manifest(own())})
    book = Registry(database("template0"))
    with pytest.raises(RegistryError, match="db upgrade"):
        pull(book, THEIRS)
    assert not hub.asked(f"GET .*{WEIGHTS}")
    book.upgrade()
    hub.faults.append(Fault(f"GET .*{WEIGHTS}", lambda: Path("theirs").mkdir()))
    with pytest.raises(MergeError, match="already exists"):
        pull(book, THEIRS)
    assert list(book.items()) == []
    Path("theirs").rmdir()
    assert pull(book, THEIRS).recorded == ("theirs",)
    assert pull(book, THEIRS).recorded == ()
    book.close()


def test_pulled_is_a_value(hub: Hub, book: Registry) -> None:
    """What was done is returned, frozen."""
    hub.commit(THEIRS, {WEIGHTS: b"w"})
    found = pull(book, THEIRS, metadata_only=True)
    assert isinstance(found, Pulled)
    assert (found.folder, found.files) == (None, 0)
    with pytest.raises(AttributeError):
        found.files = 1  # type: ignore[misc]


def test_one_transaction_of_a_registry(book: Registry) -> None:
    """Calls in the block are one transaction: an error takes all of them back."""
    before = list(book.items())

    def write() -> None:
        with book.transaction():
            book.add_checkpoint("a", kind="base")
            book.add_checkpoint("b", kind="base")
            book.add_alias("a", "c")
            assert book.find("c").name == "a"
            with pytest.raises(RegistryError, match="is an alias"):
                book.add_checkpoint("c", kind="base")
            assert len(book.checkpoints()) == 3
            raise PublishError("stop")

    with pytest.raises(PublishError, match="stop"):
        write()
    assert list(book.items()) == before
    with book.transaction():
        book.add_checkpoint("a", kind="base")
        with book.transaction():
            book.add_checkpoint("b", kind="base")
    assert len(book.checkpoints()) == 3
