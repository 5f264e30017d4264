"""The scripts beside this file, on few cases with a fixed seed; more with ``OMNIREG_HOSTILE=N``."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import omnireg
from loopback_hub import Hub
from omnireg.checkpoints import contents
from omnireg.errors import OmniregError
from omnireg.hub import carry_out, plan_publication, pull
from omnireg.registry import Registry
from omnireg.testing.family import make_family

HERE = Path(__file__).parent
#: how many times the usual number of cases
TIMES = int(os.environ.get("OMNIREG_HOSTILE", "1"))


def summary(script: str, folder: Path, *options: object) -> dict[str, Any]:
    """Run a script in a process of its own and return what it counted; nothing may be wrong."""
    done = subprocess.run(
        [sys.executable, str(HERE / script), str(folder), *map(str, options)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    assert not found.pop("wrong")
    return found


@pytest.mark.slow
def test_damage_is_refused_by_name_or_has_no_effect(tmp_path: Path) -> None:
    """Bits that flip, and edits that are sealed anew: no traceback, no file outside."""
    found = summary("sweep.py", tmp_path / "yard", "--every", 3 * TIMES, "--edits", 700 * TIMES)
    flips, edits = found["flips"], found["edits"]
    assert flips["verify: refused"] > 500
    assert flips["extract: refused"] > 300
    assert set(flips) == {"verify: refused", "extract: refused", "extract: without effect"}
    assert set(edits) == {"refused", "taken"}
    assert sum(flips.values()) + sum(edits.values()) >= 2000


@pytest.mark.slow
def test_the_same_command_ends_what_was_stopped(tmp_path: Path) -> None:
    """Killed, terminated, interrupted at random moments: whole and recorded after one more run."""
    found = summary("signals.py", tmp_path / "yard", "--cases", 15 * TIMES)
    stopped = sum(counts.get("stopped", 0) for counts in found["counts"].values())
    assert stopped >= 5


REPO = "acme/small"


@pytest.mark.slow
def test_a_flip_in_a_repository_is_refused_by_name_or_has_no_effect(
    hub: Hub, tmp_path: Path
) -> None:
    """Every file of a published merge: what is pulled is what was published, or nothing is."""
    family = make_family(tmp_path / "family")
    models = "".join(f"  - model: {model}\n" for model in family.models[:2])
    book = Registry("mine.db")
    book.add_checkpoint("theirs", kind="base")
    omnireg.merge(f"merge_method: average\nmodels:\n{models}", Path("small"), registry=book)
    book.add_score("small", "digits", 0.5, n=100)
    carry_out(book, plan_publication(book, "small", REPO))
    whole = {path: content(hub, path) for path in hub.repos[REPO].branches["main"][-1].files}
    wanted = pulled()
    random_, seen = random.Random(0), {"refused": 0, "without effect": 0}
    for path, raw in whole.items():
        for offset in sorted(random_.choices(range(len(raw)), k=6 * TIMES)):
            flipped = bytearray(raw)
            flipped[offset] ^= 1 << random_.randrange(8)
            hub.commit(REPO, {path: bytes(flipped)})
            found = pulled()
            if isinstance(found, OmniregError):
                assert path in str(found), f"{path} {offset}: {found}"
                seen["refused"] += 1
            else:
                assert found == wanted, f"{path} {offset} was taken"
                assert path in ("README.md", ".gitattributes")
                seen["without effect"] += 1
        hub.commit(REPO, {path: raw})
    assert pulled() == wanted
    assert seen["refused"] > 5 * (len(whole) - 2)


def content(hub: Hub, path: str) -> bytes:
    """Return a file of the repository."""
    file = hub.repos[REPO].branches["main"][-1].files[path]
    return file.content if file.content is not None else hub.stored[str(file.sha)]


def pulled() -> Any:
    """Return what a pull makes and records, or the error; nothing of it stays."""
    book = Registry("theirs.db")
    try:
        pull(book, REPO, to=Path("back"))
        items = [
            (kind, {key: said for key, said in fields.items() if key != "created_at"})
            for kind, fields in book.items()
            if kind != "checkpoint"
        ]
        rows = [(row.name, row.kind, row.fingerprint, row.parents) for row in book.checkpoints()]
        return items, rows, contents.digests(Path("back"))
    except OmniregError as exc:
        assert not Path("back").exists()
        return exc
    finally:
        shutil.rmtree("back", ignore_errors=True)
        for suffix in ("", "-wal", "-shm"):
            Path(f"theirs.db{suffix}").unlink(missing_ok=True)
