import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pandas as pd
import pytest
from tests.lab.data_runs import DataLab, clean_rows

from tuneline.artifacts.data import AUDIT
from tuneline.catalogue import DATA_ORDER, ITEMS
from tuneline.config import Waiver
from tuneline.data.gates import expectations
from tuneline.data.gates.run_gate import run_gate
from tuneline.data.gates.suites import Rule, Suite, among, between
from tuneline.errors import UserError
from tuneline.evidence import Verdict, dump
from tuneline.store import sha256_file
from tuneline.verdicts import status


@pytest.fixture(scope="module")
def lab(tmp_path_factory, base_dir):
    """A run of the data items; `rewrite` starts from what its steps left."""
    lab = DataLab(tmp_path_factory.mktemp("gated"), base_dir, clean_rows(60))
    lab.upto("distribution_balancing")
    lab.left = {}
    return lab


def rewrite(lab, item, change, name):
    """Change a stored table and the hash that the evidence gives for it; return the gate."""
    path = lab.lab.artifact(item, name)
    frame, entry = lab.left.setdefault(
        (item, name), (pd.read_parquet(path), lab.run.find_evidence(item))
    )
    for table in (change(frame), frame):
        table.to_parquet(path)
        refs = [
            ref.model_copy(update={"sha256": sha256_file(path)}) if ref.name == name else ref
            for ref in entry.artifacts
        ]
        key = lab.run.step_key(item, "evidence.json")
        lab.run.store.put_bytes(key, dump(entry.model_copy(update={"artifacts": refs})))
        if table is not frame:
            gate, verdict = lab.gate(item), status(lab.run, item).verdict
    assert (gate.verdict, gate.agrees, verdict) == ("fail", False, "fail")
    return gate


def test_every_data_item_has_a_gate():
    assert set(DATA_ORDER) == {item.id for item in ITEMS if item.phase == "data"}


def test_a_gate_leaves_its_verdict_and_its_docs(lab, caplog):
    result = lab.gate("schema_validation")
    key = lab.run.step_key("schema_validation", "gate.json")
    document = json.loads(lab.run.store.get_bytes(key))
    assert document["verdict"] == result.verdict == "pass"
    assert document["agrees"] is True
    page = lab.run.store.get_bytes(lab.run.store.key_of(result.docs)).decode()
    assert "schema_validation" in page
    assert "ERROR" not in caplog.text  # as of a page that could not be rendered
    assert status(lab.run, "schema_validation").verdict == "pass"


def test_only_data_items_that_were_run(lab):
    with pytest.raises(UserError, match="lineage has no gate"):
        run_gate(lab.run, "lineage")


def first(**values):
    """Return a change of the first row alone."""
    return lambda t: t.assign(**{name: [v, *t[name][1:]] for name, v in values.items()})


FIRST, SECOND, THIRD, FOURTH, FIFTH = DATA_ORDER


