"""`analyze shift` and merges side by side: ``python tests/bench/analysis.py FOLDER``.

A base and three models of 0.3 B in bf16. The peers: `cat` of the inputs, the same figures computed
with torch tensor by tensor, and merges one after the other.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors import safe_open

from omnireg.analysis.shift import shift
from omnireg.merging import Job, merge, merge_together
from omnireg.recipe import parse_recipe

from family import make  # isort: skip

ROUNDS = 5
ALPHAS = (0.1, 0.3, 0.5, 0.7)


def with_torch(base: Path, models: list[Path]) -> list[float]:
    """Return Δavg of every model; cosines and conflicts are computed as well."""
    totals = torch.zeros(len(models), dtype=torch.float64)
    products = torch.zeros(len(models), len(models), dtype=torch.float64)
    numel = conflicts = moved = 0
    opened: list[Any] = [safe_open(p / "model.safetensors", "pt") for p in (base, *models)]
    for name in opened[0].keys():  # noqa: SIM118
        zero, *others = (as_float(file, name) for file in opened)
        vectors = torch.stack([other - zero for other in others])
        totals += vectors.abs().sum(1, dtype=torch.float64)
        products += (vectors @ vectors.T).double()
        up, down = (vectors > 0).any(0), (vectors < 0).any(0)
        conflicts += int((up & down).sum())
        moved += int((up | down).sum())
        for i in range(len(models)):
            for j in range(i):
                (vectors[i].sign() * vectors[j].sign() > 0).sum()
        numel += zero.numel()
    return (totals / numel).tolist()


def as_float(file: Any, name: str) -> torch.Tensor:
    """Return a tensor of a file in float32 and one dimension."""
    found: torch.Tensor = file.get_tensor(name).float().flatten()
    return found


def private_megabytes() -> float:
    """Return how much memory is this process's own, memory maps left out."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("RssAnon"))


def forget(files: list[str]) -> None:
    """Drop files from the page cache, as inputs larger than memory would be."""
    for name in files:
        with Path(name).open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(work: Callable[[], object]) -> float:
    """Return how long something takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> None:
    """Print one line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    base, *models = make(folder, 0.3, 3)
    names = [str(model) for model in models]
    files = [str(f) for place in (base, *models) for f in place.glob("*.safetensors")]
    say = sys.stdout.write

    def read() -> None:
        with Path("/dev/null").open("wb") as nowhere:
            subprocess.run(["cat", *files], stdout=nowhere, check=True)

    def ours() -> object:
        return shift(str(base), names)

    before, most = private_megabytes(), 0.0

    def tick(done: int, total: int) -> None:
        nonlocal most
        most = max(most, private_megabytes())

    shift(str(base), names, tick=tick)  # compiles
    found: dict[str, list[float]] = {"cat": [], "shift": [], "torch": []}
    for _ in range(ROUNDS):
        found["cat"].append(seconds(read))
        found["shift"].append(seconds(ours))
    for _ in range(2):
        found["torch"].append(seconds(lambda: with_torch(base, models)))
    cat, own, peer = (median(found[name]) for name in ("cat", "shift", "torch"))
    say(f"cat of the inputs {cat:.2f} s; shift {own:.2f} s, {own / cat:.1f} x; ")
    say(f"torch {peer:.1f} s, {peer / own:.1f} x slower ; {most - before:.0f} MB\n")

    text = "merge_method: delta_weighted\nbase_model: {}\nmodels:\n{}parameters: {{alpha0: {}}}\n"
    listed = "".join(f"  - model: {name}\n" for name in names)
    recipes = {str(a): parse_recipe(text.format(base, listed, a)) for a in ALPHAS}

    def clean() -> None:
        for alpha in recipes:
            shutil.rmtree(folder / f"out-{alpha}", ignore_errors=True)

    def apart(forgetting: bool) -> None:
        for alpha, recipe in recipes.items():
            if forgetting:
                forget(files)
            merge(recipe, folder / f"out-{alpha}", record=False)

    def together(forgetting: bool) -> None:
        if forgetting:
            forget(files)
        jobs = [Job(r, folder / f"out-{alpha}", alpha) for alpha, r in recipes.items()]
        merge_together(jobs, record=False)

    for forgetting in (False, True):
        if forgetting:
            forget(files)
            say(f"inputs read from the disk before each merge: cat of them {seconds(read):.2f} s; ")
        times: dict[str, list[float]] = {"apart": [], "together": []}
        for _ in range(3):
            for name, work in (("apart", apart), ("together", together)):
                clean()
                times[name].append(seconds(partial(work, forgetting)))
        clean()
        one, other = median(times["apart"]), median(times["together"])
        say(f"{len(ALPHAS)} merges one by one {one:.1f} s, side by side {other:.1f} s, ")
        say(f"{other / one:.2f} x\n")


if __name__ == "__main__":
    main()
