"""Datasets of several files, broken ones among them: on disk, in a bucket (moto over HTTP)."""

import gzip
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.lab.data_runs import clean_rows, code
from tests.lab.runs import value
from tests.lab.s3_server import s3

from tuneline.config import DataConfig
from tuneline.data.sources import streams
from tuneline.data.sources.records import count_records, open_files, read_records
from tuneline.errors import RetryableError, UserError


def jsonl(rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def read(tmp_path, **settings):
    """Every record of a dataset as (file, line, fault)."""
    found = []
    counted = 0
    for opened in open_files(DataConfig(**settings), tmp_path / "scratch"):
        for record in opened.records():
            fault = (record.fault or "").split(":")[0]
            found.append((opened.file.name, record.source_line, fault))
        counted += opened.count()
    assert counted == len(found), "what the reader gives is what is counted without it"
    return found


def each(config, tmp_path):
    for opened in open_files(config, tmp_path):
        for record in opened.records():
            yield opened, record


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = clean_rows(40)
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.jsonl").write_bytes(jsonl(rows[:10]))
    (data / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(rows[10:20])))
    (data / "c.jsonl.zst").write_bytes(pa.compress(jsonl(rows[20:30]), "zstd", asbytes=True))
    pq.write_table(pa.Table.from_pylist(rows[30:]), data / "d.parquet", row_group_size=4)
    return data


def test_files_of_all_kinds_make_one_dataset(folder, tmp_path):
    found = read(tmp_path, source="data")
    assert [line for _, line, _ in found] == [*range(1, 11)] * 4
    assert {name for name, _, _ in found} == {
        "data/a.jsonl",
        "data/b.jsonl.gz",
        "data/c.jsonl.zst",
        "data/d.parquet",
    }
    assert not any(fault for _, _, fault in found)


def test_a_broken_file_does_not_stop_the_others(folder, tmp_path):
    whole = (folder / "d.parquet").read_bytes()
    (folder / "d.parquet").write_bytes(whole[: len(whole) // 2])
    (folder / "b.jsonl.gz").write_bytes((folder / "b.jsonl.gz").read_bytes()[:-60])
    (folder / "e.jsonl").touch()
    (folder / "f.jsonl.gz").write_bytes(gzip.compress(b"x")[:4])
    found = read(tmp_path, source="data")
    faults = {name: fault for name, _, fault in found if fault}
    assert faults == {
        "data/b.jsonl.gz": "broken_file",
        "data/d.parquet": "broken_file",
        "data/f.jsonl.gz": "broken_file",
    }
    good = [(name, line) for name, line, fault in found if not fault]
    assert len(good) >= 20
    assert len(good) == len(set(good))


def test_rows_of_a_damaged_parquet_group_are_told_one_by_one(folder, tmp_path):
    path = folder / "d.parquet"
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(0)
    at = start.dictionary_page_offset or start.data_page_offset
    data[at : at + start.total_compressed_size] = b"\xff" * start.total_compressed_size
    path.write_bytes(data)
    found = read(tmp_path, source="data/d.parquet")
    assert [line for _, line, fault in found if fault == "broken_file"] == [5, 6, 7, 8]
    assert [line for _, line, fault in found if not fault] == [1, 2, 3, 4, 9, 10]


def test_columns_that_nobody_trains_on_lose_no_row(folder, tmp_path):
    """Such as embeddings, which are lists of a fixed size, and facts by name."""
    table = pq.read_table(folder / "d.parquet")
    vectors = pa.array([[1.0, 2.0]] * len(table), pa.list_(pa.float32(), 2))
    facts = pa.array([[("a", 1)]] * len(table), pa.map_(pa.string(), pa.int64()))
    more = table.append_column("embedding", vectors).append_column("facts", facts)
    pq.write_table(more, folder / "d.parquet", row_group_size=4)
    found = read(tmp_path, source="data/d.parquet")
    assert [(line, fault) for _, line, fault in found] == [(line, "") for line in range(1, 11)]


def test_the_content_says_what_a_file_is(folder, tmp_path):
    (folder / "d.parquet").rename(folder / "g.jsonl")
    (folder / "b.jsonl.gz").rename(folder / "h.jsonl")
    found = read(tmp_path, source=["data/g.jsonl", "data/h.jsonl"])
    assert len(found) == 20
    assert not any(fault for _, _, fault in found)


def test_bad_input_for_everything_is_one_sentence(folder, tmp_path):
    for path in folder.iterdir():
        path.write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"^data: none of 4 files can be read; data/a\.jsonl can't"):
        read(tmp_path, source="data")
    for path in folder.iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"^data: 4 files, and none holds a row to train on$"):
        read(tmp_path, source="data")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b"x" * 99)[:12])
    with pytest.raises(UserError, match=r"b\.jsonl\.gz can't be read: its gzip stream ends early"):
        read(tmp_path, source="data/b.jsonl.gz")
    with pytest.raises(UserError, match=r"none\.jsonl does not exist"):
        read(tmp_path, source=["data/a.jsonl", "none.jsonl"])


