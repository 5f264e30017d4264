"""The one door to the database: opening it, its transactions, and its errors in plain words."""

import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, make_url
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool, QueuePool

from omnireg.boundary.text import one_line, quoted
from omnireg.errors import RegistryError
from omnireg.registry import damage, schema
from omnireg.registry.events import watch

ENVIRONMENT = "OMNIREG_REGISTRY"
DEFAULT = "sqlite:///registry.db"
BUSY_TIMEOUT = 30.0
_BEGIN = "omnireg_begin"
#: SQLite's `user_version` of a file that ships with a project: read by default, written by name
SEALED = 7305
#: even reading takes a little room beside the file; SQLite calls a lack of it an input/output error
_NO_ROOM_TO_READ = "SQLITE_IOERR_SHMSIZE"
_SAYINGS = {
    "no such table": "is damaged (SAID): run `omnireg db check`",
    "no such column": "is damaged (SAID): run `omnireg db check`",
    "Could not decode to UTF-8": "is damaged (SAID): run `omnireg db check`",
    "malformed JSON": "is damaged (SAID): run `omnireg db check`",
    "is locked": "is locked by another process: wait until it has finished, then try again",
    "not a database": "is not a SQLite database: choose another path",
    "unable to open": "cannot be opened: check that its folder exists and is writable",
    "readonly": "is read-only: make the file and its folder writable, or copy it elsewhere",
    "permission denied": "refuses this to your role: ask its owner for the right to do it",
    "is full": "has no room left on its disk: free some, then try again",
    "malformed": "is damaged: restore a copy, or recover it with `sqlite3 PATH .recover`",
}
#: what reading a value that is none ends in
_ODD = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class Database:
    """A SQLite file or a database server, with the schema checked before it is used."""

    def __init__(self, url: str | Path | None = None, busy_timeout: float = BUSY_TIMEOUT) -> None:
        """Prepare to open; nothing is read or created yet."""
        self._timeout = busy_timeout
        address = located(url)
        self._is_named = bool(url or os.environ.get(ENVIRONMENT))
        self.path = _file_of(address)
        self.where = str(self.path) if self.path else _shown(address)
        with explained(self.where):
            self._engine = self._connect(address)
        self._writer = self._engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})
        self._readable = self._writable = False
        self._preparing = threading.Lock()
        self._here = threading.local()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make all reading and writing of this thread in the block parts of one transaction."""
        with self.writing() as session:
            outer, self._here.session = self._ongoing, session
            try:
                yield
            finally:
                self._here.session = outer

    @property
    def _ongoing(self) -> Session | None:
        session: Session | None = getattr(self._here, "session", None)
        if session is not None:
            session.expire_all()  # manifests are applied below the mapper
        return session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Open a session that sees one consistent state."""
        ongoing = self._ongoing
        if ongoing is not None:
            with explained(self.where):
                yield ongoing
            return
        self._require_file()
        with explained(self.where), Session(self._engine) as session:
            if not self._readable:
                self._check(session.connection())
                self._readable = True
            with self._damage_told(session):
                yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Open a session that holds the write lock from its start and commits at its end."""
        ongoing = self._ongoing
        if ongoing is not None:
            with explained(self.where), ongoing.begin_nested():
                yield ongoing
            return
        with explained(self.where):
            self._prepare()
            with self._damage_told(), Session(self._writer) as session, session.begin():
                watch(session)
                schema.lock(session.connection())
                yield session

    @contextmanager
    def trying(self) -> Iterator[Session]:
        """Open a session like `writing` whose changes are taken back at its end."""
        with explained(self.where):
            self._prepare()
            with self._damage_told(), Session(self._writer) as session:
                session.begin()
                watch(session)
                schema.lock(session.connection())
                yield session
                session.rollback()

    @contextmanager
    def _damage_told(self, reading: Session | None = None) -> Iterator[None]:
        """Say which row a foreign hand damaged, if that is why the block failed."""
        try:
            yield
        except _ODD as error:
            with Session(self._engine) if reading is None else nullcontext(reading) as session:
                found = damage.first(session.connection())
            if found is None:
                raise
            raise RegistryError(
                f"registry {self.where} is damaged: {found}: run `omnireg db check` to see all"
                " there is, and correct the row or restore a copy"
            ) from error

    @contextmanager
    def scratch(self) -> Iterator["Database"]:
        """Yield where a change can be tried: of a file a copy, since even trying writes to it."""
        if not self.is_sqlite or self.path is None:
            yield self
            return
        with explained(self.where), tempfile.TemporaryDirectory(prefix="omnireg-") as folder:
            copy = Database(Path(folder) / "registry.db", self._timeout)
            if self.path.exists():
                with closing(self._open()) as source, closing(copy._open()) as target:
                    source.backup(target)
            yield copy

    def upgrade(self) -> None:
        """Create the schema or bring an older one up to date, in one transaction."""
        self._require_folder()
        with explained(self.where):
            self._refuse_shipped()
            with self._engine.connect() as connection:
                schema.refuse_unknown(connection, schema.revision(connection), self.where)
            self._bring_up()

    def seal(self) -> None:
        """Make a file one that ships: in one piece, read by anyone, written only when named."""
        if self.path is None:
            raise RegistryError(f"{self.where} is not a file: only a SQLite file can be sealed")
        self._require_file()
        with explained(self.where), closing(self._open()) as connection:
            connection.isolation_level = None
            connection.execute("PRAGMA journal_mode=DELETE")
            connection.execute(f"PRAGMA user_version={SEALED}")
            connection.execute("VACUUM")

    def revision(self) -> str | None:
        """Return the schema's revision, or None where there is no registry yet."""
        if self.path and not self.path.exists():
            return None
        with explained(self.where), self._engine.connect() as connection:
            return schema.revision(connection)

    def exists(self) -> bool:
        """Return whether anything was ever written here."""
        return self.revision() is not None

    def close(self) -> None:
        """Let go of every connection."""
        self._engine.dispose()

    @property
    def is_sqlite(self) -> bool:
        """Return whether the database is SQLite."""
        return self._engine.dialect.name == "sqlite"

    def _connect(self, address: URL) -> Engine:
        if address.get_backend_name() != "sqlite":
            return _server(address)
        # A file is closed after every call: nothing to inherit across a fork, no stale handle on
        # a file that was replaced. Memory lives in the one connection that all threads share.
        pool = (
            {"poolclass": NullPool}
            if self.path
            else {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0}
        )
        engine = create_engine(address, creator=self._open, hide_parameters=True, **pool)
        event.listen(engine, "connect", _configure)
        event.listen(engine, "begin", _begin)
        return engine

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(
            _readable_name(self.path) if self.path else ":memory:",
            timeout=self._timeout,
            uri=True,
            check_same_thread=False,
        )

    def _check(self, connection: Connection) -> None:
        found = schema.revision(connection)
        schema.refuse_unknown(connection, found, self.where)
        schema.refuse_outdated(connection, found, self.where)

    def _is_sealed(self) -> bool:
        if self.path is None or not self.path.exists():
            return False
        with closing(self._open()) as connection:
            return bool(connection.execute("PRAGMA user_version").fetchone()[0] == SEALED)

    def _refuse_shipped(self) -> None:
        if not self._is_named and self._is_sealed():
            raise RegistryError(
                f"{self.where} ships with the project and is only read by default: choose another"
                " with --registry PATH or $OMNIREG_REGISTRY, or name this one to change it"
            )

    def _prepare(self) -> None:
        self._refuse_shipped()
        with self._preparing:
            if self._writable and (self.path is None or self.path.exists()):
                return
            if self.is_sqlite:
                self.upgrade()
            else:
                # A shared server changes for everybody, so only on request.
                with self._engine.connect() as connection:
                    self._check(connection)
            self._writable = True

    def _bring_up(self) -> None:
        with self._writer.connect() as connection:
            if self.is_sqlite:
                self._migrate_sqlite(connection)
            else:
                self._migrate(connection)

    def _migrate_sqlite(self, connection: Connection) -> None:
        if not self._is_sealed():
            self._use_wal(connection)
        # Alembic rebuilds SQLite tables by dropping them, which would cascade to their children.
        _pragma(connection, "foreign_keys=OFF")
        try:
            self._migrate(connection)
        finally:
            _pragma(connection, "foreign_keys=ON")

    def _migrate(self, connection: Connection) -> None:
        with connection.begin():
            schema.lock(connection)
            if schema.revision(connection) == schema.HEAD:
                return
            schema.upgrade(connection)
            if self.is_sqlite and (
                broken := connection.exec_driver_sql("PRAGMA foreign_key_check").all()
            ):
                raise RegistryError(
                    f"upgrading {self.where} would leave {len(broken)} rows without their"
                    " parents: nothing was changed, run `omnireg db check`"
                )

    def _use_wal(self, connection: Connection) -> None:
        # SQLite does not wait for other connections here, whatever the busy timeout says.
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                return _pragma(connection, "journal_mode=WAL")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() >= deadline:
                    raise
            time.sleep(0.01)

    def _require_file(self) -> None:
        if self.path and not self.path.exists():
            raise schema.missing(self.where)

    def _require_folder(self) -> None:
        if self.path and not self.path.parent.is_dir():
            raise RegistryError(
                f"no registry can be made at {self.where}: create the folder"
                f" {self.path.parent} first"
            )


