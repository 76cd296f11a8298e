"""Tables of databases, frozen to Parquet in the run: SQLite, and a real PostgreSQL server."""

import json
import os
import sqlite3
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from tests.lab.data_runs import clean_rows
from tests.lab.runs import value

from tuneline.artifacts.data import SOURCES
from tuneline.config import DataConfig, build_config
from tuneline.data.sources import frozen
from tuneline.data.sources.find_files import dataset_version, find_here
from tuneline.data.sources.records import open_files
from tuneline.data.tables.dataset_card import reproduce
from tuneline.errors import RetryableError, UserError
from tuneline.governance.release.erase import Eraser, Subject

SECRET = "hunter2secret"
PAIRS = [
    tuple(row["messages"][n]["content"] for n in (0, 1)) for row in clean_rows(30)
]  # prompt, completion


@pytest.fixture
def database(tmp_path, monkeypatch):
    """A SQLite database as the connection `shop`, with a table chats."""
    path = tmp_path / "shop.db"
    link = sqlite3.connect(path, isolation_level=None)
    link.execute("CREATE TABLE chats (id INTEGER, prompt TEXT, completion TEXT, score REAL)")
    rows = [(n, *pair, None if n < 20 else 0.5) for n, pair in enumerate(PAIRS)]
    link.executemany("INSERT INTO chats VALUES (?, ?, ?, ?)", rows)
    monkeypatch.setenv("TUNELINE_SQL_SHOP", f"sqlite:///{path}")
    yield link
    link.close()


def read(tmp_path, source="sql://shop/chats", **settings):
    """Every record of a dataset by column."""
    config = DataConfig(source=source, **settings)
    opened = open_files(config, tmp_path / "scratch")
    return [record.value for one in opened for record in one.records()]


def test_a_table_and_a_query_are_read(database, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "_ROWS", 7)
    rows = read(tmp_path)
    assert [(row["prompt"], row["completion"]) for row in rows] == PAIRS
    # A column without a value in the first batches.
    assert [row.get("score") for row in rows] == [None] * 20 + [0.5] * 10
    query = "WITH few AS (SELECT * FROM chats WHERE id < 3)\nSELECT prompt FROM few;\n"
    few = read(tmp_path, "sql://shop/few", queries={"few": query})
    assert few == [{"prompt": prompt} for prompt, _ in PAIRS[:3]]
    # A percent sign and a colon are text.
    query = "SELECT '100 % :x' AS prompt"
    assert read(tmp_path, "sql://shop/x", queries={"x": query}) == [{"prompt": "100 % :x"}]
    assert not list((tmp_path / "scratch").glob("*"))


def test_a_run_sees_the_rows_that_it_froze(database, data_lab):
    query = "SELECT id, prompt, completion FROM chats"
    lab = data_lab([], source="sql://shop/kept", queries={"kept": query})
    entry = lab.step("schema_validation")
    assert value(entry, "rows_kept") == 30
    (note,) = SOURCES.find(lab.run).root
    (ref,) = entry.inputs[:1]
    assert (note.name, note.records, note.sha256) == ("sql://shop/kept", 30, ref.sha256)
    assert (note.snapshot.version, len(note.snapshot.query_sha256)) == (None, 64)
    kept = [key for key in lab.run.store.keys(lab.run.key("quarantine")) if "/frozen-" in key]
    assert lab.run.store.find(kept[1]).sha256 == note.sha256
    # Between two steps, and before a retry, the table changes and is gone.
    database.execute("UPDATE chats SET completion = 'changed'")
    lab.upto("deduplication")
    database.execute("DROP TABLE chats")
    again = lab.step("schema_validation")
    assert value(again, "rows_kept") == 30
    assert SOURCES.find(lab.run).root == [note]


def test_an_erased_person_is_not_read_again(database, data_lab):
    database.execute("UPDATE chats SET prompt = 'I am Jane Roe of ' || prompt WHERE id = 3")
    query = "SELECT prompt, completion FROM chats"
    lab = data_lab([], source="sql://shop/kept", queries={"kept": query})
    lab.step("schema_validation")
    eraser = Eraser(lab.run.store, Subject("Jane Roe"), "tester")
    found = eraser.search()
    assert any("/quarantine/frozen-" in key for key in found.files)
    assert any("sql://shop/kept" in left for left in found.left)
    eraser.erase()
    assert value(lab.step("schema_validation"), "rows_kept") == 29


