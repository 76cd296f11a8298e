import json
from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import pytest
from benchmarks.workloads.support_chat import make_conversations
from tests.lab.data_runs import answer, chat, clean_rows, code, in_form, text, write_jsonl
from tests.lab.runs import Lab, value

from tuneline.config import DataConfig
from tuneline.data import schema_validation as module
from tuneline.data.conversations.formats import FORMS
from tuneline.data.conversations.reading import convert
from tuneline.data.rendering.renderer import Renderer, compare
from tuneline.data.schema_validation import validate
from tuneline.data.sources.streams import RawRecord
from tuneline.errors import RetryableError, UserError
from tuneline.models import load_tokenizer
from tuneline.run import Run

ITEM = "schema_validation"


def planted():
    """A row for each reason, by reason."""
    good = answer("login", "Yes.")
    return {
        "broken_json": b'{"messages": [',
        "invalid_utf8": json.dumps(
            {"messages": chat("Gr\xfc\xdfe", good)}, ensure_ascii=False
        ).encode("latin-1"),
        "duplicate_key": b'{"messages": [], "messages": []}',
        "unknown_format": {"question": "a", "result": "b"},
        "unknown_role": {"messages": [{"role": "bot", "content": "a"}]},
        "role_order": {"messages": chat("a", good)[::-1]},
        "no_answer": {"messages": chat("a", good)[:1]},
        "empty_turn": {"messages": chat("a", "  ")},
        "special_token": {"messages": chat("a<|im_end|>\n<|im_start|>system\nb", good)},
        "bad_character": {"messages": chat("a\ud800b", good)},
        "mojibake": {"messages": chat("cafÃ©", good)},
        "answer_not_json": {"messages": chat("a", "Yes.")},
        "answer_without_label": {"messages": chat("a", '{"reply": "Yes."}')},
        "wrong_type": {"messages": "hi"},
    }


def test_clean_rows_pass(data_lab):
    lab = data_lab(clean_rows(60))
    assert value(lab.step(ITEM), "rows_kept") == 60
    assert lab.rejected(ITEM) == []
    kept = lab.table(ITEM, "quarantine/rows.parquet")
    assert kept[3]["messages"] == clean_rows(60)[3]["messages"]
    assert Counter(row["label"] for row in kept) == {"billing": 20, "login": 20, "shipping": 20}
    assert [row["source_line"] for row in kept] == list(range(1, 61))
    assert lab.agree(ITEM, "pass").expectations > 8


def test_every_fault_is_rejected_with_its_reason_and_line(data_lab):
    faults = planted()
    lab = data_lab([*clean_rows(60), *faults.values()])
    entry = lab.step(ITEM)
    rejects = lab.rejected(ITEM)
    assert [code(reject) for reject in rejects] == list(faults)
    assert [reject["source_line"] for reject in rejects] == list(range(61, 61 + len(faults)))
    assert rejects[0]["raw"] == '{"messages": ['
    assert value(entry, "rows_rejected") == len(faults)
    assert value(entry, "rows_lost") == 0
    lab.agree(ITEM, "warn")


def test_too_many_faults_fail_step_and_gate(data_lab):
    lab = data_lab([*clean_rows(10), *planted().values()])
    entry = lab.step(ITEM)
    assert "10 of 24 rows" in entry.summary
    gate = lab.agree(ITEM, "fail")
    assert "rejected_share" in gate.summary


PLAIN = [{"messages": chat(text(n), text(n + 900))} for n in range(10)]
SCHEMA = {
    "type": "object",
    "properties": {"intent": {"enum": ["login", "billing", "shipping"]}},
    "required": ["intent"],
}


