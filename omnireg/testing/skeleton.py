"""The skeleton of a plugin: a strategy that works, with tests that pass."""

import re
from pathlib import Path

from omnireg.checkpoints.outputs import appearing
from omnireg.errors import ConfigError
from omnireg.plugins.host import PluginHost
from omnireg.version import __version__

_NAME = re.compile(r"[a-z](_?[a-z0-9])*")


def write_plugin(name: str, folder: Path | None = None) -> Path:
    """Write a distribution with one strategy into a new folder, and return the folder.

    Args:
        name: of the strategy, as recipes will say it.
        folder: where; ``omnireg-NAME`` when None.

    Raises:
        ConfigError: the name cannot be one, or is taken.
        MergeError: the folder exists or cannot be made; nothing is left there.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot name a strategy: use small letters and digits, a letter first, and"
            " single _ between them"
        )
    taken = PluginHost().methods().get(name)
    if taken is not None:
        raise ConfigError(
            f"{name!r} is a merge method of {taken.origin.distribution} already; choose another"
            " name"
        )
    place = folder or Path(f"omnireg-{name.replace('_', '-')}")
    words = {
        "@name@": name,
        "@dist@": f"omnireg-{name.replace('_', '-')}",
        "@module@": f"omnireg_{name}",
        "@title@": name.replace("_", " ").capitalize(),
        "@class@": "".join(part.capitalize() for part in name.split("_")),
        "@least@": ".".join(__version__.split(".")[:2]),
    }
    with appearing(place) as partial:
        for path, text in _FILES.items():
            file = partial / _filled(path, words)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(_filled(text, words), encoding="utf-8")
    return place


def _filled(text: str, words: dict[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text


_FILES = {
    "pyproject.toml": """[build-system]
requires = ["hatchling>=1.26"]
build-backend = "hatchling.build"

[project]
name = "@dist@"
version = "0.1.0"
description = "The merge method @name@ for omnireg and mergekit."
readme = "README.md"
requires-python = ">=3.11"
# which versions of omnireg it supports; others list it as broken, and say so
dependencies = ["omnireg>=@least@,<1"]

[project.entry-points.omnireg]
@name@ = "@module@"

[tool.hatch.build.targets.wheel]
packages = ["@module@"]
""",
    "README.md": """# @dist@

The merge method `@name@` for omnireg and, through it, for mergekit.

```sh
pip install -e .
pytest
```

```yaml
merge_method: @name@
base_model: base
models:
  - model: image
  - model: audio
parameters: {scale: 1.0}
```
""",
    "@module@/__init__.py": '''"""The merge method ``@name@``, imported when it is used."""

from omnireg import hookimpl
from omnireg.hookspecs import RegisterStrategy


@hookimpl
def omnireg_register_strategies(register: RegisterStrategy) -> None:
    """Register the method by name, so that listing strategies imports nothing."""
    register("@module@.method:METHOD", name="@name@")
''',
    "@module@/method.py": '''"""@title@: θ = θ₀ + scale · mean(θᵢ − θ₀).

Replace it with what you have in mind.
"""

from typing import Annotated

import torch
from mergekit.merge_methods import (
    BasePolicy,
    InputContract,
    OptionalTensorPolicy,
    TensorGroup,
    merge_method,
)
from pydantic import Field


@merge_method(
    name="@name@",
    pretty_name="@title@",
    contract=InputContract(base=BasePolicy.REQUIRED, min_inputs=2, min_non_base=1),
    # a tensor that some models lack is merged of the others
    optional_tensor_policy=OptionalTensorPolicy.PASSTHROUGH_BASE_SINGLETON,
)
def METHOD(group: TensorGroup, scale: Annotated[float, Field(ge=0)] = 1.0) -> torch.Tensor:
    """Merge one tensor of every model; compute in float32 and round once, at the end."""
    base = group.base.tensor.float()
    change = torch.zeros_like(base)
    for entry in group.non_base:
        change += entry.tensor.float() - base
    merged = base + scale * change / len(group.non_base)
    return merged.to(group.base.tensor.dtype)
''',
    "tests/test_@name@.py": '''"""What @name@ computes, and what every strategy owes its users."""

import torch
from mergekit.merge_methods import TensorEntry, TensorGroup
from omnireg.testing import omnireg_conformance

from @module@.method import METHOD

Test@class@ = omnireg_conformance("@name@")


def test_by_hand() -> None:
    """Two models that moved by 2 and by 4, at half scale."""
    base = torch.ones(3)
    entries = (
        TensorEntry("base", base, True),
        TensorEntry("one", base + 2, False),
        TensorEntry("two", base + 4, False),
    )
    merged = METHOD.merge_group(TensorGroup(entries), scale=0.5)
    assert merged.tolist() == [2.5, 2.5, 2.5]
''',
}