@pytest.mark.parametrize(
    ("item", "change", "words"),
    [
        (FIRST, lambda t: t.iloc[:0], "has no rows"),
        (FIRST, lambda t: t.drop(columns=["tokens_equal"]), "lack the column tokens_equal"),
        (FIRST, lambda t: t.iloc[1:], "row count to equal"),
        (FIRST, lambda t: pd.concat([t, t.iloc[:1]]), "unique"),
        (FIRST, first(kept=False), "rows_lost"),
        (FIRST, first(reason="why"), "kept_with_a_reason"),
        (FIRST, first(kept=False, reason="why"), "rejected_rows"),
        (FIRST, first(tokens_equal=None), "kept_tokens_equal"),
        (FIRST, first(mask_exact=False), "kept_mask_exact"),
        (FIRST, first(last_role="user"), "kept_last_role"),
        # Rows that vanish, or appear, between two steps.
        (SECOND, lambda t: t.iloc[1:], "missing_rows: column values to be between"),
        (SECOND, first(row_id="new"), "came_in"),
        (SECOND, first(residual_hits=1), "kept_residual"),
        (SECOND, first(torn_copies=1), "kept_torn"),
        (SECOND, first(hits=1, values_left=1), "rows_with_values_left"),
        (SECOND, lambda t: t.assign(undeclared_language=1), "undeclared_language"),
        (SECOND, lambda t: t[t["entity"] != "CREDIT_CARD"], "pii_canaries"),
        (THIRD, first(split="one"), "kept_split"),
        (THIRD, lambda t: t.assign(conversation="one"), "torn"),
        (THIRD, first(own_holdout=True, kept=False, reason="why"), "own_rejected"),
        (THIRD, lambda t: t.assign(split="holdout"), "in_train"),
        (THIRD, lambda t: t.assign(kind=1), "kept_kind"),
        (THIRD, first(cross_similarity=0.8), "cross_split_near_duplicates"),
        (FOURTH, first(kept_tokens=10**6), "kept_length"),
        (FOURTH, lambda t: t.assign(over_limit=1), "over_limit"),
        (FIFTH, lambda t: t.assign(split="holdout"), "train_rows"),
        (FIFTH, first(weight=0), "kept_weight"),
    ],
)
def test_a_table_that_is_not_what_the_step_says_fails(lab, item, change, words):
    name = "canaries.parquet" if words == "pii_canaries" else AUDIT
    assert words in rewrite(lab, item, change, name).summary


@pytest.mark.parametrize(("up_to", "verdict"), [(0.4, "waived"), (0.3, "fail")])
def test_a_waiver_accepts_what_the_gate_measures_as_far_as_it_goes(data_lab, up_to, verdict):
    lab = data_lab([*clean_rows(20), *[{"messages": "none"}] * 10])
    lab.step(FIRST)
    known = {"item": FIRST, "up_to": up_to, "reason": "known and accepted"}
    waivers = [Waiver(measurement=m["name"], **known) for m in lab.gate(FIRST).broken]
    run = replace(lab.run, config=lab.run.config.model_copy(update={"waivers": waivers}))
    run.meta["started_by"] = "alice"
    assert status(run, FIRST).verdict == verdict


def validate(tmp_path, *suites):
    return expectations.validate(suites, tmp_path / "gx")


# What Great Expectations 1.24 takes for a success, or dies of.


FRAME = pd.DataFrame({"a": [1, 2, 3], "b": [True, None, True]})
QUANTILES = {"quantiles": [0.5], "value_ranges": [[0, 5]]}
QUANTILE = Rule(
    "ExpectColumnQuantileValuesToBeBetween", {"column": "a", "quantile_ranges": QUANTILES}
)


@pytest.mark.parametrize(
    ("suites", "verdict", "failure", "checked"),
    [
        ([Suite("s", FRAME, [QUANTILE])], "fail", "s: its expectations could not be checked", 0),
        ([], "fail", "nothing to check", 0),
        ([Suite("s", FRAME, [])], "fail", "s: nothing is expected", 0),
        ([Suite("s", FRAME[:0], [between("a", 0, 1)])], "fail", "s: the table has no rows", 0),
        *(
            (
                [Suite("s", FRAME, [between("gone", 0, 1, severity=severity)])],
                "fail",
                "could not be computed",
                1,
            )
            for severity in ("critical", "warning")
        ),
        (
            [Suite("s", FRAME, [between("a", 0, 1, severity="warning"), among("b", True)])],
            "warn",
            "2 rows otherwise",
            2,
        ),
        ([Suite("s", FRAME, [between("a", 0, 5)])], "pass", "", 1),
    ],
)
def test_what_is_no_success(tmp_path, suites, verdict, failure, checked):
    found, failures, count = validate(tmp_path, *suites)
    assert (found, count) == (verdict, checked)
    assert failure in "; ".join(broken.text for broken in failures)


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
    assert "of 2 expectations ran" in failures[-1].text


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
