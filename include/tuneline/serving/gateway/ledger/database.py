"""The usage ledger's tables, in a SQLite file or a PostgreSQL database that gateways share.

`usage` has a row for each attempt, `spending` the sums that budgets are held against. A new row is
added to them in the same transaction, so that both agree after a crash, with several gateways, and
after a batch that was written twice. In PostgreSQL a trigger adds them; SQLite's fire for each row
and cost half of an insertion again, so there the writer adds the sums of a batch.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import Field, dataclass, fields
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

from sqlalchemy import (
    URL,
    BigInteger,
    Column,
    Connection,
    Double,
    Engine,
    Index,
    Integer,
    MetaData,
    NullPool,
    Table,
    Text,
    create_engine,
    event,
    inspect,
    make_url,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    OperationalError,
    SQLAlchemyError,
)

from tuneline.errors import RetryableError, TunelineError, UserError, first_line

VERSION = 3
# Its rows had neither `model_version` nor `weights_sha256`.
_BEFORE = 2


@dataclass(frozen=True)
class UsageRow:
    """One attempt at an upstream, and the columns of `usage`.

    Attributes:
        attempt: from 1, in the order of the chain.
        time: Unix time at which it began.
        kind: request, ping or warmup; imported in rows that an earlier version took from another
            gateway.
        key: name of the API key.
        model: the model id that the client asked for.
        model_served: the upstream's own model id.
        cached_tokens: of the prompt tokens, those that the upstream had cached.
        estimated: True if the gateway counted the tokens, since none were reported.
        ttft_ms: None if nothing was streamed.
        mean_logprob: None if log-probabilities were not asked for.
        status: how it ended.
        served: True if this answer went to the client.
        fallback_reason: why the attempt before was left; None on the first.
        user_id: the client's own user, as `ledger.users` lets it be kept; empty if it named none.
        model_version: the release that answered; None if the upstream states none.
        weights_sha256: hash of the bytes that its engine had loaded; None if it states none.
    """

    request_id: str
    attempt: int
    time: float
    kind: str
    key: str
    model: str
    upstream: str
    model_served: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    estimated: bool
    cost: float
    currency: str
    latency_ms: float
    ttft_ms: float | None
    mean_logprob: float | None
    status: str
    served: bool
    fallback_reason: str | None
    user_id: str = ""
    model_version: str | None = None
    weights_sha256: str | None = None


COLUMNS = tuple(field.name for field in fields(UsageRow))
_TYPES = {"str": Text, "int": BigInteger, "float": Double, "bool": Integer}


def _column(field: Field[Any]) -> Column[Any]:
    kind, _, nothing = str(field.type).partition(" | ")
    key = field.name in ("request_id", "attempt")
    return Column(field.name, _TYPES[kind], primary_key=key, nullable=bool(nothing))


_METADATA = MetaData()
USAGE = Table(
    "usage",
    _METADATA,
    *map(_column, fields(UsageRow)),
    Index("usage_by_time", "time"),
    sqlite_with_rowid=False,
)
SPENDING = Table(
    "spending",
    _METADATA,
    # A day or a month, UTC: 2026-11-26 or 2026-11.
    Column("period", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("currency", Text, primary_key=True),
    Column("tokens", BigInteger, nullable=False),
    Column("cost", Double, nullable=False),
    sqlite_with_rowid=False,
)
_VERSION = Table("ledger_version", _METADATA, Column("version", Integer, primary_key=True))
# Adds a row of sums to those that are there.
ADD = """
ON CONFLICT (period, key, currency)
DO UPDATE SET tokens = spending.tokens + excluded.tokens, cost = spending.cost + excluded.cost
"""
# Ordered: two gateways that add to the same rows lock them in the same order.
_POSTGRES_TRIGGER = (
    f"""
CREATE FUNCTION spend_usage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
INSERT INTO spending (period, key, currency, tokens, cost)
SELECT to_char(to_timestamp(time) AT TIME ZONE 'UTC', form), key, currency,
       sum(prompt_tokens + completion_tokens), sum(cost)
FROM fresh CROSS JOIN (VALUES ('YYYY-MM-DD'), ('YYYY-MM')) AS forms (form)
WHERE kind = 'request' GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
{ADD};
RETURN NULL;
END $$
""",  # noqa: S608 (our own names)
    """
