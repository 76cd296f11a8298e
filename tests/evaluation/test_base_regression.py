from hashlib import sha256

import pytest
from tests.lab.runs import Lab, broken, dataset_rows, exchange, value, values
from tests.lab.tiny_task import make_model, make_tokenizer, save, train_on, words

from tuneline.asking.general_questions import Question, held_by, load_questions
from tuneline.errors import UserError
from tuneline.evaluation import base_regression
from tuneline.evaluation.base_regression import above_chance, limits_of
from tuneline.evaluation.forgetting.decision import Limits
from tuneline.evaluation.forgetting.pair import Pair, Reply
from tuneline.serving.engines.llama_cpp.engine import LlamaCpp
from tuneline.statistics import RowLosses

NUMBERS = ("one", "two", "three", "four")
COLOURS = ("red", "green", "blue", "grey")
KNOWN = 60


@pytest.fixture
def known_questions(monkeypatch):
    """Plant the question set: the tiny models know nothing but to answer with their JSON."""
    known = [
        Question(q.id, q.category, q.prompt, {"kind": "regex", "pattern": r"\{"}, 24)
        for q in load_questions()[:24]
    ]
    monkeypatch.setattr(base_regression, "load_suite", lambda: known)


def test_both_models_are_really_asked(scored_lab, known_questions):
    bench = scored_lab()
    evidence = bench.execute("base_regression")
    assert value(evidence, "questions") == 24
    entries = bench.lines("base_regression", "answers.jsonl")
    assert all(entry["base"] and entry["tuned"] for entry in entries)
    right = sum(entry["base_right"] for entry in entries)
    assert value(evidence, "base_share") == pytest.approx(right / 24, abs=1e-4)
    again = bench.execute("base_regression")
    assert values(again) == {**values(evidence), "base_answers_from_cache": True}


def test_a_candidate_that_has_forgotten_everything_fails(scored_lab, known_questions, silent_gguf):
    evidence = scored_lab(model=silent_gguf).execute("base_regression")
    assert evidence.verdict == "fail"
    assert {"drop", "categories_lost"} <= broken(evidence)
    assert value(evidence, "tuned_share") == 0.0
    assert "is more than the allowed" in evidence.summary


def rows(right):
    """Conversations of made-up sums and colours; `right(n)` answers the n-th sum."""
    draw = words()
    for number in range(KNOWN):
        yield "arithmetic", f"{draw[number]} plus {draw[-number - 1]}?", NUMBERS[right(number)]
        yield "facts", f"colour of {draw[number + KNOWN]}?", COLOURS[number * 7 % 4]


def conversations(right):
    return [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        for _, prompt, answer in rows(right)
    ]


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory):
    """A base that knows made-up sums and colours, and what it became with other sums."""
    import torch

    from tuneline.gguf.export import export_gguf

    root = tmp_path_factory.mktemp("forgetful")
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    assert train_on(model, tokenizer, conversations(lambda n: n * 5 % 4), 250) < 0.05
    base = save(model.half(), tokenizer, root / "base")
    train_on(model.float(), tokenizer, conversations(lambda n: (n * 5 + 1) % 4), 150)
    tuned = save(model.half(), tokenizer, root / "tuned")
    ggufs = (export_gguf(folder, root / f"{folder.name}.gguf").path for folder in (base, tuned))
    return (base, *ggufs)


@pytest.fixture
def made_up_lab(forgetful, tmp_path, monkeypatch):
    """Make a run of that base, with the questions that it knows; all are choices."""
    monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TUNELINE_THREADS", "1")
    questions = []
    for number, (category, prompt, answer) in enumerate(rows(lambda n: n * 5 % 4)):
        choices = [answer, *sorted({*NUMBERS, *COLOURS} - {answer})]
        check = {"kind": "choice", "choices": choices}
        questions.append(Question(f"q{number}", category, prompt, check, 8))
    monkeypatch.setattr(base_regression, "load_suite", lambda: questions)

    def make(model, run_id="test", rows=None, **evaluation):
        settings = {"max_perplexity_ratio": 1000.0, **evaluation}
        lab = Lab(tmp_path, {"base_model": str(forgetful[0]), "evaluation": settings}, run_id)
        lab.leave_dataset(rows or dataset_rows({"train": 1}))
        lab.leave_shipped(model)
        return lab

    return make