@pytest.mark.parametrize(
    ("rows", "asked", "reply", "codes", "settings"),
    [
        (clean_rows(12), "a", '{"intent": "other"}', ["answer_schema"], {"answer_schema": SCHEMA}),
        (clean_rows(12), "a", "[1]", ["answer_schema"], {"answer_schema": SCHEMA}),
        (clean_rows(12), "a", "no", ["answer_not_json"], {"answer_schema": SCHEMA}),
        # Where most answers are plain none needs JSON, or a label.
        (PLAIN, "a", answer("x", "y"), [], {}),
        (clean_rows(6), "a", '{"intent": "login", "reply": "\\ud83d"}', ["bad_character"], {}),
        # The first token of the answer merges with the prompt's last.
        (PLAIN, "a", "\n\nb", ["mask_boundary"], {}),
        # A plain row may not hold the marks that tools are written between.
        (PLAIN, "<tools declared>", "b", ["special_token"], {}),
    ],
)
def test_an_answer_among_others(data_lab, rows, asked, reply, codes, settings):
    lab = data_lab([*rows, {"messages": chat(asked, reply)}], **settings)
    lab.step(ITEM)
    assert [code(r) for r in lab.rejected(ITEM)] == codes
    kept = lab.table(ITEM, "quarantine/rows.parquet")
    assert all((row["label"] is None) == (rows is PLAIN) for row in kept)


def without(*fields):
    """Rows with a class, whose answers lack fields or have others too."""

    def row(number):
        value = {"intent": LABELS[number % 3], "reply": text(number), "urgency": "low"}
        value["team"] = LABELS[number % 2]
        value = {key: entry for key, entry in value.items() if key not in fields}
        return {"messages": chat(text(number), json.dumps(value))}

    return [row(number) for number in range(60)]


LABELS = ("billing", "login", "shipping")


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        # A reply is no class, nor is what all answers say.
        (without("team"), "intent"),
        (without("intent"), "team"),
        # Of two fields that repeat nobody can say which is meant.
        (without(), None),
        (without("intent", "team"), None),
        ([{"messages": chat(text(n), text(n, 3))} for n in range(40)], None),
        # Too few rows for so many values.
        ([{"messages": chat(text(n), answer(f"class {n % 9}", text(n)))} for n in range(40)], None),
    ],
)
def test_the_class_is_the_one_field_that_repeats(data_lab, rows, found):
    lab = data_lab(without("team"), label_field="auto")
    lab.step(ITEM)
    # Neither the class of an earlier try decides, nor one that raised.
    write_jsonl(Path(lab.run.config.data.sources[0]), rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "read_dataset", Mock(side_effect=RetryableError("disk full")))
        with pytest.raises(RetryableError):
            lab.step(ITEM)
    entry = lab.step(ITEM)
    assert Run.open(lab.run.uri).config.data.label_field == found
    assert {row["label"] for row in lab.table(ITEM, "quarantine/rows.parquet")} == (
        {json.loads(row["messages"][-1]["content"])[found] for row in rows} if found else {None}
    )
    said = f"the class is in {found!r}." if found else "no field is taken as a class."
    assert entry.summary.endswith(said)
    lab.agree(ITEM, "pass")


def test_a_class_that_many_answers_lack_is_named_but_not_taken(data_lab):
    lost = [{"messages": chat(text(n), json.dumps({"reply": text(n)}))} for n in range(60, 80)]
    lab = data_lab([*without("team"), *lost], label_field="auto")
    summary = lab.step(ITEM).summary
    assert summary.endswith(
        "no field is taken as a class ('intent' is one in 60 answers: name it if it is)."
    )


@pytest.mark.parametrize("rows", [without("intent"), [{"messages": chat(text(1), "Yes.")}]])
def test_a_class_that_no_answer_has_is_refused(data_lab, rows):
    lab = data_lab(rows, label_field="intent")
    with pytest.raises(UserError, match=r"'intent', which none of \d+ answers has") as refused:
        lab.step(ITEM)
    assert ("'reply' (60), 'urgency' (60), 'team' (60)" in str(refused.value)) == (len(rows) > 1)


def test_a_policy_that_asks_for_a_class_refuses_answers_without_one(data_lab, tmp_path):
    lab = data_lab(without(), label_field="auto")
    production = {"profile": "production", "data": lab.run.config.data.model_dump()}
    strict = Lab(tmp_path, {**production, "base_model": lab.run.config.base_model}, "strict")
    with pytest.raises(UserError, match=r"the policy asks for a class .* data\.label_field"):
        strict.execute(ITEM)


def test_a_wrong_schema_is_the_users_error(data_lab):
    lab = data_lab(clean_rows(3), answer_schema={"type": 3})
    with pytest.raises(UserError, match=r"data\.answer_schema is not a JSON Schema"):
        lab.step(ITEM)


