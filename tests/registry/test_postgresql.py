"""What is different about a registry on a PostgreSQL server."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, make_url

from omnireg.errors import RegistryError
from omnireg.registry import Parent, Registry, schema
from omnireg.registry.tables import Base


@pytest.fixture
def url(database: Callable[[str], str]) -> str:
    """Return the URL of an empty database on the server."""
    return database("template0")


def test_a_server_is_changed_only_on_request(url: str) -> None:
    """Reading and writing an empty server asks for the upgrade, which can be repeated."""
    with Registry(url) as registry:
        for action in (registry.checkpoints, lambda: registry.add_checkpoint("m", kind="base")):
            with pytest.raises(RegistryError, match="run `omnireg db upgrade`"):
                action()
        assert registry.current() is None
        assert registry.upgrade() == registry.upgrade() == schema.HEAD


def test_migrations_and_tables_agree(url: str) -> None:
    """Alembic finds nothing to migrate on PostgreSQL either."""
    with Registry(url) as registry:
        registry.upgrade()
    engine = create_engine(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    engine.dispose()


def test_a_merge_is_recorded_and_found(url: str) -> None:
    """Checkpoints, families, runs and scores work as they do in a file."""
    with Registry(url) as registry:
        registry.upgrade()
        registry.add_checkpoint("b", kind="base", fingerprint="a" * 64, modalities=["text"])
        run = registry.start_run(
            "m", out="o", recipe_text="r", recipe_digest="d", strategy="ties", engine="stream"
        )
        made = registry.finish_run(
            run,
            name="m",
            kind="merged",
            fingerprint="e" * 64,
            parents=[Parent("b", "base"), Parent("v", "model", 0.5)],
        )
        score = registry.add_score("m", "mme", 1.7e308, details={"a": 1})
        assert registry.scores("eeeeeeee") == [score]
        assert registry.find("m") == made
        assert [node.name for node in registry.lineage("m", depth=2).nodes] == ["b", "m", "v"]
        with pytest.raises(RegistryError, match="'m' cannot be a parent of 'b'"):
            registry.add_checkpoint("b", kind="base", parents=[Parent("m")])
        assert registry.check() == []


def test_a_reader_asks_and_changes_nothing(url: str) -> None:
    """The two statements of the page on team registries are enough, and no more than enough."""
    page = Path(__file__).parents[2] / "docs" / "how-to" / "team-registry.md"
    (statements,) = re.findall(r"```sql\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    with Registry(url) as registry:
        registry.upgrade()
        registry.add_checkpoint("b", kind="base")
        registry.add_score("b", "MMLU", 0.5)
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(statements)
        try:
            as_reader = make_url(url).set(username="reader")
            with Registry(as_reader.render_as_string(hide_password=False)) as registry:
                assert [place.name for place in registry.leaderboard("MMLU")] == ["b"]
                assert registry.lineage("b").root == "b"
                assert registry.sql("SELECT name FROM v_checkpoints").rows == (("b",),)
                assert registry.check() == []
                assert list(registry.items())
                with pytest.raises(RegistryError, match="refuses this to your role"):
                    registry.add_score("b", "MMLU", 0.6, replace=True)
        finally:
            connection.exec_driver_sql("DROP OWNED BY reader; DROP ROLE reader")
    engine.dispose()
