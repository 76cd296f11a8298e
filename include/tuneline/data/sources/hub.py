"""Datasets on the Hugging Face hub (or a mirror of it, `HF_ENDPOINT`).

`hf://datasets/<owner>/<name>[@revision][/path]`, the path being a file, a folder or a glob. A
revision is looked up once and its files are read at that commit.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import unquote

from tuneline.data.sources.source_file import SourceFile, choose
from tuneline.errors import UserError
from tuneline.models.origins import call_hub

_ADDRESS = re.compile(
    r"hf://datasets/(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?(?:/(?P<path>.*))?",
    re.ASCII,
)


@dataclass(frozen=True)
class HubAddress:
    """A dataset's repository, its revision and the path in it (empty for all files)."""

    repository: str
    revision: str
    path: str


def parse_address(address: str) -> HubAddress:
    """Take an address apart; without a revision it is `main`.

    Raises:
        UserError: if it does not name a dataset.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UserError(
            f"{address} is not a dataset on the hub; write "
            "hf://datasets/owner/name@revision/path, the revision best a full commit"
        )
    # A slash in a revision is written %2F, as the hub's own addresses have it.
    revision = unquote(match["revision"] or "main")
    return HubAddress(match["repository"], revision, (match["path"] or "").strip("/"))


def find_on_hub(address: str) -> list[SourceFile]:
    """Find the files of a dataset on the hub that an address names.

    Raises:
        UserError: if the hub knows no such dataset or revision, or has no data file there.
        RetryableError: if the hub can't be reached.
    """
    wanted = parse_address(address)
    commit, names = call_hub(f"dataset {address!r}", lambda: _list(wanted))
    chosen = choose(names, wanted.path)
    if not chosen:
        raise UserError(
            f"{address} does not exist: the repository has no JSONL, CSV or Parquet file there"
        )
    root = f"hf://datasets/{wanted.repository}"
    given = address.removeprefix(root).partition("/")[0]
    return [
        SourceFile(
            f"{root}{given}/{name}",
            address,
            f"{root}@{commit}/{name}",
            download=partial(_download, address, wanted.repository, commit, name),
        )
        for name in chosen
    ]


def _list(wanted: HubAddress) -> tuple[str, list[str]]:
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(wanted.repository, revision=wanted.revision)
    return str(info.sha), [entry.rfilename for entry in info.siblings or []]


def _download(address: str, repository: str, commit: str, name: str, target: Path) -> None:
    from huggingface_hub import hf_hub_download

    folder = target.parent / "hub"
    found = call_hub(
        f"dataset {address!r}",
        lambda: hf_hub_download(
            repository, name, repo_type="dataset", revision=commit, local_dir=folder
        ),
    )
    Path(found).replace(target)
    shutil.rmtree(folder)
