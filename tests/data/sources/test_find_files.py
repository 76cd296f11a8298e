import gzip
import json
import os

import pytest
from tests.lab.data_runs import clean_rows
from tests.lab.hub_server import COMMIT, in_a_process
from tests.lab.hub_server import hub as hub_of

from tuneline.data.sources.find_files import choose, find_files, find_here, parse_address
from tuneline.errors import UserError


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in [
        "data/b.jsonl",
        "data/a.jsonl.gz",
        "data/deep/c.parquet",
        "data/deep/README.md",
        "data/.cache/d.jsonl",
        "data/.hidden.jsonl",
        "data/_SUCCESS",
        "data/e.CSV",
        "odd[1].jsonl",
    ]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}\n")
    return tmp_path


def names(*addresses):
    return [file.name for file in find_files(addresses)]


def test_folders_globs_and_lists(tree):
    every = ["data/a.jsonl.gz", "data/b.jsonl", "data/deep/c.parquet", "data/e.CSV"]
    assert names("data") == names("data/") == names("data/**/*") == every
    assert names("data/*.jsonl*") == ["data/a.jsonl.gz", "data/b.jsonl"]
    assert names("data/[ab]*") == ["data/a.jsonl.gz", "data/b.jsonl"]
    # In a list each file counts once, in the order of the list.
    assert names("data/b.jsonl", "data") == ["data/b.jsonl", *every[:1], *every[2:]]
    assert names(str(tree / "data/b.jsonl"), "data/b.jsonl") == [str(tree / "data/b.jsonl")]
    # A file whose name looks like a pattern, or like a kind of address, is itself.
    for name in ("sql", "s3", "file"):
        (tree / name).write_bytes(b"{}\n")
        assert names(name) == [name]
    assert names("odd[1].jsonl") == ["odd[1].jsonl"]
    assert names((tree / "odd[1].jsonl").as_uri()) == [(tree / "odd[1].jsonl").as_uri()]
    assert names((tree / "data").as_uri())[0] == (tree / "data/a.jsonl.gz").as_uri()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("none.jsonl", "does not exist; check the path"),
        ("sql://shop/chats", "unknown kind .* written as Parquet first .docs/do/tables.md"),
        ("data/*.tsv", "matches no JSONL, CSV or Parquet file"),
        ("data/.cache/x", "does not exist"),
        ("empty", "is a folder without JSONL, CSV or Parquet"),
        ("ftp://host/rows.jsonl", "unknown kind of address"),
        ("hf://org/model", "write hf://datasets/owner/name"),
        ("hf://datasets/squad", "write hf://datasets/owner/name"),
        ("s3:///key", "names no bucket"),
        ("", "no dataset was named"),
        (" ", "no dataset was named"),
        ("a\0b", "is not a path"),
    ],
)
def test_what_names_no_dataset(tree, address, words):
    (tree / "empty").mkdir()
    with pytest.raises(UserError, match=words):
        find_files([address])
    with pytest.raises(UserError, match=words):
        find_here([address])


def test_a_server_is_not_asked_before_the_run():
    assert find_here(["s3://bucket/key.jsonl", "hf://datasets/owner/name@main/x"]) == []


def test_a_file_name_that_is_no_utf8_can_be_shown(tree):
    path = os.fsencode(tree / "data") + b"/\xff.jsonl"
    with open(path, "wb") as handle:
        handle.write(b"{}\n")
    file = next(f for f in find_files(["data"]) if "xff" in f.name)
    file.name.encode()
    assert file.local.read_bytes() == b"{}\n"


