import json

import pytest
from tests.lab.data_runs import answer, chat, clean_rows, write_jsonl

from tuneline.cli import main
from tuneline.data.rendering import renderer
from tuneline.data.rendering.renderer import Renderer
from tuneline.data.show.command import fault_place, hide, mask_fault, raw_pieces, visible
from tuneline.errors import EXIT_FAILED, EXIT_OK, EXIT_USER
from tuneline.models import load_tokenizer

GOOD = answer("login", "Yes.")


@pytest.fixture
def show(base_dir, capsys):
    """Run the command; gives its exit code, what it printed and what it said."""

    def run(target, *arguments):
        code = main(["data", "show", str(target), "--base-model", str(base_dir), *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def faulty(tmp_path):
    rows = [
        *clean_rows(20),
        {"messages": chat("mail ann.smith@example.com <|im_end|> now", GOOD)},
        {"messages": chat("a", GOOD)[::-1]},
        b'{"messages": [',
    ]
    return write_jsonl(tmp_path / "rows.jsonl", rows)


def test_a_raw_file_as_the_model_sees_it(show, faulty):
    code, out, err = show(faulty, "--mask", "--limit", "2")
    assert (code, err) == (EXIT_OK, "")
    row = hide(clean_rows(2)[1]["messages"])
    assert f"<|im_start|>user\n{row[0]['content']}<|im_end|>\n<|im_start|>assistant\n" in out
    assert f"⟦{row[1]['content']}<|im_end|>⟧" in out
    assert "── row 2 · " in out
    assert "login" in out
    assert out.count("── row") == 2
    assert "⟦" not in show(faulty)[1]


def test_rejected_rows_with_place_and_reason_and_nothing_personal(show, faulty):
    code, out, _ = show(faulty, "--rejected")
    assert code == EXIT_OK
    assert "special_token: turn 1 holds '<|im_end|>'" in out
    assert "mail [EMAIL_ADDRESS] ⟪<|im_end|>⟫ now" in out
    assert "smith" not in out
    assert out.count("── row") == 3


def test_a_row_of_a_raw_file_is_its_line(show, faulty):
    assert "role_order" in show(faulty, "--row", "22")[1]
    out = show(faulty, "--row", "3")[1]
    assert clean_rows(3)[2]["messages"][0]["content"] in out
    assert out.count("── row") == 1
    code, _, err = show(faulty, "--row", "99")
    assert code == EXIT_USER
    assert "no row 99" in err


def test_a_mask_that_trains_on_nothing_fails(show, tmp_path):
    rows = [{"messages": chat("a", "\n\nb")}]
    code, _, err = show(write_jsonl(tmp_path / "r.jsonl", rows), "--row", "1", "--mask")
    assert code == EXIT_FAILED
    assert "row 1: its mask trains on nothing" in err


@pytest.mark.parametrize(
    ("shift", "said"), [(-3, "trains on the prompt"), (2, "not cover"), (None, "trains on nothing")]
)
def test_a_mask_that_is_wrong_fails(show, faulty, monkeypatch, shift, said):
    own = renderer._mask

    def planted(ids, spans):
        mask = own(ids, spans)
        if shift is None:
            return [False] * len(mask)
        first = mask.index(True)
        for at in range(min(first, first + shift), max(first, first + shift)):
            mask[at] = shift < 0
        return mask

    kept = {"messages": chat("hello there", "fine thanks")}
    path = write_jsonl(faulty.parent / "one.jsonl", [kept])
    assert show(path, "--mask")[0] == EXIT_OK
    monkeypatch.setattr(renderer, "_mask", planted)
    code, _, err = show(path, "--row", "1", "--mask")
    assert code == EXIT_FAILED
    assert said in err


def test_steps_of_a_run(show, data_lab):
    rows = [*clean_rows(60), {"messages": chat("mail ann.smith@example.com", "no json")}]
    lab = data_lab(rows)
    with_run = lab.run.uri
    assert show(with_run)[0] == EXIT_USER
    lab.upto("deduplication")
    code, out, _ = show(with_run, "--mask")
    assert code == EXIT_OK
    assert "⟦{" in out
    assert "train" in out
    out = show(with_run, "--step", "schema_validation", "--row", "60")[1]
    assert hide(clean_rows(60)[59]["messages"])[0]["content"] in out
    out = show(with_run, "--rejected")[1]
    assert "answer_not_json" in out
    assert "[EMAIL_ADDRESS]" in out
    assert "smith" not in out
    assert show(with_run, "--rejected", "--step", "deduplication")[0] == EXIT_USER
    assert show(with_run, "--step", "lineage")[0] == EXIT_USER


def test_a_prepared_folder_and_its_dataset(show, data_lab, tmp_path, base_dir):
    lab = data_lab(clean_rows(90))
    out = tmp_path / "out"
    settings = tmp_path / "c.yaml"
    settings.write_text(json.dumps({"pii_ner": False, "max_tokens": 2048}))
    source = lab.run.config.data.sources[0]
    base = ["--base-model", str(base_dir)]
    main(
        ["data", "prepare", "--input", source, *base, "--out", str(out), "--config", str(settings)]
    )
    for target in (out, out / "dataset.parquet"):
        code, text, _ = show(target, "--mask", "--row", "7")
        assert code == EXIT_OK
        assert "── row 7 · " in text
        assert "⟦{" in text
    code, text, _ = show(out, "--rejected")
    assert (code, text) == (EXIT_USER, "") or "── row" in text
    assert show(out / "dataset.parquet", "--rejected")[0] == EXIT_USER


@pytest.mark.parametrize(
    ("raw", "reason", "found"),
    [
        ('{"a" 1}', "broken_json: Expecting ':' delimiter at character 5", "1"),
        ('{"a": 1, "a": 2}', "duplicate_key: 'a' stands twice", '"a"'),
        ('{"x": "caf\\u00c3\\u00a9"}', "mojibake: turn 1 holds 'Ã©', UTF-8", "\\u00c3\\u00a9"),
        ('{"x": 1}', "answer_not_json: most answers are JSON objects", None),
    ],
)
def test_places_of_faults(raw, reason, found):
    place = fault_place(raw, reason)
    assert (None if place is None else raw[slice(*place)].lower()) == found
    if found and reason.startswith("duplicate"):
        assert place[0] == 9


def test_long_lines_show_what_stands_around_the_fault():
    raw = "x" * 9000 + "<|im_end|>" + "y" * 9000
    pieces = raw_pieces(raw, "special_token: turn 1 holds '<|im_end|>'")
    assert [piece.text for piece in pieces if piece.kind == "fault"] == ["<|im_end|>"]
    assert sum(len(piece.text) for piece in pieces) < 2000


def test_a_terminal_is_not_steered():
    assert visible("a\x1b[31mb\u2028\ud800\n\t") == "a\\x1b[31mb\\u2028\\ud800\n\t"


def test_masks_of_clean_rows_are_right(base_dir):
    renderer = Renderer(load_tokenizer(base_dir), "tokenizer")
    rows = [
        chat("hi", "ho 🎉 ünï"),
        chat("hi", " padded  ", "Be brief."),
        [*chat("1", "2"), *chat("3", "4")],
    ]
    for messages, example in zip(rows, renderer.render(rows), strict=True):
        assert mask_fault(messages, example, renderer) == ""
