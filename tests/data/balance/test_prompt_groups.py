from collections import Counter

from tuneline.data.balance.prompt_groups import MIN_TEXTS, group_count, group_prompts

SUBJECTS = {
    "parcel": "parcel courier delivery tracking depot doorstep van address shipment".split(),
    "money": "invoice refund charge receipt bank payment card billing amount".split(),
}


def texts(count):
    made = []
    for n in range(count):
        words = SUBJECTS["parcel" if n % 4 else "money"]
        made.append(" ".join(words[(n + k * (1 + n % 7)) % 9] for k in range(6)) + f" {n:x}")
    return made


def test_groups_follow_the_subjects():
    given = texts(400)
    found = group_prompts(given)
    subjects = {}
    for n, name in enumerate(found.names):
        subjects.setdefault(name, Counter())["parcel" if n % 4 else "money"] += 1
    pure = sum(max(counts.values()) for counts in subjects.values()) / len(given)
    assert pure > 0.98
    assert len(subjects) >= 2
    assert all(any(w in name for words in SUBJECTS.values() for w in words) for name in subjects)
    assert all(0 <= distance <= 2 for distance in found.distances)


def test_neither_order_nor_repeats_change_a_group():
    given = texts(300)
    forward = dict(zip(given, group_prompts(given).names, strict=True))
    backward = dict(zip(given[::-1], group_prompts(given[::-1]).names, strict=True))
    doubled = dict(zip(given * 2, group_prompts(given * 2).names, strict=True))
    assert forward == backward == doubled


def test_few_texts_or_no_words_in_common_make_no_groups():
    assert group_prompts(texts(MIN_TEXTS - 1)) is None
    assert group_prompts([f"{n:x}{n * 7:x}" for n in range(MIN_TEXTS)]) is None
    assert group_prompts([]) is None


def test_how_many_groups():
    assert [group_count(n) for n in (1, 200, 2_000, 20_000, 10**6)] == [2, 3, 10, 31, 50]
