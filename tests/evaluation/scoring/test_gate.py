"""Planted answers: what passes, what fails, and what too few rows can't say."""

import json
import random
import sys
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
from tests.lab import runs
from tests.lab.nights import release
from tests.lab.runs import Lab, broken, values
from tests.lab.tiny_task import conversation

from tuneline.artifacts.data import DATASET_VERSION
from tuneline.asking.asking import Answer
from tuneline.data.sample import FREE_TEXT
from tuneline.data.tables.rows import Row
from tuneline.evaluation import holdout_performance
from tuneline.evaluation.scoring import answer_tables, gate
from tuneline.evaluation.scoring import released as against
from tuneline.evaluation.scoring.ledger import Access, holdout_sha256, note_access
from tuneline.verdicts import status

SPLITS = {"train": 280, "validation": 30, "holdout": 66}
METRICS = ("auto", "json_field", "macro_f1")
CONSTANT = {"gain_over_constant_lower"}
FAIR = {"gain_over_fair_base_lower"}
# Margins at which 66 rows decide.
AT_EASE = {"against_released": {"margin": 0.1, "text_margin": 0.15}}


@dataclass
class Planted:
    """Hold-out rows, and the evidence of the item for answers to them."""

    rows: list[dict[str, Any]]
    lab: Lab
    patch: Any
    base_dir: Any
    held: list[dict[str, Any]] = field(init=False)
    expected: list[str] = field(init=False)

    def __post_init__(self):
        self.held = [row for row in self.rows if row["split"] == "holdout"]
        self.expected = [row["messages"][-1]["content"] for row in self.held]
        self.lab.leave_dataset(self.rows)
        model = self.lab.root / "shipped.gguf"
        model.write_bytes(b"the candidate")
        self.lab.leave_shipped(model)

    def judge(self, tuned, base=None, shots=None, released=None):
        """Run the item; the base answers nothing unless something is planted."""
        tuned, base, shots, released = (
            texts and [Answer(text, cut=getattr(text, "cut", False)) for text in texts]
            for texts in (tuned, base, shots, released)
        )
        nothing = [Answer("")] * len(tuned)
        base = base or nothing
        self.patch.setattr(holdout_performance, "ask", lambda *_, **__: list(tuned))
        self.patch.setattr(holdout_performance, "ask_kept", lambda *_: (base, False))
        for module in (holdout_performance, gate):
            self.patch.setattr(module, "untuned", lambda *_: None)
        self.patch.setattr(gate, "ask_kept", lambda *_: (shots or nothing, False))
        if released is not None:
            earlier = Lab(self.lab.root, {"name": self.lab.run.config.name}, "night-1")
            earlier.leave_dataset(runs.dataset_rows({"train": 5}))
            old = self.lab.root / "old.gguf"
            old.write_bytes(b"the released model")
            release(earlier, {"model.gguf": old}, base=self.base_dir)
            self.patch.setattr(against, "ask_kept", lambda *_: (list(released), False))
        evidence = self.lab.execute("holdout_performance")
        return evidence, values(evidence)


@pytest.fixture
def planted(tmp_path, monkeypatch, request):
    def make(rows, **overrides):
        base_dir = request.getfixturevalue("tiny_models").base if overrides.pop("night", 0) else ""
        return Planted(rows, Lab(tmp_path, overrides), monkeypatch, base_dir)

    return make


def label_rows(splits=SPLITS):
    return runs.dataset_rows(splits, lambda number: conversation(1000 + number))


@cache
def notes():
    return [json.loads(line)["messages"] for line in FREE_TEXT.read_bytes().splitlines()]


def text_rows():
    return runs.dataset_rows(SPLITS, lambda number: (notes()[number], None))


def made_rows(answer, splits=SPLITS):
    """Rows of made-up questions, answered by a function of the row's number."""

    def make(number):
        question = conversation(1000 + number)[0][1]
        return [question, {"role": "assistant", "content": answer(number)}], None

    return runs.dataset_rows(splits, make)


def right_on(count, expected, wrong):
    return [text if n < count else wrong for n, text in enumerate(expected)]


WRONG = json.dumps({"intent": "unknown", "reply": "We look at it."})


