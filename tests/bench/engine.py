"""Figures of the streaming engine, as ratios against peers in the same run.

    python tests/bench/engine.py /tmp/bench [--quick]

Every merge runs in a process of its own. Engine time leaves imports out on both sides; whole
processes are the two commands as people type them, ours without recording, which mergekit does not
do. Peers take turns with ours, and medians are compared.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from family import make

ONE = Path(__file__).with_name("one.py")
THREADS = str(os.cpu_count() or 1)


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def recipe(folder: Path, method: str, models: list[Path], extra: str = "") -> Path:
    """Write the recipe of a merge of ``models``, the first being the base, and return its path."""
    base, *others = models
    listed = "".join(f"  - {{model: {m}, parameters: {{weight: 1.0}}}}\n" for m in others)
    head = "" if method == "linear" else f"base_model: {base}\n"
    if method == "mmer":
        extra = f"parameters: {{density: 0.2, mask_of: {others[0]}}}\n"
    path = folder / f"{method}-{len(others)}-{base.name}.yml"
    path.write_text(f"merge_method: {method}\n{head}models:\n{listed}dtype: bfloat16\n{extra}")
    return path


def once(engine: str, path: Path, out: Path, **env: str) -> dict[str, Any]:
    """Run one merge in a process of its own and return what it measured."""
    done = subprocess.run(
        [sys.executable, str(ONE), engine, str(path), str(out), THREADS],
        check=True, capture_output=True, text=True, env={**os.environ, **env},
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def process(engine: str, path: Path, out: Path, *options: str, **env: str) -> dict[str, Any]:
    """Run one merge by its command, and time all of it."""
    programs = Path(sys.executable).parent
    shutil.rmtree(out, ignore_errors=True)
    merging = [str(path), str(out)]
    command = [str(programs / "mergekit-yaml"), *merging, "--no-write-model-card"]
    if engine == "stream":
        command = [str(programs / "omnireg"), "merge", *merging, "--threads", THREADS, *options]
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **env})
    return {"seconds": time.perf_counter() - began}


def copied(models: list[Path], out: Path) -> dict[str, Any]:
    """Read every input and write one of them: the least that a merge must do."""
    began = time.perf_counter()
    files = [str(m / "model.safetensors") for m in models]
    with Path(os.devnull).open("wb") as nothing:
        subprocess.run(["cat", *files], stdout=nothing, check=True)
    out.unlink(missing_ok=True)
    subprocess.run(["cp", files[0], str(out)], check=True)
    return {"seconds": time.perf_counter() - began}


def pairs(
    name: str, ours: Callable[[], dict[str, Any]], peer: Callable[[], dict[str, Any]], rounds: int,
    *, inverse: bool = False,
) -> None:  # fmt: skip
    """Print the median ratio of two things that take turns."""
    found = [(ours(), peer()) for _ in range(rounds)]
    a, b = (median(pair[side]["seconds"] for pair in found) for side in (0, 1))
    ratio = f"{b / a:.1f} x faster" if inverse else f"{a / b:.2f} x"
    say(f"{name}: {a:.2f} s against {b:.2f} s: {ratio} (median of {rounds})")


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true", help="without mergekit's TIES and growth")
    options = parser.parse_args()
    work: Path = options.folder
    work.mkdir(parents=True, exist_ok=True)
    out, copy = work / "out", work / "copy"
    say(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, threads {THREADS}")
    three = make(work, 0.3, 3)
    dense = "parameters: {density: 0.2}\n"
    ties = recipe(work, "ties", three, dense)
    linear = recipe(work, "linear", three)
    average = recipe(work, "average", three)
    omni = recipe(work, "omni_ties", three, dense)
    mmer = recipe(work, "mmer", three)

    with tempfile.TemporaryDirectory() as fresh:
        first, again = (
            process("stream", ties, out, "--no-record", NUMBA_CACHE_DIR=fresh)["seconds"]
            for _ in range(2)
        )
    say(f"first run ever: {first - again:.1f} s more (kernels compile)")

    def engine(which: str, path: Path) -> Callable[[], dict[str, Any]]:
        return lambda: once(which, path, out)

    stream = partial(engine, "stream")

    def command(engine: str, path: Path, *options: str) -> Callable[[], dict[str, Any]]:
        return lambda: process(engine, path, out, *options)

    for name, path in (("average", average), ("ties", ties)):
        pairs(f"{name}, engine, against cat + cp", stream(path), lambda: copied(three, copy), 7)
    pairs("mmer with a mask, engine, against omni_ties", stream(mmer), stream(omni), 5)
    name = "mmer with its vector and three masks, passes on one thread, against omni_ties"
    pairs(name, engine("passes", mmer), engine("passes", omni), 5)
    peer = engine("mergekit-yaml", linear)
    pairs("linear, engine, against mergekit", stream(linear), peer, 5, inverse=True)
    ours, peer = command("stream", linear, "--no-record"), command("mergekit-yaml", linear)
    pairs("linear, whole process, against mergekit-yaml", ours, peer, 3, inverse=True)
    registry = ("--registry", str(work / "registry.db"))
    recorded = sorted(command("stream", ties, "--name", f"n{i}", *registry)()["seconds"]
                      for i in range(4))  # fmt: skip
    say(f"ties, whole process with recording, inputs hashed before: {recorded[1]:.2f} s")
    memory = max(once("stream", p, out)["private_bytes"] for p in (average, ties, omni, mmer))
    say(f"private memory at most: {memory / 1e6:.0f} MB")
    if options.quick:
        return
    ours, peer = command("stream", ties, "--no-record"), command("mergekit-yaml", ties)
    pairs("ties, whole process, against mergekit-yaml", ours, peer, 3, inverse=True)
    for billions in (0.1, 0.3, 0.6):
        for models in (2, 4, 8):
            family = make(work, billions, models)
            found = once("stream", recipe(work, "omni_ties", family, dense), out)
            say(
                f"omni_ties, {billions} B x (1 + {models}): {found['seconds']:.2f} s,"
                f" {found['private_bytes'] / 1e6:.0f} MB private"
            )


if __name__ == "__main__":
    main()
