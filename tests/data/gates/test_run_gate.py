import json
import os
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
from tests.lab.data_runs import clean_rows

from tuneline.artifacts.data import AUDIT
from tuneline.catalogue import DATA_ORDER, ITEMS
from tuneline.data.gates import expectations
from tuneline.data.gates.run_gate import run_gate
from tuneline.data.gates.suites import Rule, Suite, among, between
from tuneline.errors import UserError
from tuneline.evidence import Verdict, dump
from tuneline.store import sha256_file
from tuneline.verdicts import status


@pytest.fixture
def lab(data_lab):
    return data_lab(clean_rows(60))


def rewrite(lab, item, change, name=AUDIT):
    """Change a stored table and the hash that the evidence gives for it."""
    path = lab.lab.artifact(item, name)
    change(pd.read_parquet(path)).to_parquet(path)
    entry = lab.run.find_evidence(item)
    refs = [
        ref.model_copy(update={"sha256": sha256_file(path)}) if ref.name == name else ref
        for ref in entry.artifacts
    ]
    key = lab.run.step_key(item, "evidence.json")
    lab.run.store.put_bytes(key, dump(entry.model_copy(update={"artifacts": refs})))


def test_every_data_item_has_a_gate():
    assert set(DATA_ORDER) == {item.id for item in ITEMS if item.phase == "data"}


def test_a_gate_leaves_its_verdict_and_its_docs(lab):
    lab.step("schema_validation")
    result = lab.gate("schema_validation")
    key = lab.run.step_key("schema_validation", "gate.json")
    document = json.loads(lab.run.store.get_bytes(key))
    assert document["verdict"] == result.verdict == "pass"
    assert document["agrees"] is True
    page = lab.run.store.get_bytes(lab.run.store.key_of(result.docs)).decode()
    assert "schema_validation" in page
    assert status(lab.run, "schema_validation").verdict == "pass"


def test_only_data_items_that_were_run(lab):
    with pytest.raises(UserError, match="lineage has no gate"):
        run_gate(lab.run, "lineage")
    with pytest.raises(UserError, match="schema_validation has not been run"):
        lab.gate("schema_validation")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.iloc[:0], "has no rows"),
        (lambda t: t.drop(columns=["tokens_equal"]), "lack the column tokens_equal"),
        (lambda t: t.iloc[1:], "row count to equal"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "unique"),
        (lambda t: t.assign(kept=[False, *t["kept"][1:]]), "lost_rows"),
        (lambda t: t.assign(reason=["why", *t["reason"][1:]]), "kept_with_a_reason"),
        (lambda t: t.assign(kept=[False, *t["kept"][1:]], reason="why"), "rejected_rows"),
        (lambda t: t.assign(tokens_equal=None), "kept_tokens_equal"),
        (lambda t: t.assign(last_role="user"), "kept_last_role"),
    ],
)
def test_a_table_that_is_not_what_the_step_says_fails(lab, change, words):
    lab.step("schema_validation")
    rewrite(lab, "schema_validation", change)
    gate = lab.gate("schema_validation")
    assert gate.verdict == "fail"
    assert not gate.agrees
    assert words in gate.summary
    assert status(lab.run, "schema_validation").verdict == "fail"


def test_rows_that_vanish_between_two_steps(lab):
    lab.upto("pii_scrubbing")
    rewrite(lab, "pii_scrubbing", lambda t: t.iloc[2:])
    gate = lab.gate("pii_scrubbing")
    assert gate.verdict == "fail"
    assert "missing_rows: column values to be between" in gate.summary
    rewrite(lab, "pii_scrubbing", lambda t: t.assign(row_id=["new", *t["row_id"][1:]]))
    assert "came_in" in lab.gate("pii_scrubbing").summary


def test_missing_canaries_fail(lab):
    lab.upto("pii_scrubbing")
    rewrite(
        lab, "pii_scrubbing", lambda t: t[t["entity"] != "CREDIT_CARD"], name="canaries.parquet"
    )
    assert "pii_canaries" in lab.gate("pii_scrubbing").summary


