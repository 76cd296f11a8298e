"""Tables of databases and of Delta Lake, frozen to Parquet.

Rows of a table change while a run reads them, and have no bytes to hash. So a run asks once and
keeps the answer, as one file; every step and every retry reads that.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from tuneline.artifacts.data import Snapshot
from tuneline.data.sources.object_stores import lacks
from tuneline.errors import RetryableError, UserError, first_line
from tuneline.run import now

if TYPE_CHECKING:
    import pyarrow as pa
    from sqlalchemy import URL, Connection, CursorResult

Batch = TypeVar("Batch", "pa.Table", "pa.RecordBatch")
# More is no data for a fine-tune, but a query without its condition.
MOST_BYTES = 32 << 30
_ROWS = 1 << 13
_SQL = re.compile(r"sql://([\w.-]+)/([^/?#]+)", re.ASCII)
_DELTA = re.compile(r"delta://([^/?#]*)/([^?#]+)(?:\?version=(\d{1,18}))?", re.ASCII)
# One transaction that writes nothing and sees one state of the database; elsewhere the rights of
# its user decide what a query may do.
_READ_ONLY = {
    "postgresql": "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY",
    "sqlite": "PRAGMA query_only = ON",
}
_SNAPSHOT = {"postgresql": "SELECT pg_current_snapshot()"}
# What a server says when another try changes nothing.
_REFUSED = re.compile(
    r"authentication|password|does not exist|permission denied|no such|invalid connection option|"
    r"syntax|read-only|readonly|unable to open|Access denied"
)
# Returns the URI of a connection, None if there is none; Airflow's processes set it.
by_connection: Callable[[str], str | None] | None = None


def _within(batches: Iterable[Batch], address: str) -> Iterator[Batch]:
    """Yield batches of rows; UserError if there is no row, or more than `MOST_BYTES`."""
    rows = size = 0
    for batch in batches:
        rows, size = rows + len(batch), size + batch.nbytes
        if size > MOST_BYTES:
            raise UserError(f"{address} holds over {MOST_BYTES >> 30} GiB; choose fewer rows of it")
        yield batch
    if not rows:
        raise UserError(f"{address} holds no rows; there is nothing to train on")


def _write(batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: Path) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)


@dataclass(frozen=True)
class SqlTable:
    """A table of a database or the rows of a query, `sql://connection/name`."""

    address: str
    connection: str
    name: str
    query: str | None

    def freeze(self, path: Path) -> Snapshot:
        """Write the rows to a Parquet file, in the order in which the database gives them.

        Raises:
            UserError: if the database refuses the query, or a column can't be kept.
            RetryableError: if it can't be reached.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq
        from pyarrow.dataset import dataset

        schema = pa.schema([])
        with self._asked() as (result, snapshot), TemporaryDirectory(dir=path.parent) as parts:
            try:
                # The type of a column is known when its last row is.
                for number, table in enumerate(_within(self._tables(result), self.address)):
                    schema = pa.unify_schemas([schema, table.schema], promote_options="permissive")
                    pq.write_table(table, f"{parts}/{number:09}.parquet", compression="zstd")
                _write(dataset(parts, schema=schema).to_batches(), schema, path)
            except pa.ArrowException as error:
                # This one names columns and types, others quote values.
                why = first_line(error) if isinstance(error, pa.ArrowTypeError) else "of a type"
                raise UserError(
                    f"{self.address} has values that one column of Parquet can't hold ({why}); "
                    "CAST the column in a query"
                ) from None
        return snapshot

    def _tables(self, result: CursorResult[Any]) -> Iterator[pa.Table]:
        import pyarrow as pa

        columns = list(result.keys())
        if len(set(columns)) < len(columns):
            names = ", ".join(columns)
            raise UserError(f"{self.address} gives two columns of one name ({names}); use AS")
        for rows in result.partitions(_ROWS):
            values = map(self._column, columns, zip(*rows, strict=True))
            yield pa.table(dict(zip(columns, values, strict=True)))

    def _column(self, name: str, values: Iterable[Any]) -> pa.Array:
        import pyarrow as pa

        plain = [_plain(value) for value in values]
        try:
            return pa.array(plain)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            kinds = sorted({type(value).__name__ for value in plain if value is not None})
            # The error itself quotes a value.
            raise UserError(
                f"{self.address}: column {name} holds {', '.join(kinds)}; CAST it in a query"
            ) from None

    def fingerprint(self) -> str:
        """Return a text that changes when the rows do, whatever their order; it reads them all."""
        total = 0
        with self._asked() as (result, _):
            for row in chain.from_iterable(result.partitions(_ROWS)):
                digest = hashlib.sha256(repr(tuple(map(_plain, row))).encode()).digest()
                total += int.from_bytes(digest)
        return f"rows:{total % (1 << 256):064x}"

    @contextmanager
    def _asked(self) -> Iterator[tuple[CursorResult[Any], Snapshot]]:
        """Run the query; give its rows, which a cursor on the server streams."""
        from sqlalchemy import NullPool, create_engine
        from sqlalchemy.exc import DataError, NoSuchModuleError, OperationalError, SQLAlchemyError

        url = _url_of(self.connection, self.address)
        try:
            with create_engine(url, poolclass=NullPool).connect() as database:
                yield self._ask(database)
        except (ModuleNotFoundError, NoSuchModuleError) as error:
            raise UserError(
                f"{self.address}: install the package for {url.drivername}, or name another in "
                f"the URL of the connection ({error})"
            ) from None
        except SQLAlchemyError as error:
            of = getattr(error, "orig", None) or error
            # An error on a value quotes it.
            why = type(of).__name__ if isinstance(error, DataError) else first_line(of)
            why = why.replace(str(url.password or "***"), "***")
            again = isinstance(error, OperationalError) and not _REFUSED.search(why)
            raise (RetryableError if again else UserError)(
                f"{self.address}: the database says {why}; check connection, name and query"
            ) from None

    def _ask(self, database: Connection) -> tuple[CursorResult[Any], Snapshot]:
        dialect = database.dialect
        table = ".".join(map(dialect.identifier_preparer.quote, self.name.split(".")))
        query = self.query or f"SELECT * FROM {table}"  # noqa: S608 - quoted
        version = None
        if dialect.name in _READ_ONLY:
            database.exec_driver_sql(_READ_ONLY[dialect.name])
        if dialect.name in _SNAPSHOT:
            version = str(database.exec_driver_sql(_SNAPSHOT[dialect.name]).scalar_one())
        digest = hashlib.sha256(query.encode()).hexdigest()
        snapshot = Snapshot(version=version, taken_at=now(), query_sha256=digest)
        asked = database.execution_options(stream_results=True, no_parameters=True)
        return asked.exec_driver_sql(query.rstrip("; \n")), snapshot


