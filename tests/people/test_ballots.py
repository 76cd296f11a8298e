from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.lab.reviews import prepared
from tests.lab.runs import Lab

from tuneline.artifacts.evaluation import Mark
from tuneline.errors import UserError
from tuneline.people import ballots


def test_pairs_are_dealt_in_slices_of_five_to_every_reviewer_in_turn():
    dealt = ballots.deal(range(1, 13), ["ann", "ben", "cy"], 2, 5)
    assert [(a.reviewer, a.pairs[0], len(a.pairs)) for a in dealt] == [
        ("ann", 1, 5),
        ("ben", 1, 5),
        ("cy", 6, 5),
        ("ann", 6, 5),
        ("ben", 11, 2),
        ("cy", 11, 2),
    ]


@given(st.integers(0, 40), st.integers(0, 5), st.integers(1, 6), st.integers(1, 8))
def test_every_pair_is_asked_about_as_often_as_it_should(pairs, people, per_pair, per_task):
    reviewers = [f"p{n}" for n in range(people)]
    dealt = ballots.deal(range(1, pairs + 1), reviewers, per_pair, per_task)
    wanted = min(per_pair, people) if people else 1
    asked = Counter(pair for assignment in dealt for pair in assignment.pairs)
    assert asked == dict.fromkeys(range(1, pairs + 1), wanted)
    twice = Counter((a.reviewer, pair) for a in dealt for pair in a.pairs)
    assert max(twice.values(), default=1) == 1
    assert all(len(assignment.pairs) <= per_task for assignment in dealt)


def test_reviewers_who_answer_at_once_overwrite_nothing(tmp_path):
    bench = Lab(tmp_path, {"evaluation": {"review": True}})
    key = prepared(bench)
    review_id = ballots.sheet_of(bench.run).review_id

    def send(number):
        mark = Mark(pair=key[number % 10].pair, choice="A")
        ballots.cast(bench.run, review_id, f"p{number}", "airflow", [mark])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, range(40)))
    found = ballots.ballots(bench.run)
    assert {ballot.reviewer for ballot in found} == {f"p{n}" for n in range(40)}


def test_votes_for_an_older_review_or_none_are_refused(tmp_path):
    bench = Lab(tmp_path, {"evaluation": {"review": True}})
    with pytest.raises(UserError, match="was not prepared"):
        ballots.sheet_of(bench.run)
    prepared(bench)
    old = ballots.sheet_of(bench.run).review_id
    bench.execute("prepare_review")
    with pytest.raises(UserError, match=f"they are for the review {old}, but the pairs were drawn"):
        ballots.cast(bench.run, old, "ann", "airflow", [Mark(pair=1, choice="A")])
    for names, why in ((["ann", "ann"], "named twice"), (["ann", " "], "at least 1 character")):
        with pytest.raises(UserError, match=why):
            Lab(tmp_path, {"evaluation": {"reviewers": names}})
