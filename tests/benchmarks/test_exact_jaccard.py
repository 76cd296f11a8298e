import random

import pytest
from benchmarks.workloads.exact_jaccard import (
    pair_scores,
    shingle_chars,
    shingle_words,
    similar_pairs,
)


def brute_force(texts, members, shingle, least):
    sets = {i: set(shingle(texts[i])) for i in members}
    return {
        (i, j)
        for i in members
        for j in members
        if i < j and len(sets[i] & sets[j]) >= least * len(sets[i] | sets[j])
    }


@pytest.mark.parametrize("shingle", [shingle_chars, shingle_words])
@pytest.mark.parametrize("least", [0.3, 0.5, 0.8, 1.0])
def test_it_finds_what_comparing_everything_finds(shingle, least):
    draw = random.Random(5)
    texts = []
    for _ in range(120):
        words = draw.choices("red green blue black white".split(), k=draw.randint(1, 14))
        texts.append(" ".join(words))
        if draw.random() < 0.5:
            words[draw.randrange(len(words))] = draw.choice("yellow pink".split())
            texts.append(" ".join(words))
    members = [i for i in range(len(texts)) if i % 7]
    wanted = brute_force(texts, members, shingle, least)
    assert similar_pairs(texts, members, shingle, least) == wanted
    assert wanted


def test_scores_count_what_is_missed_and_what_is_wrong():
    truth = [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert pair_scores(truth, truth) == {"recall": 1.0, "precision": 1.0}
    assert pair_scores(truth[:3], truth) == {"recall": 0.75, "precision": 1.0}
    assert pair_scores([*truth, (0, 7)], truth) == {"recall": 1.0, "precision": 0.8}
    assert pair_scores([], truth) == {"recall": 0.0, "precision": 1.0}
