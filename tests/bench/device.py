"""What a GPU is worth for merging: compiled passes, torch on the CPU and on it, and mergekit on it.

    python tests/bench/device.py FOLDER [--device cuda] [--methods ties,della]

Base and three models of 0.3 B parameters in bfloat16, all in the page cache. The forms of a method
take turns in one process: medians of three after one that does not count, or one turn alone where
that took longer than half a minute. What has a compiled pass makes it on the CPU in any case.
"""

import argparse
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
import yaml
from family import make
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

import omnireg
from engine import recipe, say
from omnireg.plugins.host import PluginHost

RUNS, LONG = 3, 30.0
METHODS = {
    "average": "",
    "omni_ties": "parameters: {density: 0.2}\n",
    "mmer": "",
    "linear": "",
    "ties": "parameters: {density: 0.2}\n",
    "dare_ties": "parameters: {density: 0.2}\n",
    "della": "parameters: {density: 0.5, epsilon: 0.1}\n",
    "breadcrumbs": "parameters: {density: 0.5, gamma: 0.1}\n",
}
COMPILED = ("average", "omni_ties", "mmer", "linear", "ties")


def timed(call: Callable[[Path], object], out: Path) -> float:
    """Return the seconds of a merge into a folder that is not there yet."""
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    call(out)
    return time.perf_counter() - began


def main() -> None:
    """Print the figures of every method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--methods", default=",".join(METHODS), help="only these")
    options = parser.parse_args()
    folder, device = options.folder, options.device
    folder.mkdir(parents=True, exist_ok=True)
    family = make(folder, 0.3, 3)
    PluginHost().install()
    say(f"{torch.cuda.get_device_name()}, {os.cpu_count()} cores")
    for method in options.methods.split(","):
        path = recipe(folder, method, family, METHODS[method])

        def stream(out: Path, *, on: str, path: Path = path) -> None:
            omnireg.merge(path, out, engine="stream", record=False, options={"device": on})

        def mergekit(out: Path, *, path: Path = path) -> None:
            config = MergeConfiguration.model_validate(yaml.safe_load(path.read_text()))
            run_merge(config, str(out), MergeOptions(write_model_card=False, quiet=True,
                                                     cuda=True, device=device))  # fmt: skip

        forms: dict[str, Callable[[Path], object]] = {
            "cpu": partial(stream, on="cpu"),
            f"mergekit on {device}": mergekit,
        }
        if method not in COMPILED:
            forms[device] = partial(stream, on=device)
        taken: dict[str, list[float]] = {form: [] for form in forms}
        for _ in range(RUNS + 1):
            for form, call in forms.items():
                taken[form].append(timed(call, folder / "out"))
            if sum(runs[0] for runs in taken.values()) > LONG:
                break
        found = {form: median(runs[1:] or runs) for form, runs in taken.items()}
        said = [f"{form} {seconds:.2f} s ({seconds / found['cpu']:.2f} x)"
                for form, seconds in found.items()]  # fmt: skip
        turns = len(taken["cpu"])
        say(f"{method}: {', '.join(said)} ({turns} turns)")


if __name__ == "__main__":
    main()
