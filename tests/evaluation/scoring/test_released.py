"""The released bytes answer the hold-out too: only a candidate shown not to be worse passes."""

import json

import pytest
from tests.evaluation.conftest import SPLITS
from tests.lab import runs
from tests.lab.nights import release
from tests.lab.runs import Lab, broken, values
from tests.lab.tiny_task import conversation, task_rows

from tuneline.artifacts.training import LoraSettings
from tuneline.errors import UserError
from tuneline.evaluation.scoring.ledger import seen_by
from tuneline.store import sha256_file
from tuneline.verdicts import status

# Enough for a sample of 48 rows to decide in both directions.
WIDE = {"against_released": {"margin": 0.1}}
# The candidate need not beat base and trivial answers, so that only the released model decides.
ANY_GAIN = {"min_gain": -1.0, "min_gain_over_trivial": -1.0}


def earlier_rows(count=40, offset=5000):
    """Training rows of an earlier night: none of them is among those of `task_rows`."""
    return runs.dataset_rows({"train": count}, lambda number: conversation(offset + number))


@pytest.fixture
def nights(scored_lab):
    """Make a run after a release; `before` is the released model, with other bytes."""

    def make(before, rows=None, seen=(), same=False, **overrides):
        bench = scored_lab(rows=rows, **overrides)
        same_as = {name: getattr(bench.run.config, name) for name in ("base_model", "profile")}
        earlier = Lab(bench.root, same_as, "night-1")
        trained = earlier_rows()
        for row, copied in zip(trained, seen, strict=False):
            row["messages"] = copied
        earlier.leave_dataset(trained)
        served = bench.root / "served.gguf"
        # What a GGUF file states ends before the last byte.
        served.write_bytes(before.read_bytes() + b"\0" * (not same))
        release(earlier, {"model.gguf": served})
        return bench

    return make


def execute(bench):
    evidence = bench.execute("holdout_performance")
    return evidence, values(evidence)


def holdout_messages(count):
    changed = [row["messages"] for row in task_rows(SPLITS) if row["split"] == "holdout"][:count]
    for messages in changed:
        messages[1]["content"] = f"{messages[1]['content'].upper()} !"
    return changed


def test_a_candidate_as_good_as_the_released_model_passes(nights, tiny_models):
    bench = nights(tiny_models.candidate_gguf, evaluation=WIDE)
    evidence, found = execute(bench)
    assert evidence.verdict == "pass", broken(evidence)
    assert found["compared_with_released"] == "night-1"
    assert found["released_engine"] == "llama_cpp xllamacpp 0"
    assert found["rows_compared_with_released"] == 48
    assert found["difference_to_released"] == 0
    assert found["worse_than_released_by"] == pytest.approx(3.8415 / 51.8415, abs=1e-4)
    assert found["released_metric"] == found["tuned_metric"]
    [ref] = [ref for ref in evidence.inputs if ref.name == "released/model.gguf"]
    assert ref.sha256 == sha256_file(bench.root / "served.gguf")
    assert ref.uri.endswith("/models/support-intents/night-1/model.gguf")
    answers = bench.lines("holdout_performance", "released_answers.jsonl")
    pairs = bench.lines("holdout_performance", "answers.jsonl")
    assert [entry["released"] for entry in answers] == [entry["tuned"] for entry in pairs]
    # A retry does not serve the released model again.
    assert execute(bench)[1]["released_answers_from_cache"] is True


def test_the_released_bytes_are_not_compared_with_themselves(nights, tiny_models):
    evidence, found = execute(nights(tiny_models.candidate_gguf, same=True))
    assert evidence.verdict == "pass", broken(evidence)
    assert found["worse_than_released_by"] == 0
    assert "its bytes are those of the released version night-1" in evidence.summary


def test_a_better_candidate_passes(nights, tiny_models):
    evidence, found = execute(nights(tiny_models.base_gguf))
    assert evidence.verdict == "pass", broken(evidence)
    assert found["difference_to_released"] == found["gain"] > 0
    assert found["worse_than_released_by"] < 0