def test_a_hold_out_inside_the_folder_is_no_training_data(folder, tmp_path):
    config = DataConfig(source="data", holdout="data/a.jsonl")
    read_as = {(r.source_line, f.file.name, f.own_holdout) for f, r in each(config, tmp_path)}
    assert {name for _, name, held in read_as if held} == {"data/a.jsonl"}
    assert "data/a.jsonl" not in {name for _, name, held in read_as if not held}
    assert len(read_as) == 40
    with pytest.raises(UserError, match=r"also named in data\.holdout"):
        list(open_files(DataConfig(source="data/a.jsonl", holdout="data"), tmp_path))


def test_the_step_keeps_what_is_whole_and_warns(folder, data_lab):
    (folder / "b.jsonl.gz").write_bytes((folder / "b.jsonl.gz").read_bytes()[:-60])
    lab = data_lab([], source=str(folder))
    entry = lab.step("schema_validation")
    assert value(entry, "broken_files") == 1
    assert value(entry, "rows_lost") == 0
    assert len(entry.inputs) == 4
    lab.agree("schema_validation", "warn")
    (reject,) = lab.rejected("schema_validation")
    assert code(reject) == "broken_file"
    assert "ends early, what comes after this line is lost" in reject["reason"]
    assert reject["source_file"].endswith("b.jsonl.gz")


def test_a_gzip_bomb_is_a_broken_file(folder, data_lab, monkeypatch):
    monkeypatch.setattr(streams, "_UNPACKED_BYTES", 8 << 20)
    sound = clean_rows(10)
    bomb = gzip.compress(jsonl(sound) + b"x" * (32 << 20) + b"\n" + jsonl(sound))
    (folder / "b.jsonl.gz").write_bytes(bomb)
    lab = data_lab([], source=str(folder))
    entry = lab.step("schema_validation")
    assert (value(entry, "broken_files"), value(entry, "rows_lost")) == (1, 0)
    (reject,) = lab.rejected("schema_validation")
    assert (code(reject), reject["source_line"]) == ("broken_file", 11)
    assert "unpacks to more than" in reject["reason"]


def test_a_dictionary_of_long_texts_is_not_written_out(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "_UNPACKED_BYTES", 80 << 20)
    texts = pa.array(["short", "x" * (4 << 20), "x" * (65 << 20)])
    chosen = pa.array([0, 1, 2, 0, 1, 1, *[1] * 1018], pa.int32())
    table = pa.table({"prompt": pa.DictionaryArray.from_arrays(chosen, texts)})
    pq.write_table(table, folder / "d.parquet", compression="zstd", store_schema=False)
    assert (folder / "d.parquet").stat().st_size < 20_000
    before = pa.default_memory_pool().max_memory()
    found = read(tmp_path, source="data/d.parquet")
    assert pa.default_memory_pool().max_memory() - before < 400 << 20, "4 GB if written out"
    faults = ["", "", "line_too_long", "", "", "", *["broken_file"] * 1018]
    assert found == [("data/d.parquet", line, fault) for line, fault in enumerate(faults, 1)]


