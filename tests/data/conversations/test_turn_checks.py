import pytest

from tuneline.data.conversations.turn_checks import TEMPLATE_MARKERS, check_turns

PAIR = ["user", "assistant"]


def said(content):
    return [{"role": "user", "content": content}, {"role": "assistant", "content": "ok"}]


@pytest.mark.parametrize(
    ("roles", "code"),
    [
        (PAIR, None),
        (["system", *PAIR], None),
        ([*PAIR, *PAIR], None),
        (["assistant", "user"], "role_order"),
        (["user", "system", "assistant"], "role_order"),
        (["user", "user", "assistant"], "role_order"),
        (["system"], "role_order"),
        (["user"], "no_answer"),
        ([*PAIR, "user"], "no_answer"),
        (["user", "tool"], "unknown_role"),
        (["system", "system", *PAIR], "role_order"),
    ],
)
def test_orders(roles, code):
    reason = check_turns([{"role": role, "content": "x"} for role in roles], TEMPLATE_MARKERS)
    assert (reason and reason.partition(":")[0]) == code


@pytest.mark.parametrize(
    ("content", "code"),
    [
        *((blank, "empty_turn: turn 1 (user)") for blank in ("", "  \n", "\u200b\u200d", "\u00a0")),
        *((f"so {marker} now", "special_token") for marker in TEMPLATE_MARKERS),
        *((f"a{bad}b", "bad_character") for bad in "\x00\x1b\x80\ud800\ufffd\U0001ffff"),
        ("cafÃ© au lait", "mojibake"),
        ("donâ€™t", "mojibake"),
        ("ÐŸÑ€Ð¸Ð²ÐµÑ‚", "mojibake"),
        ("ðŸ˜€ yes", "mojibake"),
    ],
)
def test_texts_that_can_not_be_trained_on(content, code):
    assert check_turns(said(content), TEMPLATE_MARKERS).startswith(code)


@pytest.mark.parametrize(
    "content",
    [
        "plain text, with\ttabs\nand lines",
        "café, naïve, Ærø, Übergröße, ÇA VA, São João, NÃO",
        "Привет, 你好, こんにちは, 🎉👩‍🚀, العربية, हिन्दी",
        "20 °C ± 1 — “quoted” … and l’été à 5 €",
        "Ça coûte 10 £ ou 12 €; « déjà vu »",
    ],
)
def test_ordinary_text_passes(content):
    assert check_turns(said(content), TEMPLATE_MARKERS) is None
