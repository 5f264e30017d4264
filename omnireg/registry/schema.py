"""Which schema a database has, and how to bring it up to this code.

Alembic takes a while to import, so it is only imported where the revision is not the expected one.
"""

from pathlib import Path

from sqlalchemy import Connection, func, inspect, select, text

from omnireg.errors import RegistryError

HEAD = "0005"
VERSIONS = "alembic_version"
MIGRATIONS = Path(__file__).parent / "migrations"
# Any number will do, as long as nothing else in the database takes the same lock.
_ADVISORY_LOCK = 7_305_104_411


def revision(connection: Connection) -> str | None:
    """Return the schema's revision, or None where no registry was created yet."""
    if not inspect(connection).has_table(VERSIONS):
        return None
    found = connection.execute(text(f"SELECT version_num FROM {VERSIONS}")).scalars().all()
    return max(found, default=None)


def refuse_unknown(connection: Connection, found: str | None, where: str) -> None:
    """Refuse a registry from the future, and a SQLite file that belongs to something else."""
    if found is None:
        if connection.dialect.name == "sqlite" and inspect(connection).get_table_names():
            raise RegistryError(
                f"{where} is another program's database, not a registry: choose another path"
            )
    elif found != HEAD and not _is_known(found):
        raise RegistryError(
            f"{where} was written by a newer omnireg (schema {found}, this one knows {HEAD}):"
            " upgrade omnireg"
        )


def refuse_outdated(connection: Connection, found: str | None, where: str) -> None:
    """Refuse a registry that is absent or older than this code."""
    if found is None and connection.dialect.name != "sqlite":
        raise RegistryError(f"no registry at {where}: run `omnireg db upgrade` to make it")
    if found is None:
        raise missing(where)
    if found != HEAD:
        raise RegistryError(
            f"{where} has the older schema {found}, this omnireg needs {HEAD}:"
            " run `omnireg db upgrade`"
        )


def missing(where: str) -> RegistryError:
    """Return the error for reading a registry that nothing was written to."""
    return RegistryError(
        f"no registry at {where}: run `omnireg add` or `omnireg demo` first,"
        " or name another with --registry"
    )


def lock(connection: Connection) -> None:
    """Make PostgreSQL take one writer at a time, as SQLite does by itself."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_ADVISORY_LOCK)))


def upgrade(connection: Connection) -> None:
    """Bring the schema to this code's revision inside the connection's transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    # ConfigParser would read a percent sign in the folder's name as a reference.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _is_known(found: str) -> bool:
    from alembic.script import ScriptDirectory

    return any(script.revision == found for script in ScriptDirectory(MIGRATIONS).walk_revisions())