def test_a_holdout_that_was_seen_whole_compares_nothing(nights, tiny_models):
    held = [row for row in task_rows(SPLITS) if row["split"] == "holdout"][:12]
    rows = [row for row in task_rows(SPLITS) if row["split"] != "holdout"][:88] + held
    bench = nights(tiny_models.candidate_gguf, rows=rows, seen=holdout_messages(12))
    evidence, found = execute(bench)
    assert found["rows_compared_with_released"] == 0
    assert "worse_than_released_by" in broken(evidence)
    assert "was trained on every hold-out row" in evidence.summary
    # Through a warm start there is nothing left to ask.
    bench.leave("lora_selection", {"lora.json": json.dumps(lora("night-1"))})
    with pytest.raises(UserError, match="was trained on every row of this hold-out"):
        execute(bench)


def test_a_candidate_worse_than_the_released_model_fails(nights, tiny_models):
    bench = nights(tiny_models.candidate_gguf, model=tiny_models.base_gguf, evaluation=ANY_GAIN)
    evidence, found = execute(bench)
    assert (evidence.verdict, broken(evidence)) == ("fail", {"worse_than_released_by"})
    assert found["difference_to_released_upper"] < 0
    assert found["only_released_right"] > found["only_candidate_right"]
    assert "worse than what serves now by more than the margin" in evidence.summary


def test_what_too_few_rows_leave_undecided_is_not_released(nights, tiny_models):
    bench = nights(tiny_models.candidate_gguf)
    evidence, found = execute(bench)
    assert (evidence.verdict, broken(evidence)) == ("fail", {"worse_than_released_by"})
    assert status(bench.run, "holdout_performance").stops_release
    assert "0 of 48 answers changed" in evidence.summary
    # 1.96² × 0.98 / 0.02: models that never disagree.
    assert found["rows_needed_to_decide"] == 189
    assert "about 189 rows would decide" in evidence.summary


def test_rows_that_the_released_model_was_trained_on_are_left_out(nights, tiny_models):
    bench = nights(tiny_models.candidate_gguf, seen=holdout_messages(5), evaluation=WIDE)
    evidence, found = execute(bench)
    assert found["rows_released_model_saw"] == 5
    assert found["rows_compared_with_released"] == 43
    assert len(bench.lines("holdout_performance", "released_answers.jsonl")) == 43
    # They are no leak of this run, whose own rows are others.
    assert found["rows_also_seen"] == 0
    assert len(bench.lines("holdout_performance", "answers.jsonl")) == 48
    assert evidence.verdict == "pass", broken(evidence)


DAYS = ("2026-03-01", "2026-03-04")


@pytest.mark.parametrize(
    ("before", "tuned", "drifted", "profile", "breach", "needed"),
    [
        ("base", "candidate", 24, "laptop", None, None),
        ("candidate", "candidate", 24, "laptop", "warn", 50),
        ("candidate", "candidate", 24, "production", "inconclusive", 50),
        ("base", "candidate", 3, "production", "inconclusive", 12),
        ("candidate", "base", 24, "laptop", "fail", None),
    ],
)
def test_a_run_that_drift_started_has_to_be_better_on_the_drifted_days(
    nights, tiny_models, before, tuned, drifted, profile, breach, needed
):
    rows = task_rows(SPLITS)
    for number, row in enumerate(reversed(rows)):
        row |= {"served_by": None, "day": None}
        if number < drifted + 4:
            day = DAYS[number % 2] if number < drifted else "2026-02-28"
            row |= {"served_by": "support-intents", "day": day}
    models = {"base": tiny_models.base_gguf, "candidate": tiny_models.candidate_gguf}
    settings = {"profile": profile, "data": {"drifted_days": DAYS}, "evaluation": ANY_GAIN}
    bench = nights(models[before], rows=rows, model=models[tuned], **settings)
    evidence, found = execute(bench)
    [shown] = [m for m in evidence.measurements if m.name == "wins_on_drifted_days_at_least"]
    assert (None if shown.ok else shown.on_breach) == breach
    assert (found["drifted_days"], found["rows_of_drifted_days"]) == ("..".join(DAYS), drifted)
    # People took or replaced the released model's answers to these, and to four of another day.
    assert found["rows_labelled_by_its_answer"] == drifted + 4
    assert found["rows_compared_with_released"] == 44 - drifted
    assert found.get("reviewed_rows_needed") == needed