def located(url: str | Path | None) -> URL:
    """Return where the registry is: the argument, else the environment, else the working folder."""
    given = url or os.environ.get(ENVIRONMENT) or DEFAULT
    if isinstance(given, str) and "://" in given:
        try:
            return _with_our_driver(make_url(given))
        except (exc.ArgumentError, ValueError):
            # Neither repeated nor chained: where it cannot be parsed, a password cannot be hidden.
            raise RegistryError(
                "the registry's URL cannot be parsed: give a path or DIALECT://HOST/NAME"
            ) from None
    return URL.create("sqlite", database=str(Path(given).expanduser()))


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn every error of the driver and of SQLAlchemy into a RegistryError."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise RegistryError(f"{quoted(error.object)} is no valid text: correct it") from error
    except (exc.SQLAlchemyError, sqlite3.Error) as error:
        raise RegistryError(_plainly(error, where)) from error


def _plainly(error: Exception, where: str) -> str:
    cause = (isinstance(error, exc.DBAPIError) and error.orig) or error
    if getattr(cause, "sqlite_errorname", None) == _NO_ROOM_TO_READ:
        return f"registry {where} {_SAYINGS['is full']}"
    said = " ".join(str(cause).split())
    if isinstance(error, exc.ArgumentError):
        return f"registry {where} is of no known kind: {said}: give a path or sqlite:///PATH"
    for symptom, saying in _SAYINGS.items():
        if symptom in said:
            return f"registry {where} {saying.replace('SAID', one_line(said))}"
    if isinstance(error, exc.IntegrityError):
        return f"registry {where} refused the record: {said}: run `omnireg db check`"
    if isinstance(error, exc.OperationalError):
        return f"registry {where} cannot be used: {said}: check the server or the disk"
    return f"registry {where} failed: {said}: run `omnireg db check`"


