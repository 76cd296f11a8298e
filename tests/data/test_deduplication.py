import json
import random
import re
from collections import Counter, defaultdict
from dataclasses import replace

import pytest
from tests.lab.data_runs import WORDS, answer, chat, clean_rows, code, text, write_jsonl
from tests.lab.runs import broken, value

from tuneline.config import DataConfig
from tuneline.data.near_duplicates.alike import asks_something_else, signs
from tuneline.data.near_duplicates.compared_text import Affixes, common_affixes
from tuneline.data.near_duplicates.deduplicate import deduplicate
from tuneline.data.tables.rows import Row

# What finds near-duplicates of one side on the other.
SEARCH = "tuneline.data.near_duplicates.deduplicate.nearest"

ITEM = "deduplication"


def row(number, user, label="a", reply="ok", **more):
    return Row(f"{number:04d}", chat(user, reply), "rows.jsonl", number, label=label, **more)


def config(**settings):
    return DataConfig(source="rows.jsonl", **settings)


def test_clean_rows_lose_none(data_lab):
    lab = data_lab(clean_rows(120))
    entry = lab.upto(ITEM)
    assert lab.rejected(ITEM) == []
    assert value(entry, "near_question_pairs") == 0
    assert value(entry, "holdout_share") == 0.15
    splits = Counter(r["split"] for r in lab.table(ITEM, "rows.parquet"))
    assert splits == {"train": 90, "holdout": 18, "validation": 12}
    lab.agree(ITEM, "pass")


def test_planted_duplicates_and_conflicts_go(data_lab):
    rows = clean_rows(120)
    copies = [
        rows[3],
        {"messages": chat(rows[4]["messages"][0]["content"] + "?!", answer("login", "So."))},
        {"messages": chat(rows[7]["messages"][0]["content"].upper(), answer("billing", "x y z."))},
    ]
    lab = data_lab([*rows, *copies])
    entry = lab.upto(ITEM)
    rejects = {r["source_line"]: code(r) for r in lab.rejected(ITEM)}
    # Of two equal rows one stays, contradicting rows both go.
    assert {8, 123} <= rejects.keys()
    assert rejects[8] == rejects[123] == "label_conflict"
    assert len(rejects) == 4
    assert sorted(rejects.values()).count("exact_duplicate") == 1
    assert sorted(rejects.values()).count("near_duplicate") == 1
    assert value(entry, "label_conflicts") == 2
    lab.agree(ITEM, "pass")


def test_a_leak_across_the_split_fails_step_and_gate(data_lab, monkeypatch):
    rows = clean_rows(120)
    rows += [
        {"messages": chat(r["messages"][0]["content"] + " now", r["messages"][1]["content"])}
        for r in rows[:60]
    ]
    monkeypatch.setattr(
        "tuneline.data.near_duplicates.alike.near_pairs", lambda texts, threshold: []
    )
    lab = data_lab(rows)
    entry = lab.upto(ITEM)
    # The first search is blind; the second takes out the rows that it missed.
    assert value(entry, "missed_by_first_search") > 5
    assert value(entry, "cross_split_near_duplicates") == 0
    assert "cross_split_duplicate" in {code(r) for r in lab.rejected(ITEM)}
    # With both blind here, the leak stays in and the search of the final audit finds it.
    monkeypatch.setattr(SEARCH, lambda *_: {})
    for name in ("deduplication", "token_length_audit", "distribution_balancing"):
        lab.step(name)
    record = lab.step("final_audit")
    leaks = next(m for m in record.measurements if m.name == f"{ITEM}.cross_split_near_duplicates")
    assert leaks.value > 5
    assert leaks.ok is False


def test_a_leak_that_stays_after_the_second_search_fails_step_and_gate(data_lab, monkeypatch):
    monkeypatch.setattr(SEARCH, lambda left, right, _: {0: (0, 0.9)} if left and right else {})
    lab = data_lab(clean_rows(120))
    assert broken(lab.upto(ITEM)) == {"cross_split_near_duplicates"}
    lab.agree(ITEM, "fail")


def test_a_share_outside_its_limits_fails(data_lab):
    lab = data_lab(clean_rows(60), holdout_share=0.3)
    lab.upto(ITEM)
    gate = lab.agree(ITEM, "fail")
    assert "holdout" in gate.summary


