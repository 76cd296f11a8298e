"""The metric of a task, the score of an answer, and how scores compare."""

import json
import random
import warnings

import pytest
from sklearn.metrics import f1_score

from tuneline.asking.answer_values import (
    final_number,
    find_object,
    is_code,
    same_number,
    structure_of,
    tool_calls,
)
from tuneline.asking.tasks import (
    Task,
    choose_task,
    compare,
    further_tasks,
    judge,
    not_worse,
    rows_needed,
)
from tuneline.errors import UserError
from tuneline.statistics import Interval, mean_difference, mean_interval, paired, wilson

EXPECTED = '{"intent": "billing", "reply": "We look at it."}'
FIELD, EXACT, CALLS, CHRF, ROUGE = (
    Task("json_field", "intent"),
    *map(Task, ("exact", "tool_calls", "chrf", "rouge_l")),
)
CALL = '{"name": "find_parcel", "arguments": {"order": "A-12345", "days": 2, "open": true}}'
OTHER_CALL = '{"name": "refund", "arguments": {}}'
ASK = "What is the number of your order?"
API_CALL = {"name": "find_parcel", "arguments": '{"order": "A-12345", "days": 2, "open": true}'}
FOG = "Fog lifts after ten."


def number(tolerance):
    return Task("number", tolerance=tolerance)


@pytest.mark.parametrize(
    ("task", "expected", "answer", "score"),
    [
        # Only a whole JSON object is an answer, and its field alone is compared.
        (FIELD, EXPECTED, ' {"intent": "billing"}\n', 1),
        (FIELD, EXPECTED, '{"reply": "other words", "intent": "billing"}', 1),
        (FIELD, EXPECTED, 'Sure! {"intent": "billing"}', 0),
        (FIELD, EXPECTED, '["billing"]', 0),
        (FIELD, EXPECTED, '{"intent": "bill', 0),
        (FIELD, EXPECTED, '{"intent": "login"}', 0),
        (FIELD, EXPECTED, '{"reply": "no intent"}', 0),
        # Equality ignores spacing and the order of keys.
        (EXACT, EXPECTED, '{"reply":"We look at it.","intent":"billing"}', 1),
        (EXACT, "two words", "two  words\n", 1),
        (EXACT, "two words", "two word", 0),
        # A call is the same in every form.
        (CALLS, CALL, f"<tool_call>\n{CALL}\n</tool_call>", 1),
        (CALLS, CALL, f"[TOOL_CALLS] [{CALL}]", 1),
        (CALLS, CALL, CALL.replace("arguments", "parameters"), 1),
        (CALLS, CALL, f"I look it up.\n```json\n{CALL}\n```", 1),
        (CALLS, CALL, CALL.replace("2,", "2.0,"), 1),
        (CALLS, CALL, json.dumps({"tool_calls": [{"type": "function", "function": API_CALL}]}), 1),
        # Another name, argument or number of calls is wrong.
        (CALLS, CALL, CALL.replace("A-12345", "A-12346"), 0),
        (CALLS, CALL, CALL.replace("find_parcel", "find_order"), 0),
        (CALLS, CALL, CALL.replace(', "open": true', ""), 0),
        (CALLS, CALL, CALL.replace("2,", '"2",'), 0),
        (CALLS, CALL, CALL.replace("true", 'true, "more": 1'), 0),
        (CALLS, CALL, f"{CALL}\n{CALL}", 0),
        (CALLS, CALL, CALL[:-2], 0),
        (CALLS, CALL, "I call find_parcel for A-12345.", 0),
        (CALLS, CALL, "", 0),
        # Parallel calls have no order; where none is expected any call is wrong.
        (CALLS, f"{CALL}{OTHER_CALL}", f"{OTHER_CALL}\n{CALL}", 1),
        (CALLS, f"{CALL}{OTHER_CALL}", OTHER_CALL, 0),
        (CALLS, ASK, "Which order do you mean?", 1),
        (CALLS, ASK, CALL, 0),
        (number(0.01), "#### 100", "about 100.5", 1),
        (number(0.01), "#### 100", "about 101.5", 0),
        (number(0.01), "100", "98.5", 0),
        (number(0.0), "1000", "#### 1,000", 1),
        (number(0.01), "0", "0.001", 0),
        (number(1.0), "3", "none", 0),
        (CHRF, FOG, FOG, 1),
        (CHRF, FOG, "", 0),
        (CHRF, FOG, "0123", 0),
        # One of two single characters is right, no pair is: precision and recall are (1/2 + 0) / 2.
        (CHRF, "ac", "ab", 0.25),
        # Computed with the package rouge-score 0.1.2, without its stemmer.
        (ROUGE, "police kill the gunman", "police killed the gunman", 0.75),
        (ROUGE, "police killed the gunman", "the gunman police killed", 0.5),
        (
            ROUGE,
            "Wear sturdy boots; fog lifts after nine.",
            "Fog lifts after ten. Wear sturdy boots.",
            3 / 7,
        ),
        (ROUGE, "a x b y c z", "a b c d e f", 0.5),
        # Other scripts: in the second five of seven and five characters.
        (ROUGE, "привет мир!", "Привет, мир", 1),
        (ROUGE, "东京是日本首都", "东京是首都", 10 / 12),
        (ROUGE, "text", "", 0),
        (ROUGE, "?", "text", 0),
    ],
)
def test_the_score_of_an_answer(task, expected, answer, score):
    assert task.score(answer, expected) == pytest.approx(score)