def test_a_step_that_says_pass_where_its_table_says_fail(lab):
    lab.upto("deduplication")
    rewrite(lab, "deduplication", lambda t: t.assign(cross_similarity=0.95))
    gate = lab.gate("deduplication")
    assert (gate.verdict, gate.step_verdict, gate.agrees) == ("fail", "pass", False)
    assert "the step says pass, its audit table says fail" in gate.summary


def validate(tmp_path, *suites):
    return expectations.validate(suites, tmp_path / "gx")


# What Great Expectations 1.24 takes for a success, or dies of.


def test_quantiles_whose_result_cannot_be_stored_fail_and_do_not_raise(tmp_path):
    arguments = {"column": "a", "quantile_ranges": {"quantiles": [0.5], "value_ranges": [[0, 5]]}}
    frame = pd.DataFrame({"a": [1, 2, 3]})
    rule = Rule("ExpectColumnQuantileValuesToBeBetween", arguments)
    verdict, failures, count = validate(tmp_path, Suite("q", frame, [rule]))
    assert (verdict, count) == (Verdict.FAIL, 0)
    assert failures[0].startswith("q: its expectations could not be checked")


def test_no_suite_no_rule_no_row_is_no_success(tmp_path):
    assert validate(tmp_path)[0] == Verdict.FAIL
    frame = pd.DataFrame({"a": [1]})
    assert validate(tmp_path, Suite("s", frame, []))[:2] == (
        Verdict.FAIL,
        ["s: nothing is expected"],
    )
    empty = Suite("s", frame.iloc[:0], [between("a", 0, 1)])
    assert validate(tmp_path, empty)[:2] == (Verdict.FAIL, ["s: the table has no rows"])


@pytest.mark.parametrize("severity", ["critical", "warning"])
def test_an_expectation_that_cannot_run_fails_whatever_its_severity(tmp_path, severity):
    frame = pd.DataFrame({"a": [1, 2]})
    suite = Suite("s", frame, [between("gone", 0, 1, severity=severity)])
    verdict, failures, _ = validate(tmp_path, suite)
    assert verdict == Verdict.FAIL
    assert "could not be computed" in failures[0]


def test_a_broken_warning_only_warns(tmp_path):
    frame = pd.DataFrame({"a": [1, 2], "b": [True, None]})
    rules = [between("a", 0, 1, severity="warning"), among("b", True)]
    verdict, failures, count = validate(tmp_path, Suite("s", frame, rules))
    assert (verdict, count, len(failures)) == (Verdict.WARN, 2, 1)


def test_an_expectation_lost_on_the_way_to_disk_is_noticed(tmp_path, monkeypatch):
    import great_expectations as gx

    kept = gx.ExpectationSuite.__init__

    def lose_one(self, *args, expectations=None, **kwargs):
        kept(self, *args, expectations=(expectations or [])[:-1], **kwargs)

    monkeypatch.setattr(gx.ExpectationSuite, "__init__", lose_one)
    frame = pd.DataFrame({"a": [1, 2]})
    verdict, failures, _ = validate(
        tmp_path, Suite("s", frame, [between("a", 0, 5), among("a", 1, 2)])
    )
    assert verdict == Verdict.FAIL
    assert "of 2 expectations ran" in failures[-1]


def test_nothing_is_sent_anywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("GX_ANALYTICS_ENABLED", "true")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it went to the network"))
    frame = pd.DataFrame({"a": [1]})
    assert validate(tmp_path, Suite("s", frame, [between("a", 0, 1)]))[0] == Verdict.PASS
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"


def test_gates_of_several_runs_at_once_do_not_meet(data_lab):
    labs = [data_lab(clean_rows(20 + n)) for n in range(3)]
    for lab in labs:
        lab.step("schema_validation")
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda lab: lab.gate("schema_validation"), labs))
    assert [gate.verdict for gate in found] == ["pass"] * 3
