"""The routed model: time and memory of both forms of storage, against one model's plain forward.

    python tests/bench/routed.py FOLDER [--device cuda] [--dtype bfloat16]

A random backbone of 0.3 B parameters and 24 layers, three models at density 0.2, float32 on the
CPU unless asked otherwise, batch 1. A prompt is a quarter text, which runs with θ₀ + τ★, and a
quarter of each modality. Every figure is the median of five; forms take turns. Memory is what a
process holds more at its peak than before it opened the package, files that it maps and everything
it computes included; on a GPU it is the most that torch held there.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

LAYERS, INNER = 24, 3584
LENGTHS = (256, 1024)
RUNS = 5
FORMS = ("plain", "materialised", "packed")


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def prepare(folder: Path) -> Path:
    """Make the package, if it is not there yet."""
    from family import make

    import omnireg

    base, *models = make(folder, 0.3, 3, LAYERS, INNER)
    for place in (base, *models):
        word = {"version": "1.0", "added_tokens": [], "model": {
            "type": "WordLevel", "unk_token": "a", "vocab": {"a": 0},
        }}  # fmt: skip
        (place / "tokenizer.json").write_text(json.dumps(word))
        named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "a"}
        (place / "tokenizer_config.json").write_text(json.dumps(named))
    out = folder / "routed"
    if not out.exists():
        listed = "".join(f"  - {{model: {m}}}\n" for m in models)
        senses = ", ".join(f"m{i}: {m}" for i, m in enumerate(models))
        omnireg.merge(
            f"merge_method: mmer\nbase_model: {base}\nmodels:\n{listed}"
            "parameters: {density: 0.2}\n"
            f"omnireg: {{output: package, modalities: {{{senses}}}}}\n",
            out, record=False,
        )  # fmt: skip
    return out


def peak() -> int:
    """Return the most memory that this process has held, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if "VmHWM" in line))


@dataclass(frozen=True)
class Where:
    """On which device, and in what."""

    device: str
    dtype: str

    def wait(self) -> None:
        """Let a GPU finish what it was given."""
        import torch

        if self.device != "cpu":
            torch.cuda.synchronize(self.device)

    def peak(self) -> int:
        """Return the most memory that was held, in bytes."""
        import torch

        return peak() if self.device == "cpu" else torch.cuda.max_memory_allocated(self.device)


class Subject:
    """A model with prompts of every length, and a way to run them."""

    def __init__(self, kind: str, package: Path, base: Path, where: "Where") -> None:
        import torch

        self.kind, self.torch, self.where = kind, torch, where
        if kind == "plain":
            from transformers import AutoModelForCausalLM

            plain: Any = AutoModelForCausalLM.from_pretrained(base, dtype=where.dtype)
            self.model: Any = plain.to(where.device)
        else:
            from omnireg.routed import load

            self.model = load(package, storage=kind, dtype=where.dtype, device=where.device)

    def prompt(self, length: int) -> dict[str, Any]:
        """Return embeddings, and what each token is of."""
        torch = self.torch
        embeds = 0.02 * torch.randn(1, length, 896)
        made = {"inputs_embeds": embeds.to(self.where.device, getattr(torch, self.where.dtype))}
        if self.kind != "plain":
            ids = torch.arange(length)[None] // (length // 4)
            made["modality_ids"] = ids.to(self.where.device)
        return made

    def timed(self, call: Callable[[], Any]) -> tuple[float, Any]:
        """Return seconds and result."""
        self.where.wait()
        began = time.perf_counter()
        with self.torch.no_grad():
            found = call()
        self.where.wait()
        return time.perf_counter() - began, found

    def measure(self, length: int) -> tuple[float, float]:
        """Return the seconds of a prefill and of one token more."""
        prompt = self.prompt(length)
        taken, found = self.timed(lambda: self.model(**prompt, use_cache=True, logits_to_keep=1))
        more = (
            {"present": self.torch.ones(1, 3, dtype=self.torch.bool, device=self.where.device)}
            if self.kind != "plain"
            else {}
        )
        token = self.torch.tensor([[5]], device=self.where.device)
        past = found.past_key_values
        self.timed(lambda: self.model(input_ids=token, past_key_values=past, **more))
        step, _ = self.timed(lambda: self.model(input_ids=token, past_key_values=past, **more))
        return taken, step


def child(kind: str, package: Path, base: Path, where: Where) -> None:
    """Say how much memory one form takes at its peak, for each length."""
    import torch  # noqa: F401
    import transformers  # noqa: F401

    from omnireg.routed import load  # noqa: F401

    before = 0
    if where.device == "cpu":
        Subject("packed", package, base, where).torch.randn(1)
        before = peak()
    subject = Subject(kind, package, base, where)
    found = {}
    for length in LENGTHS:
        subject.measure(length)
        found[length] = where.peak() - before
    say(json.dumps(found))


def times(package: Path, base: Path, where: Where) -> None:
    """Print the times of all forms."""
    subjects = {kind: Subject(kind, package, base, where) for kind in FORMS}
    for length in LENGTHS:
        found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in subjects}
        for turn in range(RUNS + 1):
            for kind, subject in subjects.items():
                measured = subject.measure(length)
                if turn:
                    found[kind].append(measured)
        prefill, step = (
            {kind: median(run[i] for run in runs) for kind, runs in found.items()} for i in (0, 1)
        )
        for what, taken in ((f"prefill {length}", prefill), (f"one token after {length}", step)):
            parts = [
                f"{kind} {seconds:.3f} s ({seconds / taken['plain']:.2f} x)"
                for kind, seconds in taken.items()
            ]
            say(f"{what}: {', '.join(parts)}")


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    where = Where(options.device, options.dtype)
    package = prepare(folder)
    base = folder / f"0.3B-{LAYERS}-base"
    if options.child:
        child(options.child, package, base, where)
        return
    times(package, base, where)
    from omnireg.package import Package
    from omnireg.package.inspecting import inspect

    whole = inspect(Package(package)).total
    for kind in FORMS:
        done = subprocess.run(
            [sys.executable, __file__, str(folder), "--child", kind, "--device", where.device,
             "--dtype", where.dtype],
            check=True, capture_output=True, text=True, env={**os.environ},
        )  # fmt: skip
        for length, size in json.loads(done.stdout.splitlines()[-1]).items():
            say(
                f"memory, {kind}, {length} tokens: {size / 1e6:.0f} MB,"
                f" {size / whole:.2f} x base + vector + masks ({whole / 1e6:.0f} MB)"
            )


if __name__ == "__main__":
    main()
