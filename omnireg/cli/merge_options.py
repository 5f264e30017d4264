"""mergekit's own merge options, declared here because importing them from mergekit takes seconds.

A test compares them with mergekit's. A value is None unless the option was typed.
"""

import re
from typing import Any

import click

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kmb]?)", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


class ShardSize(click.ParamType):  # type: ignore[type-arg]
    """A positive number of bytes; k, M and B stand for thousands, millions and billions."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        found = _SIZE.fullmatch(str(value).strip())
        size = int(float(found[1]) * _UNITS[found[2].lower()]) if found else 0
        if size <= 0:
            self.fail(f"{value!r} is no size; give a number such as 60M or 5B", param, ctx)
        return size


def _flag(name: str, described: str) -> click.Option:
    return click.Option([f"--{name}/--no-{name}"], default=None, help=described)


#: read by both engines
SHARED = (
    click.Option(
        ["--out-shard-size"],
        type=ShardSize(),
        help="Bytes per output file, such as 60M  [default: 5B].",
    ),
    click.Option(["--device"], help="Where a method's torch code runs  [default: cpu]."),
    _flag("cuda", "The same as --device cuda."),
    click.Option(["--num-threads", "-j"], type=int, help="Threads of torch."),
)
#: read by mergekit alone
MERGEKIT = (
    _flag("low-cpu-memory", "Keep results on the device that computes."),
    _flag("read-to-gpu", "Read weights into the device that computes."),
    _flag("multi-gpu", "Use every GPU."),
    click.Option(
        ["--gpu-rich"],
        is_flag=True,
        default=None,
        help="The same as --cuda --low-cpu-memory --read-to-gpu --multi-gpu.",
    ),
    _flag("async-write", "Write files while others are merged."),
    click.Option(["--write-threads"], type=int, help="Threads that write."),
    _flag("clone-tensors", "Copy tensors before they are saved."),
    _flag("copy-tokenizer", "Copy a tokenizer into OUT."),
    _flag("lazy-unpickle", "Read pickled adapters piece by piece."),
    _flag("trust-remote-code", "Run code that comes with a model."),
    click.Option(["--lora-merge-dtype"], help="The dtype in which adapters are applied."),
    click.Option(["--lora-merge-cache"], help="Folder for models with adapters applied."),
    click.Option(["--transformers-cache"], help="Folder for downloaded models."),
    _flag("unsafe-truncate-embeddings", "Drop embedding rows that the smallest model lacks."),
    _flag("allow-crimes", "Let mergekit mix architectures."),
)
