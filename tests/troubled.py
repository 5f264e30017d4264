"""A plugin in which something goes wrong at one door, and commands on tiny checkpoints."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests_support import Outcome, Run, distribution

if TYPE_CHECKING:
    from omnireg.testing.family import Family

NAME = "omnireg-troubled"
MODULE = """
from omnireg import hookimpl
# import

@hookimpl
def omnireg_register_strategies(register):
    # hook
    register("omnireg_troubled_impl:METHOD", name="troubled")

@hookimpl
def omnireg_register_evaluators(register):
    register("omnireg_troubled_eval:EVALUATOR", name="trouble")
"""
METHOD = """
import torch
from mergekit.merge_methods import (
    BasePolicy, GroupMergeMethod, InputContract, MergeMethodSpec, OptionalTensorPolicy,
)
from omnireg.hookspecs import Decoupling
# lazy import

class First:
    def __init__(self):
        self.seen = 0
    def add(self, observation):
        # add
        self.seen += observation
    def result(self):
        # result
        return self.seen

class Troubled(GroupMergeMethod):
    spec = MergeMethodSpec(
        name="troubled", contract=InputContract(base=BasePolicy.REQUIRED, min_inputs=2),
        optional_tensor_policy=OptionalTensorPolicy.PASSTHROUGH_BASE_SINGLETON, parameters=(),
    )

    def survey(self, known, parameters):
        # survey
        return First() if known.found is None else None

    def observe(self, survey, group, known, parameters):
        # observe
        return 1

    def merge_group(self, group, /, surveyed=None, **parameters):
        t = group.non_base[0].tensor
        # merge
        return t

    def side_outputs(self, group, parameters, surveyed=None):
        # side outputs
        base = group.base.tensor
        vectors = {str(e.id): e.tensor.float() - base.float() for e in group.non_base}
        star = sum(vectors.values()).to(base.dtype)
        return star, {k: Decoupling(v, (v * star.float()) > 0) for k, v in vectors.items()}

    def rescaling(self, parameters):
        # rescaling
        return None

METHOD = Troubled()
"""
EVALUATOR = """
from omnireg.hookspecs import Result
# lazy evaluator

class Trouble:
    name = "trouble"

    @property
    def version(self):
        # version
        return "1"

    def evaluate(self, folder, tasks, conduct):
        # evaluate
        for task in tasks:
            # measure
            yield Result(task, "count", 1.0)

EVALUATOR = Trouble()
"""
#: where it goes wrong → the command that gets there
DOORS = {
    "import": "merge", "hook": "merge", "lazy import": "merge", "merge": "merge",
    "survey": "merge", "observe": "merge", "add": "merge", "result": "merge",
    "side outputs": "package", "rescaling": "package",
    "lazy evaluator": "eval", "version": "eval", "evaluate": "eval", "measure": "eval",
}  # fmt: skip
#: what every command finds out
WARNED = ("import", "hook", "lazy import")
#: what ends the plugin's work
FATAL = {
    "exit": "import sys; sys.exit(0)",
    "quit": "raise SystemExit",
    "generator": "raise GeneratorExit",
    "own kind": "raise type('Stop', (BaseException,), {})('over\\nand out')",
    "unspeakable": "raise type('Mute', (Exception,), {'__str__': lambda self: exit(0)})()",
    "stop": "raise StopIteration(3)",
}
#: what does not, and must not be noticed outside
NOISE = """
import logging, os, signal, subprocess, sys, warnings, torch
print("printed"); sys.__stdout__.write("written\\n"); sys.__stdout__.flush()
os.write(1, b"raw\\n"); subprocess.run(["echo", "echoed"], check=True)
warnings.simplefilter("error"); logging.disable(logging.CRITICAL); os.chdir("/")
signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)
torch.set_default_dtype(torch.float64); sys.stdout = None
"""


def placed(door: str, trouble: str, text: str) -> str:
    """Return code in which something goes wrong in one place."""
    lines = []
    for line in text.splitlines():
        lines.append(line)
        if line.strip() == f"# {door}":
            indent = line[: len(line) - len(line.lstrip())]
            lines += [indent + more for more in trouble.strip().splitlines()]
    return "\n".join(lines)


def troubled(site: Path, door: str, trouble: str) -> None:
    """Install a distribution in which something goes wrong at one door."""
    distribution(site, NAME, placed(door, trouble, MODULE))
    (site / "omnireg_troubled_impl.py").write_text(placed(door, trouble, METHOD))
    (site / "omnireg_troubled_eval.py").write_text(placed(door, trouble, EVALUATOR))


@dataclass(frozen=True)
class Bench:
    """Commands on tiny checkpoints."""

    run: Run
    family: "Family"

    def recipe(self, method: str, more: str = "") -> str:
        """Write a recipe and return its name."""
        models = ", ".join(f"{{model: {model}}}" for model in self.family.models[:2])
        text = f"merge_method: {method}\nbase_model: {self.family.base}\nmodels: [{models}]\n"
        Path(f"{method}.yml").write_text(text + more)
        return f"{method}.yml"

    def merge(self, method: str, out: str, *options: object, more: str = "") -> Outcome:
        """Merge two models."""
        return self.run("merge", self.recipe(method, more), out, "--json", *options)

    def package(self, method: str, out: str) -> Outcome:
        """Write a package of two models."""
        one, two = self.family.models[:2]
        more = f"omnireg: {{output: package, modalities: {{image: {one}, audio: {two}}}}}\n"
        return self.merge(method, out, more=more)

    def reach(self, command: str) -> Outcome:
        """Run the command in which the troubled plugin is asked."""
        if command == "eval":
            return self.run("eval", "m", "--tasks", "t", "--evaluator", "trouble", "--json")
        return (self.package if command == "package" else self.merge)("troubled", "out")

    def check_others_work(self) -> None:
        """What comes with omnireg and mergekit works, and stdout is one document."""
        for number, method in enumerate(("average", "linear")):
            more = "parameters: {weight: 1.0}\n" if method == "linear" else ""
            done = self.merge(method, f"other-{number}", "--no-record", more=more)
            assert done.code == 0, done.err
            assert json.loads(done.out)["name"] == f"other-{number}"
        for listing in ("plugins", "strategies"):
            done = self.run(listing, "--json")
            assert done.code == 0, done.err
            assert json.loads(done.out)