CREATE TRIGGER spend_usage AFTER INSERT ON usage REFERENCING NEW TABLE AS fresh
FOR EACH STATEMENT EXECUTE FUNCTION spend_usage()
""",
)
# Any number that no other program is likely to lock by.
_LOCK = "SELECT pg_advisory_xact_lock(7241902655)"
# A SQLite file by its path, or a database by its URL.
LedgerLocation: TypeAlias = "Path | str"
_DAY_S = 86_400
_SQLITE_WAITS_S = 10.0
# SQLite gives the interpreter back for every statement, and behind a busy event loop it takes a
# switch to get it again: with one row a statement the writer falls behind at 2,000 rows a second.
_ROWS_A_STATEMENT = 100
_CONNECT_WITHIN_S = 5
_KEEPALIVES = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
# Errors of a row, such as a number that no column holds: another try can't succeed.
UNFIT = (
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
    DataError,
    IntegrityError,
    sqlite3.InterfaceError,
)
# A statement that hangs must not hold the ledger's writer for ever.
_STATEMENT_LIMIT = "-c statement_timeout=15s"


def prepare(connection: Connection) -> bool:
    """Make the tables in an empty database, or add what they lack since the version before.

    Returns False if there are others in their place.
    """
    is_sqlite = connection.dialect.name == "sqlite"
    if not is_sqlite:
        # Gateways that start together must not all make the tables.
        connection.exec_driver_sql(_LOCK)
    names = set(inspect(connection).get_table_names())
    if _VERSION.name in names:
        if _versions(connection) == [_BEFORE]:
            known = {column["name"] for column in inspect(connection).get_columns(USAGE.name)}
            for name in set(COLUMNS) - known:
                connection.exec_driver_sql(f"ALTER TABLE usage ADD COLUMN {name} TEXT")
            connection.execute(_VERSION.update().values(version=VERSION))
        return is_current(connection)
    # A SQLite file is the ledger's own; a PostgreSQL database may have other tables.
    if names if is_sqlite else names & _METADATA.tables.keys():
        return False
    _METADATA.create_all(connection)
    for statement in () if is_sqlite else _POSTGRES_TRIGGER:
        connection.exec_driver_sql(statement)
    connection.execute(_VERSION.insert().values(version=VERSION))
    return True


def is_current(connection: Connection) -> bool:
    """Return True if the database is a ledger of this version."""
    return inspect(connection).has_table(_VERSION.name) and _versions(connection) == [VERSION]


def _versions(connection: Connection) -> Sequence[int]:
    return connection.execute(select(_VERSION.c.version)).scalars().all()


def periods(time: float) -> tuple[str, str]:
    """Return the day and the month of a Unix time, UTC, as `spending` names them."""
    return _periods(int(time // _DAY_S))


@lru_cache(maxsize=8)
def _periods(day: int) -> tuple[str, str]:
    text = datetime.fromtimestamp(day * _DAY_S, UTC).strftime("%Y-%m-%d")
    return text, text[:7]


def open_writer(location: LedgerLocation) -> LedgerWriter:
    """Open a ledger for writing; make it if it is missing.

    Raises:
        UserError: if the location is not a ledger of this version, or cannot be opened.
        RetryableError: if a database server cannot be reached.
    """
    url = url_of(location)
    if database := _file_of(url):
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
            # For its owner alone; SQLite gives its other files the same mode.
            database.touch(mode=0o600)
        except OSError as error:
            raise UserError(
                f"{database}: the usage ledger cannot be opened: {error.strerror}"
            ) from None
    engine = _engine(url)
    with explained(url, "opened"), engine.begin() as connection:
        if not prepare(connection):
            raise _other(url)
    if database:
        # Not before it is known to be a ledger.
        event.listen(engine, "connect", _make_durable)
        engine.dispose()
    return LedgerWriter(engine)


class LedgerWriter:
    """A ledger that is open for writing."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        is_sqlite = engine.dialect.name == "sqlite"
        insert = sqlite.insert if is_sqlite else postgresql.insert
        # A batch whose commit was in doubt is written again without billing twice.
        self._add = insert(USAGE).on_conflict_do_nothing()
        self._add_new = self._add.returning(USAGE.c.request_id, USAGE.c.attempt)
        # In PostgreSQL the trigger spends.
        self._spend = _adding_up() if is_sqlite else None

    def insert(self, rows: Sequence[UsageRow]) -> int:
        """Write rows in one transaction; return how many of them were new."""
        values = [{name: _stored(value) for name, value in vars(row).items()} for row in rows]
        with self._engine.begin() as connection:
            new = {tuple(key) for key in connection.execute(self._add_new, values)}
            spent = _sums([row for row in rows if (row.request_id, row.attempt) in new])
            if self._spend is not None and spent:
                connection.execute(self._spend, spent)
        return len(new)

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()