def test_the_page_shows_what_runs(database, tmp_path, monkeypatch):
    """Its settings read a table and a query of a connection of that name."""
    page = (Path(__file__).parents[3] / "docs" / "your-data.md").read_text()
    (settings,) = [part for part in page.split("```yaml\n") if "queries:" in part]
    data = yaml.safe_load(settings.split("```")[0])["data"]
    monkeypatch.setenv("TUNELINE_SQL_WAREHOUSE", os.environ["TUNELINE_SQL_SHOP"])
    database.execute(
        "CREATE TABLE tickets AS SELECT prompt question, completion answer, 0 price,"
        " '2026-01-01' closed FROM chats"
    )
    database.execute("CREATE TABLE holdout AS SELECT prompt, completion FROM chats LIMIT 2")
    config = DataConfig(**data)
    found = [(o.own_holdout, len(list(o.records()))) for o in open_files(config, tmp_path / "s")]
    assert found == [(False, 30), (True, 2)]


def test_what_ships_has_no_query_and_nothing_has_the_password(database, data_lab, monkeypatch):
    query = "SELECT * FROM chats WHERE prompt <> 'Jane Roe'"
    monkeypatch.setenv("AIRFLOW_CONN_SHOP", f"sqlite://user:{SECRET}@/x")
    lab = data_lab([], source="sql://shop/kept", queries={"kept": query})
    lab.upto("deduplication")
    shown = json.dumps(reproduce(lab.run.config.data, "base").model_dump())
    assert "Jane Roe" not in shown
    assert SOURCES.find(lab.run).root[0].snapshot.query_sha256 in shown
    for key in lab.run.store.keys(lab.run.prefix):
        raw = lab.run.store.get_bytes(key)
        assert SECRET.encode() not in raw
        assert (b"Jane Roe" in raw) == key.endswith("config.json")


def test_the_version_follows_the_rows_and_not_their_order(database):
    def version():
        return dataset_version(["sql://shop/chats"]).files["sql://shop/chats"]

    first = version()
    database.execute("CREATE TABLE other AS SELECT * FROM chats ORDER BY id DESC")
    database.execute("DROP TABLE chats")
    database.execute("ALTER TABLE other RENAME TO chats")
    assert version() == first
    database.execute("UPDATE chats SET prompt = 'x' WHERE id = 3")
    assert version() != first


REFUSED = [
    ("SELECT * FROM none", r"sql://shop/q: the database says no such table: none; check conn"),
    ("SELECT none FROM chats", r"no such column: none"),
    ("SELECT FROM", r"says .*syntax"),
    ("WITH x AS (SELECT 1) DELETE FROM chats", r"says .*readonly"),
    (
        "SELECT id, prompt AS id FROM chats",
        r"sql://shop/q gives two columns of one name .id, id.; use AS",
    ),
    ("SELECT prompt FROM chats WHERE id > 99", r"sql://shop/q holds no rows; there is nothing"),
    ("SELECT CASE id WHEN 1 THEN 'a' ELSE 1 END AS v FROM chats", r"column v holds int, str; CAST"),
]


@pytest.mark.parametrize(("query", "words"), REFUSED)
def test_queries_that_give_no_table(database, tmp_path, query, words):
    with pytest.raises(UserError, match=words):
        read(tmp_path, "sql://shop/q", queries={"q": query})
    assert database.execute("SELECT count(*) FROM chats").fetchone() == (30,)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("DELETE FROM chats", "q is not one query: write SELECT"),
        (" ", "q is not one query"),
        ("SELECT 1; COMMIT; DROP TABLE chats", "q is not one query"),
    ],
)
def test_settings_refuse_what_is_no_query(query, words):
    data = {"source": "sql://shop/q", "queries": {"q": query}}
    with pytest.raises(UserError, match=rf"data\.queries.*{words}"):
        build_config({"data": data}, where="settings.yaml")
    with pytest.raises(UserError, match="queries names p, which no source reads"):
        build_config({"data": {**data, "queries": {"p": "SELECT 1"}}}, where="settings.yaml")


@pytest.mark.parametrize(
    "address",
    "sql://shop sql://shop/ sql:///chats sql://a:b@host/chats sql://shop/a?x delta:// delta://b "
    "delta:///t?version=x".split(),
)
def test_addresses_that_name_no_table(address):
    with pytest.raises(UserError, match="names no table; write sql://connection/table"):
        find_here([address])


