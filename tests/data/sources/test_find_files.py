import os

import pytest

from tuneline.data.sources.find_files import choose, ending_of, find_files, find_here
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
    # A file whose name looks like a pattern is itself.
    assert names("odd[1].jsonl") == ["odd[1].jsonl"]
    assert names((tree / "odd[1].jsonl").as_uri()) == [(tree / "odd[1].jsonl").as_uri()]
    assert names((tree / "data").as_uri())[0] == (tree / "data/a.jsonl.gz").as_uri()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("none.jsonl", "does not exist; check the path"),
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


def test_endings():
    assert ending_of("a/b.JSONL.GZ") == ".jsonl"
    assert ending_of("rows.csv.zstd") == ".csv"
    assert ending_of("rows.gz") == ""
    assert ending_of("x.parquet") == ".parquet"
