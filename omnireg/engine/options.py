"""How a merge is run, beside what it merges."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omnireg.checkpoints.shards import SHARD_BYTES
from omnireg.checkpoints.tensors import as_device
from omnireg.errors import ConfigError, did_you_mean
from omnireg.planning import Engine, Plan
from omnireg.planning.plans import DTYPES

#: mergekit's merge options that every engine reads
_EVERYWHERE = frozenset({"out_shard_size", "device", "cuda", "num_threads"})
#: those that mergekit's executor reads when it is handed a plan
_EXECUTOR = _EVERYWHERE | {
    "low_cpu_memory",
    "read_to_gpu",
    "async_write",
    "write_threads",
    "clone_tensors",
}
#: those that it reads when it plans by itself
_PLANNER = _EXECUTOR | {
    "multi_gpu",
    "gpu_rich",
    "copy_tokenizer",
    "lazy_unpickle",
    "trust_remote_code",
    "lora_merge_dtype",
    "lora_merge_cache",
    "transformers_cache",
    "unsafe_truncate_embeddings",
    "allow_crimes",
}


@dataclass(frozen=True)
class Options:
    """How a merge is run, beside what it merges.

    Attributes:
        seed: for methods with randomness; each tensor's depends on it and its name alone.
        threads: workers of the stream engine; all cores when None.
        resume: go on with an unfinished merge of the same recipe into the same folder.
        allow_nonfinite: merge inputs that hold NaN or Inf.
        mergekit: mergekit's own merge options by name.
    """

    seed: int = 0
    threads: int | None = None
    resume: bool = True
    allow_nonfinite: bool = False
    mergekit: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shard_bytes(self) -> int:
        """At which size shards are cut."""
        return int(self.mergekit.get("out_shard_size") or SHARD_BYTES)

    @property
    def fixed(self) -> dict[str, Any]:
        """What the bytes of the result depend on, beside recipe and seed."""
        return {
            "shard_bytes": self.shard_bytes,
            "device": self.device,
            "allow_nonfinite": self.allow_nonfinite,
        }

    @property
    def device(self) -> str:
        """Where a method's torch code runs."""
        return "cuda" if self.mergekit.get("cuda") else str(self.mergekit.get("device") or "cpu")

    @property
    def workers(self) -> int:
        """How many threads the streaming engine has."""
        return self.threads or os.cpu_count() or 1

    def check(self, planned: Plan) -> None:
        """Refuse options that whoever runs the plan does not read.

        Raises:
            ConfigError: names the first one, and who does read it.
        """
        read = _PLANNER if planned.planned_by_mergekit else _EXECUTOR
        read = _EVERYWHERE if planned.engine is Engine.STREAM else read
        odd = next(
            (
                name
                for name, value in self.mergekit.items()
                if value is not None and name not in read
            ),
            None,
        )
        if odd is not None:
            option = f"--{odd.replace('_', '-')}"
            if odd in _EXECUTOR:
                raise ConfigError(f"{option} is for --engine mergekit; add that, or drop {option}")
            if odd in _PLANNER:
                raise ConfigError(
                    f"{option} is read only where mergekit plans the merge itself: with slices,"
                    f" modules, tokenizer surgery or adapters; drop {option}"
                )
            raise ConfigError(f"unknown merge option {odd!r}{did_you_mean(odd, _PLANNER)}")
        dtype = self.mergekit.get("lora_merge_dtype")
        if dtype is not None and dtype not in DTYPES:
            raise ConfigError(
                f"--lora-merge-dtype: unknown dtype {dtype!r}{did_you_mean(dtype, DTYPES)}; use"
                f" {', '.join(DTYPES)}"
            )

    def apply(self) -> None:
        """Set what holds for the whole process, and make sure that the device is there.

        Raises:
            ConfigError: there is no such device.
        """
        if self.mergekit.get("num_threads"):
            import torch

            torch.set_num_threads(int(self.mergekit["num_threads"]))
        if self.device != "cpu":
            as_device(self.device)
