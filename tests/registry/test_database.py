"""Opening a registry, and every way in which that can go wrong."""

import os
import sqlite3
import subprocess
import sys
import tempfile
import traceback
from contextlib import closing
from pathlib import Path

import pytest

import omnireg.registry
from omnireg.errors import RegistryError
from omnireg.registry import Registry
from omnireg.registry.database import Database

ROOT = Path(omnireg.registry.__file__).parents[2]


def _python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_importing_stays_light() -> None:
    """Importing the registry imports no model library, and no migration library either."""
    heavy = "{'torch', 'transformers', 'mergekit', 'alembic', 'numpy'}"
    done = _python(f"import omnireg.registry, sys; print(sorted({heavy} & set(sys.modules)))")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_naming_a_registry_makes_no_file(registry: Registry, path: Path) -> None:
    """Opening a registry and failing to read it leaves no file behind."""
    with pytest.raises(RegistryError, match="run `omnireg add` or `omnireg demo` first"):
        registry.checkpoints()
    assert not path.exists()
    assert not registry.exists()
    assert registry.current() is None


def test_an_empty_file_is_no_registry_until_it_is_written(path: Path) -> None:
    """A file of zero bytes reads as absent and becomes a registry on the first write."""
    path.touch()
    registry = Registry(path)
    with pytest.raises(RegistryError, match=f"no registry at {path}"):
        registry.scores("m")
    assert registry.add_checkpoint("m", kind="base").name == "m"


def test_the_default_is_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an argument or a variable the registry is registry.db where one stands."""
    monkeypatch.delenv("OMNIREG_REGISTRY", raising=False)
    monkeypatch.chdir(tmp_path)
    assert Registry().where == str(tmp_path / "registry.db")


def test_the_environment_names_the_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable is used where no argument is given, as a path or as a URL."""
    monkeypatch.setenv("OMNIREG_REGISTRY", str(tmp_path / "one.db"))
    assert Registry().where == str(tmp_path / "one.db")
    monkeypatch.setenv("OMNIREG_REGISTRY", f"sqlite:///{tmp_path}/two.db")
    assert Registry().where == str(tmp_path / "two.db")


@pytest.mark.parametrize("name", ["a b?c#d%41.db", "naïve 💾.db", "'; DROP TABLE x.db"])
def test_any_path_is_only_a_path(tmp_path: Path, name: str) -> None:
    """Characters that mean something in a URL mean nothing in a path."""
    with Registry(tmp_path / name) as registry:
        registry.add_checkpoint("m", kind="base")
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_memory_is_shared_by_all_calls() -> None:
    """A registry in memory keeps what was written for as long as it is open."""
    registry = Registry("sqlite://")
    registry.add_checkpoint("m", kind="base")
    assert registry.find("m").name == "m"
    registry.close()


def test_connections_check_foreign_keys_and_wait(path: Path) -> None:
    """Every connection enforces foreign keys and waits half a minute for others."""
    database = Database(path)
    with database.writing() as session:
        assert session.connection().exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert session.connection().exec_driver_sql("PRAGMA busy_timeout").scalar() == 30_000


def test_the_file_is_in_wal_mode(registry: Registry, path: Path) -> None:
    """Readers do not wait for a writer."""
    registry.add_checkpoint("m", kind="base")
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        other.execute("BEGIN IMMEDIATE")
        assert registry.get("m")


def test_a_locked_registry_says_so(registry: Registry, path: Path) -> None:
    """A writer that waited in vain is told that somebody else has the registry."""
    registry.add_checkpoint("m", kind="base")
    hurried = Registry(path, busy_timeout=0.05)
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RegistryError, match="is locked by another process: wait") as caught:
            hurried.add_checkpoint("n", kind="base")
    assert caught.value.__cause__ is not None
    assert registry.get("n") is None


def test_a_file_that_is_locked_while_it_is_made_says_so(path: Path) -> None:
    """Waiting for the write-ahead log ends with the busy timeout too."""
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RegistryError, match="is locked"):
            Registry(path, busy_timeout=0.05).add_checkpoint("m", kind="base")


