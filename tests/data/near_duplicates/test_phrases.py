import json

from tuneline.data.near_duplicates.phrases import added_sentences, prose, repeated_sentences, thin

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
