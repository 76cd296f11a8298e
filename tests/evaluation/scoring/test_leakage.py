import numpy as np

from tuneline.data.near_duplicates import minhash
from tuneline.data.near_duplicates.shingles import char_grams, normalise
from tuneline.data.tables.rows import Row
from tuneline.evaluation.scoring.ledger import near_duplicates, same_ids


def row(row_id, text, split):
    roles = ("system", "user", "assistant")
    turns = ("Long shared text. " * 9, text, "ok")
    messages = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=True)]
    return Row(row_id, messages, "rows.jsonl", 1, split=split)


def test_near_duplicates_agree_with_sets():
    texts = [
        "my card was charged twice for one order",
        "My card was charged twice  for one order!",
        "where is my parcel",
        "my card was charged for one order twice",
    ]
    held = [row(f"h{i}", text, "holdout") for i, text in enumerate(texts)]
    seen = [row("t0", texts[0], "train"), row("v0", "how do I reset a password", "validation")]
    for threshold in (0.3, 0.6, 0.9):
        found = {leak.row_id: leak.similarity for leak in near_duplicates(held, seen, threshold)}
        normal = [normalise(row.messages[1]["content"]) for row in (*held, *seen)]
        sets = [char_grams(text) for text in normal]
        best = [max(len(a & b) / len(a | b) for b in sets[4:]) for a in sets[:4]]
        expected = {f"h{at}": round(s, 4) for at, s in enumerate(best) if s >= threshold}
        assert found == expected
    leaks = near_duplicates(held, seen, 0.8)
    found = {(leak.row_id, leak.other_id, leak.other_split) for leak in leaks}
    assert found == {("h0", "t0", "train"), ("h1", "t0", "train")}


def test_a_blind_minhash_does_not_blind_the_witness(monkeypatch):
    text = "my card was charged twice for one order"
    rows = [row("h", text, "holdout"), row("t", f"{text} please", "train")]
    monkeypatch.setattr(minhash, "candidates", lambda keys: np.empty((0, 2), dtype=np.int64))
    monkeypatch.setattr(minhash, "cross_candidates", lambda *_: np.empty((0, 2), dtype=np.int64))
    texts = [r.messages[1]["content"] for r in rows]
    assert minhash.near_pairs(texts, 0.8) == []
    assert minhash.cross_pairs(texts[:1], texts[1:], 0.8) == []
    assert [leak.row_id for leak in near_duplicates(rows[:1], rows[1:], 0.8)] == ["h"]


def test_what_counts_as_alike():
    words = [f"w{n}" for n in range(200)]
    long, turned = " ".join(words), " ".join(words[100:] + words[:100])
    # Long texts are compared by words; the system turn, which rows share, is not compared.
    leaks = near_duplicates([row("h", long, "holdout")], [row("t", turned, "train")], 0.8)
    assert [(leak.row_id, leak.other_id) for leak in leaks] == [("h", "t")]
    assert near_duplicates([row("h", "abc", "holdout")], [row("t", "xyz", "train")], 0.1) == []
    assert near_duplicates([], [row("t", "x", "train")], 0.8) == []
    # Ids are compared without the number of the part.
    held = [row("a#1", "x", "holdout"), row("b", "y", "holdout")]
    assert same_ids(held, [row("a#0", "z", "train")]) == ["a#1"]