def test_a_table_is_not_asked_before_the_run():
    assert find_here(["sql://shop/chats", "delta:///data/chats?version=3"]) == []


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [
        (None, UserError, "no connection shop; set TUNELINE_SQL_SHOP to its URL"),
        (f"pg//user:{SECRET}@host", UserError, "is not a URL: postgresql"),
        (f"{{'password': '{SECRET}'}}", UserError, "is not a URL: postgresql"),
        (f"nosql://user:{SECRET}@host/x", UserError, "install the package for nosql"),
        (f"mssql+pyodbc://user:{SECRET}@host/x", UserError, "install the package for mssql.pyodbc"),
        ("sqlite:////nowhere/x.db", UserError, "says unable to open"),
        (f"postgresql://u:{SECRET}@127.0.0.1:9/x", RetryableError, "the database says"),
    ],
)
def test_connections_that_lead_nowhere(tmp_path, monkeypatch, url, kind, words):
    if url:
        monkeypatch.setenv("TUNELINE_SQL_SHOP", url)
    with pytest.raises(kind, match=f"^sql://shop/chats: .*{words}") as caught:
        read(tmp_path)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_columns_that_make_no_row_are_named(database, data_lab):
    lab = data_lab([], source="sql://shop/q", queries={"q": "SELECT id, prompt FROM chats"})
    with pytest.raises(UserError, match="has the columns id, prompt, which make no row to train"):
        lab.step("schema_validation")


def test_more_than_a_dataset_is_not_kept(database, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "MOST_BYTES", 1 << 10)
    with pytest.raises(UserError, match="holds over 0 GiB; choose fewer rows"):
        read(tmp_path)


def test_delta_names_its_package(tmp_path):
    with pytest.raises(UserError, match=r"delta:///t needs packages .* install tuneline\[delta\]"):
        read(tmp_path, "delta:///t")


def test_postgres_is_read_in_one_snapshot(postgres, tmp_path, monkeypatch):
    url = postgres.create("shop")
    postgres.run_sql(
        "CREATE TABLE chats AS SELECT n AS id, jsonb_build_array(jsonb_build_object('role', 'user',"
        " 'content', 'question ' || n)) AS messages, gen_random_uuid() AS key, now() AS at,"
        " 1.5::numeric AS price, '\\x00'::bytea AS raw FROM generate_series(1, 20000) n",
        "shop",
    )
    # As Airflow states a connection, here as a URI and as JSON.
    monkeypatch.setenv("AIRFLOW_CONN_SHOP", url.replace("postgresql://", "postgres://"))
    for opened in open_files(DataConfig(source="sql://shop/public.chats"), tmp_path / "a"):
        records = [record.value for record in opened.records()]
        assert pq.read_schema(opened.path).field("price").type == pa.decimal128(2, 1)
        # Where a transaction can be named, the lineage names its snapshot.
        assert opened.snapshot.version.count(":") == 2
    assert len(records) == 20000
    assert records[6]["messages"] == [{"role": "user", "content": "question 7"}]
    fields = {"conn_type": "postgres", "schema": "shop", "login": "tester"}
    as_json = {**fields, "extra": json.dumps({"host": str(postgres.folder)})}
    monkeypatch.setenv("AIRFLOW_CONN_SHOP", json.dumps(as_json))
    query = {"one": "SELECT id FROM chats WHERE id = 7"}
    assert read(tmp_path, "sql://shop/one", queries=query) == [{"id": 7}]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELECT * FROM none", 'says relation "none" does not exist'),
        ("WITH x AS (DELETE FROM pg_class RETURNING 1) SELECT * FROM x", "must not contain"),
        ("SELECT nextval('counter')", "read-only transaction"),
        ("SELECT int4range(1, 2) AS span", "column span holds .*Range; CAST it in a query"),
        ("SELECT 'Jane Roe'::int", "says InvalidTextRepresentation;"),
    ],
)
def test_what_postgres_refuses(postgres, tmp_path, monkeypatch, query, words):
    monkeypatch.setenv("TUNELINE_SQL_SHOP", postgres.url)
    postgres.run_sql("CREATE SEQUENCE IF NOT EXISTS counter")
    with pytest.raises(UserError, match=words) as caught:
        read(tmp_path, "sql://shop/q", queries={"q": query})
    assert "Jane Roe" not in str(caught.value)


def test_a_wrong_user_is_not_tried_again(postgres, tmp_path, monkeypatch):
    wrong = postgres.url.replace("tester@", f"nobody:{SECRET}@")
    monkeypatch.setenv("TUNELINE_SQL_SHOP", wrong)
    with pytest.raises(UserError, match='role "nobody" does not exist') as caught:
        read(tmp_path)
    assert SECRET not in str(caught.value)
