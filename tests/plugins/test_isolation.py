"""What goes wrong in a plugin, at every door through which its code runs, and harms nobody else."""

import json
import logging
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from omnireg.errors import PluginError
from omnireg.plugins import isolation
from omnireg.plugins.host import DISABLE_VARIABLE, PluginHost
from omnireg.registry import Registry
from tests_support import distribution
from troubled import DOORS, FATAL, METHOD, MODULE, NAME, NOISE, WARNED, Bench, placed, troubled


def surroundings() -> tuple[Any, ...]:
    """Return what a plugin must leave as it was."""
    return (
        signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), Path.cwd(),
        list(warnings.filters), logging.root.manager.disable, torch.get_default_dtype(),
        sys.stdout, sys.stderr,
    )  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("trouble", FATAL)
def test_what_ends_a_plugin_ends_nothing_else(
    site: Path, bench: Bench, door: str, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The command that needs it fails with one line that names it; all others work."""
    troubled(site, door, FATAL[trouble])
    before = surroundings()
    bench.check_others_work()
    done = bench.reach(DOORS[door])
    assert sum(NAME in message for message in caplog.messages) == (door in WARNED)
    assert done.code == 1
    assert done.out == ""
    (error,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert "trouble" in error
    assert "Traceback" not in done.err
    assert not list(Path().glob("*out*"))
    assert surroundings() == before
    with Registry() as book:
        assert {run.status for run in book.runs()} <= {"failed"}


@pytest.mark.parametrize("door", DOORS)
def test_what_a_plugin_prints_and_changes_stays_in_it(site: Path, bench: Bench, door: str) -> None:
    """Stdout is one document, in spite of programs that it starts; all that it set is put back."""
    troubled(site, door, NOISE)
    before = surroundings()
    done = bench.reach(DOORS[door])
    assert done.code == 0, done.err
    assert json.loads(done.out)
    for word in ("printed", "written", "raw", "echoed"):
        assert word in done.err
    assert surroundings() == before
    bench.check_others_work()


@pytest.mark.parametrize("trouble", FATAL)
@pytest.mark.parametrize("door", ["import", "hook"])
def test_a_file_that_goes_wrong_is_refused(bench: Bench, door: str, trouble: str) -> None:
    """With one line that names it, and nothing is made."""
    Path("own.py").write_text(placed(door, FATAL[trouble], MODULE))
    done = bench.merge("average", "out", "--plugin", "own.py")
    assert done.code == 1
    assert done.err.startswith("error: plugin own.py is broken: ")
    assert len(done.err.splitlines()) == 1
    assert not list(Path().glob("*out*"))


def test_a_broken_lazy_strategy_is_listed_with_its_reason(
    site: Path, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """By ``strategies``, and by ``plugins --check``; merges of others say so once."""
    troubled(site, "lazy import", FATAL["exit"])
    listed = {each["name"]: each for each in json.loads(bench.run("strategies", "--json").out)}
    assert (listed["troubled"]["status"], listed["average"]["status"]) == ("broken", "ok")
    reason = "cannot be imported from omnireg_troubled_impl:METHOD: SystemExit: 0"
    assert reason in listed["troubled"]["error"]
    for options, status in (((), "ok"), (("--check",), "broken")):
        found = json.loads(bench.run("plugins", "--json", *options).out)
        (plugin,) = [each for each in found if each["distribution"] == NAME]
        assert plugin["status"] == status
        assert plugin["strategies"] == ["troubled"]
    assert reason in plugin["error"]
    isolation._told.clear()
    caplog.clear()
    assert bench.merge("average", "out").code == 0
    assert [NAME in message for message in caplog.messages] == [True]
    shown = bench.run("strategies", "show", "troubled")
    assert (shown.code, shown.out) == (1, "")
    assert reason in shown.err


def test_a_broken_strategy_with_a_name_of_mergekits_is_passed_over(site: Path) -> None:
    """Mergekit's own stays what the name means."""
    distribution(site, NAME, MODULE.replace('"troubled"', '"linear"'))
    (site / "omnireg_troubled_impl.py").write_text("raise SystemExit")
    plugins = PluginHost()
    plugins.install()
    assert plugins.methods()["linear"].origin.distribution == "mergekit"


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("METHOD = 3", "is not a mergekit MergeMethod of that name"),
        (METHOD.replace("METHOD = Troubled()", "METHOD = Troubled"), "is not a mergekit"),
        (METHOD.replace('name="troubled"', 'name="other"'), "is not a mergekit"),
        (METHOD.replace("METHOD =", "NOTHING ="), "has no attribute 'METHOD'"),
        ("import torch\nMETHOD = type('A', (), {'__getattr__': lambda s, n: exit(0)})()", ""),
    ],
)
def test_what_is_no_strategy_is_broken(site: Path, bench: Bench, method: str, said: str) -> None:
    """Whatever a name leads to."""
    distribution(site, NAME, MODULE)
    (site / "omnireg_troubled_impl.py").write_text(method)
    done = bench.merge("troubled", "out")
    assert done.code == 1
    assert "error: strategy 'troubled' of omnireg-troubled" in done.err
    assert said in done.err
    bench.check_others_work()


