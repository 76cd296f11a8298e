"""Each guest through the data phase: its rows stay, its faults go, its verdicts are right."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmarks.faults.guests.__main__ import main, problems
from benchmarks.faults.guests.families import FAMILIES, make_tokenizer, write_base
from benchmarks.faults.guests.guest import DATA_ITEMS, GOOD, TRAINING_ITEMS
from benchmarks.faults.guests.outcome import read_outcome, torn_words
from benchmarks.faults.guests.shapes import SHAPES, guest

# So few rows that a shape takes seconds; whole guests are `long`.
FEW = {"intent": 160, "text_and_label": 120, "one_class": 120, "japanese": 90, "long_prompts": 60}


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_through_the_data_phase(name, welcome):
    # Each of the long prompts takes a second where a model looks for names.
    data = {"pii_ner": False} if name == "long_prompts" else {}
    trial, outcome = welcome(name, rows=FEW.get(name, 60), **data)
    assert problems(trial, outcome) == []


@pytest.mark.long
@pytest.mark.parametrize("name", SHAPES)
def test_a_whole_guest(name, welcome):
    trial, outcome = welcome(name, seed=2)
    assert problems(trial, outcome) == []


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_with_a_family(name, family, welcome):
    trial, outcome = welcome(name, family, seed=3, rows=FEW.get(name, 60), pii_ner=False)
    if "tools" in trial.needs and not FAMILIES[family].tools:
        codes = {"schema_validation: tools_unsupported"}
        assert outcome.verdicts["schema_validation"] == "fail"
        assert (outcome.kept, outcome.lost.keys() <= codes) == (0, True)
    else:
        assert problems(trial, outcome) == []


@pytest.mark.parametrize("name", SHAPES)
def test_a_guest_is_what_its_page_says(name):
    trial, again, other = guest(name), guest(name), guest(name, seed=2)
    assert trial == again
    assert trial.rows != other.rows
    assert len(trial.rows) >= (60 if name == "sixty_rows" else 120)
    assert trial.verdicts.keys() == GOOD.keys() == {*DATA_ITEMS, *TRAINING_ITEMS}
    asked = Counter(json.dumps(row["messages"][:-1]) for row in trial.rows)
    assert max(asked.values()) == 1, "a clean row is asked twice"
    assert not any(fault.records[0] in trial.rows for fault in trial.faults)
    assert len(twins(trial.rows)) <= 0.015 * len(trial.rows)


def twins(rows):
    """Rows that ask nearly what another one asks, are answered alike, and may go as duplicates."""
    known, found = {}, []
    for row in rows:
        *asked, last = row["messages"]
        system = [turn["content"] for turn in asked if turn["role"] == "system"]
        text = " ".join(json.dumps(turn, ensure_ascii=False) for turn in asked[len(system) :])
        grams = {text[i : i + 5].casefold() for i in range(len(text) - 4)}
        alike = known.setdefault((*system, last["content"]), [])
        if any(len(grams & other) >= 0.8 * len(grams | other) for other in alike):
            found.append(row)
        alike.append(grams)
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_tokens_are_single_ids(name):
    family = FAMILIES[name]
    tokenizer = make_tokenizer(family)
    assert all(
        len(tokenizer.encode(t, add_special_tokens=False)) == 1 for t in family.special_tokens
    )
    asked = [{"role": "user", "content": "Where is it?"}]
    answered = [*asked, {"role": "assistant", "content": "In Leipzig."}]
    text = tokenizer.apply_chat_template(answered, tokenize=False)
    assert text.index("Where is it?") < text.index("In Leipzig.")
    if family.name != "glm4moe":  # its answers end where the next turn begins
        assert family.end in text


# One family of each architecture.
@pytest.mark.parametrize("name", {f.architecture: n for n, f in FAMILIES.items()}.values())
def test_a_model_of_the_familys_architecture(name, tmp_path):
    from transformers import AutoModelForCausalLM

    family = FAMILIES[name]
    model = AutoModelForCausalLM.from_pretrained(write_base(family, tmp_path / "base"))
    assert type(model).__name__ == f"{family.architecture}ForCausalLM"
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == family.tied
    assert sum(p.numel() for p in model.parameters()) < 400_000


# What an answer shares with the turns before it: before, and what a step made of both.
TORN = [
    (
        "i drive a fiat panda",
        '{"model": "panda"}',
        "i drive a fiat panda",
        '{"model": "dominique"}',
    ),
    ("order 4 bk 17", '{"order": "4 bk 17"}', "order 9 zz 31", '{"order": "8 zz 31"}'),
    ("I am Ann Holm.", "Hello Ann Holm!", "I am Eve Roy.", "Hello Eve Bell!"),
    ("I am Ann Holm.", "Hello Ann Holm!", "I am Ann Holm.", "Hello Eve Roy!"),
    ("ticket 1941 for Ann", "Ticket 1941 is open.", "ticket 3559 for Eve", "Ticket 1941 is open."),
]
WHOLE = [
    ("i drive a fiat panda", '{"model": "panda"}', "i drive a fiat tipo", '{"model": "tipo"}'),
    ("I am Ann Holm.", "Hello Ann Holm!", "I am Eve Mary Roy.", "Hello Eve Mary Roy!"),
    ("Who came?", "Ann Holm did.", "Who came?", "Eve Roy did."),
    ("a note from Ann", "It is from nobody.", "a note by Eve", "It is from nobody."),
    (
        "where is the box",
        "Sorry. The box is lost.",
        "where is Eve's box",
        "Sorry. The box is lost.",
    ),
]


@pytest.mark.parametrize(("rows", "torn"), [(TORN, True), (WHOLE, False)])
def test_what_counts_as_torn(rows, torn):
    for question, answer, asked, told in rows:
        before, after = (
            [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
            for q, a in ((question, answer), (asked, told))
        )
        assert bool(torn_words({"messages": before}, after)) == torn, (question, told)


def test_torn_arguments_of_a_call():
    function = {"name": "book", "arguments": '{"guest": "Ann Holm", "town": "Graz"}'}
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
    asked = {"role": "user", "content": "A room in Graz for Ann Holm"}

    def written(guest_name):
        text = f'<tool_call>{{"guest": "{guest_name}", "town": "Graz"}}</tool_call>'
        return [
            {"role": "user", "content": "A room in Graz for Eve Roy"},
            {"role": "assistant", "content": text},
        ]

    assert torn_words({"messages": [asked, call]}, written("Eve Roy")) == []
    assert torn_words({"messages": [asked, call]}, written("Tim Bell"))


@pytest.fixture
def finished(welcome, tmp_path):
    """A guest after the data phase, and its output folder, which a test may spoil."""
    return welcome("sixty_rows", pii_ner=False)[0], tmp_path / "out"


def rewrite(path, change):
    table = pq.read_table(path)
    rows = change(table.to_pylist())
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def test_a_spoiled_result_is_seen(finished):
    trial, out = finished
    good = read_outcome(trial, out)
    gone = "quarantine/rejected.parquet"

    rewrite(out / gone, lambda rows: [r for r in rows if "role_order" not in r["reason"]])
    seen = read_outcome(trial, out)
    assert set(seen.missed) - set(good.missed) == {"two questions in a row: nothing"}

    rewrite(out / "dataset.parquet", lambda rows: [r for r in rows if r["source_line"] > 3])
    seen = read_outcome(trial, out)
    assert seen.kept == good.kept - 3
    assert seen.lost["no trace"] == 3
    assert any("of its clean rows" in text for text in problems(trial, seen))

    card = trial.faults[-2].gone[0]
    for row in (rows := pq.read_table(out / "dataset.parquet").to_pylist())[:1]:
        row["messages"][1]["content"] += card
    rewrite(out / "dataset.parquet", lambda _: rows)
    assert f"card number: {card!r} is in the dataset" in read_outcome(trial, out).missed

    result = json.loads((out / "result.json").read_text())
    result["items"][0]["verdict"] = "fail"
    (out / "result.json").write_text(json.dumps(result))
    assert read_outcome(trial, out).wrong_verdicts(trial)[DATA_ITEMS[0]] == "fail"


@pytest.mark.long
def test_the_table(capsys):
    code = main(["table", "--rows", "60", "sixty_rows"])
    table = capsys.readouterr()
    assert "| sixty_rows | 60 of 60 | 0 | 8 of 8 | pass |" in table.out
    assert code == ("sixty_rows: " in table.err)
