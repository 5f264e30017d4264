"""Bytes on disk as torch tensors, and back; torch is imported when one is needed."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from omnireg.checkpoints.shards import TensorHeader
from omnireg.errors import ConfigError

if TYPE_CHECKING:
    import torch


def TORCH_DTYPES() -> "dict[str, torch.dtype]":  # noqa: N802 - a table that must not import torch
    """Return torch's dtypes by their safetensors names."""
    import torch

    return {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
        "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
        "U8": torch.uint8, "BOOL": torch.bool,
    }  # fmt: skip


def as_device(device: "torch.device | str") -> "torch.device":
    """Return where to compute, once something was put there.

    Raises:
        ConfigError: this machine has no such device.
    """
    import torch

    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as exc:
        said, _, _ = str(exc).strip().partition("\n")
        raise ConfigError(f"device {device}: {said[:160].partition('. ')[0]}; try cpu") from exc


def as_dtype(dtype: "torch.dtype | str") -> "torch.dtype":
    """Return what to compute in.

    Raises:
        ConfigError: models are not run in that.
    """
    import torch

    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in (torch.float32, torch.bfloat16, torch.float16):
        raise ConfigError(f"dtype: {dtype} is none of float32, bfloat16, float16")
    return found


def usual_dtype(dtypes: Iterable[str]) -> str:
    """Return torch's name of the dtype that most tensors have."""
    [(usual, _)] = Counter(dtypes).most_common(1)
    return str(TORCH_DTYPES()[usual]).removeprefix("torch.")


def as_tensor(data: bytes | memoryview, header: TensorHeader) -> "torch.Tensor":
    """View a tensor's bytes as a torch tensor; read-only, do not write to it."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        dtype = TORCH_DTYPES()[header.dtype]
        if not len(data):
            return torch.empty(header.shape, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype).reshape(header.shape)


def as_bytes(tensor: "torch.Tensor") -> bytes:
    """Return the bytes of a tensor in storage order."""
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
