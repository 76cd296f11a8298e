import random
from collections import Counter

import pytest

from tuneline.config import DataConfig
from tuneline.data.near_duplicates.split import assign, cluster_hash, draw, plan, quotas


def config(**settings):
    return DataConfig(source="rows.jsonl", **settings)


def rows(count, labels="aaab"):
    return [labels[n % len(labels)] for n in range(count)], [
        cluster_hash(f"text {n}") for n in range(count)
    ]


def test_shares_in_all_and_in_each_class():
    labels, hashes = rows(400)
    splits = assign(labels, hashes, plan(400, config(), own_holdout=False))
    assert Counter(splits) == {"train": 300, "holdout": 60, "validation": 40}
    assert Counter(s for s, label in zip(splits, labels, strict=True) if label == "b") == {
        "train": 75,
        "holdout": 15,
        "validation": 10,
    }


def test_many_small_classes_still_give_the_share():
    labels = [f"class {n // 3}" for n in range(300)]
    hashes = [cluster_hash(str(n)) for n in range(300)]
    splits = assign(labels, hashes, plan(300, config(), own_holdout=False))
    assert Counter(splits)["holdout"] == 45


def test_order_of_rows_does_not_matter():
    labels, hashes = rows(200)
    counts = plan(200, config(), own_holdout=False)
    forward = dict(zip(hashes, assign(labels, hashes, counts), strict=True))
    backward = dict(zip(hashes[::-1], assign(labels[::-1], hashes[::-1], counts), strict=True))
    assert forward == backward


def test_added_rows_move_hardly_any_other():
    labels, hashes = rows(1000)
    before = assign(labels, hashes, plan(1000, config(), own_holdout=False))
    more_labels, more_hashes = rows(1050)
    after = assign(more_labels, more_hashes, plan(1050, config(), own_holdout=False))
    moved = sum(a != b for a, b in zip(before, after, strict=False))
    assert moved <= 20
    was_held = [i for i, split in enumerate(before) if split == "holdout"]
    assert sum(after[i] == "train" for i in was_held) == 0


@pytest.mark.parametrize("seed", range(20))
def test_a_tenth_more_rows_in_every_class_takes_none_from_the_holdout_to_training(seed):
    draw = random.Random(seed)
    sizes = {name: draw.randint(40, 400) for name in "abcdefgh"}
    labels = [name for name, size in sizes.items() for _ in range(size)]
    hashes = [cluster_hash(f"{seed} {n}") for n in range(len(labels))]
    before = assign(labels, hashes, plan(len(labels), config(), own_holdout=False))
    added = [name for name, size in sizes.items() for _ in range(size // 10)]
    more = labels + added
    more_hashes = hashes + [cluster_hash(f"{seed} new {n}") for n in range(len(added))]
    after = assign(more, more_hashes, plan(len(more), config(), own_holdout=False))
    moves = Counter(zip(before, after, strict=False))
    assert moves["holdout", "train"] == 0
    assert moves["train", "holdout"] == 0
    assert Counter(after)["holdout"] == round(0.15 * len(more))


def test_a_cluster_stays_together():
    hashes = [cluster_hash(str(n // 2)) for n in range(100)]
    labels = ["a", "b"] * 50
    splits = assign(labels, hashes, plan(100, config(), own_holdout=False))
    assert all(splits[n] == splits[n + 1] for n in range(0, 100, 2))


def test_an_own_holdout_leaves_validation_alone():
    counts = plan(100, config(), own_holdout=True)
    assert (counts.holdout, counts.validation) == (0, 10)


def test_few_rows():
    assert plan(0, config(), own_holdout=False).holdout == 0
    assert plan(1, config(), own_holdout=False).holdout == 1
    assert plan(1, config(), own_holdout=False).validation == 0
    assert assign([], [], plan(0, config(), own_holdout=False)) == []


def test_quotas_add_up():
    assert quotas({"a": 7, "b": 2, "c": 1}, 5) == {"a": 4, "b": 1, "c": 0}
    assert quotas({"a": 2, "b": 1}, 9) == {"a": 2, "b": 1}
    assert quotas({}, 3) == {}


def test_draw_takes_each_class_in_proportion():
    labels, hashes = rows(80)
    drawn = draw(labels, hashes, 20)
    assert Counter(labels[i] for i in drawn) == {"a": 15, "b": 5}
    assert draw(labels, hashes, 500) == set(range(80))