def test_a_good_classifier_passes(planted):
    bench = planted(label_rows(), evaluation={"min_metric": 0.8})
    evidence, found = bench.judge(right_on(62, bench.expected, WRONG))
    assert evidence.verdict == "pass", broken(evidence)
    assert found["metric"] == "intent accuracy"
    assert found["tuned_metric"] == pytest.approx(62 / 66, abs=1e-4)
    assert "more_rows_needed" not in found
    wrong = bench.lab.document("holdout_performance", "wrong_rows.json")
    assert [row["row_id"] for row in wrong] == [row["row_id"] for row in bench.held[62:]]
    assert (wrong[0]["got"], wrong[0]["score"]) == (WRONG, 0.0)
    confused = bench.lab.document("holdout_performance", "confusion.json")["tuned"]
    assert confused["labels"] == ["billing", "login", "shipping"]
    assert sum(row[n] for n, row in enumerate(confused["counts"])) == 62
    assert sum(row[3] for row in confused["counts"]) == 4


def test_a_dataset_whose_answers_an_older_release_did_not_count(planted):
    bench = planted(label_rows(), evaluation={"max_new_tokens": 32})
    described = bench.lab.document(DATASET_VERSION.step, DATASET_VERSION.name)
    del described["format"]["answer_tokens_max"]
    bench.lab.leave(DATASET_VERSION.step, {DATASET_VERSION.name: json.dumps(described)})
    evidence, found = bench.judge(bench.expected)
    assert (evidence.verdict, found["longest_expected_answer"]) == ("pass", None)


def test_constant_answers_fail_though_the_base_scores_nothing(planted):
    bench = planted(label_rows())
    evidence, found = bench.judge([bench.expected[0]] * 66)
    assert found["gain_lower"] > 0
    assert evidence.verdict == "fail"
    assert broken(evidence) >= CONSTANT
    assert not broken(evidence) & {"gain_lower", *FAIR}


NEAREST = {"gain_over_nearest_row_lower"}


@pytest.mark.parametrize(
    ("right", "prose", "shots", "form", "breaks"),
    [
        # The base scores 0 only because its JSON stands in prose.
        (5, 12, 0, "its answer found in prose", {*FAIR, *CONSTANT, *NEAREST}),
        # It needs only examples; the nearest training rows are right on two of three.
        (50, 0, 56, "an instruction and 3 examples", {*FAIR, *NEAREST}),
    ],
)
def test_a_base_at_its_best_is_not_beaten(planted, right, prose, shots, form, breaks):
    bench = planted(label_rows())
    said = [f"Sure, here it is: {text} I hope that helps!" for text in bench.expected]
    base, shown = right_on(prose, said, "Well."), right_on(shots, bench.expected, WRONG)
    evidence, found = bench.judge(right_on(right, bench.expected, WRONG), base, shown)
    assert (evidence.verdict, broken(evidence)) == ("fail", breaks)
    assert (found["base_metric"], found["fair_base_form"]) == (0.0, form)
    assert found["fair_base_metric"] == pytest.approx((prose or shots) / 66, abs=1e-4)
    assert found["gain_over_fair_base"] == pytest.approx((right - (prose or shots)) / 66, abs=1e-4)


@pytest.mark.parametrize(
    ("floor", "verdict"), [(0.8, "pass"), (0.88, "inconclusive"), (0.95, "fail")]
)
def test_the_floor_is_reached_missed_or_undecided(planted, floor, verdict):
    bench = planted(label_rows(), evaluation={"min_metric": floor})
    evidence, found = bench.judge(right_on(60, bench.expected, WRONG))
    assert evidence.verdict == verdict
    assert broken(evidence) == (set() if verdict == "pass" else {"tuned_metric_lower"})
    assert ("more_rows_needed" in found) is (verdict == "inconclusive")


@pytest.mark.parametrize("profile", ["laptop", "production"])
def test_a_holdout_too_small_is_inconclusive_and_says_how_many_rows_are_needed(planted, profile):
    splits = {"train": 60, "validation": 12, "holdout": 12}
    bench = planted(label_rows(splits), profile=profile, evaluation={"min_metric": 0.1})
    base = right_on(5, bench.expected, WRONG)
    evidence, found = bench.judge(right_on(8, bench.expected, WRONG), base=base)
    assert evidence.verdict == "inconclusive", broken(evidence)
    assert found["gain"] > 0 > found["gain_lower"]
    assert found["more_rows_needed"] >= found["rows_needed_for_gain"] - 12 > 0
    assert f"about {found['more_rows_needed']} more rows are needed" in evidence.summary
    assert status(bench.lab.run, "holdout_performance").stops_release is (profile == "production")


