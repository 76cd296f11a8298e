from statistics import fmean

from benchmarks.dedup import exact_pairs
from benchmarks.workloads.near_duplicates import PLANTED_SHARE, make_corpus


def test_a_seed_gives_the_same_corpus_and_another_seed_another():
    assert make_corpus(200) == make_corpus(200)
    assert make_corpus(200) != make_corpus(200, seed=8)


def test_sizes_and_similarities_are_as_described():
    texts = make_corpus(3000)
    assert len(texts) == 3000
    assert 560 < fmean(map(len, texts)) < 620
    planted = 3000 * PLANTED_SHARE
    # Two thirds of the planted ones are near-duplicates, and nothing else is.
    assert 0.6 * planted < len(exact_pairs(texts)) < 0.76 * planted
