"""A new plugin works as it is written: installed, found, tested; and names that cannot be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests_support import Run


def test_a_new_plugin_passes_its_own_tests(run: Run, tmp_path: Path) -> None:
    """Installed for real into a folder of its own, and found by its entry point."""
    done = run("new-plugin", "pull_back", "--json")
    assert done.code == 0, done.err
    shown = json.loads(done.out)
    assert shown["folder"] == "omnireg-pull-back"
    assert "tests/test_pull_back.py" in shown["files"]
    site = tmp_path / "site"
    install = [
        sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation",
        "--no-index", "--target", str(site), "./omnireg-pull-back",
    ]  # fmt: skip
    made = subprocess.run(install, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    environment = {**os.environ, "PYTHONPATH": str(site)}
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "omnireg-pull-back/tests"],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert tested.returncode == 0, tested.stdout
    assert "failed" not in tested.stdout
    listed = subprocess.run(
        [sys.executable, "-m", "omnireg", "plugins", "--json"],
        capture_output=True, text=True, check=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    found = {p["distribution"]: p for p in json.loads(listed.stdout)}
    assert found["omnireg-pull-back"]["status"] == "ok"
    assert found["omnireg-pull-back"]["strategies"] == ["pull_back"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("Pull", "small letters"), ("2nd", "a letter first"), ("mmer", "of omnireg already"),
     ("slerp", "of mergekit already")],
)  # fmt: skip
def test_names_that_cannot_be_are_refused(name: str, said: str, run: Run, tmp_path: Path) -> None:
    """Before anything is written."""
    done = run("new-plugin", name)
    assert done.code == 1
    assert said in done.err
    assert not list(tmp_path.glob("omnireg-*"))


def test_a_folder_that_exists_is_left_alone(run: Run, tmp_path: Path) -> None:
    """Another folder can be named."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    done = run("new-plugin", "other", "mine")
    assert done.code == 1
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert run("new-plugin", "other", "elsewhere").code == 0
    assert (tmp_path / "elsewhere" / "pyproject.toml").exists()