@pytest.mark.parametrize(("profile", "verdict"), [("laptop", "warn"), ("production", "fail")])
def test_a_model_worse_than_a_table_of_its_training_rows(planted, profile, verdict):
    # The label is the question's first word, so that the most similar row has it.
    def make(number):
        intent = ("billing", "login", "shipping")[number % 3]
        own = conversation(1000 + number)[0][1]["content"].split()[:4]
        return runs.exchange(f"{f'{intent}desk ' * 6}{' '.join(own)}", intent), intent

    settings = {"min_metric": 0.5}
    rows = runs.dataset_rows(SPLITS, make)
    bench = planted(rows, profile=profile, evaluation=settings)
    evidence, found = bench.judge(right_on(48, bench.expected, WRONG))
    assert broken(evidence) == {"gain_over_nearest_row_lower"}
    assert evidence.verdict == verdict
    assert found["gain_over_nearest_row_upper"] < 0


def test_free_text_passes_if_it_says_what_is_expected(planted):
    bench = planted(text_rows(), night=True, evaluation={"against_released": {"margin": 0.05}})
    said = [text.replace("Three", "Two") for text in bench.expected]
    asked = [row["messages"][0]["content"] for row in bench.held]
    evidence, found = bench.judge(said, base=asked, shots=asked, released=said)
    assert evidence.verdict == "pass", broken(evidence)
    assert 0.9 < found["tuned_metric"] < 1.0
    assert found["difference_to_released"] == 0.0


def test_fluent_answers_to_other_questions_fail(planted):
    bench = planted(text_rows())
    fluent = bench.expected[1:] + bench.expected[:1]
    evidence, found = bench.judge(fluent, base=["I am a helpful assistant."] * 66)
    # They do beat a base that does not know the task.
    assert "gain_lower" not in broken(evidence)
    assert evidence.verdict == "fail"
    assert broken(evidence) >= CONSTANT
    worst = bench.lab.document("holdout_performance", "wrong_rows.json")
    assert len(worst) == 50
    assert worst[0]["score"] == min(row["score"] for row in worst) < found["tuned_metric"]


def test_free_text_better_than_the_base_and_worse_than_the_released_model_fails(planted):
    bench = planted(text_rows(), night=True)
    # Each answer without its last word of every sentence.
    worse = [" ".join(s.rpartition(" ")[0] for s in text.split(". ")) for text in bench.expected]
    evidence, found = bench.judge(worse, released=bench.expected)
    assert broken(evidence) == {"worse_than_released_by"}
    assert evidence.verdict == "fail"
    assert found["difference_to_released_upper"] < 0
    assert found["only_released_right"] == 66


REPLIES = {
    "billing": ("We refund the invoice today.", "The invoice is refunded by us today."),
    "login": ("Please reset your password first.", "Your password needs a reset first."),
    "shipping": ("The parcel leaves our depot tomorrow.", "Our depot sends the parcel tomorrow."),
}