def test_own_holdout_stays_whole_and_its_likes_leave_training(data_lab, tmp_path):
    rows = clean_rows(60)
    own = [
        {"messages": chat(rows[n]["messages"][0]["content"] + " ok", answer("login", "Yes."))}
        for n in range(10)
    ]
    holdout = write_jsonl(tmp_path / "holdout.jsonl", [*own, own[0]])
    lab = data_lab(rows, holdout=str(holdout))
    lab.upto(ITEM)
    kept = lab.table(ITEM, "rows.parquet")
    held = [r for r in kept if r["split"] == "holdout"]
    assert len(held) == 11
    assert all(r["own_holdout"] for r in held)
    gone = lab.rejected(ITEM)
    assert {r["source_line"] for r in gone} == set(range(1, 11))
    assert {code(r) for r in gone} == {"holdout_near_duplicate"}
    assert all(r["source_file"].endswith("rows.jsonl") for r in gone)
    lab.agree(ITEM, "pass")


def gone(found):
    return [n for n, reason in enumerate(found.reasons) if reason is not None]


def test_every_row_that_leaves_is_near_to_one_that_stays():
    words = text(1, 20).split()
    rows = [row(n, " ".join(words[n:])) for n in range(7)]
    found = deduplicate(rows, config())
    assert found.reasons[0] is None, "the longest row stays"
    assert 2 < len(gone(found)) < 6, "the last of a chain is not near to the first"


def test_policies_for_conflicts():
    rows = [row(n, "same question here", label) for n, label in enumerate("aab")]
    rows += [row(10 + n, text(n, 12)) for n in range(30)]

    def stay(policy):
        found = deduplicate(rows, config(label_conflicts=policy))
        return [i for i in range(3) if found.reasons[i] is None]

    assert deduplicate(rows, config()).conflict == [True] * 3 + [False] * 30
    assert stay("reject_all") == []
    assert stay("keep_majority") == [0]
    assert stay("keep") == [0, 2]
    kept = deduplicate(rows, config(label_conflicts="keep"))
    assert kept.splits[0] == kept.splits[2]


def test_shared_instructions_do_not_make_rows_alike():
    before = "Classify the message of a customer of our shop, one word only, be careful: "
    rows = [row(n, before + text(n, 5)) for n in range(20)]
    assert all(reason is None for reason in deduplicate(rows, config()).reasons)


def told(asked, said, system=None):
    return {"messages": chat(asked, said, system)}


def translations(draw):
    """The same sentences under two system turns."""
    for n in range(250):
        for language in ("German", "French"):
            yield told(text(n), f"{language[0]} {text(n + 3000)}", f"Translate to {language}.")


def sums(draw):
    """Sums that differ in their sign, some with equal answers."""
    for n in range(320):
        a, b = 2 + n % 20, 2 + n // 20
        for sign, result in (("+", a + b), ("-", a - b), ("*", a * b)):
            yield told(f"What is {a} {sign} {b}?", str(result))


def documents(draw, words=400, questions=5, count=90, reply=None):
    """Several questions of nine words to each document."""
    for n in range(count):
        said = " ".join(draw.choices(WORDS, k=words))
        for k in range(questions):
            asked = " ".join(draw.choices(WORDS, k=9))
            yield told(f"{said}\n\n{asked}?", reply or text(9000 + n * questions + k, 3))


def names(draw):
    return (
        f"{draw.choice('Anna Bo Carla Dmitri Ewa'.split())} {draw.choice(['Ray', 'Holm', 'Sato'])}"
    )


def sentences_with_names(draw):
    """Translations of sentences that differ in names and places."""
    for n in range(120):
        who, where = names(draw), draw.choice("Leipzig Gdansk Porto Turku Brno".split())
        day, hour = n % 28 + 1, n // 28 + 8
        yield told(
            f"{who} from {where} will come on {day} May at {hour} o'clock.",
            f"{who} aus {where} kommt am {day}. Mai um {hour} Uhr.",
            "Translate to German.",
        )


