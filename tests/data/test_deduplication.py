import json
from collections import Counter

from tests.lab.data_runs import answer, chat, clean_rows, code, text, write_jsonl
from tests.lab.runs import value

from tuneline.config import DataConfig
from tuneline.data.near_duplicates.compared_text import Affixes, common_affixes
from tuneline.data.near_duplicates.deduplicate import deduplicate, find_conflicts
from tuneline.data.tables.rows import Row, StandIn

ITEM = "deduplication"


def row(number, user, label="a", reply="ok", **more):
    return Row(f"{number:04d}", chat(user, reply), "rows.jsonl", number, label=label, **more)


def config(**settings):
    return DataConfig(source="rows.jsonl", **settings)


def test_clean_rows_lose_none(data_lab):
    lab = data_lab(clean_rows(120))
    entry = lab.upto(ITEM)
    assert lab.rejected(ITEM) == []
    assert value(entry, "near_duplicate_pairs") == 0
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
        "tuneline.data.near_duplicates.deduplicate.near_pairs", lambda texts, threshold: []
    )
    lab = data_lab(rows)
    entry = lab.upto(ITEM)
    # The first search is blind; the second takes out the rows that it missed.
    assert value(entry, "missed_by_first_search") > 5
    assert value(entry, "cross_split_near_duplicates") == 0
    assert "cross_split_duplicate" in {code(r) for r in lab.rejected(ITEM)}
    # With both blind here, the leak stays in and the search of the final audit finds it.
    monkeypatch.setattr("tuneline.data.near_duplicates.deduplicate.nearest", lambda *_: {})
    for name in ("deduplication", "token_length_audit", "distribution_balancing"):
        lab.step(name)
    record = lab.step("final_audit")
    leaks = next(m for m in record.measurements if m.name == f"{ITEM}.cross_split_near_duplicates")
    assert leaks.value > 5
    assert leaks.ok is False


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


def test_clusters_not_pairs():
    words = text(1, 20).split()
    chain = [" ".join(words[k:]) for k in range(6)]
    rows = [row(n, t) for n, t in enumerate(chain)]
    found = deduplicate(rows, config())
    assert len(set(found.cluster)) == 1
    assert sum(reason is None for reason in found.reasons) == 1
    assert found.reasons[0] is None, "the longest row of a cluster stays"


def test_policies_for_conflicts():
    rows = [row(n, "same question here", label) for n, label in enumerate("aab")]
    rows += [row(10 + n, text(n, 12)) for n in range(30)]

    def stay(policy):
        found = deduplicate(rows, config(label_conflicts=policy))
        return [i for i in range(3) if found.reasons[i] is None]

    assert find_conflicts(rows) == [[0, 1, 2]]
    assert stay("reject_all") == []
    assert stay("keep_majority") == [0]
    assert stay("keep") == [0, 2]
    kept = deduplicate(rows, config(label_conflicts="keep"))
    assert kept.splits[0] == kept.splits[2]


def test_another_system_prompt_is_another_question():
    rows = [
        Row(str(n), chat("hi", reply, system), "f", n)
        for n, (system, reply) in enumerate(
            [("Speak French.", "salut"), ("Speak German.", "hallo")]
        )
    ]
    assert find_conflicts(rows) == []


def test_shared_instructions_do_not_make_rows_alike():
    before = "Classify the message of a customer of our shop, one word only, be careful: "
    rows = [row(n, before + text(n, 5)) for n in range(20)]
    assert all(reason is None for reason in deduplicate(rows, config()).reasons)


def called(number, name, before="my name is ", **more):
    user = f"{before}{name} and my parcel never came to the door"
    start = len(before)
    return row(number, user, stand_ins=(StandIn(0, start, start + len(name), "PERSON"),), **more)


