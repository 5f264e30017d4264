"""How a merge is run, beside what it merges."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omnireg.checkpoints.shards import SHARD_BYTES
from omnireg.checkpoints.tensors import as_device


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