def test_a_strategy_of_odd_values_is_listed(site: Path, bench: Bench) -> None:
    """Defaults and types that JSON has no word for, and a type that exits when it is asked."""
    odd = """
from collections.abc import Callable
from typing import Annotated
from pydantic import BeforeValidator
from mergekit.merge_methods import ParameterScope
from mergekit.merge_methods.base import ParameterSpec
class Own:
    pass
def leave(value):
    raise SystemExit(0)
PARAMETERS = (
    ParameterSpec("far", float, ParameterScope.SHARED, float("inf"), "how far"),
    ParameterSpec("own", Annotated[object, Own()], ParameterScope.SHARED, Own(), 3),
    ParameterSpec("call", Callable, ParameterScope.SHARED, print),
    ParameterSpec("gone", Annotated[float, BeforeValidator(leave)], ParameterScope.SHARED, 1.0),
)
"""
    distribution(site, NAME, MODULE)
    text = METHOD.replace("parameters=()", "parameters=PARAMETERS")
    (site / "omnireg_troubled_impl.py").write_text(odd + text)
    for listing in (("strategies",), ("strategies", "show", "troubled")):
        done = bench.run(*listing, "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)
    for more in ("", "parameters: {gone: 2}\n"):
        done = bench.merge("troubled", "out", more=more)
        assert done.code == 1
        assert "the default of 'gone'" in done.err or "parameters.gone" in done.err
        assert "SystemExit: 0" in done.err


# finding


def test_damaged_metadata_break_one_distribution(
    site: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a removal that failed leaves them; the others are found."""
    for number, (metadata, entries) in enumerate(
        [
            (None, b"[omnireg]\nx = a\n"),
            (b"Name: two\nVersion: 1.0\n", b"[omnireg]\njust text\n"),
            (b"Name: three\nVersion: 1.0\n", b"[omnireg]\nx = \xff\n"),
            (b"Name: four\nVersion: 1.0\n", b"[others]\n\xff\n"),
        ]
    ):
        folder = site / f"damaged{number}-1.0.dist-info"
        folder.mkdir()
        (folder / "entry_points.txt").write_bytes(entries)
        if metadata:
            (folder / "METADATA").write_bytes(metadata)
    plugins = PluginHost()
    assert [p.origin.distribution for p in plugins.broken()] == ["damaged0", "damaged1", "damaged2"]
    assert all("install it again" in str(plugin.error) for plugin in plugins.broken())
    assert "damaged3" not in caplog.text
    assert "mmer" in plugins.strategies


def test_the_first_of_two_versions_counts(site: Path) -> None:
    """It is the one whose module is imported."""
    later = site / "later"
    later.mkdir()
    distribution(later, "omnireg-twice", MODULE, "2.0")
    distribution(site, "omnireg-twice", MODULE, "1.0")
    sys.path.append(str(later))
    try:
        found = [p for p in PluginHost().plugins if p.origin.distribution == "omnireg-twice"]
    finally:
        sys.path.remove(str(later))
    assert [plugin.origin.version for plugin in found] == ["1.0"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("omnireg-trubled", "no plugin 'omnireg-trubled' is installed (did you mean 'omnireg-tro"),
        ("numpy", "no plugin 'numpy' is installed; omnireg plugins lists them"),
        ("omnireg", "what comes with omnireg cannot be turned off"),
        ("Omnireg_Troubled, ", None),
        ("all", None),
    ],
)
def test_words_that_turn_nothing_off_are_told(
    site: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    words: str, said: str | None,
) -> None:  # fmt: skip
    """Once, with what may be meant; names are compared as package indexes do."""
    distribution(site, NAME, MODULE)
    monkeypatch.setenv(DISABLE_VARIABLE, words)
    hosts = [PluginHost(), PluginHost()]
    assert ("troubled" in hosts[0].strategies) is (said is not None)
    assert [record.message for record in caplog.records if "OMNIREG" in record.message] == (
        [] if said is None else [m for m in caplog.messages if said in m][:1]
    )
    assert said is None or caplog.messages


def test_a_file_is_what_was_read(tmp_path: Path) -> None:
    """Not what Python kept of it, when it was edited within a second; nothing is kept beside it."""
    file, host = tmp_path / "own.py", PluginHost()
    for name in ("one", "two"):
        file.write_text(MODULE.replace('"troubled"', f'"{name}"'))
        os.utime(file, (0, 0))
        host.load_file(file)
        assert name in host.strategies
    assert not (tmp_path / "__pycache__").exists()
    os.mkfifo(tmp_path / "pipe.py")
    with pytest.raises(PluginError, match="it is a pipe, not a file"):
        host.load_file(tmp_path / "pipe.py")


# waiting


@pytest.mark.parametrize("door", ["import", "hook", "lazy import"])
def test_who_waits_is_told_for_what_and_can_stop_it(site: Path, door: str) -> None:
    """One line after a while says which plugin is imported, and how to do without it."""
    assert isolation.PATIENCE == 10
    troubled(site, door, "import threading; threading.Event().wait()")
    program = (
        "from omnireg.plugins import isolation; isolation.PATIENCE = 0.2\n"
        "from omnireg.cli import console; console()"
    )
    command = [sys.executable, "-c", program, "strategies", "--json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as running:
        assert running.stderr
        line = running.stderr.readline()
        running.send_signal(signal.SIGINT)
        rest = running.communicate(timeout=60)
    assert line.startswith("warning: still importing ")
    assert (
        f"{NAME} after 0.2 s; Ctrl-C stops it; to do without it: {DISABLE_VARIABLE}={NAME}" in line
    )
    assert (running.returncode, *map(str.strip, rest)) == (130, "", "interrupted")
    done = subprocess.run(
        command, capture_output=True, text=True, check=False,
        env={**environment, DISABLE_VARIABLE: NAME},
    )  # fmt: skip
    assert done.returncode == 0
    assert json.loads(done.stdout)
