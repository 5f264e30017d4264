"""Shared parts: a command line that runs in this process, and surroundings of its own."""

import logging
from pathlib import Path

import pytest

from omnireg.cli import main
from tests_support import Outcome, Run


@pytest.fixture(scope="session")
def machine_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for compiled kernels that all processes of a session share."""
    return tmp_path_factory.getbasetemp().parent / "machine-code"


@pytest.fixture(autouse=True)
def own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine_code: Path) -> None:
    """Give every test a working folder, registry and digest cache of its own, and no network."""
    # a command with --quiet makes the process quiet
    logging.getLogger("omnireg").setLevel(logging.NOTSET)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(machine_code))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMNIREG_REGISTRY", str(tmp_path / "registry.db"))
    monkeypatch.setenv("OMNIREG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("OMNIREG_DISABLE_PLUGINS", raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs ``omnireg ARGS`` in this process."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return call
