"""Pulls that are killed at any moment, and repositories that nobody would write.

With a fixed seed; ``OMNIREG_HOSTILE=N`` makes them N times as many, repositories from another seed.
"""

import copy
import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import pytest
import yaml
from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from loopback_hub import Hub, surroundings
from omnireg.boundary import pickles
from omnireg.boundary.text import is_plain
from omnireg.checkpoints.checkpoint import combine_digests
from omnireg.errors import OmniregError
from omnireg.hub import pull, pulling
from omnireg.hub.client import client
from omnireg.registry import Registry

REPO = "acme/theirs"
#: how many times the usual number of cases
TIMES = int(os.environ.get("OMNIREG_HOSTILE", "1"))

# kills

#: a process whose children pull; it imports what the first of them did, so that a kill of the
#: others meets work, not imports
DRIVER = """
import importlib, json, os, sys
from omnireg.cli import main
for number, line in enumerate(sys.stdin):
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = main(json.loads(line))
        if number == 0:
            open("modules", "w").write(" ".join(name for name in sys.modules if name[:2] != "__"))
        os._exit(code)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
    if number == 0:
        for name in open("modules").read().split():
            importlib.import_module(name)
"""


class Puller:
    """Pulls in processes of their own."""

    def __init__(self, env: dict[str, str]) -> None:
        self._driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the driver."""
        self._driver.communicate()

    def start(self) -> int:
        """Begin a pull and return the number of its process."""
        assert self._driver.stdin is not None
        self._driver.stdin.write(json.dumps(["pull", REPO, "--to", "deep/back"]) + "\n")
        self._driver.stdin.flush()
        return self._said()

    def end(self) -> int:
        """Wait for its end and return its exit code, negative after a signal."""
        return os.waitstatus_to_exitcode(self._said())

    def _said(self) -> int:
        assert self._driver.stdout is not None
        return int(self._driver.stdout.readline())


FILES = {
    "model-1.safetensors": b"1" * 300_000, "model-2.safetensors": b"2" * 300_000,
    "config.json": b"{}", "sub/notes.txt": b"n",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    ).encode(),
    "omnireg.manifest.yaml": yaml.safe_dump(
        {
            "omnireg": 1,
            "checkpoints": [
                {"name": "base", "kind": "base"},
                {"name": "omni", "kind": "merged", "source": REPO, "parents": [{"name": "base"}]},
            ],
            "scores": [{"checkpoint": "omni", "benchmark": "b", "value": 1}],
            "benchmarks": [{"name": "b"}],
        }
    ).encode(),
}  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty registry in one file."""
    found = Registry(tmp_path_factory.mktemp("small") / "registry.db")
    found.upgrade()
    with sqlite3.connect(found.where) as database:
        database.execute("PRAGMA journal_mode=DELETE")
    return Path(found.where)


def is_whole(folder: Path) -> bool:
    """Whether a folder holds what was published; it never holds some of it."""
    if not folder.exists():
        return False
    there = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    assert {name: path.read_bytes() for name, path in there.items()} == FILES
    return True


def is_recorded(book: Registry) -> bool:
    """Whether all of it is recorded; it never is in part."""
    items = list(book.items()) if book.exists() else []
    assert len(items) in (0, 4)
    return bool(items)


@pytest.fixture
def puller(hub: Hub, tmp_path: Path) -> Iterator[Puller]:
    """What pulls in processes of their own."""
    env = {**os.environ, **surroundings(hub, tmp_path), "HF_HUB_DISABLE_XET": "1"}
    with Puller(env) as found:
        yield found


def usual_time(puller: Puller) -> float:
    """Return how long a pull takes that nothing disturbs, when everything is imported."""
    for _ in range(3):
        shutil.rmtree("deep", ignore_errors=True)
        began = time.monotonic()
        puller.start()
        assert puller.end() == 0
    return time.monotonic() - began


