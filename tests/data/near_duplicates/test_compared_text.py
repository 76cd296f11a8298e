from tuneline.data.near_duplicates.compared_text import Affixes, common_affixes

BEFORE = "Classify this message of a customer of the bank: "
AFTER = "\n\nAnswer with one word of the list above."
TEXTS = [
    f"{BEFORE}{word} it is{AFTER}" for word in "red blue green grey black pink gold teal".split()
]


def test_what_nearly_all_texts_share():
    affixes = common_affixes([*TEXTS, "something else"])
    assert affixes == Affixes(BEFORE, " it is" + AFTER)
    assert affixes.own(TEXTS[0]) == "red"
    assert affixes.own("something else") == "something else"


def test_a_text_that_is_all_boilerplate_stays():
    affixes = common_affixes(TEXTS)
    assert affixes.own(f"{BEFORE} it is{AFTER}") == f"{BEFORE} it is{AFTER}"


def test_chance_is_no_boilerplate():
    assert common_affixes(TEXTS[:4]) == Affixes()
    assert common_affixes([f"I would {w}" for w in "a b c d e f g h i j k".split()]) == Affixes()
    assert common_affixes([BEFORE] * 100) == Affixes()


def test_order_does_not_matter():
    assert common_affixes(TEXTS[::-1]) == common_affixes(TEXTS)
