import shutil
from dataclasses import replace

import pytest
from tests.lab.data_runs import answer, chat, clean_rows, code, text
from tests.lab.runs import broken, value

from tuneline.data.rendering.renderer import Renderer
from tuneline.data.token_length_audit import fit, split_at_turns
from tuneline.errors import UserError
from tuneline.models import load_tokenizer

ITEM = "token_length_audit"


@pytest.fixture(scope="module")
def renderer(base_dir):
    return Renderer(load_tokenizer(base_dir), "tokenizer")


def long_row(words=400):
    return {"messages": chat(text(77, words), answer("login", "Yes."))}


@pytest.mark.parametrize(
    ("more", "max_tokens", "limit", "gone", "verdict"),
    [
        ([], 2048, 2048, [], "pass"),
        ([long_row()], 400, 400, [121], "pass"),
        # The model's own context is a limit too.
        ([long_row(3000)], 100_000, 4096, [121], "pass"),
        ([], 100, 100, None, "fail"),
    ],
)
def test_long_rows_are_rejected_never_cut(data_lab, more, max_tokens, limit, gone, verdict):
    lab = data_lab([*clean_rows(120), *more], max_tokens=max_tokens)
    entry = lab.upto(ITEM)
    rejects = lab.rejected(ITEM)
    assert {code(reject) for reject in rejects} <= {"too_long"}
    assert gone is None or [reject["source_line"] for reject in rejects] == gone
    rows = lab.table(ITEM, "rows.parquet")
    longest = max((r["n_tokens"] for r in rows), default=None)
    assert longest == value(entry, "tokens_max")
    assert longest is None or longest <= limit
    assert sum(r["n_tokens"] for r in rows) == value(entry, "tokens_total")
    assert value(entry, "limit") == limit
    assert any(ref.name == "token_lengths.svg" for ref in entry.artifacts)
    lab.agree(ITEM, verdict)


def test_a_miscounted_row_is_seen_by_the_gate(data_lab, monkeypatch):
    def blind(rows, limit, renderer, policy):
        return fit(rows, 10**9, renderer, policy)

    monkeypatch.setattr("tuneline.data.token_length_audit.fit", blind)
    lab = data_lab([*clean_rows(120), long_row()], max_tokens=400)
    lab.upto(ITEM)
    gate = lab.agree(ITEM, "fail")
    assert "kept_length" in gate.summary


def conversation(exchanges):
    turns = [{"role": "system", "content": "Be brief."}]
    for n in range(exchanges):
        turns += chat(text(n, 8), text(n + 50, 8))
    return turns