def test_without_the_rows_of_the_released_run_it_may_have_an_advantage(nights, tiny_models):
    bench = nights(tiny_models.candidate_gguf, evaluation=WIDE)
    bench.run.store.delete_prefix("runs/night-1")
    evidence, found = execute(bench)
    assert evidence.verdict == "warn"
    assert found["earlier_trainings_without_rows"] == 1
    assert "the rows of night-1 are gone" in evidence.summary


@pytest.mark.parametrize("settings", [None, {"against_released": {"enabled": False}}])
def test_no_comparison_without_a_release_or_if_it_is_switched_off(
    nights, scored_lab, tiny_models, settings
):
    if settings is None:
        bench = scored_lab()
    else:
        bench = nights(tiny_models.candidate_gguf, evaluation=settings)
    evidence, found = execute(bench)
    assert evidence.verdict == "pass", broken(evidence)
    assert found["compared_with_released"].startswith("not applicable: ")
    assert "worse_than_released_by" not in found


def test_a_release_that_cannot_be_served_here_decides_nothing(scored_lab, tiny_models):
    bench = scored_lab()
    earlier = Lab(bench.root, {"base_model": bench.run.config.base_model}, "night-1")
    earlier.leave_dataset(earlier_rows())
    release(earlier, {"model/model.safetensors": tiny_models.candidate_gguf}, engine="tensorrt_llm")
    evidence, found = execute(bench)
    assert (evidence.verdict, broken(evidence)) == ("fail", {"worse_than_released_by"})
    assert found["compared_with_released"] == "night-1"
    assert "night-1 can't answer here (the engine tensorrt_llm can't be started" in evidence.summary


def test_a_release_without_weights_is_the_users_error(scored_lab):
    bench = scored_lab()
    earlier = Lab(bench.root, {"base_model": bench.run.config.base_model}, "night-1")
    release(earlier, {})
    with pytest.raises(UserError, match=r"states no model.*against_released.enabled: false"):
        execute(bench)


def lora(started_from=None):
    place = {"manifest": "m", "uri": "file:///adapter", "sha256": "0" * 64, "bytes": 1}
    settings = LoraSettings(
        r=4, alpha=8, dropout=0.0, target_modules=["q_proj"], rslora=False, dora=False
    )
    start = started_from and {"version": started_from, **place}
    return {**settings.model_dump(), "started_from": start}


def test_rows_seen_through_a_warm_start_are_not_asked(nights, tiny_models):
    bench = nights(tiny_models.candidate_gguf, seen=holdout_messages(3), evaluation=WIDE)
    bench.leave("lora_selection", {"lora.json": json.dumps(lora("night-1"))})
    evidence, found = execute(bench)
    assert found["rows_seen_through_warm_start"] == 3
    assert len(bench.lines("holdout_performance", "answers.jsonl")) == 45
    assert found["rows_compared_with_released"] == 45
    assert evidence.verdict == "pass", broken(evidence)


def test_what_a_line_of_warm_starts_has_seen_adds_up(scored_lab, tiny_models):
    bench = scored_lab()
    base = {"base_model": bench.run.config.base_model}
    previous = None
    for number, messages in enumerate(holdout_messages(3), 1):
        night = Lab(bench.root, base, f"night-{number}")
        rows = earlier_rows(10, 5000 + 100 * number)
        # An earlier turn is learned as the last one is.
        rows[0]["messages"] = [*messages, {**messages[1], "content": "Why?"}, messages[-1]]
        night.leave_dataset(rows)
        release(night, {}, lora=lora(previous), previous=previous)
        previous = f"night-{number}"
    ctx = bench.context("holdout_performance")
    held = bench.held_out()
    assert len(seen_by(ctx, "night-1", held).ids) == 1
    assert len(seen_by(ctx, "night-3", held).ids) == 3
    bench.run.store.delete_prefix("runs/night-2")
    found = seen_by(ctx, "night-3", held)
    assert (len(found.ids), found.unknown) == (2, ("night-2",))


def test_a_warm_start_whose_rows_are_gone_warns(nights, tiny_models):
    bench = nights(tiny_models.candidate_gguf, evaluation=WIDE)
    bench.leave("lora_selection", {"lora.json": json.dumps(lora("night-0"))})
    evidence, found = execute(bench)
    assert (evidence.verdict, broken(evidence)) == ("warn", {"warm_starts_without_rows"})
    assert found["warm_starts_without_rows"] == 1
