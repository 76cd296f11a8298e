import math

import pytest

from tuneline.data.balance.class_shares import (
    caps,
    class_weights,
    edge_cases,
    effective_classes,
    reference_distance,
)


def test_effective_classes():
    assert effective_classes({"a": 1, "b": 1}) == pytest.approx(2)
    assert effective_classes({"a": 1, "b": 0}) == pytest.approx(1)
    assert effective_classes({}) == 0
    shares = {"a": 0.9, "b": 0.1}
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert effective_classes(shares) == pytest.approx(math.exp(entropy))


def test_caps():
    assert caps({"a": 100, "b": 10, "c": 8}, 4, None) == {"a": 40, "b": 10, "c": 8}
    assert caps({"a": 100, "b": 10, "c": 8}, 4, 30) == {"a": 12, "b": 10, "c": 8}
    assert sum(caps({"a": 7, "b": 7, "c": 7}, 4, 20).values()) == 20
    assert caps({}, 4, 10) == {}
    tail = {f"typo {n}": 1 for n in range(20)}
    assert caps({"a": 90, "b": 30, **tail}, 4, None, least=8)["a"] == 90


def test_weights_are_bounded():
    assert class_weights({"a": 40, "b": 10, "c": 1}, 3) == {"a": 1, "b": 1, "c": 3}


def test_reference_distance():
    assert reference_distance({"a": 2, "b": 2}, {"a": 1, "b": 1}) == 0
    assert reference_distance({"a": 1}, {"b": 1}) == 1


def test_edge_cases_are_rare_long_or_far_out():
    classes = ["a"] * 40 + ["b"] * 40 + ["c"] * 5
    tokens = [100 + n % 20 for n in range(85)]
    tokens[3] = 300
    distances = [0.3 + 0.01 * (n % 10) for n in range(85)]
    distances[50] = 0.9
    found = edge_cases(classes, tokens, distances, least=8)
    assert found[80:] == ["rare_class"] * 5
    assert {n: why for n, why in enumerate(found[:80]) if why} == {3: "long", 50: "unusual"}
    assert edge_cases(classes, tokens, None, least=8)[50] is None


def test_rows_of_about_a_length_are_no_edge_cases():
    assert edge_cases(["a"] * 20, [50] * 18 + [51, 80], None, least=8) == [None] * 20
    assert edge_cases(["a"], [50], None, least=8) == [None]
    assert edge_cases([], [], None, least=8) == []
