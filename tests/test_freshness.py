"""Evidence whose input changed counts as not run, and says which input of which step changed."""

import json

import pytest
from tests.lab.runs import Lab

from tuneline.artifacts.artifact import Artifact
from tuneline.artifacts.training import LORA
from tuneline.errors import UserError
from tuneline.evidence import measure
from tuneline.run import Run
from tuneline.verdicts import Freshness, check_item, checklist, status

HOLDS = measure("limit_holds", True, "flag", "==", True)
ROWS = Artifact("deduplication", "rows.parquet")
ADAPTER = Artifact("train", "adapter.bin")


@pytest.fixture
def lab(tmp_path):
    """A run in which determinism rests on train, which rests on deduplication."""
    made = Lab(tmp_path, {})
    made.leave("deduplication", {ROWS.name: "rows"}, [HOLDS])
    train(made)
    made.execute("determinism", lambda ctx: reading(ctx, ADAPTER))
    return made


def train(lab, adapter="adapter"):
    def work(ctx):
        ROWS.fetch(ctx)
        ADAPTER.path(ctx).write_text(adapter)
        return ctx.record("trained", [measure("train_seconds", 3.2, "s")])

    lab.execute("train", work)


def reading(ctx, *artifacts):
    for artifact in artifacts:
        artifact.fetch(ctx)
    return ctx.conclude("measured", [HOLDS])


def test_what_a_step_reads_is_recorded_without_its_help(lab):
    def work(ctx):
        assert ADAPTER.exists(ctx)
        assert LORA.find(ctx.run) is None
        assert ctx.entry("deduplication").summary
        assert ctx.config.training.seed == 7
        return ctx.conclude("measured", [HOLDS])

    entry = lab.execute("determinism", work)
    read = {(r.step, r.name): r.sha256 for r in entry.reads}
    assert set(read) == {
        ("train", "adapter.bin"),
        ("lora_selection", "lora.json"),
        ("deduplication", "measurements"),
        ("config", "training"),
    }
    assert read["lora_selection", "lora.json"] is None
    (artifact,) = lab.run.entry("train").artifacts
    assert read["train", "adapter.bin"] == artifact.sha256


def test_nothing_is_out_of_date_in_a_run_that_went_once(lab):
    assert status(lab.run, "determinism").verdict == "pass"
    assert Freshness(lab.run, deep=True).outdated(["deduplication", "determinism"]) == []


def test_the_same_output_again_makes_nothing_out_of_date(lab):
    lab.leave("deduplication", {ROWS.name: "rows"}, [HOLDS])
    train(lab)
    assert status(lab.run, "determinism").verdict == "pass"


def test_other_output_is_named_by_what_read_it(lab):
    before = lab.run.entry("train").artifacts[0].sha256
    train(lab, "another adapter")
    now = lab.run.entry("train").artifacts[0].sha256
    row = status(lab.run, "determinism")
    assert row.verdict == "not_run"
    assert row.because == (
        f"determinism read adapter.bin of train as {before[:8]}…, which is now {now[:8]}…: "
        "run it again"
    )
    assert row.summary == "out of date: measured"
    lab.execute("determinism", lambda ctx: reading(ctx, ADAPTER))
    assert check_item(lab.run.uri, "determinism").verdict == "pass"


def test_what_rests_on_evidence_out_of_date_is_out_of_date_too(lab):
    lab.leave("deduplication", {ROWS.name: "other rows"}, [HOLDS])
    row = status(lab.run, "determinism")
    assert row.verdict == "not_run"
    assert row.because.startswith(
        "determinism rests on train, which is out of date: train read rows.parquet of deduplication"
    )
    (cause,) = Freshness(lab.run).outdated(["deduplication", "determinism"])
    assert cause.endswith(": run it again; the evidence of determinism rests on it")
    # Run again on an adapter that was not, it still rests on the rows from before.
    lab.execute("determinism", lambda ctx: reading(ctx, ADAPTER))
    assert status(lab.run, "determinism").verdict == "not_run"
    train(lab)
    assert status(lab.run, "determinism").verdict == "pass"


