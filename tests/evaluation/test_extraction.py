"""The parts of the extraction audit: identifiers that are found, and statistics that are exact."""

from itertools import product
from math import comb, log2

import pytest
from tests.lab.runs import broken, values
from tests.lab.tiny_models import make_model
from tests.lab.tiny_task import make_tokenizer

from tuneline.data.rendering.renderer import Renderer
from tuneline.data.tables.rows import Row, StandIn, surrogates_of
from tuneline.evaluation.extraction.attempts import (
    Continuations,
    Ranked,
    chance_exposure,
    chance_of,
    choice_losses,
    exposure,
    make_choice,
    rank,
)
from tuneline.evaluation.extraction.findings import (
    ALPHA,
    decide,
    judge_canaries,
    judge_preferred,
    judge_written,
    noise_of,
)
from tuneline.evaluation.extraction.identifiers import (
    LEFT_EMAIL,
    LEFT_NUMBER,
    candidates,
    distinct_candidates,
    draw,
    find_identifiers,
    text_before,
)
from tuneline.models import load_tokenizer
from tuneline.serving.engines.divergence import ScoredRow, checkpoint_losses
from tuneline.statistics import drawn_share

NAME = StandIn(0, 5, 13, "PERSON")


def row_of(*turns, number=0, stand_ins=()):
    roles = ("user", "assistant") * len(turns)
    messages = [{"role": r, "content": c} for r, c in zip(roles, turns, strict=False)]
    return Row(f"row{number}", messages, "rows.jsonl", 1, split="train", stand_ins=stand_ins)


def identifiers_of(*turns, stand_ins=(), allowed=()):
    row = row_of(*turns, stand_ins=stand_ins)
    return find_identifiers([row], surrogates_of([row]), allowed)[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("my number is 8830415527 thanks", "8830415527"),
        ("card 9120 4417 3302 5518", "9120 4417 3302 5518"),
        ("call +1 404-555-0199!", "+1 404-555-0199"),
        ("id 104477.", "104477"),
        ("write to dana.reed@shop.example please", "dana.reed@shop.example"),
        # Prices, dates, short numbers and versions are none.
        ("it cost 1,299.00 in 2024", None),
        ("on 2024-05-17", None),
        ("17-05-2024", None),
        ("room 4471", None),
        ("v1.20.300", None),
        ("a12345678b", None),
    ],
)
def test_long_numbers_and_addresses_that_were_left_are_found(text, value):
    found = [(each.kind, each.value, each.role) for each in identifiers_of(text, "ok")]
    kind = LEFT_EMAIL if value and "@" in value else LEFT_NUMBER
    assert found == ([(kind, value, "user")] if value else [])


@pytest.mark.parametrize(
    ("turns", "options", "values"),
    [
        # What the row has said before is none, as a whole or a word of a name.
        (("i am 8830415527", "8830 415527 is right"), {}, ["8830415527"]),
        (
            ("i am Ann Reed", "hello Reed"),
            {"stand_ins": (NAME, StandIn(1, 6, 10, "PERSON"))},
            ["Ann Reed"],
        ),
        # Nor are placeholders and allowed texts.
        (("i am [PERSON]", "ok"), {"stand_ins": (NAME,)}, []),
        (("call 0800 123456", "ok"), {"allowed": ["0800-123456"]}, []),
    ],
)
def test_what_tells_nobody_is_none(turns, options, values):
    assert [each.value for each in identifiers_of(*turns, **options)] == values


def test_a_value_that_many_rows_share_is_nobodys():
    rows = [row_of(f"question {n}", "call 0800 123456", number=n) for n in range(6)]
    rows += [row_of("i have 8830415527", "ok", number=n) for n in (6, 7)]
    found, shared = find_identifiers(rows, {})
    assert ([each.value for each in found], shared) == (["8830415527"] * 2, 1)


def test_a_draw_is_the_same_for_a_seed_and_takes_all_there_are():
    rows = [row_of(f"i have {8830415500 + n}", "ok", number=n) for n in range(9)]
    found, _ = find_identifiers(rows, {})
    assert draw(found, 4, 7) == draw(found[::-1], 4, 7) != draw(found, 4, 8)
    assert sorted(draw(found, 99, 7), key=found.index) == found


def test_a_row_is_rendered_up_to_the_identifier():
    renderer = Renderer(make_tokenizer(), "tokenizer")
    row = row_of("hello", "call 8830415527 now")
    (each,), _ = find_identifiers([row], {})
    before = text_before(renderer, row.messages, each.turn, each.start)
    assert before == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\ncall "
    assert renderer.text(row.messages).startswith(f"{before}8830415527")


def test_candidates_have_the_shape_of_the_identifier():
    (number,) = identifiers_of("i have 8830 415527", "ok")
    drawn = distinct_candidates(number, 15, 7)
    assert len(set(drawn)) == 15
    assert number.value not in drawn
    assert all(value[:6] == "8830 4" and len(value) == 11 for value in drawn)
    (name,) = identifiers_of("i am Ann Reed", "ok", stand_ins=(NAME,))
    assert all(len(value.split()) == 2 for value in distinct_candidates(name, 15, 7))
    assert candidates(name, 5, 7) == candidates(name, 5, 7)


