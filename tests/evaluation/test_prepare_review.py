from collections import Counter

from tuneline.data.tables.rows import Row
from tuneline.evaluation.prepare_review import balanced, similarity, strata


def rows_of(labels, words=lambda number: number % 40 + 1):
    return [
        Row(
            row_id=f"r{number}",
            messages=[
                {"role": "user", "content": "word " * words(number)},
                {"role": "assistant", "content": "x"},
            ],
            source_file="f",
            source_line=number,
            label=label,
        )
        for number, label in enumerate(labels)
    ]


def test_a_rare_label_and_both_kinds_of_disagreement_are_seen():
    """Of 1000 rows 980 have one label, and 986 answers are all but the same."""
    rows = rows_of(["common"] * 980 + ["rare"] * 20)
    far = {*range(0, 1000, 100), 981, 986, 991, 996}
    answers = {
        row.row_id: ("we send it today", "no" if n in far else "we send it now")
        for n, row in enumerate(rows)
    }
    kinds = strata(rows, answers)
    drawn = balanced(rows, kinds, 12, 7)
    seen = Counter(value for row in drawn for value in vars(kinds[row.row_id]).values())
    # A random draw of twelve holds a rare row in one case of five, and hardly ever two.
    assert abs(seen["rare"] - seen["common"]) <= 2
    assert abs(seen["near"] - seen["far apart"]) <= 2
    assert {seen[length] for length in ("short", "middling", "long")} <= {3, 4, 5}
    assert seen.total() == 36


def test_the_same_seed_draws_the_same_rows_and_all_are_drawn_if_there_are_few():
    rows = rows_of(["a", "b", "c"] * 20)
    kinds = strata(rows, {row.row_id: ("x", "y") for row in rows})
    first, again, other = (
        [row.row_id for row in balanced(rows, kinds, 10, seed)] for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len(set(first)) == 10
    assert len(balanced(rows, kinds, 100, 1)) == 60
    assert balanced([], {}, 5, 1) == []


def test_similarity_is_of_words():
    assert similarity("We send it.", "we SEND it.") == 1.0
    assert similarity("", "") == 1.0
    assert similarity("a b", "c d") == 0.0