def _shown(address: URL) -> str:
    # Drivers also take a password among the options after the question mark.
    return address.set(query={}).render_as_string(hide_password=True)


def _with_our_driver(address: URL) -> URL:
    # What a bare postgresql:// means depends on SQLAlchemy's version.
    bare = address.drivername in ("postgresql", "postgres")
    return address.set(drivername="postgresql+psycopg") if bare else address


def _server(address: URL) -> Engine:
    try:
        return create_engine(address, pool_pre_ping=True, hide_parameters=True)
    except ModuleNotFoundError as error:
        raise RegistryError(
            f"no driver for {_shown(address)}: run `pip install 'omnireg[postgres]'` or"
            f" `pip install {error.name}`"
        ) from error


def _file_of(address: URL) -> Path | None:
    if address.get_backend_name() != "sqlite" or address.database in (None, "", ":memory:"):
        return None
    if str(address.database).startswith("file:"):
        raise RegistryError(f"{_shown(address)} is a SQLite URI: give the path alone")
    return Path(str(address.database)).absolute()


def _readable_name(path: Path) -> str:
    # WAL needs its side files even for reading; where they can be neither found nor made, the
    # file is complete as it is.
    fixed = not os.access(path.parent, os.W_OK) and not Path(f"{path}-wal").exists()
    return f"file:{quote(str(path))}" + ("?immutable=1" if fixed else "")


def _configure(connection: sqlite3.Connection, _: object) -> None:
    # The driver must not begin transactions itself: it would do so too late to lock.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys=ON")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN"))


def _pragma(connection: Connection, setting: str) -> None:
    # Below SQLAlchemy, which would open a transaction that these settings have no effect in.
    driver = connection.connection.dbapi_connection
    assert driver is not None
    driver.cursor().execute(f"PRAGMA {setting}")