def code_tasks(draw):
    """Functions by name, factor and bound."""
    for n in range(120):
        name, by, most = f"scale_{draw.choice(WORDS)}", 2 + n % 10, 50 + 10 * (n // 10)
        yield told(
            f"Write a function {name} that multiplies its argument by {by}, at most {most}.",
            f"def {name}(x):\n    return min(x * {by}, {most})",
        )


def tenants(draw):
    """Equal questions of many tenants, whose facts are in the system turn."""
    for n in range(60):
        for k in range(4):
            yield told(f"{text(k)}?", text(n + 100, 4), f"You serve shop {n}. {text(n + 700, 20)}")


def pairs_of_signs(draw):
    """Pairs that differ in a sign alone."""
    pairs = (
        ("What is C?", "What is C++?"),
        ("How do I sort a list in C#?", "How do I sort a list in C?"),
        ("It arrived 😀", "It arrived 😡"),
        ("Is it -5 degrees outside?", "Is it 5 degrees outside?"),
        ("Find all with x > 3", "Find all with x < 3"),
        ("Simplify a/b", "Simplify a*b"),
    )
    for n, pair in enumerate(pairs):
        for k, asked in enumerate(pair):
            yield told(asked, text(500 + 2 * n + k, 4))


SHAPES = {
    make.__name__: make
    for make in (translations, sums, documents, sentences_with_names, code_tasks, tenants,
                 pairs_of_signs)
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_that_differ_in_answer_or_system_turn_stay(data_lab, shape):
    rows = list(SHAPES[shape](random.Random(3)))
    plain = [told(text(n, 14), text(n + 400, 5)) for n in range(20_000, 20_000 + len(rows))]
    lab = data_lab(rows + plain, label_field=None)
    entry = lab.upto(ITEM)
    assert lab.rejected(ITEM) == []
    assert value(entry, "torn_conversations") == 0
    assert 0.1 <= value(entry, "holdout_share") <= 0.2
    verdict = "warn" if value(entry, "near_rows_that_differ") > 0.02 else "pass"
    lab.agree(ITEM, verdict)
    sides = defaultdict(set)
    for kept in lab.table(ITEM, "rows.parquet"):
        if shape in ("translations", "tenants"):
            sides[kept["messages"][-2]["content"]].add(kept["split"])
        elif (asked := kept["messages"][0]["content"]).startswith("What is") and shape == "sums":
            sides[str(re.findall(r"\d+", asked))].add(kept["split"])
        elif shape == "documents":
            sides[kept["messages"][0]["content"][:200]].add(kept["split"])
    assert all(len(splits) == 1 for splits in sides.values())


@pytest.mark.parametrize("reply", [None, "Yes, it is."])
@pytest.mark.parametrize("words", [40, 80, 120, 400, 1200])
def test_questions_to_a_document_are_a_group_whatever_their_answers(words, reply):
    rows = [
        Row(f"{n:04d}", made["messages"], "f", n)
        for n, made in enumerate(documents(random.Random(5), words, 5, 40, reply))
    ]
    found = deduplicate(rows, config())
    assert gone(found) == []
    groups = [found.conversation[start : start + 5] for start in range(0, 200, 5)]
    assert all(len(set(group)) == 1 for group in groups)
    assert len({group[0] for group in groups}) == 40
    assert Counter(found.splits)["holdout"] == 30


def test_rows_that_all_hang_together_fail_with_what_to_do(data_lab):
    rows = [told(text(1, 14), text(n, 4), f"You are {text(n, 3)}.") for n in range(80)]
    rows += [told(text(n + 500), text(n, 4)) for n in range(5)]
    lab = data_lab(rows, label_field=None)
    entry = lab.upto(ITEM)
    assert lab.rejected(ITEM) == []
    assert value(entry, "largest_group") == 80
    assert "80 of 85 rows can't be divided without a leak" in entry.summary
    assert "data.holdout" in entry.summary
    lab.agree(ITEM, "fail")


@pytest.mark.parametrize("label", ["a", None])
def test_rows_that_ask_and_answer_nearly_the_same_leave_one(label):
    asked, said = text(1, 30), text(2, 30)
    near = [(asked, said), (f"{asked}?!", f"{said}."), (f"{asked} now", f"{said} then")]
    rows = [
        Row(f"{n}", chat(*pair, " You  are kind"), "f", n, label=label)
        for n, pair in enumerate(near)
    ]
    assert len(gone(deduplicate(rows, config()))) == 2
    other = replace(rows[1], messages=chat(*near[1], "You are stern"))
    assert len(gone(deduplicate([rows[0], other], config()))) == 0
    figures = replace(rows[1], messages=chat(near[1][0], f"{said} 7", "You are kind"))
    assert len(gone(deduplicate([rows[0], figures], config()))) == (1 if label else 0)


def test_what_is_near_before_scrubbing_or_as_it_stands_leaves_one(data_lab):
    key = "api key sk-proj-{}".format
    rows = clean_rows(120)
    secrets = [key(f"{n}a9Bc8De7Fg6Hi5Jk4Lm3No2Pq1Rs0Tu9Vw8Xy7Za6Bc5") for n in range(1, 4)]
    rows += [
        {"messages": chat(f"my {secret} fails", answer("login", "We look."))} for secret in secrets
    ]
    twins = [
        {"messages": chat(f"{text(900 + n)} call {phone}", answer("login", "We will."))}
        for n in range(20)
        for phone in (f"2025550{n + 130}", f"2025550{n + 130}.")
    ]
    lab = data_lab(rows + twins, pii_profile=["gdpr"])
    lab.upto(ITEM)
    rejects = sorted(r["source_line"] for r in lab.rejected(ITEM))
    assert len(rejects) == 22
    assert sum(line <= 123 for line in rejects) == 2
    assert {(line - 124) // 2 for line in rejects if line > 123} == set(range(20))
    lab.agree(ITEM, "pass")


def test_signs_are_no_marks_of_sentences():
    said = {"C++": "++", "C#": "#", "a/b": "/", "-5": "-", "x < 3": "<", "😀": "😀", "5 €": "€"}
    assert {given: signs(f"so {given}") for given in said} == said
    plain = 'Well-known, isn\'t it?! ("Yes" … no.) हिन्दी – 日本語。'
    assert signs(plain) == ""


def test_an_edit_is_no_other_question():
    words = text(1, 100).split()
    asked = " ".join(words)
    for at in ([50], [20, 80], [50, 54], [99], [0]):
        edited = " ".join("other" if n in at else word for n, word in enumerate(words))
        assert not asks_something_else(asked, edited)
    assert asks_something_else(f"{asked} {text(3, 9)}", f"{asked} {text(4, 9)}")
    assert asks_something_else(f"{text(3, 9)} {asked}", f"{text(4, 9)} {asked}")


def test_repeated_sentences_are_thinned_or_reported(data_lab):
    rows = clean_rows(150)
    for n in range(0, 90, 3):
        reply = f"Fine {text(n, 3)}. We value you as a customer."
        rows[n]["messages"][1]["content"] = answer("billing", reply)
    lab = data_lab(rows)
    entry = lab.upto(ITEM)
    assert value(entry, "repeated_sentences") >= 1
    assert value(entry, "repeated_sentences_left") == 0
    assert value(entry, "answers_thinned") > 5
    lab.agree(ITEM, "pass")
    lab = data_lab(rows, repeated_phrases="report")
    lab.upto(ITEM)
    lab.agree(ITEM, "warn")
    listed = json.loads(lab.run.store.get_bytes(lab.run.step_key(ITEM, "phrases.json")))
    assert listed["sentences"][0]["sentence"] == "we value you as a customer"


def test_the_summary_names_the_limits_of_a_small_dataset(data_lab):
    labels = ("billing",) * 20 + ("login", "shipping")
    lab = data_lab(clean_rows(44, labels))
    entry = lab.upto(ITEM)
    assert value(entry, "classes_without_holdout") >= 1
    assert "The dataset is small: a share measured on 7 hold-out rows" in entry.summary
    assert "too few rows for one in the hold-out" in entry.summary
    lab = data_lab(clean_rows(3))
    entry = lab.upto(ITEM)
    assert entry.verdict == "fail"
    assert lab.gate(ITEM).agrees


BEFORE = "Classify this message of a customer of the bank: "
AFTER = "\n\nAnswer with one word of the list above."
TEXTS = [
    f"{BEFORE}{word} it is{AFTER}" for word in "red blue green grey black pink gold teal".split()
]


def test_boilerplate_is_what_nearly_all_texts_share():
    affixes = common_affixes([*TEXTS, "something else"])
    assert affixes == Affixes(BEFORE, " it is" + AFTER)
    assert affixes.own(TEXTS[0]) == "red"
    # A text that is all boilerplate stays, and so does another one.
    for whole in ("something else", f"{BEFORE} it is{AFTER}"):
        assert affixes.own(whole) == whole
    assert common_affixes(TEXTS[::-1]) == common_affixes(TEXTS)
    # What a few texts share, or texts share by chance or as a whole, is none.
    for some in (TEXTS[:4], [f"I would {w}" for w in "abcdefghijk"], [BEFORE] * 100):
        assert common_affixes(some) == Affixes()
