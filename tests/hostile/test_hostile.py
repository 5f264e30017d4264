"""The scripts beside this file, on few cases with a fixed seed; more with ``OMNIREG_HOSTILE=N``."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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
