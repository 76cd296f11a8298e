import json

from tuneline.data.near_duplicates.phrases import (
    added_sentences,
    crowding,
    prose,
    repeated_ngrams,
    repeated_sentences,
    thin,
)

HABIT = "We value you as a customer."


def answers(count, habit_in):
    return [
        json.dumps(
            {"intent": "x", "reply": f"Reply {n} is here." + (f" {HABIT}" if n < habit_in else "")}
        )
        for n in range(count)
    ]


def repeated(texts, labels, share=0.1):
    return repeated_sentences([prose(t, "intent") for t in texts], labels, share)


def test_a_habit_of_one_class_is_found():
    texts = answers(60, 15) + [f"Other reply number {n} here." for n in range(300)]
    labels = ["x"] * 60 + ["y"] * 300
    (found,) = repeated(texts, labels)
    assert (found.sentence, found.label, found.rows) == ("we value you as a customer", "x", 15)
    assert repeated(texts, labels, share=0.3) == []


def test_a_whole_answer_is_no_added_sentence():
    assert added_sentences(["We value you as a customer."]) == set()
    assert added_sentences(["Yes. We value you as a customer."]) == {"we value you as a customer"}
    assert added_sentences(["Yes. Thank you."]) == set()


def test_few_answers_say_nothing():
    assert repeated(answers(20, 20), ["x"] * 20) == []


def thinned(texts, labels, share=0.1):
    return thin(
        texts,
        labels,
        [f"{n:04d}" for n in range(len(texts))],
        repeated(texts, labels, share),
        share=share,
        label_field="intent",
    )


def test_thinning_goes_below_the_share_and_harms_nothing_else():
    texts, labels = answers(60, 15), ["x"] * 60
    after = thinned(texts, labels)
    assert repeated(after, labels) == []
    assert sum(HABIT in text for text in after) == 5
    for before, now in zip(texts, after, strict=True):
        assert json.loads(now)["intent"] == "x"
        assert now == before or now == before.replace(f" {HABIT}", "")


def test_the_format_of_all_answers_stays():
    texts, labels = answers(60, 60), ["x"] * 60
    assert thinned(texts, labels) == texts


def test_plain_answers_are_thinned_too():
    texts = [f"Reply {n} is here.\n{HABIT}" if n < 20 else f"Reply {n} is here." for n in range(80)]
    after = thinned(texts, [None] * 80)
    assert sum(HABIT in text for text in after) == 7
    assert after[79] == texts[79]
    assert "Reply 19 is here." in after


def test_share_of_answers_with_a_common_ngram():
    texts = [[f"Reply {n} is here."] for n in range(90)] + [["one two three four five"]] * 10
    found = repeated_ngrams(texts, 0.1)
    assert found.share == 0.1
    assert all(phrase.share == 0.1 for phrase in found.repeated)
    assert repeated_ngrams(texts, 0.2).share == 0
    assert repeated_ngrams([], 0.2).share == 0


def test_answers_go_until_every_phrase_is_rare():
    phrases = ["please be so kind to wait", "our team is on its way", "we are happy to help"]
    texts = [[f"{n:x}{n * 7:x} {phrases[n % 7]} {n * 31:x}"] for n in range(210) if n % 7 < 3]
    texts += [[f"{n:x} {n * 13:x} {n * 17:x} {n * 19:x} {n * 23:x}"] for n in range(1000, 1210)]
    order = [f"{n * 7919 % 1000:04d}" for n in range(len(texts))]
    gone = crowding(texts, order, 0.1)
    left = [text for n, text in enumerate(texts) if n not in gone]
    assert max(p.share for p in repeated_ngrams(left, 0.01).repeated) < 0.1
    assert repeated_ngrams(left, 0.1).repeated == []
    # No more than needed: one more with each phrase would be one too many.
    for words in phrases:
        having = sum(words in text[0] for text in left)
        assert 0.1 * (len(left) + 1) <= having + 1
        kept = [n for n, text in enumerate(texts) if words in text[0] and n not in gone]
        dropped = [n for n, text in enumerate(texts) if words in text[0] and n in gone]
        assert max(order[n] for n in kept) < min(order[n] for n in dropped)


def test_what_all_answers_have_is_their_format():
    texts = [[f"the answer to your question is {n:x}"] for n in range(50)]
    assert crowding(texts, [str(n) for n in range(50)], 0.1) == {}
    assert crowding([], [], 0.1) == {}