def test_an_answer_is_found_in_prose_and_fences():
    text = 'Here {is} it:\n```json\n{"intent": "login"}\n```'
    assert find_object(text) == {"intent": "login"}
    assert find_object("none {here") is None
    assert FIELD.score('The answer is {"intent": "billing"}', EXPECTED, anywhere=True)
    assert tool_calls('{"name": "only a name"} [1, 2] {"intent": "x"}') == []
    assert 0.5 < CHRF.score("Fog lifts after nine.", FOG) < 1.0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 16 - 7 = <<16-7=9>>9 eggs.\n#### 18", 18),
        ("The answer is $1,234.50.", 1234.5),
        ("#### 5 apples, of 7", 5),
        ("72%", 72),
        ("from 3 to -4", -4),
        ("10-4", 4),
        ("\u22122.5", -2.5),
        ("1.5e3", 1500),
        ("7 + 3 = 10", 10),
        ("It took 7 of 10 days.\n#### 3", 3),
        ("model v2", None),
        ("none", None),
        ("####", None),
    ],
)
def test_the_final_number_is_found(text, number):
    assert final_number(text) == number
    # A short answer of several numbers states none, whatever it ends in.
    several = ("#### 5 apples, of 7", "from 3 to -4", "10-4")
    assert same_number(text, str(number), 0.0) == (number is not None and text not in several)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("See https://example.com/a/b (it helps).", False),
        ("Take the path by water (the long one), then turn left; it is steep.", False),
        ("def scale(x):\n    return [y * 2 for y in x if y > 0]", True),
        ("SELECT name FROM users WHERE age >= 18 AND lower(city) = 'oslo';", True),
        ("Like this:\n```python\nprint(x[0])\n```\nIt prints the first entry of the list.", True),
        ("a^2 + b^2 = c^2", True),
    ],
)
def test_code_is_told_from_prose(text, code):
    assert is_code(text) == code


def test_structure_keeps_the_label_and_drops_prose():
    one = structure_of('{"intent": "billing", "reply": "Yes.", "score": 3}', "intent")
    assert one == structure_of('{"score": 3, "intent": "billing", "reply": "No!"}', "intent")
    assert one != structure_of('{"intent": "login", "reply": "Yes.", "score": 3}', "intent")
    assert structure_of("prose", "intent") != structure_of("Prose", "intent")


SENTENCES = [
    f"The {word} trail is closed today, so take the path by water {n}."
    for n, word in enumerate(("fern", "mill", "moor", "cliff", "peat", "dune"))
]


def call(order):
    return f"<tool_call>{json.dumps({'name': 'find', 'arguments': {'order': order}})}</tool_call>"


@pytest.mark.parametrize(
    ("expected", "metric", "why"),
    [
        ([EXPECTED], "json_field", "every expected answer is JSON with 'intent'"),
        ([EXPECTED, "plain", "plain too"], "exact", "three words"),
        ([call(n) for n in range(4)] + ["Which order?"], "tool_calls", "4 of 5"),
        (["She ate 3.\n#### 12", "#### 7", "9", " $3.50 ", "-7%"], "number", "a number"),
        (["42 apples", "7"], "exact", "three words"),
        (["billing", "login"] * 5 + ["shipping"] * 4, "exact", "3 different texts"),
        ([s for s in SENTENCES[:2] for _ in range(4)], "exact", "2 different texts"),
        (["Paris", "Rome", "Oslo", "Port Louis"], "exact", "three words"),
        ([f'{{"text": "{s}"}}' for s in SENTENCES], "chrf", "free text"),
        ([f'{{"n": {n}, "text": "{s}"}}' for n, s in enumerate(SENTENCES)], "fields", "JSON"),
        (SENTENCES, "chrf", "free text of 13 words"),
    ],
)
def test_auto_reads_the_expected_answers(expected, metric, why):
    task = choose_task("auto", "intent", expected)
    assert task.metric == metric
    assert why in task.why


