"""omnireg's pytest plugin: fixtures for authors of strategies, built when they are asked for."""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from omnireg.testing.family import Family


@pytest.fixture(scope="session")
def omnireg_family(tmp_path_factory: pytest.TempPathFactory) -> "Callable[[str], Family]":
    """Return a function that gives tiny checkpoints of one base, by torch's name of their dtype."""
    from omnireg.testing.family import make_family

    @cache
    def family(dtype: str = "float32") -> "Family":
        return make_family(tmp_path_factory.mktemp(f"omnireg-{dtype}"), dtype)

    return family


@pytest.fixture(scope="session")
def omnireg_models(omnireg_family: "Callable[[str], Family]") -> "Family":
    """Return tiny checkpoints of one base in float32."""
    return omnireg_family("float32")