def reply_rows():
    """Rows whose reply depends on the question's intent, in one of two wordings."""

    def make(number):
        (_, asked, _), intent = conversation(1000 + number)
        reply = REPLIES[intent][number // 3 % 2]
        return runs.exchange(asked["content"], intent, reply), intent

    return runs.dataset_rows(SPLITS, make)


def in_other_words(bench, replies=None):
    """Right answers; every second reply is in the other wording, unless some are given."""
    replies = replies or [REPLIES[row["label"]][n % 2] for n, row in enumerate(bench.held)]
    labels = [row["label"] for row in bench.held]
    return [json.dumps({"intent": i, "reply": r}) for i, r in zip(labels, replies, strict=True)]


@pytest.mark.parametrize(
    ("profile", "review", "shots", "verdict", "breaks"),
    [
        ("laptop", False, False, "pass", set()),
        ("production", True, False, "pass", set()),
        # This model's bytes tell no probability, which production needs unless people review.
        ("production", False, False, "inconclusive", {"expected_text_preference_lower"}),
        # The base with examples writes the very texts, under other intents.
        ("laptop", False, True, "fail", {"reply.gain_over_fair_base_lower"}),
    ],
)
def test_replies_in_other_words_pass(planted, profile, review, shots, verdict, breaks):
    settings = {"min_metric": 0.8, "review": review}
    bench = planted(reply_rows(), profile=profile, evaluation=settings)
    fair = [text.replace('"intent": "', '"intent": "x') for text in bench.expected]
    evidence, found = bench.judge(in_other_words(bench), shots=shots and fair)
    assert (evidence.verdict, broken(evidence)) == (verdict, breaks)
    assert found["reply.gain_over_constant_lower"] > 0.1


def test_replies_shuffled_between_the_rows_stop_the_release(planted):
    """The intents are right, and each reply is that of another row."""
    bench = planted(reply_rows(), night=True, evaluation=AT_EASE)
    replies = [json.loads(text)["reply"] for text in bench.expected]
    random.Random(3).shuffle(replies)
    shuffled = in_other_words(bench, replies)
    evidence, found = bench.judge(shuffled, released=in_other_words(bench))
    assert found["tuned_metric"] == 1.0
    assert broken(evidence) == {"reply.gain_over_constant_lower", "reply.worse_than_released_by"}
    assert (evidence.verdict, found["difference_to_released"]) == ("fail", 0.0)
    assert status(bench.lab.run, "holdout_performance").stops_release


@pytest.mark.parametrize("lost", [4, 0])
def test_four_lost_of_four_hundred_are_not_worse_beyond_chance(planted, lost):
    bench = planted(label_rows({"train": 280, "validation": 30, "holdout": 400}), night=True)
    said = right_on(400 - lost, bench.expected, WRONG)
    evidence, _ = bench.judge(said, released=bench.expected)
    assert ("worse_than_released_by" in broken(evidence)) is bool(lost)
    assert ("do not decide whether it is worse" in evidence.summary) is bool(lost)


@pytest.mark.parametrize(
    ("profile", "verdict"), [("laptop", "warn"), ("production", "inconclusive")]
)
def test_copies_of_twenty_easy_rows_count_as_twenty(planted, profile, verdict):
    rows = label_rows({"train": 280, "validation": 30, "holdout": 20})
    easy = [row for row in rows if row["split"] == "holdout"]
    rows += [{**row, "row_id": f"{row['row_id']}-{n}"} for n in range(2, 26) for row in easy]
    data = {"source": "rows.jsonl", "holdout": "easy.jsonl"}
    bench = planted(rows, profile=profile, data=data, evaluation={"min_metric": 0.8})
    evidence, found = bench.judge(bench.expected)
    assert (found["holdout_rows"], found["distinct_rows"]) == (500, 20)
    assert found["tuned_metric_lower"] == pytest.approx(0.8389, abs=1e-3)
    assert "500 hold-out rows that count as 20" in evidence.summary
    assert (evidence.verdict, broken(evidence)) == (verdict, {"distinct_rows"})


def test_each_candidate_on_the_same_rows_makes_the_claims_harder(planted):
    bench = planted(label_rows())
    base, better = (right_on(count, bench.expected, WRONG) for count in (52, 58))
    assert "gain_lower" not in broken(bench.judge(better, base=base)[0])
    place = holdout_sha256(bench.lab.held_out())
    for seed in range(31):
        at, sha256 = f"2026-01-01T00:00:{seed:02}.000Z", f"{seed:064}"
        tried = Access(at, "score", f"seed-{seed}", "holdout_performance", sha256, 66)
        note_access(bench.lab.run.store, place, tried)
    evidence, found = bench.judge(better, base=base)
    assert {"gain_lower", "other_candidates_scored_before"} <= broken(evidence)
    assert found["error_of_each_claim"] == pytest.approx(0.025 / 32, abs=1e-6)
    assert "candidate 32 on these rows since the last release" in evidence.summary


def steps(number):
    return f"It takes {number} steps.\n#### {number * 37 + 100}"


def call(number):
    arguments = {"order": f"A-{1000 + number}", "days": 2}
    return f"<tool_call>\n{json.dumps({'name': 'find', 'arguments': arguments})}\n</tool_call>"


@pytest.mark.parametrize(
    ("expected", "said", "tolerance", "metric", "verdict"),
    [
        (steps, lambda n: f"So it is {n * 37 + 100}.00.", 1e-4, "numeric match", "pass"),
        (steps, lambda n: f"So it is {(n * 37 + 100) * 1.01}.", 1e-4, "numeric match", "fail"),
        (steps, lambda n: f"So it is {(n * 37 + 100) * 1.01}.", 0.02, "numeric match", "pass"),
        (call, call, 1e-4, "tool-call match", "pass"),
        (call, lambda n: call(n + 1), 1e-4, "tool-call match", "fail"),
    ],
)
def test_numbers_and_tool_calls_are_compared(planted, expected, said, tolerance, metric, verdict):
    bench = planted(made_rows(expected), evaluation={"numeric_tolerance": tolerance})
    evidence, found = bench.judge([said(number) for number in range(310, 376)])
    assert (found["metric"], evidence.verdict) == (metric, verdict), broken(evidence)
    assert found["tuned_metric"] == float(verdict == "pass")


def cut_short(texts, length):
    return [Answer(text[:length], cut=True) for text in texts]


@pytest.mark.parametrize(("count", "verdict"), [(1, "warn"), (2, "fail")])
def test_a_model_that_does_not_end_its_answers(planted, count, verdict):
    bench = planted(label_rows())
    endless = [Answer(text, cut=number < count) for number, text in enumerate(bench.expected)]
    evidence, found = bench.judge(endless)
    assert (evidence.verdict, broken(evidence)) == (verdict, {"tuned_answers_cut"})
    assert (found["tuned_answers_cut"], found["max_new_tokens"]) == (count, 48)
    assert f"{count} of 66 answers do not end within the limit of 48 tokens" in evidence.summary
    assert "the longest expected one has 32" in evidence.summary
    assert bench.judge(bench.expected)[0].verdict == "pass"


@pytest.mark.parametrize(
    ("again", "verdict"),
    [("So I say: {}", "inconclusive"), ("<think>Is it", "inconclusive"), ("So I say", "pass")],
    ids=["right with more room", "still thinking", "rambling"],
)
def test_a_base_that_lost_because_it_was_cut_decides_nothing(planted, again, verdict):
    bench, asked = planted(label_rows()), []
    known = {row["messages"][1]["content"]: row["messages"][-1]["content"] for row in bench.held}

    def longer(_ctx, _model, prompts, limits, _what):
        asked.extend(limits)
        return [Answer(again.format(known[p[-1]["content"]]), cut=True) for p in prompts], False

    bench.patch.setattr(answer_tables, "ask_kept", longer)
    plain = cut_short(["So I say"] * 66, 8)
    evidence, found = bench.judge(bench.expected, base=plain, shots=plain)
    lost = {f"{who}_answers_interrupted" for who in ("base", "fair_base")}
    broke = set() if verdict == "pass" else lost
    assert (evidence.verdict, broken(evidence)) == (verdict, broke)
    assert asked == [256] * 16
    assert found["base_answers_cut"] == 1.0
    # A few that are cut are not asked again.
    asked.clear()
    few = [*plain[:3], *[Answer("So")] * 63]
    assert (bench.judge(bench.expected, base=few, shots=few)[0].verdict, asked) == ("pass", [])


def test_the_base_is_shown_examples_of_different_labels_within_its_context(planted):
    bench = planted(label_rows())
    asked = []

    def answer(_ctx, _model, prompts, *_):
        asked.extend(prompts)
        return [Answer("")] * len(prompts), False

    bench.judge(bench.expected)
    bench.patch.setattr(gate, "ask_kept", answer)
    bench.lab.execute("holdout_performance")
    assert len(asked) == 66
    system, *shots, question = asked[0]
    assert system["content"].startswith(runs.SYSTEM)
    assert 'The value of "intent" is one of: billing, login, shipping.' in system["content"]
    assert [turn["role"] for turn in shots] == ["user", "assistant"] * 3
    assert len({json.loads(turn["content"])["intent"] for turn in shots[1::2]}) == 3
    questions = {row["messages"][1]["content"] for row in bench.held}
    assert question["content"] in questions
    assert not questions & {turn["content"] for turn in shots}


@pytest.mark.parametrize(("context", "examples"), [(256, 1), (200, 0), (140, 0)])
def test_examples_stop_where_the_context_is_full(planted, context, examples):
    # A row has 40 tokens, as has each example; the instruction and the answer take the rest.
    bench = planted(label_rows(), deployment={"context_tokens": context})
    _, found = bench.judge(bench.expected)
    assert found["fair_base_examples"] == examples
    described = bench.lab.document("holdout_performance", "fair_base.json")
    assert len(described["examples"]) == examples


def test_a_long_row_gets_fewer_examples_and_takes_none_from_the_others(planted):
    rows = [row for row in label_rows({"train": 4}) if row.pop("weight")]
    made = [Row(**{**row, "n_tokens": n}) for row, n in zip(rows, (100, 400, 40, 40), strict=True)]
    first, second = made[2:]
    assert gate.fitting_shots(made[0], [first, second], 200) == [first, second]
    assert gate.fitting_shots(made[0], [first, second], 150) == [first]
    assert gate.fitting_shots(made[0], [first, second], 100) == []
    assert gate.fitting_shots(made[1], [first], 200) is None
    # The evidence does not say that every row had all of them.
    rows = label_rows()
    rows[-1]["n_tokens"] = 800
    bench = planted(rows, deployment={"context_tokens": 1024})
    _, found = bench.judge(bench.expected, shots=bench.expected)
    assert found["fair_base_rows_with_fewer_examples"] == 1
    assert found["fair_base_form"] == "an instruction and up to 3 examples"


def ticket(number, **other):
    value = {"intent": ("billing", "login", "shipping")[number % 3], "order_id": f"A-{number}"}
    value |= {"amount": 7.5 * number, "priority": number % 5, "items": [number, "box"], **other}
    return json.dumps({name: entry for name, entry in value.items() if entry is not None})


def changed(texts, **other):
    return [json.dumps({**json.loads(text), **other}) for text in texts]


LOST = {"amount", "items", "order_id", "priority"}


@pytest.mark.parametrize(
    ("said", "breaks"),
    [
        ({}, set()),
        (dict.fromkeys(LOST, 1), {f"{name}.gain_over_constant_lower" for name in LOST}),
        ({"note": "added"}, {"field_names.gain_over_constant_upper"}),
    ],
)
def test_each_field_of_a_json_answer_is_judged(planted, said, breaks):
    bench = planted(made_rows(ticket))
    evidence, found = bench.judge(changed(bench.expected, **said))
    assert found["tuned_metric"] == 1.0
    assert broken(evidence) == breaks
    assert evidence.verdict == ("fail" if breaks else "pass")


@pytest.mark.parametrize("profile", ["laptop", "production"])
def test_a_field_that_few_rows_have_is_named(planted, profile):
    settings = {"min_metric": 0.5, "review": True}
    rows = made_rows(lambda n: ticket(n, note="Late." if n % 20 == 0 else None))
    bench = planted(rows, profile=profile, evaluation=settings)
    evidence, found = bench.judge(bench.expected)
    assert found["fields_not_judged"] == 1
    assert "note: too few rows have it" in evidence.summary
    rule = {"fields_not_judged"} if profile == "production" else set()
    assert (broken(evidence), evidence.verdict) == (rule, "inconclusive" if rule else "pass")


def test_a_reply_that_one_row_lacks_is_judged_on_the_others(planted):
    def answer(number):
        reply = None if number == 310 else f"{text_rows()[number]['messages'][-1]['content'][:60]}"
        return ticket(number, reply=reply)

    bench = planted(made_rows(answer))
    said = changed(bench.expected, reply="banana")
    evidence, _ = bench.judge(said)
    assert {"reply.gain_over_constant_lower", "expected_text_preference_lower"} & broken(evidence)
    assert evidence.verdict == "fail"


def test_each_answer_of_a_conversation_is_a_question(planted):
    """A model that never calls its tool, and repeats what the tool has said."""

    def make(number):
        order = json.dumps({"name": "find", "arguments": {"order": number}})
        said = [notes()[number][0]["content"], f"<tool_call>{order}</tool_call>"]
        said += [f"At gate {number}.", f"Order {number} is at gate {number}."]
        roles = ("user", "assistant") * 2
        return [{"role": r, "content": c} for r, c in zip(roles, said, strict=True)], None

    bench = planted(runs.dataset_rows(SPLITS, make))
    answers = [[m["content"] for m in row["messages"][1::2]] for row in bench.held]
    right = [text for both in answers for text in both]
    evidence, found = bench.judge(right, [""] * 132, [""] * 132)
    assert evidence.verdict == "pass", broken(evidence)
    assert (found["distinct_rows"], found["texts.tuned_metric"]) == (66, 1.0)
    silent = [both[1] for both in answers for _ in both]
    evidence, found = bench.judge(silent, [""] * 132, [""] * 132)
    assert found["texts.tuned_metric"] == 1.0
    assert {"tool_calls.gain_over_constant_lower"} <= broken(evidence)
    assert evidence.verdict == "fail"


@pytest.mark.parametrize(
    ("metric", "wanted", "wrong", "part"),
    [
        *((m, ('{"intent": "%s"}', "a b c"), '{"intent": "z"}', "intent.") for m in METRICS),
        *((m, ("%s", "alpha beta gamma"), "z", "labels.") for m in ("auto", "macro_f1")),
        *((m, ("#### %s", "7 8 9"), "#### 3", "numbers.") for m in ("auto", "number")),
    ],
)
def test_texts_and_other_answers_of_a_conversation_are_parts(planted, metric, wanted, wrong, part):
    """A model whose every text is right and every other answer wrong, and the reverse."""

    def make(number):
        last = wanted[0] % wanted[1].split()[number % 3]
        said = [notes()[number][0]["content"], notes()[number][1]["content"], f"End {number}", last]
        roles = ("user", "assistant") * 2
        return [{"role": r, "content": c} for r, c in zip(roles, said, strict=True)], None

    named = {"label_field": "intent" if part == "intent." else None}
    rows = runs.dataset_rows(SPLITS, make)
    bench = planted(rows, data=named, evaluation={"metric": metric, **AT_EASE})
    right = [m["content"] for row in bench.held for m in row["messages"][1::2]]
    nothing = [""] * 132
    evidence, found = bench.judge(right, nothing, nothing)
    assert evidence.verdict == "pass", broken(evidence)
    assert (found["tuned_metric"], found["texts.tuned_metric"]) == (1.0, 1.0)
    evidence, found = bench.judge([(text, wrong)[n % 2] for n, text in enumerate(right)])
    assert f"{part}gain_over_constant_lower" in broken(evidence)
    assert (found["texts.tuned_metric"], evidence.verdict) == (1.0, "fail")
    evidence, _ = bench.judge([("banana", text)[n % 2] for n, text in enumerate(right)])
    assert "texts.gain_over_constant_lower" in broken(evidence)
    assert evidence.verdict == "fail"


SCORER = """
import json, sys
for line in sys.stdin:
    row = json.loads(line)
    said = row["messages"][-1]["content"]
    print({})
"""


@pytest.mark.parametrize(
    ("judged", "right", "verdict"),
    [
        ("int(row['expected'] == row['answer'])", 64, "pass"),
        ("int(row['expected'] == row['answer'])", 30, "fail"),
        ("min(1, len(said) * (row['expected'] == row['answer']))", 64, "pass"),
        # What passes everything shows nothing.
        ("1", 64, "fail"),
    ],
)
def test_a_team_s_own_metric_judges_code_in_production(planted, judged, right, verdict):
    rows = made_rows(lambda n: f"def scale_{n}(x):\n    return [y * {n} for y in x if y > 0]")
    settings = {"metric": "scorer", "min_metric": 0.8}
    bench = planted(
        rows, profile="production", evaluation={**settings, "scorer": ["score", "s3cret"]}
    )
    script = bench.lab.root / "score.py"
    script.write_text(f"#!{sys.executable}{SCORER.format(judged)}")
    script.chmod(0o700)
    bench.patch.setenv("PATH", str(bench.lab.root))
    script.rename(script.with_name("score"))
    evidence, found = bench.judge(right_on(right, bench.expected, "def no(): pass"))
    assert evidence.verdict == verdict, broken(evidence)
    assert found["metric_chosen_because"] == "evaluation.scorer is score"
    assert (found["code_judged_by_closeness"], found["fields_not_judged"]) == (0, 0)
    if judged != "1":
        assert found["tuned_metric"] == pytest.approx(right / 66, abs=1e-4)


@pytest.mark.parametrize("review", [True, False])
def test_code_needs_more_than_closeness_in_production(planted, review):
    settings = {"min_metric": 0.5, "review": review}
    rows = made_rows(lambda n: f"def scale_{n}(x):\n    return [y * {n} for y in x if y > 0]")
    bench = planted(rows, profile="production", evaluation=settings)
    evidence, found = bench.judge(bench.expected)
    assert found["code_judged_by_closeness"] == (0 if review else 1)
    assert ("code_judged_by_closeness" in broken(evidence)) != review
    assert "only the closeness to one expected text" in evidence.summary