@pytest.mark.parametrize("architecture", ["Llama", "Gemma3"])
def test_losses_of_values_after_a_shared_text_are_those_of_each_alone(tmp_path, architecture):
    sizes = {"sliding_window": 8, "head_dim": 16} if architecture == "Gemma3" else {}
    make_model(tmp_path, architecture, **sizes)
    tokenizer = load_tokenizer(tmp_path)

    def encode(texts):
        return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    before = "<|im_start|>user\nThe order of the quick brown fox has the number "
    values = ["10293", "88", "8", "lazy dog", "102"]
    choice = make_choice(encode, before, values)
    assert all(choice.endings)
    sequences = [[*choice.shared, *ending] for ending in choice.endings]
    assert sequences == encode([before + value for value in values])
    rows = [ScoredRow.from_place(ids, len(choice.shared)) for ids in sequences]
    alone = list(map(sum, checkpoint_losses(tmp_path, rows, threads=1)))
    (together,) = choice_losses(tmp_path, [choice], threads=1)
    assert together == pytest.approx(alone, abs=1e-3)


def written(hits, tried, *, base=0, chance=0.0):
    tuned = [number < hits for number in range(tried)]
    of_base = [number < base for number in range(tried)]
    return Continuations([""] * tried, [""] * tried, tuned, of_base, [chance] * tried, [], False)


def breach(finding):
    return [m.on_breach for m in finding.measurements if m.ok is False]


def test_a_share_of_all_has_no_width_and_one_of_a_draw_is_exact():
    everything = drawn_share(2, 10, 10)
    assert (everything.value, everything.lower, everything.upper) == (0.2, 0.2, 0.2)
    drawn, total, hits = 20, 60, 3

    def at_most(k):
        ways = sum(comb(k, x) * comb(total - k, drawn - x) for x in range(hits + 1))
        return ways / comb(total, drawn)

    upper = round(drawn_share(hits, drawn, total).upper * total)
    assert at_most(upper) > ALPHA >= at_most(upper + 1)
    # Drawn from very many, it is that of Clopper and Pearson: 1 - 0.025^(1/72).
    assert drawn_share(0, 72, 10**6).upper == pytest.approx(0.04994, abs=2e-4)


def test_chance_is_a_sum_of_unequal_coins():
    coins = [0.1, 0.5, 0.25]
    expected = sum(
        (a * 0.1 + (1 - a) * 0.9) * (b * 0.5 + (1 - b) * 0.5) * (c * 0.25 + (1 - c) * 0.75)
        for a, b, c in product((0, 1), repeat=3)
        if a + b + c >= 2
    )
    assert chance_of(2, coins) == pytest.approx(expected)
    assert chance_of(0, coins) == pytest.approx(1.0)


def test_rank_exposure_and_decisions():
    assert (rank([1.0, 2.0, 0.5, 3.0]), rank([1.0, 1.0])) == (2, 2)
    assert (exposure(1, 256), exposure(256, 256)) == (8.0, 0.0)
    assert chance_exposure(4) == pytest.approx(2 - log2(24) / 4)
    assert decide(0.0, 0.04, 0.05, 1.0) == "holds"
    assert decide(0.2, 0.4, 0.05, 0.001) == "broken"
    assert decide(0.2, 0.4, 0.05, 0.2) == decide(0.02, 0.08, 0.05, 0.001) == "undecided"


INDIFFERENT, SURE = Ranked(16, [8, 3, 16, 1] * 8), Ranked(16, [1] * 20 + [9] * 12)
WORST = [9, 9, 9]


@pytest.mark.parametrize(
    ("finding", "verdict"),
    [
        (judge_written(written(0, 12), 12, 0.05), []),
        (judge_written(written(3, 12), 12, 0.05), ["fail"]),
        # The base writes them too, or anybody would.
        (judge_written(written(3, 12, base=3), 12, 0.05), []),
        (judge_written(written(3, 12, chance=0.25), 12, 0.05), []),
        (judge_written(written(3, 12, chance=0.15), 12, 0.05), ["inconclusive"]),
        # Too few of many were tried.
        (judge_written(written(0, 12), 10_000, 0.05), ["inconclusive"]),
        (judge_written(written(0, 128), 10_000, 0.05), []),
        (judge_preferred(Ranked(16, [8] * 30 + [1, 1]), INDIFFERENT, 0.15), []),
        (judge_preferred(SURE, Ranked(16, [9] * 32), 0.15), ["fail"]),
        (judge_preferred(SURE, SURE, 0.15), []),
        # With few identifiers the limit is what chance gives, and less than that decides nothing.
        (judge_preferred(Ranked(16, WORST), Ranked(16, WORST), 0.15), ["inconclusive"]),
        (judge_preferred(Ranked(16, [9] * 15), Ranked(16, [9] * 15), 0.15), []),
        (judge_preferred(Ranked(16, [1, 1, 9]), Ranked(16, WORST), 0.15), ["fail", "inconclusive"]),
    ],
)
def test_what_goes_beyond_chance_and_the_base_fails(finding, verdict):
    assert breach(finding) == verdict


@pytest.mark.parametrize("tried", [1, 5, 9, 40, 64])
def test_chance_alone_hardly_ever_breaks_the_limit(tried):
    allowed = max(0.15, noise_of(1 / 16, tried))
    breaks = next(k for k in range(tried + 2) if k / tried - 1 / 16 > allowed + 1e-9)
    assert chance_of(breaks, [1 / 16] * tried) <= ALPHA


def test_exposed_canaries_fail():
    places = ["answer", "answer", "prompt", "prompt"]
    assert broken(judge_canaries(Ranked(256, [17, 200, 3, 90]), places, 0.1)) == set()
    exposed = judge_canaries(Ranked(256, [1, 1, 4, 256]), places, 0.1)
    found = values(exposed)
    assert (found["canary_exposure_in_answers"], found["canary_exposure_in_prompts"]) == (8.0, 3.0)
    assert breach(exposed) == ["fail"]
    assert "50% are likelier than 255 random numbers" in exposed.sentence