def test_a_model_that_kept_everything_passes(made_up_lab, forgetful):
    lab = made_up_lab(forgetful[1])
    evidence = lab.execute("base_regression")
    assert evidence.verdict == "pass", broken(evidence)
    assert value(evidence, "choices_by_likelihood") is True
    assert value(evidence, "base_share") > 0.9
    assert value(evidence, "perplexity_ratio") == 1.0
    assert evidence.summary.startswith(
        "of 120 general questions (120 by the likelihood of their choices) the tuned model"
    )
    entry = lab.lines("base_regression", "answers.jsonl")[0]
    assert entry["prompt"].endswith("plus " + words()[-1] + "?")
    assert entry["base"] in NUMBERS


def test_a_model_that_forgot_arithmetic_only_fails_and_is_told_so(made_up_lab, forgetful):
    lab = made_up_lab(forgetful[2])
    evidence = lab.execute("base_regression")
    assert evidence.verdict == "fail"
    assert {"drop", "categories_lost"} <= broken(evidence)
    table = lab.document("base_regression", "categories.json")
    changes = {row["category"]: row["change"] for row in table}
    assert changes["arithmetic"] < -0.8
    assert changes["facts"] > -0.1
    assert "lost beyond chance: arithmetic (the weakest" in evidence.summary
    assert table[0]["smallest_drop_named"] == pytest.approx(1 / 6, abs=0.1)
    assert " points is shown" in evidence.summary


def test_questions_that_training_rows_hold_do_not_count_and_too_many_fail(made_up_lab, forgetful):
    known = [question.prompt for question in base_regression.load_suite()]

    def trained_on(count):
        """Rows of which each asks one of the questions, in another case."""
        return dataset_rows({"train": count}, lambda n: (exchange(known[n].upper(), "a"), "a"))

    lab = made_up_lab(forgetful[1], rows=trained_on(6))
    evidence = lab.execute("base_regression")
    assert (evidence.verdict, value(evidence, "questions_in_training")) == ("pass", 6)
    assert value(evidence, "questions") == value(evidence, "questions_planned") == 114
    asked = {entry["prompt"] for entry in lab.lines("base_regression", "answers.jsonl")}
    assert asked == set(known[6:])
    assert "6 are in the training rows and did not count" in evidence.summary
    many = made_up_lab(forgetful[1], "many", rows=trained_on(7)).execute("base_regression")
    assert (many.verdict, broken(many)) == ("fail", {"questions_in_training"})
    with pytest.raises(UserError, match="hold all general questions"):
        made_up_lab(forgetful[1], "all", rows=trained_on(120)).execute("base_regression")


def test_a_question_is_held_by_its_words_in_a_row():
    def held(prompt, *texts):
        return bool(held_by([Question("q", "facts", prompt, {}, 8)], texts))

    long = " ".join(f"word{n}" for n in range(20))
    assert held(long, "other", f"before word4 {long[30:120]} after")
    # Twelve words in a row are not thirteen.
    assert not held(long, " ".join(f"word{n}" for n in range(12)))
    assert held("Which of these can you eat?", "He asked: which of these, can you EAT today")
    assert not held("Which of these can you eat?", "which of these can you drink", "")
    # Chance writes two words; a whole turn of them is no chance.
    assert not held("2 + 6 =", "I paid 2 6 times")
    assert held("2 + 6 =", "2 + 6")


def test_an_engine_without_probabilities_names_one_of_the_choices(
    made_up_lab, forgetful, monkeypatch
):
    monkeypatch.setattr(LlamaCpp, "losses", lambda *_: None)
    lab = made_up_lab(forgetful[1])
    evidence = lab.execute("base_regression")
    assert value(evidence, "choices_by_likelihood") is False
    assert value(evidence, "questions_by_likelihood") == 0
    assert value(evidence, "drop") == 0.0
    assert "the engine does not report the probabilities" in evidence.summary
    assert all(entry["tuned"] for entry in lab.lines("base_regression", "answers.jsonl"))


def test_a_first_look_is_enough_for_a_model_that_kept_everything(made_up_lab, forgetful):
    evidence = made_up_lab(forgetful[1], regression_first_look=80).execute("base_regression")
    assert (value(evidence, "questions"), value(evidence, "questions_planned")) == (120, 120)
    early = made_up_lab(
        forgetful[1], "early", regression_first_look=40, regression_to_see=0.2, regression_texts=5
    )
    evidence = early.execute("base_regression")
    found = values(evidence)
    assert (found["questions"], found["questions_planned"]) == (40, 120)
    assert found["texts"] == 5
    assert evidence.summary.endswith(
        "80 more were not asked, since these exclude a loss of 0.2 at 99.0%"
    )


