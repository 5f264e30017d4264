"""Several processes and threads on one registry, and a process that dies."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import omnireg.registry
from omnireg.registry import Parent, Registry, RunStatus

ROOT = Path(omnireg.registry.__file__).parents[2]

WRITER = """
import sys
from omnireg.registry import Registry
path, me, writes = sys.argv[1:]
with Registry(path) as registry:
    for index in range(int(writes)):
        if index % 2:
            registry.add_score(f"{me}-{index - 1}", "mme", index)
        else:
            registry.add_checkpoint(f"{me}-{index}", kind="base")
"""

CRASH = """
import os, sys
from omnireg.registry import Registry
Registry(sys.argv[1]).start_run(
    "m", out="o", recipe_text="r", recipe_digest="d", strategy="s", engine="e"
)
os._exit(9)
"""


def _spawn(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("processes", "writes"), [(2, 50), (8, 500)])
def test_many_processes_lose_nothing(path: Path, processes: int, writes: int) -> None:
    """Writers that race to create the registry keep all they wrote, and none is turned away."""
    writers = [_spawn(WRITER, str(path), f"p{n}", str(writes)) for n in range(processes)]
    said = [writer.communicate(timeout=300)[1] for writer in writers]
    assert said == [""] * processes
    registry = Registry(path)
    half = processes * writes // 2
    counted = registry.sql("SELECT (SELECT count(*) FROM v_checkpoints), count(*) FROM v_scores")
    assert counted.rows == ((half, half),)
    # one more: all processes score on the same benchmark
    assert registry.sql("SELECT count(*) FROM v_events").rows == ((processes * writes + 1,),)
    assert registry.check() == []


def test_threads_may_share_a_registry(registry: Registry) -> None:
    """One object serves several threads, from the first write on."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: registry.add_checkpoint(f"m{i}", kind="base"), range(20)))
        found = list(pool.map(lambda i: registry.find(f"m{i}").name, range(20)))
    assert found == [f"m{index}" for index in range(20)]


def test_threads_may_share_one_in_memory() -> None:
    """A registry in memory is one registry for all threads."""
    with Registry("sqlite://") as registry, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: registry.add_checkpoint(f"m{i}", kind="base"), range(20)))
        assert len(registry.checkpoints()) == 20


def test_opposite_edges_from_two_threads_make_no_cycle(family: Registry) -> None:
    """Of two writers that would close a circle together, one is refused."""

    def link(pair: tuple[str, str]) -> bool:
        try:
            family.add_checkpoint(pair[0], kind="finetuned", parents=[Parent(pair[1])])
        except omnireg.errors.RegistryError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        linked = list(pool.map(link, [("vision", "audio"), ("audio", "vision")]))
    assert sorted(linked) == [False, True]
    assert family.check() == []


def test_a_crashed_run_leaves_a_trace(registry: Registry, path: Path) -> None:
    """A run whose process died is still running in the record, until somebody fails it."""
    process = _spawn(CRASH, str(path))
    process.communicate(timeout=60)
    assert process.returncode == 9
    (run,) = registry.runs(RunStatus.RUNNING)
    assert registry.fail_run(run.id, "the process died").status is RunStatus.FAILED
    assert registry.runs("running") == []