def test_globs_on_servers_are_those_of_a_shell():
    keys = ["a.jsonl", "x/b.jsonl", "x/y/c.jsonl.zst", "x/y/d.txt", "x/.z/e.jsonl", "xy.csv"]
    assert choose(keys, "") == ["a.jsonl", "x/b.jsonl", "x/y/c.jsonl.zst", "xy.csv"]
    assert choose(keys, "x") == choose(keys, "x/") == ["x/b.jsonl", "x/y/c.jsonl.zst"]
    assert choose(keys, "x/*") == ["x/b.jsonl"]
    assert choose(keys, "x/**") == ["x/b.jsonl", "x/y/c.jsonl.zst"]
    assert choose(keys, "**/*.jsonl") == ["a.jsonl", "x/b.jsonl"]
    assert choose(keys, "x/y/?.jsonl.zst") == ["x/y/c.jsonl.zst"]
    assert choose(keys, "[!x]*") == ["a.jsonl"]
    assert choose(keys, "x/y/d.txt") == ["x/y/d.txt"]
    assert choose(keys, "none") == []
    with pytest.raises(UserError, match="'x\\*\\*' is not a pattern for files"):
        choose(keys, "x**")


ROWS = b"".join(json.dumps(row).encode() + b"\n" for row in clean_rows(5))
FILES = {
    "README.md": b"# data",
    "data/train.jsonl": ROWS,
    "data/more.jsonl.gz": gzip.compress(ROWS),
    "test.jsonl": ROWS,
}


@pytest.fixture
def hub():
    """The URL of a hub that has one dataset, org/chats."""
    with hub_of("datasets", "org/chats", FILES) as url:
        yield url


def read(address, tmp_path, **environment):
    """Name and origin of each file of a dataset, and its records."""
    return in_a_process(
        "from tuneline.config import DataConfig\n"
        "from tuneline.data.sources.records import open_files",
        "[[o.file.name, o.file.origin, len(list(o.records()))]"
        " for o in open_files(DataConfig(source=sys.argv[1]), Path(sys.argv[2]))]",
        address,
        str(tmp_path / "scratch"),
        home=tmp_path / "hf",
        **environment,
    )


@pytest.mark.parametrize(
    ("rest", "files"),
    [
        ("", ["data/more.jsonl.gz", "data/train.jsonl", "test.jsonl"]),
        ("@main/data", ["data/more.jsonl.gz", "data/train.jsonl"]),
        ("@refs%2Fpr%2F1/data/*.jsonl", ["data/train.jsonl"]),
        (f"@{COMMIT}/test.jsonl", ["test.jsonl"]),
    ],
)
def test_files_of_a_dataset(hub, tmp_path, rest, files):
    found = read(f"hf://datasets/org/chats{rest}", tmp_path, HF_ENDPOINT=hub)
    given = "hf://datasets/org/chats" + rest.split("/")[0]
    pinned = f"hf://datasets/org/chats@{COMMIT}"
    assert found == [[f"{given}/{name}", f"{pinned}/{name}", 5] for name in files]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("hf://datasets/org/chats@nope", "the hub knows no such revision"),
        ("hf://datasets/org/other", "the hub knows no such repository"),
        ("hf://datasets/org/chats/none.jsonl", "has no JSONL, CSV or Parquet file there"),
        ("hf://datasets/org/-chats-", "dataset 'hf://datasets/org/-chats-'"),
    ],
)
def test_what_the_hub_does_not_know(hub, tmp_path, address, words):
    found = read(address, tmp_path, HF_ENDPOINT=hub)
    assert found["kind"] == "UserError"
    assert words in found["error"]


@pytest.mark.parametrize(
    "surroundings", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}]
)
def test_a_hub_that_cannot_be_reached_is_worth_a_retry(tmp_path, surroundings):
    found = read("hf://datasets/org/chats@main/test.jsonl", tmp_path, **surroundings)
    assert found["kind"] == "RetryableError"
    assert "the hub can't be reached" in found["error"]
    assert "give a directory or s3:// instead" in found["error"]


def test_addresses():
    found = parse_address("hf://datasets/a/b-c.d@refs%2Fconvert%2Fparquet/x/*.parquet")
    assert found == ("a/b-c.d", "refs/convert/parquet", "x/*.parquet")
    assert parse_address("hf://datasets/a/b") == ("a/b", "main", "")