def test_labels_are_those_of_closed_answers_only():
    closed = choose_task("auto", None, ["billing", "login"] * 5)
    assert closed.labels == ("billing", "login")
    assert closed.score("It is about Billing.", "billing", anywhere=True)
    assert not closed.score("Billing or login.", "billing", anywhere=True)
    assert not closed.score("It is about billing.", "billing")
    assert choose_task("auto", None, SENTENCES).labels == ()
    both = choose_task("exact", None, ["refund", "no refund"] * 4)
    assert both.label("there is no refund", anywhere=True) == "no refund"


@pytest.mark.parametrize(
    ("metric", "field", "expected", "why"),
    [
        ("json_field", "intent", [EXPECTED, "plain"], "1 of 2 expected answers have no field 'int"),
        ("json_field", None, [EXPECTED], "label_field"),
        ("number", None, ["3", "three"], "number, but 1 of 2 expected answers hold no one number"),
        ("tool_calls", None, SENTENCES, "none of the 6 expected answers calls a tool"),
        ("macro_f1", "intent", SENTENCES, "macro_f1, but 6 of 6 .* no field 'intent'"),
    ],
)
def test_a_metric_that_the_answers_do_not_have_is_refused(metric, field, expected, why):
    with pytest.raises(UserError, match=why):
        choose_task(metric, field, expected)


def test_scores_refuse_answers_that_are_missing():
    with pytest.raises(ValueError, match="longer"):
        judge(EXACT, ["a"], ["a", "b"])


LABELS = ("billing", "login", "shipping")
F1 = Task("macro_f1", labels=LABELS)
FORM = "Thank you for writing to us."
WANTED = random.Random(1).choices(LABELS, weights=(8, 3, 1), k=150)


def test_macro_f1_is_that_of_scikit_learn():
    draw = random.Random(2)
    named = [label if draw.random() < 0.7 else draw.choice(LABELS) for label in WANTED]
    named[3] = "something else"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = f1_score(WANTED, named, labels=LABELS, average="macro")
    found = judge(F1, named, WANTED).interval
    assert found.value == pytest.approx(theirs)
    assert found.lower < theirs < found.upper


def test_macro_f1_sees_the_rare_label_that_accuracy_hides():
    # One model never names the rare label; the other errs as often, but on the common one.
    ignoring = ["billing" if label == "shipping" else label for label in WANTED]
    common = iter(range(WANTED.count("shipping")))
    erring = ["login" if w == "billing" and next(common, None) is not None else w for w in WANTED]
    first, second = judge(F1, ignoring, WANTED), judge(F1, erring, WANTED)
    assert sum(first.scores) == sum(second.scores)
    found = compare(first, second)
    assert found.difference.value > 0.2
    assert found.difference.lower > 0
    assert not_worse(second, first, 0.05).decision == "worse"
    assert not_worse(first, second, 0.05).decision == "not worse"


def test_no_interval_has_a_width_of_zero():
    right = judge(F1, list(LABELS), list(LABELS))
    assert right.interval.lower < 0.7
    assert compare(right, right).difference.lower < -0.2
    assert mean_difference([0.4] * 20, [0.4] * 20).lower < -0.05
    assert mean_interval([0.4] * 20).lower < 0.39


def test_rows_of_a_group_count_once_with_their_mean():
    right = ["billing", "billing", "login", "login", "shipping"]
    said = ["billing", "login", "login", "login", "billing"]
    found = judge(EXACT, said, right, groups=[0, 0, 1, 1, 2])
    assert found.units == [0.5, 1.0, 0.0]
    assert found.interval == wilson(1.5, 3)
    over = compare(found, found.other(right))
    assert (over.difference.value, over.only_second) == (0.5, 2)
    copied = judge(F1, said * 9, right * 9, groups=[0, 0, 1, 1, 2] * 9)
    assert copied.rows([True] * 45) == copied
    assert copied.macro_f1.upper - copied.macro_f1.lower > 0.5


def test_texts_of_json_answers_are_tasks():
    answers = [
        json.dumps({"intent": "a", "reply": f"We look at case {n} now.", "team": "x", "same": FORM})
        for n in range(4)
    ]
    task = Task("json_field", "intent")
    assert [each.prefix for each in further_tasks(task, answers * 3)[0]] == [
        "reply.", "team.", "same.", "field_names."
    ]  # fmt: skip
    [reply, *_], few = further_tasks(task, answers * 2 + ['{"intent": "a", "reply": ""}'] * 2)
    assert few == ["team", "same"]
    assert (reply.name, reply.metric) == ("reply chrF", "chrf")
    assert reply.score(f"Sure: {answers[0]}", answers[0]) == 0.0
    assert reply.score(f"Sure: {answers[0]}", answers[0], anywhere=True) == 1.0
    assert further_tasks(Task("exact"), answers * 3) == ([], [])


