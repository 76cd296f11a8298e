"""Tables of databases and of Delta Lake, frozen to Parquet.

Rows of a table change while a run reads them, and have no bytes to hash. So a run asks once and
keeps the answer, as one file; every step and every retry reads that.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneline.artifacts.data import Snapshot
from tuneline.data.sources.object_stores import lacks
from tuneline.errors import RetryableError, UserError, first_line
from tuneline.run import now

if TYPE_CHECKING:
    import pyarrow as pa
    from sqlalchemy import URL, CursorResult

# More is no data for a fine-tune, but a query without its condition.
MOST_BYTES = 32 << 30
_ROWS = 1 << 13
_SQL = re.compile(r"sql://([\w.-]+)/([^/?#]+)", re.ASCII)
_DELTA = re.compile(r"delta://([^/?#]*)/([^?#]+?)/*(?:\?version=(\d{1,18}))?", re.ASCII)
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
# What Airflow calls a kind of database, and SQLAlchemy otherwise.
_DRIVERS = {"postgres": "postgresql"}
# Returns the URI of a connection, None if there is none; Airflow's processes set it.
by_connection: Callable[[str], str | None] | None = None


def _nothing(address: str) -> UserError:
    return UserError(f"{address} holds no rows; there is nothing to train on")


def _too_large(address: str) -> UserError:
    return UserError(f"{address} holds more than {MOST_BYTES >> 30} GiB; choose fewer rows of it")


def _write(batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: Path, address: str) -> None:
    import pyarrow.parquet as pq

    rows = size = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batches:
            rows, size = rows + len(batch), size + batch.nbytes
            if size > MOST_BYTES:
                raise _too_large(address)
            writer.write_batch(batch)
    if not rows:
        raise _nothing(address)


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
        from pyarrow.dataset import dataset

        parts = path.with_name("parts")
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir(parents=True)
        with self._asked() as (result, snapshot):
            try:
                schema = self._spool(result, parts)
            except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
                # It names columns and types, no values.
                raise UserError(f"{self.address}: {first_line(error)}; CAST it to one") from None
        if schema is None:
            raise _nothing(self.address)
        _write(dataset(parts, schema=schema).to_batches(), schema, path, self.address)
        shutil.rmtree(parts)
        return snapshot

    def _spool(self, result: CursorResult[Any], parts: Path) -> pa.Schema | None:
        """Write each batch as a file; return a schema that fits all, None without a row."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns, schema, size = list(result.keys()), None, 0
        if len(set(columns)) < len(columns):
            double = next(name for name in columns if columns.count(name) > 1)
            raise UserError(f"{self.address} gives two columns {double}; name one anew by AS")
        for number, rows in enumerate(result.partitions(_ROWS)):
            values = zip(*rows, strict=True)
            table = pa.table(dict(zip(columns, map(self._column, columns, values), strict=True)))
            known = [schema] if schema else []
            schema = pa.unify_schemas([*known, table.schema], promote_options="permissive")
            if (size := size + table.nbytes) > MOST_BYTES:
                raise _too_large(self.address)
            pq.write_table(table, parts / f"{number:09}.parquet", compression="zstd")
        return schema

    def _column(self, name: str, values: Iterable[Any]) -> pa.Array:
        import pyarrow as pa

        plain = [_plain(value) for value in values]
        try:
            return pa.array(plain)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            kinds = sorted({type(value).__name__ for value in plain if value is not None})
            # The error itself quotes a value.
            raise UserError(
                f"{self.address}: the column {name} holds values that Parquet can't "
                f"({', '.join(kinds)}); change them in a query, such as CAST({name} AS text)"
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
        kind = url.get_backend_name()
        try:
            engine = create_engine(url, poolclass=NullPool)
            with engine.connect() as database:
                if kind in _READ_ONLY:
                    database.exec_driver_sql(_READ_ONLY[kind])
                version = None
                if kind in _SNAPSHOT:
                    version = str(database.exec_driver_sql(_SNAPSHOT[kind]).scalar_one())
                quote = engine.dialect.identifier_preparer.quote
                table = ".".join(map(quote, self.name.split(".")))
                query = self.query or f"SELECT * FROM {table}"  # noqa: S608 - quoted
                asked = database.execution_options(stream_results=True, no_parameters=True)
                snapshot = Snapshot(
                    version=version,
                    taken_at=now(),
                    query_sha256=hashlib.sha256(query.encode()).hexdigest(),
                )
                yield asked.exec_driver_sql(query.rstrip("; \n")), snapshot
        except (ModuleNotFoundError, NoSuchModuleError) as error:
            raise UserError(
                f"{self.address}: a package for {url.drivername} is not installed ({error}); "
                "install it with Tuneline, or name another in the URL"
            ) from None
        except DataError as error:
            raise UserError(
                f"{self.address}: the query fails on a value ({type(error.orig).__name__}); "
                "correct the query"
            ) from None
        except SQLAlchemyError as error:
            why = first_line(getattr(error, "orig", None) or error)
            if url.password:
                why = why.replace(str(url.password), "***")
            if not isinstance(error, OperationalError) or _REFUSED.search(why):
                raise UserError(
                    f"{self.address}: the database refuses it ({why}); correct the connection, "
                    "the name or the query"
                ) from None
            raise RetryableError(f"{self.address}: the database failed ({why})") from None


def _plain(value: Any) -> Any:
    """Return a value as Parquet has it: an identifier as text, a buffer as bytes."""
    if isinstance(value, memoryview):
        return bytes(value)
    return str(value) if type(value).__name__ == "UUID" else value


def _url_of(connection: str, address: str) -> URL:
    """Return the URL of a connection's database, with its password; UserError without one."""
    from sqlalchemy import URL, make_url
    from sqlalchemy.exc import ArgumentError

    own, airflow = (f"{prefix}_{connection.upper()}" for prefix in ("TUNELINE_SQL", "AIRFLOW_CONN"))
    stated = os.environ.get(own) or os.environ.get(airflow)
    stated = stated or (by_connection(connection) if by_connection else None)
    if not stated:
        raise UserError(
            f"{address}: there is no connection {connection}; set {own} to its URL, such as "
            f"postgresql://user:password@host/database, or {airflow}, in a secret of the pods"
        )
    try:
        if not stated.lstrip().startswith("{"):
            url = make_url(stated).difference_update_query(["__extra__"])
            return url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
        fields = json.loads(stated)
        extra = fields.get("extra") or {}
        extra = json.loads(extra) if isinstance(extra, str) else extra
        return URL.create(
            _DRIVERS.get(fields["conn_type"], fields["conn_type"]),
            fields.get("login"),
            fields.get("password"),
            fields.get("host"),
            int(fields["port"]) if fields.get("port") else None,
            fields.get("schema"),
            {name: str(value) for name, value in extra.items()},
        )
    except (ArgumentError, ValueError, KeyError, TypeError, AttributeError):
        # Their messages may quote the password.
        raise UserError(
            f"{address}: {own} or {airflow} is not the URL of a database; write "
            "postgresql://user:password@host/database"
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
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(data.to_batches(), data.schema, path, self.address)
            return Snapshot(version=str(table.version()), taken_at=now())

    def fingerprint(self) -> str:
        """Return the number of the version; it changes when the table does."""
        if self.version is not None:
            return f"version:{self.version}"
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
            newest = table.version()
            if self.version is not None and self.version > newest:
                raise UserError(f"{self.address}: the newest version of the table is {newest}")
            if self.version is not None:
                table.load_as_version(self.version)
            yield table
        except TableNotFoundError:
            raise UserError(
                f"{self.address} is not a Delta table; check the path, which holds _delta_log"
            ) from None
        except (DeltaError, OSError) as error:
            text = str(error)
            if re.search(r"\b40[13]\b|AccessDenied|Forbidden|credential", text):
                raise UserError(
                    f"{self.address}: access denied; check AWS_ACCESS_KEY_ID and "
                    "AWS_SECRET_ACCESS_KEY"
                ) from None
            kind = UserError if isinstance(error, DeltaError) else RetryableError
            raise kind(
                f"{self.address} can't be read as a Delta table: {first_line(error)}"
            ) from None


def find_table(address: str, queries: Mapping[str, str]) -> SqlTable | DeltaVersion:
    """Return the table that an address names, without asking; UserError for a wrong address."""
    if match := _SQL.fullmatch(address):
        return SqlTable(address, match[1], match[2], queries.get(match[2]))
    if match := _DELTA.fullmatch(address):
        uri = f"s3://{match[1]}/{match[2]}" if match[1] else f"/{match[2]}"
        return DeltaVersion(address, uri, int(match[3]) if match[3] else None)
    raise UserError(
        f"{address} names no table; write sql://connection/table, sql://connection/name with the "
        "query in data.queries, delta:///folder or delta://bucket/prefix?version=12"
    )
