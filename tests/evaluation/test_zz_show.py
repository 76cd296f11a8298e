import json
from tests.evaluation.test_holdout_performance import *
from tests.evaluation.conftest import *


def test_show(scored_lab):
    b = scored_lab()
    e, f = execute(b)
    d = b.document("holdout_performance", "slices.json")
    print(e.summary)
    for s in d["judged"] + d["not_judged"]:
        print(s)
    print(b.document("holdout_performance", "paraphrases.json")["threshold"], f)
    assert 0
