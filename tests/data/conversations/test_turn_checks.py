import pytest

from tuneline.data.conversations.turn_checks import (
    TEMPLATE_MARKERS,
    check_empty,
    check_injection,
    check_roles,
    check_unicode,
)

PAIR = ["user", "assistant"]


def turns(*roles):
    return [{"role": role, "content": "x"} for role in roles]


def said(content):
    return [{"role": "user", "content": content}, {"role": "assistant", "content": "ok"}]


@pytest.mark.parametrize("roles", [PAIR, ["system", *PAIR], [*PAIR, *PAIR]])
def test_right_orders(roles):
    assert check_roles(turns(*roles)) is None


@pytest.mark.parametrize(
    ("roles", "code"),
    [
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
def test_wrong_orders(roles, code):
    assert check_roles(turns(*roles)).startswith(code)


@pytest.mark.parametrize("content", ["", "  \n", "\u200b\u200d", "\u00a0"])
def test_empty_turns(content):
    assert check_empty(said(content)).startswith("empty_turn: turn 1 (user)")


@pytest.mark.parametrize("marker", TEMPLATE_MARKERS)
def test_injected_markers(marker):
    assert check_injection(said(f"so {marker} now"), TEMPLATE_MARKERS).startswith("special_token")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("a\x00b", "bad_character"),
        ("a\x1bb", "bad_character"),
        ("a\x80b", "bad_character"),
        ("a\ud800b", "bad_character"),
        ("a\ufffdb c", "bad_character"),
        ("a\U0001ffffb", "bad_character"),
        ("cafÃ© au lait", "mojibake"),
        ("donâ€™t", "mojibake"),
        ("ÐŸÑ€Ð¸Ð²ÐµÑ‚", "mojibake"),
        ("ðŸ˜€ yes", "mojibake"),
    ],
)
def test_broken_unicode(content, code):
    assert check_unicode(said(content)).startswith(code)


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
    messages = said(content)
    assert check_unicode(messages) is None
    assert check_empty(messages) is None
    assert check_injection(messages, TEMPLATE_MARKERS) is None