def _stored(value: Any) -> Any:
    """Return a value that both databases take: a NUL would cost the row, NaN every sum it is in."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.replace("\0", "") if isinstance(value, str) else value


def _adding_up() -> sqlite.Insert:
    add = sqlite.insert(SPENDING)
    more = {name: SPENDING.c[name] + add.excluded[name] for name in ("tokens", "cost")}
    return add.on_conflict_do_update(index_elements=list(SPENDING.primary_key), set_=more)


def _sums(rows: Sequence[UsageRow]) -> list[dict[str, Any]]:
    """Return what requests take of each day and month, by key and currency."""
    sums: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        if row.kind == "request":
            for period in periods(row.time):
                names = {"period": period, "key": row.key, "currency": row.currency}
                spent = sums.setdefault(
                    (period, row.key, row.currency), {**names, "tokens": 0, "cost": 0.0}
                )
                spent["tokens"] += row.prompt_tokens + row.completion_tokens
                spent["cost"] += row.cost
    return list(sums.values())


@contextmanager
def reading(place: LedgerLocation) -> Iterator[Connection]:
    """Open a ledger for reading; a running gateway may be writing to it.

    Raises:
        UserError: if the place is missing or not a ledger of this version.
        RetryableError: if a database server cannot be reached.
    """
    url = url_of(place)
    if (database := _file_of(url)) and not database.is_file():
        raise UserError(f"{database}: no such usage ledger")
    engine = reader(url)
    try:
        with explained(url, "read"), engine.connect() as connection:
            if not is_current(connection):
                raise _other(url)
            yield connection
    finally:
        engine.dispose()


def reader(url: URL) -> Engine:
    """Return the engine of a ledger that is only read."""
    if not (database := _file_of(url)):
        return _engine(url)
    uri = f"file:{quote(str(database.resolve()))}?mode=ro"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(uri, uri=True, timeout=_SQLITE_WAITS_S, check_same_thread=False)

    return create_engine("sqlite://", creator=connect, poolclass=NullPool)


def url_of(place: LedgerLocation) -> URL:
    """Return the URL of a ledger; what is neither path nor URL of one is a `UserError`."""
    if isinstance(place, Path) or "://" not in place:
        return URL.create("sqlite", database=str(place))
    try:
        url = make_url(place)
    except (ArgumentError, ValueError):
        # The URL is not quoted: it may hold a password.
        raise UserError(
            "the ledger's URL is not one; write postgresql://user@host:5432/database"
        ) from None
    if url.drivername in ("sqlite", "postgresql") and url.database:
        return url if url.drivername == "sqlite" else url.set(drivername="postgresql+psycopg")
    raise UserError(
        "a ledger is a SQLite file, sqlite:///PATH or postgresql://user@host:5432/database, not "
        + url.render_as_string(hide_password=True)
    )


def _engine(url: URL) -> Engine:
    if database := _file_of(url):
        return create_engine(
            URL.create("sqlite", database=str(database)),
            # Each batch has another length, and the driver would keep the last 128 statements.
            connect_args={"timeout": _SQLITE_WAITS_S, "cached_statements": 8},
            insertmanyvalues_page_size=_ROWS_A_STATEMENT,
        )
    arguments: dict[str, Any] = {"connect_timeout": _CONNECT_WITHIN_S, **_KEEPALIVES}
    if "options" not in url.query:
        arguments["options"] = _STATEMENT_LIMIT
    # A connection that a restart of the server has cut is replaced, not used.
    return create_engine(url, connect_args=arguments, pool_pre_ping=True, pool_size=2)


def _make_durable(connection: sqlite3.Connection, _: Any) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    # One fsync per batch, not per request, so full durability costs nothing here.
    connection.execute("PRAGMA synchronous=FULL")


def _file_of(url: URL) -> Path | None:
    return Path(url.database or "") if url.drivername == "sqlite" else None


def _other(url: URL) -> UserError:
    place = _file_of(url) or url.render_as_string(hide_password=True)
    return UserError(
        f"{place}: not a usage ledger of version {VERSION}; name another, or start a gateway on "
        f"it, which adds what one of version {_BEFORE} lacks"
    )


@contextmanager
def explained(url: URL, done: str) -> Iterator[None]:
    """Turn a database's errors into a sentence without a password.

    Raises:
        UserError: in place of an error of the database.
        RetryableError: if its server cannot be reached.
    """
    try:
        yield
    except TunelineError:
        raise
    except (SQLAlchemyError, sqlite3.Error, ModuleNotFoundError) as error:
        cause: BaseException = error
        if isinstance(error, DBAPIError) and error.orig is not None:
            cause = error.orig
        place = _file_of(url) or url.render_as_string(hide_password=True)
        message = f"{place}: the usage ledger cannot be {done}: {first_line(cause)}"
        if isinstance(error, OperationalError) and not _file_of(url):
            raise RetryableError(message) from None
        raise UserError(message) from None