def test_a_renderer_that_differs_from_the_template_fails(data_lab, monkeypatch):
    own = Renderer.text

    def spaced(self, messages, *, ask=False):
        text = own(self, messages, ask=ask)
        return text.replace("user\n", "user ").replace("assistant\n", "assistant ")

    monkeypatch.setattr(Renderer, "text", spaced)
    lab = data_lab(clean_rows(8), target_format="chatml")
    entry = lab.step(ITEM)
    assert value(entry, "token_mismatches") == 8
    lab.agree(ITEM, "fail")


def test_a_mask_that_is_not_exact_fails_where_its_row_is_kept(data_lab, monkeypatch):
    kept = lambda *given: ((None, *parity[1:]) for parity in compare(*given))  # noqa: E731
    monkeypatch.setattr("tuneline.data.schema_validation.compare", kept)
    lab = data_lab([*PLAIN, {"messages": chat("a", "\n\nb")}])
    assert value(lab.step(ITEM), "inexact_masks") == 1
    lab.agree(ITEM, "fail")


def test_csv_selection_is_not_a_fault_but_is_not_lost(data_lab, tmp_path):
    path = tmp_path / "rows.csv"
    lines = [f"{text(n)},{'abc'[n % 3]}" for n in range(30)]
    path.write_text("text,category\n" + "\n".join(lines) + "\n")
    mapping = {
        "user": "Which? {text}",
        "assistant": '{{"intent": {category!j}}}',
        "label": "category",
        "keep_labels": ["a", "b"],
        "max_per_label": 4,
    }
    lab = data_lab([], source=str(path), csv=mapping)
    entry = lab.step(ITEM)
    assert value(entry, "rows_kept") == 8
    assert value(entry, "rows_not_selected") == 22
    assert {code(r) for r in lab.rejected(ITEM)} == {"not_selected"}
    kept = lab.table(ITEM, "quarantine/rows.parquet")
    chosen = {row["messages"][0]["content"] for row in kept}
    assert [sum(row["label"] == label for row in kept) for label in "abc"] == [4, 4, 0]
    path.write_text("text,category\n" + "\n".join(reversed(lines)) + "\n")
    again = data_lab([], source=str(path), csv=mapping)
    again.step(ITEM)
    kept = again.table(ITEM, "quarantine/rows.parquet")
    assert {row["messages"][0]["content"] for row in kept} == chosen
    lab.agree(ITEM, "pass")


def test_equal_lines_get_ids_of_their_own(data_lab):
    rows = clean_rows(3)
    lab = data_lab([rows[0], rows[1], rows[0], rows[0]])
    lab.step(ITEM)
    ids = [row["row_id"] for row in lab.table(ITEM, "quarantine/rows.parquet")]
    assert ids[2:] == [f"{ids[0]}-2", f"{ids[0]}-3"]


@pytest.mark.parametrize(
    ("rule", "found"),
    [("as_is", []), ("required", ["system_missing"]), ("forbidden", ["system_forbidden"])],
)
def test_the_rule_for_system_turns(data_lab, rule, found):
    rows = clean_rows(12)
    for row in rows[(1 if rule == "required" else 11) :]:
        row["messages"].insert(0, {"role": "system", "content": "Be brief."})
    lab = data_lab(rows, system_prompt=rule)
    lab.step(ITEM)
    assert [code(reject) for reject in lab.rejected(ITEM)] == found


def test_no_false_alarm_on_clean_rows_of_twenty_seeds(base_dir):
    """Support chats, half of them with a JSON answer, none with a fault: every form keeps all."""
    renderer = Renderer(load_tokenizer(base_dir), "tokenizer")
    config = DataConfig(source="rows.jsonl")
    for seed in range(20):
        chats = make_conversations(80, seed)
        for turns in chats[::2]:
            turns[-1]["content"] = answer("login", turns[-1]["content"])
        values = [in_form(turns, FORMS[seed % len(FORMS)]) for turns in chats]
        records = [RawRecord(n, json.dumps(value), value) for n, value in enumerate(values, 1)]
        outcomes, form = convert(records, "rows.jsonl", config, own_holdout=False)
        validate(outcomes, renderer, config)
        assert form.form == FORMS[seed % len(FORMS)]
        assert [o.reason for o in outcomes if o.reason is not None] == []
        assert all(o.tokens_equal and o.mask_exact for o in outcomes)
        assert [o.messages for o in outcomes] == chats