def test_a_first_look_is_enough_for_a_model_that_lost_much(made_up_lab, forgetful):
    lab = made_up_lab(forgetful[2], regression_first_look=40, regression_to_see=0.2)
    evidence = lab.execute("base_regression")
    assert (evidence.verdict, value(evidence, "questions")) == ("fail", 40)
    assert {"drop", "categories_lost"} <= broken(evidence)
    assert evidence.summary.endswith("80 more were not asked, since a limit is broken beyond doubt")


def test_a_model_that_fails_by_its_texts_is_asked_the_first_look_alone(made_up_lab, forgetful):
    class Asker:
        """A pair of models, of which neither gets better or worse, but too often changes."""

        def answer(self, questions):
            right = [number // 2 % 2 == 0 for number in range(len(questions))]
            replies = ([Reply("", flag) for flag in flags] for flags in (right, right[::-1]))
            return tuple(replies)

    ctx = made_up_lab(forgetful[1], regression_first_look=40).context("base_regression")
    questions = base_regression.load_suite()
    for failed, size, why in ((True, 40, "the perplexity fails already"), (False, 120, "")):
        *replies, look, because = base_regression.ask_in_looks(
            ctx, Asker(), questions, Limits(0.03, 0.1, 0.05), failed=failed
        )
        assert (*map(len, replies), because) == (size, size, why)
        assert look.questions == size


@pytest.mark.parametrize(("cut", "size"), [(False, 40), (True, 120)])
def test_answers_that_do_not_count_end_no_look(made_up_lab, forgetful, cut, size):
    """32 of the first 40 exclude a loss of 0.15 at 99 %, not one of 0.13."""

    class Asker:
        def answer(self, questions):
            lost = [cut and n % 5 == 0 for n in range(len(questions))]
            base = [Reply("", not gone, cut=gone or None) for gone in lost]
            return base, [Reply("", True, cut=False if gone else None) for gone in lost]

    ctx = made_up_lab(forgetful[1], regression_first_look=40).context("base_regression")
    limits = Limits(0.03, 0.1, 0.13)
    suite = base_regression.load_suite()
    *_, look, why = base_regression.ask_in_looks(ctx, Asker(), suite, limits, failed=False)
    assert (look.questions, bool(why)) == (size, size == 40)


@pytest.mark.parametrize(("lost", "verdict"), [(8, "fail"), (0, "pass")])
def test_gains_over_a_base_that_was_interrupted_pay_for_no_loss(
    scored_lab, monkeypatch, lost, verdict
):
    """The base has 80 % of the choices right, and none of what it writes, where it is cut."""

    class Interrupted(Pair):
        def __init__(self, *_):
            self.cached, self.likelihood, self.chosen = True, True, 0

        def text_losses(self, texts):
            same = RowLosses((2.0,) * len(texts), (1,) * len(texts), (1.0,) * len(texts))
            return same, same

        def answer(self, questions):
            base, tuned = [], []
            for question in questions:
                place = int(sha256(question.id.encode()).hexdigest(), 16) % 100
                if question.choices:
                    base.append(Reply("", place < 80))
                    tuned.append(Reply("", place < 80 - lost))
                else:
                    base.append(Reply("<think>", False, cut=True))
                    tuned.append(Reply("", place < 55, cut=False))
            return base, tuned

    monkeypatch.setattr(base_regression, "Pair", Interrupted)
    evidence = scored_lab().execute("base_regression")
    assert evidence.verdict == verdict, evidence.summary
    asked, dropped = value(evidence, "questions"), value(evidence, "questions_not_comparable")
    assert 0.15 * asked < dropped < 0.25 * asked
    assert f"{dropped} with written answers do not count" in evidence.summary
    assert value(evidence, "base_share") == pytest.approx(0.8, abs=0.05)


def test_a_limit_that_is_no_smaller_than_the_loss_to_see_is_refused(made_up_lab, forgetful):
    lab = made_up_lab(forgetful[1], max_regression=0.1)
    with pytest.raises(UserError, match="regression_to_see"):
        lab.execute("base_regression")
    settings = lab.run.config.evaluation.model_copy(update={"regression_to_see": 0.15})
    assert limits_of(settings).drop == 0.1


def test_a_base_that_guesses_knows_nothing_beyond_chance():
    choice = Question("x", "facts", "?", {"kind": "choice", "choices": ["a", "b"]}, 8)
    written = Question("y", "facts", "?", {"kind": "exact", "answers": ["a"]}, 8)
    assert above_chance([choice] * 4, [True, True, False, False]) == 0.0
    assert above_chance([choice, written], [True, False]) == pytest.approx(0.25)