def test_a_table_that_unpacks_to_gigabytes_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "_UNPACKED_BYTES", 8 << 20)
    table = pa.table({"prompt": ["x" * (16 << 20)]})
    pq.write_table(table, folder / "d.parquet", compression="zstd", use_dictionary=False)
    found = read(tmp_path, source=["data/a.jsonl", "data/d.parquet"])
    assert found[10:] == [("data/d.parquet", 1, "broken_file")]
    with pytest.raises(UserError, match=r"d\.parquet unpacks to \d+ bytes, .* JSON lines"):
        read(tmp_path, source="data/d.parquet")


def test_a_big_file_is_read_in_bounded_memory(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    row = json.dumps({"prompt": "word " * 200, "completion": "x"}).encode() + b"\n"
    with gzip.open(path, "wb", compresslevel=1) as handle:
        for _ in range(15):
            handle.write(row * 1000)
    tracemalloc.start()
    try:
        number = sum(record.fault is None for record in read_records(path, "rows"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert number == count_records(path) == 15_000
    assert peak < 4e6, "15 MB of rows pass by"


@pytest.fixture
def bucket(monkeypatch):
    with s3(monkeypatch, "data") as (client, _):
        yield client


def test_objects_prefixes_and_globs_of_a_bucket(bucket, tmp_path):
    rows = jsonl(clean_rows(6))
    bucket.put_object(Bucket="data", Key="in/rows.jsonl", Body=rows)
    bucket.put_object(Bucket="data", Key="in/more/b#?.jsonl.gz", Body=gzip.compress(rows))
    bucket.put_object(Bucket="data", Key="in/README.md", Body=b"x")
    bucket.put_object(Bucket="data", Key="other.jsonl", Body=rows)
    one = read(tmp_path, source="s3://data/in/rows.jsonl")
    assert [name for name, _, _ in one] == ["s3://data/in/rows.jsonl"] * 6
    both = {name for name, _, _ in read(tmp_path, source="s3://data/in")}
    assert both == {"s3://data/in/rows.jsonl", "s3://data/in/more/b#?.jsonl.gz"}
    assert both == {name for name, _, _ in read(tmp_path, source="s3://data/in/")}
    assert both == {name for name, _, _ in read(tmp_path, source="s3://data/in/**")}
    assert len({name for name, _, _ in read(tmp_path, source="s3://data")}) == 3
    assert len({name for name, _, _ in read(tmp_path, source="s3://data/*.jsonl")}) == 1
    assert not list(tmp_path.glob("scratch/*")), "a fetched file goes when it has been read"


def test_keys_of_other_programs_may_have_empty_parts(bucket, tmp_path):
    bucket.put_object(Bucket="data", Key="raw//rows.jsonl", Body=jsonl(clean_rows(6)))
    for address in ("s3://data/raw", "s3://data/raw//rows.jsonl", "s3://data/**"):
        found = read(tmp_path, source=address)
        assert {name for name, _, _ in found} == {"s3://data/raw//rows.jsonl"}


def test_what_a_bucket_does_not_hold(bucket, tmp_path, monkeypatch):
    for address, words in {
        "s3://data/none.jsonl": r"s3://data/none\.jsonl does not exist",
        "s3://data/x/*.jsonl": "does not exist",
        "s3://nobucket/x.jsonl": "nobucket does not exist",
    }.items():
        with pytest.raises(UserError, match=words):
            read(tmp_path, source=address)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(RetryableError, match=r"s3://data/rows\.jsonl"):
        read(tmp_path, source="s3://data/rows.jsonl")
