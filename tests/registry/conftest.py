"""A registry in a temporary file, and the small family that most tests look at."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from omnireg.registry import Parent, Registry

A, B, C, D = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where a registry may be made."""
    return tmp_path / "registry.db"


@pytest.fixture
def registry(path: Path) -> Iterator[Registry]:
    """Return a registry that nothing was written to yet."""
    with Registry(path, busy_timeout=5) as opened:
        yield opened


@pytest.fixture(scope="session")
def recorded_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a diamond: two models fine-tuned from one base, merged, and packed."""
    path = tmp_path_factory.mktemp("family") / "registry.db"
    registry = Registry(path)
    registry.add_checkpoint("base", kind="base", fingerprint=A)
    for name, fingerprint in (("vision", B), ("audio", C)):
        registry.add_checkpoint(
            name,
            kind="finetuned",
            fingerprint=fingerprint,
            modalities=[name],
            parents=[Parent("base", "finetuned_from")],
        )
    registry.add_checkpoint(
        "merged",
        kind="merged",
        fingerprint=D,
        strategy="average",
        parents=[Parent("vision", "model", 0.25), Parent("audio", "model", 0.75)],
    )
    registry.add_checkpoint("packed", kind="package", parents=[Parent("merged", "package")])
    return path


@pytest.fixture
def family(registry: Registry, path: Path, recorded_family: Path) -> Registry:
    """Return a registry of its own with the diamond in it."""
    shutil.copy(recorded_family, path)
    return registry
