"""The tables of the usage ledger, the same in SQLite and PostgreSQL.

`usage` has a row for each attempt. `spending` has the sums that budgets are held against. A row
that is new in `usage` is added to them in the same transaction, so that the two agree after a
crash, with several gateways, and after a batch that was written twice. Only requests are spent:
not pings, and not what another gateway answered. In PostgreSQL a trigger adds them; SQLite's fire
for each row and cost half of an insertion again, so there the writer adds the sums of a batch.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    inspect,
    select,
)

VERSION = 2

_METADATA = MetaData()

USAGE = Table(
    "usage",
    _METADATA,
    Column("request_id", Text, primary_key=True),
    # From 1, in the order of the chain.
    Column("attempt", Integer, primary_key=True),
    # Unix time at which the attempt began.
    Column("time", Double, nullable=False),
    # request, ping or warmup; imported in rows that an earlier version took from another gateway.
    Column("kind", Text, nullable=False),
    # Name of the API key.
    Column("key", Text, nullable=False),
    # The model id that the client asked for.
    Column("model", Text, nullable=False),
    Column("upstream", Text, nullable=False),
    # The upstream's own model id.
    Column("model_served", Text, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    # Of the prompt tokens, those that the upstream had cached.
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    # 1: counted by the gateway, not reported.
    Column("estimated", Integer, nullable=False),
    Column("cost", Double, nullable=False),
    Column("currency", Text, nullable=False),
    Column("latency_ms", Double, nullable=False),
    # NULL when nothing was streamed.
    Column("ttft_ms", Double),
    # NULL when log-probabilities were not asked for.
    Column("mean_logprob", Double),
    # How the attempt ended.
    Column("status", Text, nullable=False),
    # 1: this answer went to the client.
    Column("served", Integer, nullable=False),
    # Why the attempt before was left; NULL on the first.
    Column("fallback_reason", Text),
    # The client's own user, as `ledger.users` lets it be kept; empty if it named none.
    Column("user_id", Text, nullable=False),
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


def prepare(connection: Connection) -> bool:
    """Make the tables in an empty database; leave those of this version as they are.

    Args:
        connection: a connection in a transaction.

    Returns:
        False if there are other tables in their place.
    """
    sqlite = connection.dialect.name == "sqlite"
    if not sqlite:
        # Gateways that start together must not all make the tables.
        connection.exec_driver_sql(_LOCK)
    names = set(inspect(connection).get_table_names())
    if _VERSION.name in names:
        return is_current(connection)
    # A SQLite file is the ledger's own; a PostgreSQL database may have other tables.
    if names if sqlite else names & _METADATA.tables.keys():
        return False
    _METADATA.create_all(connection)
    for statement in () if sqlite else _POSTGRES_TRIGGER:
        connection.exec_driver_sql(statement)
    connection.execute(_VERSION.insert().values(version=VERSION))
    return True


def is_current(connection: Connection) -> bool:
    """Return True if the database is a ledger of this version."""
    if not inspect(connection).has_table(_VERSION.name):
        return False
    return connection.execute(select(_VERSION.c.version)).scalars().all() == [VERSION]