@pytest.mark.slow
def test_kills_at_any_moment(hub: Hub, puller: Puller, small: Path) -> None:
    """After the same command again the folder is whole and recorded, and nothing else is left."""
    hub.only(REPO, FILES)
    chance = random.Random(20261127)
    folder, book = Path("deep/back"), Registry()
    usual, met = usual_time(puller), 0
    for _ in range(10 * TIMES):
        shutil.rmtree("deep")
        for end in ("", "-wal", "-shm"):
            Path(f"registry.db{end}").unlink(missing_ok=True)
        if chance.random() < 0.8:
            shutil.copy(small, "registry.db")
        for _ in range(chance.choice([1, 1, 2])):
            process = puller.start()
            time.sleep(chance.uniform(0, usual))
            with suppress(ProcessLookupError):
                os.kill(process, chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
            code = puller.end()
            met += code != 0
            whole, recorded = is_whole(folder), is_recorded(book)
            assert whole or not recorded
            if code > 0:  # it could tidy up
                assert not Path("deep").exists() or whole
        puller.start()
        assert puller.end() == 0
        assert is_whole(folder)
        assert is_recorded(book)
        assert book.find("omni").source == str(folder.resolve())
        assert len(book.publications("omni")) == 1
        assert [path.name for path in Path("deep").iterdir()] == ["back"]
    assert met


# repositories that nobody would write

_settings = settings(
    derandomize=TIMES == 1,
    max_examples=80 * TIMES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
_odd_text = st.text(max_size=12) | st.sampled_from(
    ["", " ", ".", "..", "/", "/etc/passwd", "../x", "a\x1b[2Jb", "\u202etxt", "x" * 2000, "null",
     "0" * 64, "ab" * 32, "mine", "base", REPO, f"{REPO}@main", "acme/p0", "~", "1e999", "=", "*a"]
)  # fmt: skip
_odd: SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _odd_text
    | st.sampled_from([10**400, -1, 2**63, 1.5]),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(_odd_text, some, max_size=3),
    max_leaves=4,
)  # fmt: skip


def mostly(proper: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """Return what is proper three times out of four."""
    return st.integers(0, 3).flatmap(lambda die: _odd if die == 0 else proper)


_proper_names = st.sampled_from(
    ["model.safetensors", "config.json", "sub/a.txt", "sub/b.json", "x.py", "README.md", "LICENSE",
     ".gitattributes", ".cache/x.txt", "deep/er/w.safetensors", "tokenizer.model"]
)  # fmt: skip
_odd_names = st.lists(
    st.sampled_from(
        ["a", "A", "sub", "Sub", "..", ".", "", ".git", "y.bin", "é", "e\u0301", "nul", "z\n",
         "Config.json", "\u202e", "x" * 250, "model.safetensors"]
    ),
    min_size=1, max_size=3,
).map("/".join) | st.text(max_size=8)  # fmt: skip
_names = st.integers(0, 8).flatmap(lambda die: _proper_names if die else _odd_names)
_contents = st.binary(max_size=30) | st.sampled_from(
    [
        b"",
        b"w",
        b"\x80\x04N.",
        b"cos\nsystem\n(S'x'\ntR.",
        b"PK\x03\x04",
        b"{}",
        b"---\na: b\n---\n",
    ]
)
_name = st.sampled_from(["mine", "theirs", "base", "new"])
_proper_manifest: dict[str, Any] = {
    "omnireg": 1,
    "benchmarks": [{"name": "b"}, {"name": "c", "higher_is_better": False, "unit": "%"}],
    "checkpoints": [
        {"name": "theirs", "kind": "merged", "source": REPO, "fingerprint": None, "strategy": "s",
         "modalities": ["image"], "details": {"a": [1]}, "aliases": [], "notes": "n",
         "parents": [{"name": "base", "role": "base", "weight": 0.5}, {"name": "new"}]},
        {"name": "base", "kind": "base", "source": "acme/p0", "fingerprint": "cd" * 32},
        {"name": "new", "kind": "finetuned", "parents": [{"name": "base"}], "absent": False},
    ],
    "scores": [
        {"checkpoint": "theirs", "benchmark": "b", "value": 0.5, "metric": "acc", "n_shot": 1},
        {"checkpoint": "new", "benchmark": "c", "value": 1, "setup": {"a": 1}, "n": 3},
    ],
    "runs": [
        {"name": "theirs", "checkpoint": "theirs", "out": "x", "machine": "y", "status": "done",
         "started_at": "2026-01-01T00:00:00Z", "recipe_text": "r", "recipe_digest": "d", "seed": 1,
         "strategy": "s", "engine": "e", "parameters": {}, "versions": {}},
    ],
}  # fmt: skip


@st.composite
def manifests(draw: st.DrawFn) -> bytes:
    """Return a manifest in which something may be odd, or the text of one that was hurt."""
    said = copy.deepcopy(_proper_manifest)
    for _ in range(draw(st.integers(0, 2))):
        section = draw(st.sampled_from([*said, "tables", "other"]))
        entries = said.get(section)
        if not isinstance(entries, list) or not entries or not draw(st.integers(0, 6)):
            said[section] = draw(_odd)
            continue
        entry = draw(st.sampled_from(entries))
        if not isinstance(entry, dict):
            continue
        field = draw(st.sampled_from([*entry, "x", "absent", "fingerprint", "aliases"]))
        if draw(st.booleans()):
            entry[field] = draw(_odd | _name)
        else:
            entry.pop(field, None)
    return hurt(draw, yaml.safe_dump(said, sort_keys=False).encode())


def hurt(draw: Callable[[SearchStrategy[Any]], Any], text: bytes) -> bytes:
    """Return text of which a piece may be missing or another one."""
    if draw(st.integers(0, 3)) or not text:
        return text
    place: int = draw(st.integers(0, len(text) - 1))
    other: bytes = draw(st.binary(max_size=4))
    return text[:place] + other + text[place + draw(st.integers(0, 9)) :]


@st.composite
def cards(draw: st.DrawFn) -> bytes:
    """Return a card in which anything may be odd."""
    bases = st.sampled_from(["acme/p0", "acme/p1", "acme/p2", REPO, "gone/away", "gpt2"])
    metric = st.fixed_dictionaries({"type": mostly(_name), "value": mostly(st.floats(0, 1))})
    result = st.fixed_dictionaries(
        {"dataset": mostly(st.fixed_dictionaries({"name": mostly(_name)})),
         "metrics": mostly(st.lists(metric, max_size=3))}
    )  # fmt: skip
    model = st.fixed_dictionaries({"results": mostly(st.lists(result, max_size=2))})
    said = {
        "base_model": draw(mostly(bases | st.lists(mostly(bases), max_size=4))),
        "base_model_relation": draw(mostly(st.sampled_from([None, "merge", "finetune"]))),
        "model-index": draw(mostly(st.lists(mostly(model), max_size=2))),
        "license": draw(_odd),
    }
    return hurt(draw, b"---\n" + yaml.safe_dump(said).encode() + b"---\ntext")


class Trial:
    """One Hub and one client, and a fresh copy of a registry for each repository."""

    def __init__(self, hub: Hub, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made = client()
        monkeypatch.setattr(pulling, "client", lambda: made)
        self._hub, self._small = hub, small
        self.worked = 0

    def pull(self, files: dict[str, bytes], *, lfs: bool, metadata_only: bool) -> None:
        """Pull a repository: it works, or raises one error and leaves nothing."""
        self._hub.only(REPO, files, lfs=lfs)
        shutil.rmtree("trial", ignore_errors=True)
        Path("trial").mkdir()
        book = Registry(shutil.copy(self._small, "trial/registry.db"))
        book.add_checkpoint("mine", kind="base", fingerprint="ab" * 32)
        book.add_score("mine", "b", 0.5, metric="acc")
        before = [json.dumps(item) for item in book.items()]
        folder = Path("trial/into/folder")
        failed: OmniregError | None = None
        try:
            found = pull(book, REPO, to=folder, metadata_only=metadata_only)
        except OmniregError as exc:
            failed = exc
        if failed is not None:
            assert is_plain(str(failed))
            assert [json.dumps(item) for item in book.items()] == before
            assert not folder.parent.exists()
            return
        self.worked += 1
        after = [json.dumps(item).encode().decode() for item in book.items()]
        assert [item for item in before if item not in after] == []
        assert book.check() == []
        assert all(is_plain(line) for line in found.warnings)
        self._check_fingerprint(found.fingerprint, files, known=lfs or not metadata_only)
        if not metadata_only:
            self._check_folder(folder, files)

    def _check_fingerprint(self, said: str | None, files: dict[str, bytes], *, known: bool) -> None:
        if said is not None:
            assert known
            weights = [name for name in files if name.endswith(".safetensors")]
            true = {
                combine_digests((name, sha256(files[name]).hexdigest()) for name in some)
                for count in range(1, len(weights) + 1)
                for some in itertools.combinations(weights, count)
            }
            assert said in true

    def _check_folder(self, folder: Path, files: dict[str, bytes]) -> None:
        there = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
        for name, path in there.items():
            assert path.read_bytes() == files[name]
            assert not name.endswith(".py")
            assert pickles.of_name(name) is None
            assert pickles.of_file(path) is None
        assert {path.name for path in Path("trial").iterdir()} <= {
            "registry.db", "registry.db-wal", "registry.db-shm", "into",
        }  # fmt: skip
        assert [path.name for path in folder.parent.iterdir()] == ["folder"]


@pytest.fixture
def trial(hub: Hub, small: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trial]:
    """What tries repositories, of which some work."""
    disable_progress_bars()
    found = Trial(hub, small, monkeypatch)
    yield found
    enable_progress_bars()
    assert found.worked


@pytest.mark.slow
@_settings
@given(st.dictionaries(_names, _contents, max_size=5), st.booleans(), st.booleans())
def test_any_names(trial: Trial, files: dict[str, bytes], lfs: bool, metadata_only: bool) -> None:
    """Whatever the files of a repository are called and hold."""
    trial.pull(files, lfs=lfs, metadata_only=metadata_only)


@pytest.mark.slow
@_settings
@given(manifests(), st.booleans(), st.booleans())
def test_any_manifests(trial: Trial, text: bytes, lfs: bool, metadata_only: bool) -> None:
    """Whatever a manifest says."""
    files = {"model.safetensors": b"w", "omnireg.manifest.yaml": text}
    trial.pull(files, lfs=lfs, metadata_only=metadata_only)


@pytest.mark.slow
@_settings
@given(st.lists(cards(), min_size=3, max_size=3))
def test_any_cards(trial: Trial, hub: Hub, texts: list[bytes]) -> None:
    """Whatever cards say, and those of the parents that they name."""
    for number, text in enumerate(texts[1:]):
        hub.only(f"acme/p{number}", {"README.md": text, "model.safetensors": b"%d" % number})
    files = {"model.safetensors": b"w", "README.md": texts[0]}
    trial.pull(files, lfs=True, metadata_only=True)


@pytest.mark.slow
@_settings
@given(
    mostly(st.fixed_dictionaries({"weight_map": mostly(st.dictionaries(_name, mostly(_names)))})),
    st.sampled_from(["model", "vector"]), st.booleans(), st.booleans(), st.data(),
)  # fmt: skip
def test_any_indexes(
    trial: Trial, said: Any, kind: str, lfs: bool, metadata_only: bool, data: st.DataObject
) -> None:
    """Whatever an index names."""
    text = hurt(data.draw, json.dumps(said).encode())
    files = {"model.safetensors": b"w", f"{kind}.safetensors.index.json": text, "a": b"x"}
    trial.pull(files, lfs=lfs, metadata_only=metadata_only)
