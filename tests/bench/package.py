"""Packages: how long one takes to write and to read, and how many bytes it has.

    python tests/bench/package.py FOLDER

0.3 B parameters, a base and three models, bfloat16. Reading is forming every decoupled tensor of
one model on one thread, against the plain form: τ★ and the mask with all their zeros.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numba
import numpy as np
from family import make
from numpy.typing import NDArray

from engine import once, recipe
from omnireg.package import Package
from omnireg.package.inspecting import inspect


@numba.njit(nogil=True, error_model="numpy")
def plain(
    zero: NDArray[np.uint16], vector: NDArray[np.uint16], mask: NDArray[np.uint8],
    out: NDArray[np.uint16],
) -> None:  # fmt: skip
    """θ₀ + m∘τ★ from dense bfloat16 arrays, rounded to the nearest even."""
    size = 1024
    base, change = np.empty(size, np.uint32), np.empty(size, np.uint32)
    for start in range(0, len(zero), size):
        count = min(size, len(zero) - start)
        for i in range(count):
            at = start + i
            kept = (mask[at >> 3] >> np.uint8(at & 7)) & np.uint8(1)
            base[i] = np.uint32(zero[at]) << np.uint32(16)
            change[i] = (np.uint32(vector[at]) * np.uint32(kept)) << np.uint32(16)
        total = base.view(np.float32)
        part = change.view(np.float32)
        for i in range(count):
            total[i] += part[i]
        for i in range(count):
            even = (base[i] >> np.uint32(16)) & np.uint32(1)
            out[start + i] = (base[i] + np.uint32(0x7FFF) + even) >> np.uint32(16)


def timed(call: Any) -> float:
    """Return how many seconds a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    base, *models = make(folder, 0.3, 3)
    listed = "".join(f"  - {{model: {m}, parameters: {{weight: 1.0}}}}\n" for m in models)
    senses = ", ".join(f"m{i}: {m}" for i, m in enumerate(models))
    path = folder / "package.yml"
    path.write_text(
        f"merge_method: mmer\nbase_model: {base}\nmodels:\n{listed}parameters: {{density: 0.2}}\n"
        f"omnireg: {{output: package, modalities: {{{senses}}}}}\n"
    )
    ties = recipe(folder, "omni_ties", [base, *models], "parameters: {density: 0.2}\n")
    out = folder / "package"
    turns = [
        (once("stream", path, out)["seconds"], once("stream", ties, folder / "out")["seconds"])
        for _ in range(3)
    ]
    ours, theirs = (median(turn[side] for turn in turns) for side in (0, 1))
    say = sys.stdout.write
    say(f"written: {ours:.2f} s, omni_ties alone {theirs:.2f} s: {ours / theirs:.2f} x\n")
    package = Package(out)
    found = inspect(package)
    say(f"{found.ratio:.3f} x one model, {found.to_json()['ratio_to_bound']:.4f} x the bound\n")
    model = package.model_of("m0")
    dense = {
        name: (
            np.frombuffer(package.read(package.base.header(name)), np.uint16),
            package.task_vector(name).view(np.uint16),
            np.packbits(package.mask(name, model), bitorder="little"),
            np.empty(coded.numel, np.uint16),
        )
        for name, coded in package.vector.items()
    }
    for name, arrays in dense.items():
        plain(*arrays)
        assert np.array_equal(package.decoupled(name, model).view(np.uint16), arrays[3])

    def read_coded() -> None:
        for name in package.vector:
            package.decoupled(name, model)

    def read_plain() -> None:
        for zero, vector, mask, _ in dense.values():
            plain(zero, vector, mask, np.empty(len(zero), np.uint16))

    pairs = [(timed(read_coded), timed(read_plain)) for _ in range(7)]
    coded, whole = (median(pair[side] for pair in pairs) for side in (0, 1))
    say(f"read: {coded:.2f} s, plain form {whole:.2f} s: {coded / whole:.2f} x\n")
    shutil.rmtree(out)


if __name__ == "__main__":
    main()