def test_parts_of_an_answer_are_judged_on_the_rows_that_have_them():
    expected = [
        *(json.dumps({"id": n, "fee": 2.0, "items": [n, n]}) for n in range(12)),
        *(json.dumps({"id": n}) for n in range(12)),
    ]
    task = choose_task("auto", None, expected)
    parts, few = further_tasks(task, expected)
    wrong = [json.dumps({"id": n % 12, "fee": 2, "items": [n, n + 1]}) for n in range(24)]
    found = {each.prefix: judge(each, wrong, expected).scores for each in parts}
    assert few == []
    assert judge(task, wrong, expected).scores == (2 / 3,) * 12 + (1.0,) * 12
    assert found == {
        "id.": (1.0,) * 24,
        "fee.": (1.0,) * 12,
        "items.": (0.0,) * 12,
        "field_names.": (1.0,) * 12 + (0.0,) * 12,
    }


def test_calls_and_texts_are_judged_apart():
    expected = [*map(call, range(12)), *(s for s in SENTENCES for _ in (0, 1))]
    task = choose_task("auto", None, expected)
    parts, _ = further_tasks(task, expected)
    silent = ["Nothing."] * 24
    talking = [*map(call, range(12)), *["zzz"] * 12]
    eager = [call(1)] * 24
    found = [
        [judge(each, answers, expected) for each in (task, *parts)]
        for answers in (expected, silent, talking, eager)
    ]
    shares = [[one.interval.value for one in each] for each in found]
    assert shares[0] == [1.0, 1.0, 1.0]
    assert shares[1][:2] == [0.5, 0.0]
    assert shares[2][:2] == [1.0, 1.0]
    assert shares[2][2] < 0.1
    assert shares[3][2] == 0.0
    kept = found[3][1].rows([n % 2 == 0 for n in range(24)])
    assert kept.other([call(n) for n in range(0, 24, 2)]).scores == (1.0,) * 6


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("4,5", "3,5"),
        ("1/4", "3/4"),
        ("11:30", "12:30"),
        ("1.234,5", "1.244,5"),
        ("1.2.3", "2.2.3"),
        ("He has 7 of 10 points.", "He has 3 of 10 points."),
        ("He has 1,007 out of 2,010.", "He has 3 out of 2,010."),
        ("7 of 10", "10"),
        ("7 or 10", "10"),
        ("1 1/2 cups", "2 1/2 cups"),
        ("due on 2026-12-01", "due on 2025-03-01"),
    ],
)
def test_numbers_that_end_alike_are_not_the_same(first, second):
    assert not same_number(first, second, 1e-4)
    task = choose_task("auto", None, [first, second] * 3)
    assert not task.score(first, second)


def test_several_numbers_are_refused():
    with pytest.raises(UserError, match="hold no one number"):
        choose_task("number", None, ["7 of 10", "3 of 10"])


def test_graded_scores_against_a_margin():
    expected = [f"Fog lifts after ten at gate {n} of the moor." for n in range(120)]
    worse = [text.replace("lifts after ten", "is gone") for text in expected]
    good, bad = judge(CHRF, expected, expected), judge(CHRF, worse, expected)
    assert not_worse(good, good, 0.05).decision == "not worse"
    assert not_worse(good, bad, 0.05).decision == "worse"
    few = good.rows([True] * 20 + [False] * 100)
    undecided = not_worse(few, few, 0.02)
    assert (undecided.decision, undecided.rows_needed) == ("undecided", 98)


def test_rows_needed_have_the_power_that_they_claim():
    # 20 rows: 6 gained, 2 lost.
    first = [False] * 6 + [True] * 2 + [False] * 6 + [True] * 6
    second = [True] * 6 + [False] * 2 + [False] * 6 + [True] * 6
    needed = rows_needed(paired(first, second).difference, 20, 0.0)
    draw, shown = random.Random(7), 0
    for _ in range(300):
        kinds = draw.choices(("gained", "lost", "same"), weights=(6, 2, 12), k=needed)
        one, two = ([kind == name for kind in kinds] for name in ("lost", "gained"))
        shown += paired(one, two).difference.lower > 0
    assert 0.65 < shown / 300 < 0.95
    assert rows_needed(Interval(0.0, -0.1, 0.1, 0.05), 50, 0.0) is None
