import json
import shutil
from pathlib import Path

import pytest
from tests.evaluation.conftest import SPLITS
from tests.lab.runs import broken, exchange, values
from tests.lab.tiny_task import task_rows

from tuneline.data.tables.rows import Row
from tuneline.errors import TunelineError, UserError
from tuneline.evaluation.holdout_performance import leak_measurements, share_measurements
from tuneline.evaluation.scoring.ledger import Access, holdout_sha256, note_access
from tuneline.store import sha256_file


def execute(bench):
    evidence = bench.execute("holdout_performance")
    return evidence, values(evidence)


def test_a_tuned_model_that_learned_the_task_passes(scored_lab, tiny_models):
    bench = scored_lab()
    evidence, found = execute(bench)
    assert evidence.verdict == "pass", broken(evidence)
    assert found["tuned_metric"] > 0.6 > 0.5 > found["base_metric"]
    assert 0 < found["gain_lower"] < found["gain"]
    assert found["candidate_sha256"] == sha256_file(tiny_models.candidate_gguf)
    assert found["holdout_share"] == pytest.approx(48 / 318, abs=1e-4)
    lines = bench.lines("holdout_performance", "answers.jsonl")
    assert len(lines) == 48
    assert set(lines[0]) == {"row_id", "expected", "base", "tuned"}
    right = [json.loads(e["tuned"])["intent"] == json.loads(e["expected"])["intent"] for e in lines]
    assert sum(right) / 48 == pytest.approx(found["tuned_metric"], abs=1e-4)
    inputs = {ref.name: ref for ref in evidence.inputs}
    assert {"base-f16.gguf", "production_quantization/model.gguf"} <= set(inputs)


def test_a_tuned_model_that_learned_nothing_fails(scored_lab, tiny_models):
    evidence, found = execute(scored_lab(model=tiny_models.base_gguf))
    assert evidence.verdict == "fail"
    assert found["gain"] == 0
    # The base knows the form of the answers, and names one intent: no more than a constant does.
    over = ("gain", "gain_over_fair_base", "gain_over_constant", "gain_over_nearest_row")
    assert broken(evidence) == {f"{name}_lower" for name in over}


def test_a_copy_of_a_holdout_row_in_training_fails(scored_lab):
    rows = task_rows(SPLITS)
    question = rows[-1]["messages"][1]["content"]
    rows[3]["messages"][1]["content"] = f"{question.upper()} !"
    rows[5]["row_id"] = f"{rows[-2]['row_id']}#1"
    bench = scored_lab(rows=rows)
    evidence, found = execute(bench)
    assert evidence.verdict == "fail"
    assert found["near_duplicates_of_seen_rows"] == 1
    assert found["rows_also_seen"] == 1
    leaks = bench.document("holdout_performance", "leaks.json")
    assert {leak["row_id"] for leak in leaks} == {rows[-1]["row_id"], rows[-2]["row_id"]}


QUESTION = (
    "Since the update on Tuesday the scanner at the second till prints every receipt twice, and "
    "the manager of the shop asks when somebody can come to look at it."
)
NEARLY = QUESTION.replace("Tuesday", "Monday").replace("manager", "owner")
OTHER = (
    "The parcel with the winter coats has been in the depot for nine days and the driver says that "
    "the street is not on his list, so who tells him where we live?"
)


@pytest.mark.parametrize(
    ("trained_on", "leaks"), [(QUESTION, 1), (NEARLY, 1), (OTHER, 0)], ids=["exact", "near", "none"]
)
def test_a_row_that_leaked_word_for_word_or_nearly_is_found_under_another_id(trained_on, leaks):
    held = Row("held", exchange(QUESTION, "hardware"), "rows.jsonl", 1, split="holdout")
    seen = Row("seen", exchange(trained_on, "hardware"), "rows.jsonl", 2, split="train")
    measurements, found = leak_measurements([held], [seen], 0.8)
    counted = {m.name: (m.value, m.ok) for m in measurements}
    assert counted["near_duplicates_of_seen_rows"] == (leaks, leaks == 0)
    assert counted["rows_also_seen"] == (0, True)
    assert [leak["row_id"] for leak in found] == ["held"] * leaks


def test_a_holdout_that_chose_something_fails(scored_lab, tiny_models):
    bench = scored_lab()
    bench.leave_shipped(tiny_models.candidate_gguf, judged_on=[bench.held_out()[0].row_id])
    used = Access("2026-01-01T00:00:00.000Z", "choose_threshold", "run", "calibrate", "abc", 48)
    note_access(bench.run.store, holdout_sha256(bench.held_out()), used)
    evidence, _ = execute(bench)
    assert evidence.verdict == "fail"
    assert broken(evidence) == {"accesses_that_chose_something", "rows_a_variant_was_chosen_on"}


def test_the_share_is_limited_but_for_a_holdout_file_of_its_own():
    assert broken(share_measurements(15, 100, own_file=False)) == set()
    assert broken(share_measurements(9, 100, own_file=False)) == {"holdout_share"}
    assert broken(share_measurements(21, 100, own_file=False)) == {"holdout_share_upper"}
    own = share_measurements(60, 100, own_file=True)
    assert all(m.rule is None for m in own)


def test_other_bytes_than_the_chosen_ones_are_refused(scored_lab, tiny_models, tmp_path):
    bench = scored_lab()
    changed = shutil.copy(tiny_models.candidate_gguf, tmp_path / "changed.gguf")
    content = Path(changed).read_bytes()
    Path(changed).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    choice = json.dumps({"variant": "f16", "sha256": "0" * 64, "judged_on": []})
    bench.leave("production_quantization", {"model.gguf": Path(changed), "choice.json": choice})
    with pytest.raises(TunelineError, match=r"choice.json chose 0000"):
        execute(bench)


def test_no_holdout_is_the_users_error(scored_lab):
    with pytest.raises(UserError, match="no hold-out row"):
        execute(scored_lab(rows=task_rows({"train": 20, "validation": 5})))