def test_input_that_came_or_went_is_named(lab):
    def look(ctx):
        return ctx.conclude(
            "looked", [measure("there", LORA.find(ctx.run) is None, "flag", "==", 1)]
        )

    lab.execute("cold_start", look)
    lab.leave("lora_selection", {"lora.json": '{"r": 16, "alpha": 32}'}, [HOLDS])
    because = status(lab.run, "cold_start").because
    assert because.startswith("cold_start found no lora.json of lora_selection, which is there now")
    lab.leave("train", {})
    assert "which is gone now" in status(lab.run, "determinism").because
    lab.run.store.delete_prefix(lab.run.step_key("train"))
    assert "adapter.bin of train" in status(lab.run, "determinism").because


def test_measurements_that_were_read_count_and_times_do_not(lab):
    def work(ctx):
        ctx.entry("train")
        ctx.entry("base_regression")
        return ctx.conclude("measured", [HOLDS])

    lab.leave("base_regression", {}, [measure("share", 0.5, "share", ">", 0)])
    lab.execute("cold_start", work)
    lab.leave("train", {ADAPTER.name: "adapter"}, [measure("train_seconds", 9.9, "s")])
    assert status(lab.run, "cold_start").verdict == "pass"
    lab.leave("base_regression", {}, [measure("share", 0.6, "share", ">", 0)])
    assert "measurements of base_regression" in status(lab.run, "cold_start").because


def test_a_step_does_not_rest_on_itself_or_on_later_steps(lab):
    def work(ctx):
        assert ctx.run.find_evidence("determinism") is not None
        assert ctx.run.find_evidence("lineage") is None
        return ctx.conclude("measured", [HOLDS])

    assert [r.step for r in lab.execute("determinism", work).reads] == []
    lab.leave("lineage", {}, [HOLDS])
    assert status(lab.run, "determinism").verdict == "pass"


def test_an_artifact_swapped_beside_its_record_shows_in_a_deep_look(lab):
    lab.run.store.put_bytes(ADAPTER.key(lab.run), b"swapped!")
    assert Freshness(lab.run).stale("determinism") is None
    assert "adapter.bin of train" in Freshness(lab.run, deep=True).stale("determinism").because


def test_settings_changed_since_show_for_the_steps_that_read_them(lab):
    lab.execute("cold_start", lambda ctx: ctx.conclude(f"{ctx.config.deployment.engine}", [HOLDS]))
    key = lab.run.key("config.json")
    document = json.loads(lab.run.store.get_bytes(key))
    document["deployment"]["parallel"] += 1
    lab.run.store.put_bytes(key, json.dumps(document).encode())
    changed = Run.open(lab.run.uri)
    assert "deployment of the configuration" in status(changed, "cold_start").because
    assert status(changed, "determinism").verdict == "pass"


def test_an_audit_out_of_date_leaves_what_it_judged_not_run(lab):
    def audit(ctx):
        ADAPTER.fetch(ctx)
        return ctx.record("audited", [measure("pii_scrubbing.leaks", 0, "rows", "==", 0)])

    lab.leave("pii_scrubbing", {}, [HOLDS])
    lab.execute("extraction_audit", audit)
    assert status(lab.run, "pii_scrubbing").verdict == "pass"
    train(lab, "another adapter")
    row = status(lab.run, "pii_scrubbing")
    assert row.verdict == "not_run"
    assert row.because.startswith(
        "the extraction audit: extraction_audit read adapter.bin of train"
    )


def test_the_checklist_keeps_the_reason_when_another_item_fails(lab):
    lab.leave("latency_benchmark", {}, [measure("m", 3, "rows", "<=", 0)])
    train(lab, "another adapter")
    rows = {row.item: row for row in checklist(lab.run)}
    assert rows["determinism"].because.startswith("determinism read adapter.bin")
    assert rows["fallback"].because == "latency_benchmark failed and stopped the run before it"


def test_a_file_that_no_step_left_can_not_be_read(lab):
    with pytest.raises(UserError, match="train left no artifact 'nothing'"):
        lab.execute("determinism", lambda ctx: reading(ctx, Artifact("train", "nothing")))