def test_rows_that_differ_in_personal_data_alone_stay_up_to_a_limit():
    names = ["Kim Doe", "Lee Marlow", "Kim Doe", "Robin Harper", "Dana Ellery"]
    rows = [called(number, name) for number, name in enumerate(names)]
    found = deduplicate(rows, config(template_repeats=3))
    kept = [names[n] for n, reason in enumerate(found.reasons) if reason is None]
    assert len(kept) == len(set(kept)) == 3
    assert len({split for split in found.splits if split}) == 1, "one form, one split"
    assert sum(found.variety) == 2
    assert sorted(why.partition(":")[0] for why in filter(None, found.reasons)) in (
        ["exact_duplicate", "masked_duplicate"],
        ["masked_duplicate", "masked_duplicate"],
    )
    alone = deduplicate(rows, config(template_repeats=1))
    assert sum(reason is None for reason in alone.reasons) == 1
    assert not any(alone.variety)


def test_what_differs_beyond_its_values_is_a_near_duplicate():
    other = called(2, "Lee Marlow", before="so my name is ")
    found = deduplicate([called(1, "Kim Doe"), other], config(near_duplicate_jaccard=0.6))
    assert sorted(why.partition(":")[0] for why in filter(None, found.reasons)) == [
        "near_duplicate"
    ]
    assert not any(found.variety)


def test_another_class_is_no_variety():
    rows = [called(n, name) for n, name in enumerate(["Kim Doe", "Lee Marlow", "Dana Ellery"])]
    rows.append(called(3, "Robin Harper", label="b"))
    found = deduplicate(rows, config())
    assert found.reasons[3] is not None
    assert found.reasons[:3] == [None] * 3


def test_scrubbing_takes_no_row_away_that_was_different(data_lab):
    rows = clean_rows(120)
    forms = [f"{text(200)} call me back on 20255501{n:02d}" for n in range(30, 36)]
    rows += [{"messages": chat(form, answer("login", "We will."))} for form in forms]
    lab = data_lab([*rows, rows[-1]], pii_profile=["gdpr"], label_conflicts="reject_all")
    entry = lab.upto(ITEM)
    assert value(entry, "equal_only_after_masking_kept") == 2
    # Of seven rows three stay; one of the four that leave is a copy.
    gone = Counter(code(r) for r in lab.rejected(ITEM))
    assert gone.total() == 4
    assert gone["exact_duplicate"] <= 1
    assert value(entry, "equal_only_after_masking_removed") == gone["masked_duplicate"] >= 3
    lab.agree(ITEM, "pass")


def test_the_gate_counts_the_varieties(data_lab, monkeypatch):
    from tuneline.data.near_duplicates import deduplicate

    rows = clean_rows(120)
    rows += [
        {"messages": chat(f"{text(200)} call me back on 20255501{n}", answer("login", "We will."))}
        for n in range(30, 36)
    ]
    right = deduplicate.varieties
    monkeypatch.setattr(deduplicate, "varieties", lambda *given: right(*given[:3], 9))
    lab = data_lab(rows, pii_profile=["gdpr"])
    assert value(lab.upto(ITEM), "equal_only_after_masking_kept") == 5
    assert "varieties" in str(lab.gate(ITEM))


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


def test_in_the_sample_duplicates_and_conflicts_go_and_hardly_another_row(sample_lab):
    of_kind = {
        kind: {f["line"]: f["detail"]["of"] for f in sample_lab.planted if f["kind"] == kind}
        for kind in ("exact_duplicate", "near_duplicate", "label_conflict")
    }
    gone = {r["source_line"]: code(r) for r in sample_lab.rejected(ITEM)}
    for line, original in of_kind["exact_duplicate"].items():
        assert (line in gone) != (original in gone), line
    # What was scrubbed in one of two rows may stand in the other, or make both rows of a template.
    near = of_kind["near_duplicate"]
    single = sum((line in gone) != (original in gone) for line, original in near.items())
    assert single >= 0.7 * len(near)
    conflicts = of_kind["label_conflict"]
    assert {*conflicts, *conflicts.values()} == {
        line for line, why in gone.items() if why == "label_conflict"
    }
    planted = {n for kind in of_kind.values() for pair in kind.items() for n in pair}
    # The others differ from more than `template_repeats` rows in the number of an order alone.
    assert len(gone.keys() - planted) <= 15
    assert sample_lab.run.find_evidence(ITEM).verdict == "pass"
    assert sample_lab.gate(ITEM).verdict == "pass"


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