def test_conversations_are_split_at_user_turns(renderer):
    messages = conversation(7)
    one = renderer.count([renderer.text(messages[:3])])[0]
    pieces = split_at_turns(messages, 3 * one, renderer)
    assert len(pieces) > 1
    assert all(piece[0] == messages[0] for piece in pieces)
    assert [m for piece in pieces for m in piece[1:]] == messages[1:]
    assert all(renderer.count([renderer.text(p)])[0] <= 3 * one for p in pieces)
    assert split_at_turns(messages, one // 2, renderer) is None


# As Qwen3 does it: the last answer alone has an empty thought.
LAST_ALONE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<t></t>{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<t></t>{% endif %}"
)


@pytest.fixture(scope="module")
def last_alone(base_dir):
    tokenizer = load_tokenizer(base_dir)
    tokenizer.chat_template = LAST_ALONE
    return Renderer(tokenizer, "tokenizer")


def test_each_answer_is_a_row_where_the_template_writes_earlier_ones_otherwise(last_alone):
    messages = conversation(7)
    whole = last_alone.count([last_alone.text(messages)])[0]
    ends = [messages[: 3 + 2 * n] for n in range(7)]
    (found,) = fit([(messages, 0, None)], whole, last_alone, "reject")
    assert (found.tokens, found.reason) == (whole, None)
    assert [piece for piece, _ in found.pieces] == ends
    # Of a row of production the last answer alone is learned.
    assert fit([(messages, 0, "base")], whole, last_alone, "split") == [(whole, None, ())]
    limit = last_alone.count([last_alone.text(messages[:7])])[0]
    assert fit([(messages, 0, None)], limit, last_alone, "reject")[0].reason.startswith("too_long")
    (found,) = fit([(messages, 0, None)], limit, last_alone, "split")
    # No answer is learned twice, and each has as many exchanges before it as fit.
    assert [piece[-1] for piece, _ in found.pieces] == [end[-1] for end in ends]
    for (piece, tokens), end in zip(found.pieces, ends, strict=True):
        assert piece[0] == end[0]
        assert piece[1:] == end[len(end) - len(piece) + 1 :]
        assert tokens <= limit
        longer = [end[0], *end[len(end) - len(piece) - 1 :]]
        assert piece == end or last_alone.count([last_alone.text(longer)])[0] > limit
    one = last_alone.count([last_alone.text(messages[:3])])[0]
    assert fit([(messages, 0, None)], one // 2, last_alone, "split")[0].reason


def test_rows_of_each_answer_go_through_the_data_phase(data_lab, base_dir, tmp_path):
    base = tmp_path / "last-alone"
    shutil.copytree(base_dir, base)
    (base / "chat_template.jinja").write_text(LAST_ALONE)
    rows = [*clean_rows(120), {"messages": conversation(3)[1:]}]
    lab = data_lab(rows, label_field=None)
    lab.lab.run.config.__dict__["base_model"] = str(base)
    lab.upto("distribution_balancing")
    entry = lab.step("final_audit")
    pieces = [r for r in lab.table(ITEM, "rows.parquet") if r["source_line"] == 121]
    assert [p["row_id"].split("#")[1] for p in pieces] == ["0", "1", "2"]
    assert len({p["split"] for p in pieces}) == 1
    assert value(lab.run.find_evidence(ITEM), "rows_split") == 1
    assert value(entry, "token_length_audit.stale_counts") == 0
    assert value(entry, "schema_validation.inexact_masks") == 0
    for item in ("schema_validation", ITEM):
        assert lab.gate(item).verdict == "pass"


def test_pieces_keep_their_row_and_split(data_lab):
    rows = [*clean_rows(120), {"messages": conversation(12)}]
    lab = data_lab(rows, max_tokens=700, too_long="split", label_field=None)
    entry = lab.upto("distribution_balancing")
    pieces = [r for r in lab.table(ITEM, "rows.parquet") if r["source_line"] == 121]
    assert len(pieces) > 1
    assert [p["row_id"].split("#")[1] for p in pieces] == [str(k) for k in range(len(pieces))]
    assert len({p["split"] for p in pieces}) == 1
    assert all(p["n_tokens"] <= 700 for p in pieces)
    assert lab.rejected(ITEM) == []
    assert value(lab.run.find_evidence(ITEM), "rows_split") == 1
    assert entry.verdict == "not_applicable"
    for item in (ITEM, "distribution_balancing"):
        gate = lab.gate(item)
        assert gate.verdict == "pass", gate.summary


def test_too_many_long_rows_fail_where_each_was_split(data_lab):
    long = [[t for n in range(12) for t in chat(text(c + n), text(c + n + 12))] for c in (500, 600)]
    lab = data_lab(
        [*clean_rows(20), *({"messages": turns} for turns in long)],
        max_tokens=400,
        too_long="split",
        label_field=None,
    )
    assert broken(lab.upto(ITEM)) == {"over_limit_share"}
    assert lab.rejected(ITEM) == []
    lab.agree(ITEM, "fail")


def test_no_rows_is_said(data_lab):
    lab = data_lab([b"{"])
    lab.step("schema_validation")
    with pytest.raises(UserError, match="schema_validation kept no rows"):
        lab.step("pii_scrubbing")


def test_rows_that_changed_since_they_were_counted_are_counted_again(data_lab, renderer):
    asked = "Write to jonathan.featherstone@mail.example.org please"
    rows = [*clean_rows(60), {"messages": chat(asked, answer("login", "We will."))}]
    lab = data_lab(rows, pii_profile=["gdpr"])
    entry = lab.upto(ITEM)
    changed = [r for r in lab.table("pii_scrubbing", "rows.parquet") if not r["n_tokens"]]
    assert len(changed) == value(lab.run.entry("pii_scrubbing"), "rows_changed") == 1
    kept = lab.table(ITEM, "rows.parquet")
    counts = renderer.count(renderer.text(r["messages"]) for r in kept)
    assert [r["n_tokens"] for r in kept] == counts
    assert value(entry, "tokens_total") == sum(counts)


def test_a_count_that_is_not_of_these_turns_fails_the_final_audit(data_lab, monkeypatch):
    monkeypatch.setattr(
        "tuneline.data.pii_scrubbing.scrubbed",
        lambda row, messages, stand_ins: replace(row, messages=messages, stand_ins=stand_ins),
    )
    asked = chat("Write to jonathan.featherstone@mail.example.org", answer("login", "We will."))
    lab = data_lab([*clean_rows(60), {"messages": asked}], pii_profile=["gdpr"])
    lab.upto("distribution_balancing")
    audit = lab.step("final_audit")
    assert value(audit, "token_length_audit.stale_counts") == 1
