import pytest

from tuneline.errors import UserError
from tuneline.harness.answers import (
    Task,
    choose_task,
    find_object,
    structure_of,
)
from tuneline.harness.judged import judge

EXPECTED = '{"intent": "billing", "reply": "We look at it."}'


def test_only_a_whole_json_object_is_an_answer():
    task = Task("json_field", "intent")
    assert task.right(' {"intent": "billing"}\n', EXPECTED)
    assert not task.right('Sure! {"intent": "billing"}', EXPECTED)
    assert not task.right('["billing"]', EXPECTED)
    assert not task.right('{"intent": "bill', EXPECTED)


def test_an_object_is_found_in_prose_and_fences():
    text = 'Here {is} it:\n```json\n{"intent": "login"}\n```'
    assert find_object(text) == {"intent": "login"}
    assert find_object("none {here") is None


def test_field_metric_compares_the_field_alone():
    task = Task("json_field", "intent")
    assert task.right('{"reply": "other words", "intent": "billing"}', EXPECTED)
    assert not task.right('{"intent": "login"}', EXPECTED)
    assert not task.right('{"reply": "no intent"}', EXPECTED)
    prose = 'The answer is {"intent": "billing"}'
    assert not task.right(prose, EXPECTED)
    assert task.right_anywhere(prose, EXPECTED)


def test_exact_metric_ignores_spacing_and_key_order():
    task = Task("exact")
    assert task.right('{"reply":"We look at it.","intent":"billing"}', EXPECTED)
    assert task.right("two  words\n", "two words")
    assert not task.right("two word", "two words")


def test_auto_takes_the_field_only_where_every_answer_has_it():
    assert choose_task("auto", "intent", [EXPECTED]) == Task("json_field", "intent")
    assert choose_task("auto", "intent", [EXPECTED, "plain"]).metric == "exact"
    assert choose_task("auto", None, [EXPECTED]).metric == "exact"
    with pytest.raises(UserError, match=r"1 of 2 expected answers have no field 'intent'"):
        choose_task("json_field", "intent", [EXPECTED, "plain"])
    with pytest.raises(UserError, match="label_field"):
        choose_task("json_field", None, [EXPECTED])


def test_scores_refuse_answers_that_are_missing():
    with pytest.raises(ValueError, match="longer"):
        judge(Task("exact"), ["a"], ["a", "b"])


def test_structure_keeps_the_label_and_drops_prose():
    one = structure_of('{"intent": "billing", "reply": "Yes.", "score": 3}', "intent")
    same = structure_of('{"score": 3, "intent": "billing", "reply": "No!"}', "intent")
    other = structure_of('{"intent": "login", "reply": "Yes.", "score": 3}', "intent")
    assert one == same
    assert one != other
    assert structure_of("prose", "intent") != structure_of("Prose", "intent")
