"""A registry in a file or on a PostgreSQL server, and the small family that most tests look at.

Tests of what a registry does run on both; those that look at the file itself ask for its ``path``.
"""

import inspect
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from omnireg.registry import Parent, Registry
from tests_support import database_at

A, B, C, D = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)
_TEMPLATE = "omnireg_template"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on both databases unless it looks at the file."""
    if "backend" in metafunc.fixturenames:
        on_file = {"path", "recorded_family"} & set(inspect.signature(metafunc.function).parameters)
        both = ["sqlite"] if on_file else ["sqlite", "postgresql"]
        metafunc.parametrize("backend", both, scope="function")


@pytest.fixture(scope="session")
def template(server: str, administrator: Engine) -> str:
    """Return the name of an empty registry's database, to be copied."""
    with administrator.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {_TEMPLATE}"))
    with Registry(database_at(server, _TEMPLATE)) as registry:
        registry.upgrade()
    return _TEMPLATE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where a registry may be made."""
    return tmp_path / "registry.db"


@pytest.fixture
def registry(path: Path, backend: str, request: pytest.FixtureRequest) -> Iterator[Registry]:
    """Return a registry that nothing was written to yet."""
    where: str | Path = path
    if backend == "postgresql":
        where = request.getfixturevalue("database")(request.getfixturevalue("template"))
    with Registry(where, busy_timeout=5) as opened:
        yield opened


@pytest.fixture(scope="session")
def recorded_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with the diamond: two models fine-tuned from one base, merged, and packed."""
    path = tmp_path_factory.mktemp("family") / "registry.db"
    _record_family(Registry(path))
    return path


def _record_family(registry: Registry) -> None:
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


@pytest.fixture
def family(registry: Registry, path: Path, backend: str, recorded_family: Path) -> Registry:
    """Return a registry of its own with the diamond in it."""
    if backend == "sqlite":
        shutil.copy(recorded_family, path)
    else:
        _record_family(registry)
    return registry