def _plain(value: Any) -> Any:
    """Return an identifier as text, since Parquet has no such type, and other values as such."""
    return str(value) if isinstance(value, UUID) else value


def _url_of(connection: str, address: str) -> URL:
    """Return the URL of a connection's database, with its password; UserError without one."""
    from sqlalchemy import URL, make_url
    from sqlalchemy.exc import ArgumentError

    own, airflow = (f"{p}{connection.upper()}" for p in ("TUNELINE_SQL_", "AIRFLOW_CONN_"))
    stated = os.environ.get(own) or os.environ.get(airflow)
    stated = stated or (by_connection(connection) if by_connection else None)
    if not stated:
        raise UserError(
            f"{address}: there is no connection {connection}; set {own} to its URL, such as "
            f"postgresql://user:password@host/database, or {airflow}, in a secret of the pods"
        )
    try:
        if stated.lstrip().startswith("{"):
            fields = json.loads(stated)
            extra = fields.get("extra") or {}
            extra = json.loads(extra) if isinstance(extra, str) else extra
            given = map(fields.get, ("conn_type", "login", "password", "host", "port", "schema"))
            create: Callable[..., URL] = URL.create
            url = create(*given, {name: str(value) for name, value in extra.items()})
        else:
            url = make_url(stated).difference_update_query(["__extra__"])
        return url.set(drivername="postgresql") if url.drivername == "postgres" else url
    except (ArgumentError, ValueError, KeyError, TypeError, AttributeError):
        # Their messages may quote the password.
        raise UserError(
            f"{address}: {own} or {airflow} is not a URL: postgresql://user:password@host/database"
        ) from None


@dataclass(frozen=True)
class DeltaVersion:
    """A version of a Delta table, `delta:///folder` or `delta://bucket/prefix` in S3."""

    address: str
    uri: str
    version: int | None

    def freeze(self, path: Path) -> Snapshot:
        """Write the rows of the version, or of the newest one, to a Parquet file.

        Raises:
            UserError: if there is no such table or version, or the store denies access.
            RetryableError: if the store failed.
        """
        with self._opened() as table:
            data = table.to_pyarrow_dataset()
            _write(_within(data.to_batches(), self.address), data.schema, path)
            return Snapshot(version=str(table.version()), taken_at=now())

    def fingerprint(self) -> str:
        """Return the number of the version; it changes when the table does."""
        with self._opened() as table:
            return f"version:{table.version()}"

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        try:
            from deltalake import DeltaTable
            from deltalake.exceptions import DeltaError, TableNotFoundError
        except ImportError:
            raise lacks(self.address, "delta") from None
        plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
        options = {"AWS_ALLOW_HTTP": "true"} if plain and self.uri.startswith("s3://") else None
        try:
            table = DeltaTable(self.uri, storage_options=options)
            if self.version is not None:
                if self.version > (newest := table.version()):
                    raise UserError(f"{self.address}: the newest version of the table is {newest}")
                table.load_as_version(self.version)
            yield table
        except TableNotFoundError:
            raise UserError(f"{self.address} is not a Delta table; check its path") from None
        except (DeltaError, OSError) as error:
            denied = re.search(r"\b40[13]\b|AccessDenied|Forbidden|credential", str(error))
            why = "access denied; check AWS_ACCESS_KEY_ID" if denied else first_line(error)
            kind = UserError if denied or isinstance(error, DeltaError) else RetryableError
            raise kind(f"{self.address} can't be read as a Delta table: {why}") from None


def find_table(address: str, queries: Mapping[str, str]) -> SqlTable | DeltaVersion:
    """Return the table that an address names, without asking; UserError for a wrong address."""
    if match := _SQL.fullmatch(address):
        return SqlTable(address, match[1], match[2], queries.get(match[2]))
    if match := _DELTA.fullmatch(address):
        uri = (f"s3://{match[1]}/{match[2]}" if match[1] else f"/{match[2]}").rstrip("/")
        return DeltaVersion(address, uri, int(match[3]) if match[3] else None)
    raise UserError(
        f"{address} names no table; write sql://connection/table, sql://connection/name with the "
        "query in data.queries, delta:///folder or delta://bucket/prefix?version=12"
    )
