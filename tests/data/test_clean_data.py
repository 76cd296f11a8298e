"""No false alarm on clean data; in the sample everything planted is found and little else."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from benchmarks.workloads.support_chat import PLANTED
from tests.data.test_pii_scrubbing import changed_words
from tests.lab.data_runs import WORDS, DataLab, answer, chat, clean_rows, code, write_jsonl
from tests.lab.runs import broken

from tuneline.catalogue import DATA_ORDER
from tuneline.data.sample import SUPPORT
from tuneline.verdicts import checklist

CLASSES = "billing login shipping returns stock delivery".split()


def words(draw, count):
    return " ".join(draw.choices(WORDS, k=count))


def clean_rows_of(seed):
    """Rows without a fault: classes of unequal sizes in JSON, or free text without any class."""
    draw = random.Random(seed)
    classes = CLASSES[: draw.randint(2, 6)]
    sizes = {name: draw.randint(60, 180) for name in classes}
    system = draw.choice([None, "Answer the customer of a shop in one sentence."])
    rows = []
    for name, size in sizes.items():
        for _ in range(size):
            asked = f"{words(draw, draw.randint(6, 24)).capitalize()}?"
            told = f"{words(draw, draw.randint(4, 16)).capitalize()}."
            turns = chat(asked, answer(name, told) if seed % 2 == 0 else told, system)
            if draw.random() < 0.2:
                more = [f"{words(draw, 9).capitalize()}?", f"{words(draw, 6).capitalize()}."]
                turns = [*turns[:-1], {"role": "assistant", "content": more[1]}]
                turns += chat(more[0], answer(name, told) if seed % 2 == 0 else told)
            rows.append({"messages": turns})
    draw.shuffle(rows)
    return rows


# Each takes some ten seconds; both kinds of rows are among the first.
SEEDS = [*range(2), *(pytest.param(n, marks=pytest.mark.long) for n in range(2, 20))]


@pytest.mark.parametrize("seed", SEEDS)
def test_no_false_alarm(data_lab, seed):
    rows = clean_rows_of(seed)
    settings = {} if seed % 2 == 0 else {"label_field": None}
    lab = data_lab(rows, pii_profile=["gdpr", "pci"], license="Apache-2.0", **settings)
    for item in DATA_ORDER:
        entry = lab.step(item)
        assert entry.verdict == "pass", (item, entry.summary, entry.measurements)
        assert lab.rejected(item) == [], item
        gate = lab.gate(item)
        assert (gate.verdict, gate.agrees) == ("pass", True), gate.summary
    record = lab.step("final_audit")
    assert all(m.ok is not False for m in record.measurements), record.measurements
    assert len(lab.table("distribution_balancing", "dataset.parquet")) == len(rows)


def outdated(lab):
    return {
        row.item: row.because
        for row in checklist(lab.run)
        if row.item in DATA_ORDER and row.verdict == "not_run"
    }


def test_a_data_step_run_again(data_lab):
    lab = data_lab(clean_rows(60))
    lab.upto("distribution_balancing")
    lab.step("final_audit")
    assert outdated(lab) == {}

    # The same rows again.
    for step in ("schema_validation", "deduplication", "final_audit"):
        lab.step(step)
    assert outdated(lab) == {}

    # Other rows: what follows rests on the rows from before.
    write_jsonl(Path(lab.run.config.data.source), clean_rows(61))
    lab.step("schema_validation")
    found = outdated(lab)
    # The final audit judges the first item too.
    assert set(found) == set(DATA_ORDER)
    assert found["pii_scrubbing"].startswith(
        "pii_scrubbing read quarantine/rows.parquet of schema_validation as "
    )
    assert all(" of schema_validation as " in because for because in found.values())

    # One after the other they come back.
    for step in (*DATA_ORDER[1:], "final_audit"):
        lab.step(step)
    assert outdated(lab) == {}
    assert json.loads(lab.lab.artifact("final_audit", "dataset.json").read_text())["rows"] == 61


@pytest.fixture(scope="module")
def sample(tmp_path_factory, base_dir):
    """The whole data phase over the sample, names included, and what was planted in it."""
    lab = DataLab(
        tmp_path_factory.mktemp("sample"),
        base_dir,
        SUPPORT.read_bytes().splitlines(),
        pii_profile=["gdpr"],
        pii_ner=True,
        max_tokens=1024,
    )
    lab.upto("distribution_balancing")
    lab.step("final_audit")
    lab.planted = json.loads(PLANTED.read_bytes())["planted"]
    return lab


def test_the_sample_all_malformed_rows_and_no_other(sample):
    codes = {
        "wrong_role_order": "role_order",
        "empty_assistant": "empty_turn",
        "missing_assistant": "no_answer",
    }
    faults = {f["line"]: f["detail"]["fault"] for f in sample.planted if f["kind"] == "malformed"}
    rejects = {r["source_line"]: code(r) for r in sample.rejected("schema_validation")}
    assert rejects == {line: codes.get(fault, fault) for line, fault in faults.items()}
    assert set(Counter(faults.values()).values()) == {3}
    assert sample.run.find_evidence("schema_validation").verdict == "pass"
    assert sample.gate("schema_validation").verdict == "pass"


def test_in_the_sample_every_planted_value_is_gone_and_nothing_else_changed(sample):
    planted = {f["line"]: f["detail"]["entities"] for f in sample.planted if f["kind"] == "pii"}
    before = {
        r["source_line"]: r for r in sample.table("schema_validation", "quarantine/rows.parquet")
    }
    after = {r["source_line"]: r for r in sample.table("pii_scrubbing", "rows.parquet")}
    for line, entities in planted.items():
        shown = json.dumps(after[line]["messages"], ensure_ascii=False).casefold()
        said = {turn["role"]: turn["content"] for turn in before[line]["messages"]}
        for entity in entities:
            assert all(entity["text"] in said[role] for role in entity["turns"])
            assert entity["text"].casefold() not in shown
    kinds = Counter(entity["type"] for entities in planted.values() for entity in entities)
    assert len(kinds) == 10
    assert min(kinds.values()) >= 3
    pairs = {line: (before[line]["messages"], row["messages"]) for line, row in after.items()}
    assert set(planted) <= {line for line, (old, new) in pairs.items() if old != new}
    assert changed_words([pair for line, pair in pairs.items() if line not in planted]) < 0.005
    assert sample.run.find_evidence("pii_scrubbing").verdict == "pass"
    assert sample.gate("pii_scrubbing").verdict == "pass"


def test_in_the_sample_duplicates_and_conflicts_go_and_hardly_another_row(sample):
    of_kind = {
        kind: {f["line"]: f["detail"]["of"] for f in sample.planted if f["kind"] == kind}
        for kind in ("exact_duplicate", "near_duplicate", "label_conflict")
    }
    gone = {r["source_line"]: code(r) for r in sample.rejected("deduplication")}
    for line, original in of_kind["exact_duplicate"].items():
        assert (line in gone) != (original in gone), line
    # What was scrubbed in one of two rows may stand in the other, or make both rows of a template.
    near = of_kind["near_duplicate"]
    single = sum((line in gone) != (original in gone) for line, original in near.items())
    assert single >= 0.7 * len(near)
    conflicts = of_kind["label_conflict"]
    assert {*conflicts, *conflicts.values()} == {
        line for line, why in gone.items() if why == "label_conflict"
    }
    planted = {n for kind in of_kind.values() for pair in kind.items() for n in pair}
    # The others differ from more than `template_repeats` rows in the number of an order alone.
    assert len(gone.keys() - planted) <= 15
    assert sample.run.find_evidence("deduplication").verdict == "pass"
    assert sample.gate("deduplication").verdict == "pass"


def test_the_sample_all_over_long_rows_and_no_other(sample):
    planted = {f["line"] for f in sample.planted if f["kind"] == "over_long"}
    assert {r["source_line"] for r in sample.rejected("token_length_audit")} == planted
    assert sample.gate("token_length_audit").verdict == "pass"


def test_the_sample_holds(sample):
    assert broken(sample.run.entry("final_audit")) == set()