@pytest.mark.parametrize("action", ["checkpoints", "current", "upgrade", "check"])
def test_another_kind_of_file_is_refused(path: Path, action: str) -> None:
    """A file that is no database is named and left as it is."""
    path.write_bytes(b"GGUF, but certainly not a database." * 100)
    before = path.read_bytes()
    with pytest.raises(RegistryError, match="is not a SQLite database"):
        getattr(Registry(path), action)()
    assert path.read_bytes() == before


def test_another_programs_database_is_refused(registry: Registry, path: Path) -> None:
    """Tables are never added to a database that belongs to something else."""
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE bookmarks (url TEXT)")
    before = path.read_bytes()
    for action in (registry.checkpoints, lambda: registry.add_checkpoint("m", kind="base")):
        with pytest.raises(RegistryError, match="another program's database"):
            action()
    assert path.read_bytes() == before


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """A registry is not made in a folder that does not exist."""
    with pytest.raises(RegistryError, match=f"create the folder {tmp_path / 'nowhere'} first"):
        Registry(tmp_path / "nowhere" / "registry.db").add_checkpoint("m", kind="base")


def test_a_folder_is_not_a_registry(tmp_path: Path) -> None:
    """A path that is a folder cannot be opened."""
    with pytest.raises(RegistryError, match="cannot be opened: check that its folder"):
        Registry(tmp_path).checkpoints()


UNPRIVILEGED = """
import os, sys
from omnireg.errors import RegistryError
from omnireg.registry import Registry
if os.geteuid() == 0:
    os.setuid(65534)
registry = Registry(sys.argv[1])
print(registry.find("m").name)
for attempt in (registry, Registry(sys.argv[1] + ".new")):
    try:
        attempt.add_checkpoint("n", kind="base")
    except RegistryError as error:
        print(error)
"""


def test_a_folder_without_write_permission_can_be_read() -> None:
    """A registry that nobody may write is readable, and says why it cannot be written."""
    # Not tmp_path, whose parents only their owner may enter.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "registry.db"
        Registry(path).add_checkpoint("m", kind="base")
        Path(folder).chmod(0o555)
        done = _python(UNPRIVILEGED, str(path))
        Path(folder).chmod(0o755)
    name, denied, refused = done.stdout.splitlines()
    assert name == "m"
    assert "is read-only: make the file and its folder writable" in denied
    assert "cannot be opened: check that its folder exists and is writable" in refused


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("://", "cannot be parsed: give a path"),
        ("nosuch://host/name", "is of no known kind"),
        ("sqlite:///file:x.db?uri=true", "give the path alone"),
        ("oracle://host/name", "no driver for oracle://host/name: run `pip install"),
    ],
)
def test_a_url_that_cannot_work_is_refused_at_once(url: str, said: str) -> None:
    """A wrong URL is an error where it is given, not at the first query."""
    with pytest.raises(RegistryError, match=said):
        Registry(url)


@pytest.mark.parametrize(
    "url",
    [
        "oracle://me:hunter2@host/name",
        "oracle://host/name?password=hunter2",
        "postgresql://me:hunter2@host:port/name",
        "nosuch://me:hunter2@host/name",
    ],
)
def test_a_password_is_never_shown(url: str) -> None:
    """No error about a URL repeats the password in it."""
    with pytest.raises(RegistryError) as caught:
        Registry(url)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_a_damaged_file_is_reported(registry: Registry, path: Path) -> None:
    """Overwritten pages are found by the check or refused by the database."""
    for index in range(10):
        registry.add_checkpoint(f"m{index}", kind="base", notes="x" * 3000)
    content = bytearray(path.read_bytes())
    content[4096 * 2 : 4096 * 6] = b"\xff" * 4096 * 4
    path.write_bytes(content)
    try:
        problems = registry.check()
    except RegistryError as error:
        problems = [str(error)]
    assert any("damaged" in problem for problem in problems)
