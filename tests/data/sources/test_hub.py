"""Datasets from a hub: the real client against a small server that speaks its routes."""

import gzip
import json

import pytest
from tests.lab.data_runs import clean_rows
from tests.lab.hub_server import COMMIT, in_a_process
from tests.lab.hub_server import hub as hub_of

from tuneline.data.sources.find_files import parse_address

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
    assert (found.repository, found.revision) == ("a/b-c.d", "refs/convert/parquet")
    assert found.path == "x/*.parquet"
    assert parse_address("hf://datasets/a/b").revision == "main"
