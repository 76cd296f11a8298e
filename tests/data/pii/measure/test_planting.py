"""Canaries look like the dataset that they are planted in, and share no list with the detector."""

import re
import subprocess
import sys
from collections import Counter
from random import Random

from tuneline.data.pii.measure import plants
from tuneline.data.pii.measure.leak_estimate import readable
from tuneline.data.pii.measure.planting import find_carriers, make_canaries, measure_register
from tuneline.data.pii.replace.scrubber import Scrubbed

ENGLISH = ["en"]


def turns(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


def chat_rows():
    rows = []
    for n in range(60):
        digits = f"{7_300_000_000 + n * 7919}"
        rows.append(
            turns(
                f"hi my order {n} is late can u help",
                "sure what is your phone number",
                digits if n % 3 else f"{digits[:3]} {digits[3:6]} {digits[6:]}",
                "and your name please",
                "one sec im looking",
                "ok thanks",
            )
        )
    return rows


def edited_rows():
    return [
        turns(
            f"Good morning. My parcel number {n} has not arrived, please help! It's late.",
            "We are sorry. We will look into it.",
        )
        for n in range(60)
    ]


def made(rows, entities, seed="1", per_kind=60):
    return make_canaries(rows, entities, ENGLISH, lambda _: per_kind, seed)


def planted(canary):
    return canary.messages[canary.probe.turn]["content"]


def test_every_kind_can_be_planted_in_every_form_and_is_readable_where_it_stands():
    canaries = made(chat_rows(), list(plants.KINDS))
    assert {canary.kind for canary in canaries} == set(plants.KINDS)
    assert {canary.form for canary in canaries} == set(plants.FORMS)
    assert all(readable(canary, Scrubbed(canary.messages)) for canary in canaries)
    for canary in canaries:
        assert plants.tokens_of(planted(canary))[canary.probe.number] in planted(canary).casefold()
        gone = [{**m, "content": "§"} for m in canary.messages]
        assert not readable(canary, Scrubbed(gone))


def test_the_same_seed_gives_the_same_canaries_and_another_gives_others():
    rows = chat_rows()
    first, second, other = (made(rows, ["CREDIT_CARD"], seed) for seed in ("1", "1", "2"))
    assert first == second
    values = {planted(canary) for canary in first} & {planted(canary) for canary in other}
    assert len(values) < 5


def test_canaries_take_the_register_of_the_dataset():
    lower = made(chat_rows(), ["PERSON", "STREET_ADDRESS"])
    assert [planted(c) for c in lower if planted(c) != planted(c).lower()] == []
    assert [planted(c) for c in lower if "," in planted(c)] == []
    edited = made(edited_rows(), ["PERSON"])
    capitals = sum(any(char.isupper() for char in planted(c)) for c in edited)
    assert capitals > 0.95 * len(edited)
    assert all(c.form != plants.SPLIT for c in edited), "one turn each"


def test_answers_follow_the_questions_of_the_dataset():
    canaries = made(chat_rows(), ["PHONE_NUMBER"])
    answers = [c for c in canaries if c.place == "answer"]
    assert len(answers) > 0.3 * len(canaries)
    questions = Counter(
        c.messages[c.probe.turn - 1]["content"] for c in answers if c.form == "bare"
    )
    assert questions.most_common(1)[0][0] == "sure what is your phone number"


def test_a_question_for_an_email_address_asks_for_no_street():
    rows = [turns("hi", "what is your email address?", f"no idea {n}", "ok") for n in range(10)]
    found = find_carriers(rows, ENGLISH, Random(1))
    assert len(found.answers["EMAIL_ADDRESS"]) == 10
    assert found.answers["STREET_ADDRESS"] == []


def test_the_register_counts_shapes():
    register = measure_register(chat_rows())
    assert register.lower == register.unmarked == register.multi_turn == 1
    assert register.bare > 0.8
    assert measure_register(edited_rows()).lower == 0
    # Broken addresses are measured.
    for mail, least, most in (("user{} (at) mail (dot) com", 0.7, 1), ("user{}@mail.com", 0, 0.1)):
        rows = [turns(f"write to {mail.format(n)}", "ok") for n in range(30)]
        assert least <= measure_register(rows).garbled <= most


def test_text_that_all_prompts_share_stays_whole():
    frame = "Classify the message of a customer of the shop: "
    rows = [turns(f"{frame}where is parcel {n * 77}", '{"intent": "x"}') for n in range(40)]
    canaries = made(rows, ["EMAIL_ADDRESS"])
    assert all(c.messages[0]["content"].startswith(frame) for c in canaries)


def test_only_chat_is_loose_and_its_ways_are_many():
    nouns = plants.phrases()["en"]["loose"]["nouns"]["PIN"]
    chat, edited = (
        [planted(c) for c in made(rows, ["PASSWORD"], per_kind=200) if c.kind == "PIN"]
        for rows in (chat_rows(), edited_rows())
    )
    assert sum(any(noun in text for noun in nouns) for text in chat) > 20
    assert not any(noun in text for text in edited for noun in nouns)
    ways = {re.sub(r"\d+", "#", text) for text in chat}
    assert len(ways) > 120


def test_names_are_of_many_countries_and_of_no_list():
    draw = Random(1)
    people = [
        plants.KINDS["PERSON"].draw(draw, plants.Register(), "en")[1].text for _ in range(300)
    ]
    assert len(set(people)) > 290
    code = (
        "import sys, tuneline.data.pii.measure.planting; "
        "sys.exit(any('.pii.find.patterns' in m or '.pii.find.detector' in m for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_long_turn_is_cut_and_its_frame_and_json_stay():
    frame = "Classify the message of a customer of the shop: "
    rows = [turns(f"{frame}{n}{' where is parcel' * 60} {n}", '{"intent": "x"}') for n in range(40)]
    canaries = made(rows, ["EMAIL_ADDRESS"])
    assert all(c.messages[0]["content"].startswith(frame) for c in canaries)
    assert max(len(c.messages[0]["content"]) for c in canaries) < 600


def test_languages_have_words_of_their_own():
    rows = [turns(f"wo ist mein paket nummer {n}", "ich sehe nach") for n in range(30)]
    assert plants.planted_groups(["PHONE_NUMBER", "CREDIT_CARD"], ["de"]) == [
        ("PHONE_NUMBER", "de"),
        ("CREDIT_CARD", "en"),
    ]
    assert plants.group_names(["PHONE_NUMBER", "PASSWORD"], ["en", "de"]) == [
        "PHONE_NUMBER",
        "PHONE_NUMBER.de",
        "PASSWORD",
        "PASSWORD.de",
        "PIN",
    ]
    canaries = make_canaries(rows, ["PHONE_NUMBER", "STREET_ADDRESS"], ["de"], lambda _: 40, "1")
    assert {canary.group for canary in canaries} == {"PHONE_NUMBER.de", "STREET_ADDRESS.de"}
    assert all(
        set(plants.phrases()[code]["kinds"]) <= set(plants.KINDS) for code in plants.phrases()
    )
    for code, entry in plants.phrases().items():
        assert all(
            plants.KINDS[kind].draw(Random(1), plants.Register(), code)[1].text
            for kind in entry["kinds"]
        )
